//! One call of a plugin, timed.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::kinds::{Kind, Site};

/// A call that succeeded.
#[derive(Clone, Debug, Default)]
pub struct Timed {
    pub seconds: f64,
    pub stdout: String,
}

/// ADD, CHECK and DEL of one pod, seconds.
#[derive(Clone, Debug)]
pub struct Cycle {
    pub add: f64,
    /// Or what it said.
    pub check: std::result::Result<f64, String>,
    pub del: f64,
}

impl Cycle {
    pub fn check(&self) -> Result<f64> {
        self.check.clone().map_err(anyhow::Error::msg)
    }
}

/// The median of one of a cycle's numbers.
pub fn median(cycles: &[Cycle], of: impl Fn(&Cycle) -> Result<f64>) -> Result<f64> {
    let mut numbers = cycles.iter().map(of).collect::<Result<Vec<f64>>>()?;
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().context("no cycle")
}

/// Runs a call to its end. The calling thread is in the node's namespace already: without anything to do between fork and exec
/// the process is started the quick way (vfork), as a runtime written in Go starts it.
pub fn time(command: &mut Command, stdin: &str) -> Result<Timed> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
    // Far less than a pipe holds.
    child.stdin.take().context("stdin is a pipe")?.write_all(stdin.as_bytes())?;
    let mut stdout = String::new();
    child.stdout.take().context("stdout is a pipe")?.read_to_string(&mut stdout)?;
    let status = child.wait()?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!(
            "{} failed: {}",
            command.get_program().display(),
            stdout.split_whitespace().collect::<Vec<_>>().join(" ")
        );
    }
    Ok(Timed { seconds, stdout })
}

/// How many system calls an ADD takes.
pub fn system_calls(site: &Site, kind: Kind) -> Result<f64> {
    let text = watched(site, kind, &["strace", "-f", "-c", "-o"])?;
    // 100.00    0.001234           5       227        20 total
    let total = text.lines().find(|line| line.ends_with("total")).context("strace's summary")?;
    let numbers: Vec<f64> = total.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    numbers.get(3).copied().context("strace's total")
}

/// The most memory an ADD has, bytes. By a small program between: what the parent has when it starts a process counts as the
/// process's own.
pub fn memory(site: &Site, kind: Kind) -> Result<f64> {
    Ok(watched(site, kind, &["time", "-f", "%M", "-o"])?.trim().parse::<f64>()? * 1024.0)
}

/// What `watcher` writes to the file it is given about an ADD it runs.
fn watched(site: &Site, kind: Kind, watcher: &[&str]) -> Result<String> {
    let file = site.world.file("watched");
    site.cycle_by(kind, &|command: Command, verb: &str| {
        if verb != "ADD" {
            return command;
        }
        let mut by = Command::new(watcher[0]);
        by.args(&watcher[1..]).arg(&file).arg(command.get_program());
        by.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        by
    })?;
    Ok(std::fs::read_to_string(&file)?)
}
