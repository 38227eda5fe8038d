//! Programs that run beside a test: started in a namespace, logged to a file, gone with the test.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::command::Run;
use super::tempdir::TempDir;

pub struct Daemon {
    child: Child,
    log: String,
}

impl Daemon {
    /// Starts `command`; what it says goes to `<name>.log` in `dir`, after what an earlier run said.
    pub fn start(name: &str, command: &mut Command, dir: &TempDir) -> Self {
        let log = dir.file(&format!("{name}.log"));
        let open = || File::options().create(true).append(true).open(&log).expect("open a log file");
        let child = command.stdin(Stdio::null()).stdout(open()).stderr(open()).dies_with_us().spawn();
        let child = child.unwrap_or_else(|error| panic!("can't start {command:?}: {error}"));
        Self { child, log }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has ended by itself: then there is no use in waiting for it.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Bytes it has in memory.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a daemon's status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.split_whitespace().next().and_then(|text| text.parse::<u64>().ok()).expect("a number") * 1024
    }

    /// What it has taken of processors so far, in steps of 10 ms (`/proc/PID/stat`, fields 14 and 15).
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("a daemon's times");
        let fields = stat.rsplit(") ").next().expect("fields after the name").split(' ').skip(11).take(2);
        Duration::from_millis(fields.map(|ticks| ticks.parse::<u64>().expect("a number") * 10).sum())
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a pid"));
        kill(pid, signal).expect("signal a daemon");
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
