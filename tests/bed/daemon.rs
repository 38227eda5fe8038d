//! Programs that run beside a test: started in a namespace, logged to a file, ended with the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::command::Run;
use super::tempdir::TempDir;
use super::wait::{SOON, try_until, until};

/// A running program; SIGKILL when dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; what it says goes to `<name>.log` in `dir`, after what an earlier run said.
    pub fn start(name: &str, command: &mut Command, dir: &TempDir) -> Self {
        Self::try_start(name, command, dir.path()).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The same where it may be missing.
    pub fn try_start(name: &str, command: &mut Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).context("open a log file")?;
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).dies_with_us().spawn();
        Ok(Self { child: child.with_context(|| format!("can't start {command:?}"))?, log })
    }

    /// Waits until `ready`, unless it ends before that.
    pub fn ready(&mut self, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let outcome = try_until(what, limit, || if self.ended() { Some(false) } else { ready().then_some(true) });
        ensure!(outcome.as_ref().is_ok_and(|ready| *ready), "{what}: {}:\n{}", self.fate(), self.log());
        Ok(())
    }

    fn fate(&mut self) -> String {
        self.child.try_wait().ok().flatten().map_or("in vain".into(), |status| format!("it ended, {status}"))
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).expect("read a daemon's log")).into_owned()
    }

    /// Whether it has ended by itself: then there is no use in waiting for it.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes it has in memory.
    pub fn memory(&self) -> u64 {
        self.memory_of("VmRSS:")
    }

    /// The most it ever had.
    pub fn peak_memory(&self) -> u64 {
        self.memory_of("VmHWM:")
    }

    fn memory_of(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a daemon's status");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a line of its memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Processor time it has used so far, with all its threads, also those that have ended.
    pub fn cpu_time(&self) -> Duration {
        let clock = clock_getcpuclockid(self.nix_pid()).expect("a daemon's processor clock");
        clock_gettime(clock).expect("its time").into()
    }

    fn nix_pid(&self) -> Pid {
        Pid::from_raw(self.pid().try_into().expect("a pid"))
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.nix_pid(), signal).expect("signal a daemon");
    }

    /// SIGSTOP; it has stopped when this returns. What it is sent meanwhile waits for it.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        until("a daemon's threads have stopped", SOON, || {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a daemon's threads");
            let state = |task: fs::DirEntry| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit(") ").next().and_then(|fields| fields.chars().next())
            };
            tasks
                .map(|task| state(task.expect("a thread")))
                .all(|state| matches!(state, Some('T') | None))
                .then_some(())
        });
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGTERM, and its exit status.
    pub fn stop(mut self) -> std::process::ExitStatus {
        self.signal(Signal::SIGTERM);
        self.child.wait().expect("wait for a daemon")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
