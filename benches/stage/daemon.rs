//! Programs that run beside a measurement.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::command::until;

/// A running program; SIGKILL when dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; what it says goes to the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("can't write {}", log.display()))?;
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn();
        let child = child.with_context(|| format!("can't start {}", command.get_program().to_string_lossy()))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Waits until `ready`, unless it ends before that.
    pub fn ready(&mut self, what: &str, patience: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let ended = until(what, patience, || match self.child.try_wait() {
            Ok(None) => ready().then_some(None),
            Ok(Some(status)) => Some(Some(status)),
            Err(_) => None,
        });
        match ended {
            Ok(None) => Ok(()),
            Ok(Some(status)) => bail!("{what}: ended with {status}: {}", self.last_words()),
            Err(error) => Err(error.context(self.last_words())),
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), signal).context("signal a daemon")
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let ended = until("a daemon ends", Duration::from_secs(10), || self.child.try_wait().ok().flatten());
        ended.map(drop)
    }

    /// Processor time it has used so far, with all its threads, also those that have ended; seconds.
    pub fn cpu(&self) -> Result<f64> {
        let clock = clock_getcpuclockid(Pid::from_raw(self.pid().try_into()?)).context("its processor clock")?;
        Ok(Duration::from(clock_gettime(clock)?).as_secs_f64())
    }

    /// The most memory it ever had, bytes.
    pub fn peak_memory(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
    }

    fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
