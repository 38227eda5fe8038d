//! Benchmarks: a VIP beside what a user would pick instead.
//!
//! ```text
//! bench [--quick] [--only NAME,…] [--docs DIRECTORY]
//! ```
//! Writes `benchmarks.md` and its pictures to the directory (`docs`), and every number to `target/benchmarks.json`. Run by
//! `./install.sh bench`, which starts it in namespaces of its own; whatever ends it, nothing of it is left.
//!
//! - `stage/`: nodes with pods and a client, on the bed that the tests have (`tests/bed/`);
//! - `load/`: servers and clients;
//! - `contenders/`: one file a way to a pod;
//! - `measure/`: one file a measurement;
//! - `results/`: rounds, statistics, tables, report, goals.

// Measured numbers are no bank accounts.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
#![allow(missing_docs)] // a program: its items are for its own files
#![allow(clippy::doc_markdown)] // HAProxy, nginx and kube-proxy are people's names

mod contenders;
mod load;
mod measure;
mod results;
mod stage;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::measure::Scale;
use crate::results::{Chapter, Report};
use crate::stage::Run;

const USAGE: &str = "usage: bench [--quick] [--only NAME,…] [--docs DIRECTORY]";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    scale: Scale,
    /// Measurements by name; empty: all.
    only: Vec<String>,
    docs: PathBuf,
    /// As they were given.
    text: String,
}

impl Arguments {
    fn parse(arguments: &[String]) -> Result<Self> {
        let text = arguments.join(" ");
        let mut parsed = Self { scale: Scale::full(), only: Vec::new(), docs: "docs".into(), text };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().context(USAGE);
            match argument.as_str() {
                "--quick" => parsed.scale = Scale::quick(),
                "--only" => parsed.only = value()?.split(',').map(str::to_owned).collect(),
                "--docs" => parsed.docs = value()?.into(),
                _ => bail!("{argument}: not understood\n{USAGE}"),
            }
        }
        let known = |name: &&String| measure::ALL.iter().any(|(known, _)| known == name);
        if let Some(unknown) = parsed.only.iter().find(|name| !known(name)) {
            let names: Vec<_> = measure::ALL.iter().map(|(name, _)| *name).collect();
            bail!("--only {unknown}: not one of {}", names.join(", "));
        }
        Ok(parsed)
    }
}

fn run() -> Result<()> {
    let Arguments { scale, only, docs, text } = Arguments::parse(&std::env::args().skip(1).collect::<Vec<_>>())?;
    let docs = std::path::absolute(docs)?;
    own_machine()?;
    let start = Instant::now();
    let mut report = Report::new(format!("./install.sh bench {text}").trim().to_owned(), (scale.quick, scale.rounds));
    for (name, measure) in measure::ALL {
        if !only.is_empty() && !only.iter().any(|chosen| chosen == name) {
            continue;
        }
        eprintln!("{:>5.0} s  {name}", start.elapsed().as_secs_f64());
        report.chapters.push(measure(&scale).unwrap_or_else(|error| {
            eprintln!("         {error:#}");
            Chapter { title: name.into(), text: format!("Could not be measured: {error:#}"), tables: Vec::new() }
        }));
        // After each: what was measured isn't lost with what comes.
        report.write(&docs, start.elapsed().as_secs_f64())?;
    }
    eprintln!("{:>5.0} s  {} is written", start.elapsed().as_secs_f64(), docs.join("benchmarks.md").display());
    Ok(())
}

/// A `/run` of our own, where `TMPDIR` is too: what is named there goes with this mount.
fn own_machine() -> Result<()> {
    let outside = Path::new("/proc/1/ns/mnt").read_link()? != Path::new("/proc/self/ns/mnt").read_link()?;
    if outside || std::process::id() != 1 {
        bail!("this changes mounts and networks: run it by ./install.sh bench, in namespaces of its own");
    }
    let mount = |arguments: &[&str]| Command::new("mount").args(arguments).output_of("").map(drop);
    mount(&["--make-rprivate", "/"])?;
    mount(&["-t", "tmpfs", "bench", "/run"])
}
