//! One call of a plugin, timed.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::Cycle;
use super::kinds::{Kind, Site};

/// A call that succeeded.
#[derive(Clone, Debug, Default)]
pub struct Timed {
    pub seconds: f64,
    /// The most memory the process itself ever had, bytes.
    pub memory: f64,
    pub stdout: String,
}

/// Runs a call to its end. The calling thread is in the node's namespace already: without anything to do between fork and exec
/// the process is started the quick way (vfork), as a runtime written in Go starts it.
pub fn time(command: &mut Command, stdin: &str) -> Result<Timed> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
    // Far less than a pipe holds.
    child.stdin.take().context("stdin is a pipe")?.write_all(stdin.as_bytes())?;
    let mut stdout = String::new();
    child.stdout.take().context("stdout is a pipe")?.read_to_string(&mut stdout)?;
    let (status, memory) = wait(child.id())?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{} failed: {}", command.get_program().to_string_lossy(), stdout.trim());
    }
    Ok(Timed { seconds, memory, stdout })
}

/// Waits for a child; its status and the most memory it ever had, bytes.
fn wait(pid: u32) -> Result<(ExitStatus, f64)> {
    let mut status = 0;
    // SAFETY: all zeroes is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = libc::pid_t::try_from(pid)?;
    // SAFETY: a child of ours that nobody else waits for; both results outlive the call.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    anyhow::ensure!(waited == pid, "wait4: {}", std::io::Error::last_os_error());
    Ok((ExitStatus::from_raw(status), usage.ru_maxrss as f64 * 1024.0))
}

/// The medians of cycles: ADD, CHECK, DEL in seconds, ADD's memory.
pub fn in_short(cycles: &mut [Cycle]) -> Vec<f64> {
    let mut median = |of: &dyn Fn(&Cycle) -> f64| {
        cycles.sort_by(|one, other| of(one).total_cmp(&of(other)));
        cycles.get(cycles.len() / 2).map_or(f64::NAN, of)
    };
    vec![
        median(&|cycle| cycle[0].seconds),
        median(&|cycle| cycle[1].seconds),
        median(&|cycle| cycle[2].seconds),
        median(&|cycle| cycle[0].memory),
    ]
}

/// How many system calls an ADD takes.
pub fn strace(site: &Site, kind: Kind) -> Result<f64> {
    let summary = site.world.file("strace");
    site.cycle_by(kind, &|command: Command, verb: &str| {
        if verb != "ADD" {
            return command;
        }
        let mut traced = Command::new("strace");
        traced.args(["-f", "-c", "-o"]).arg(&summary).arg(command.get_program());
        for (name, value) in command.get_envs() {
            traced.env(name, value.unwrap_or_default());
        }
        traced
    })?;
    let text = std::fs::read_to_string(&summary)?;
    // 100.00    0.001234           5       227        20 total
    let total = text.lines().find(|line| line.ends_with("total")).context("strace's summary")?;
    let numbers: Vec<f64> = total.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    numbers.get(3).copied().context("strace's total")
}
