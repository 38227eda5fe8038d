//! Network namespaces, by name (`ip netns`): the bench has a `/run` of its own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use viproute::net::Netns;

use super::command::Run;

/// A namespace; deleted when dropped.
pub struct Ns(String);

impl Ns {
    /// A new one with its loopback up.
    pub fn new(name: &str) -> Result<Self> {
        Command::new("ip").args(["netns", "add", name]).output_of("")?;
        let ns = Self(name.to_owned());
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Lines of `ip` commands, in one go.
    pub fn ip(&self, lines: &str) -> Result<String> {
        Command::new("ip").args(["-n", &self.0, "-batch", "-"]).output_of(lines)
    }

    /// A command that will run inside. Not by `ip netns exec`, which makes a mount namespace first: this costs nothing.
    pub fn cmd(&self, program: impl AsRef<Path>) -> Result<Command> {
        let file = File::open(self.path()).with_context(|| format!("namespace {}", self.0))?;
        let mut command = Command::new(program.as_ref());
        let enter = move || {
            // SAFETY: a system call on a descriptor that this closure owns.
            match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: setns is async-signal-safe, and nothing else is called between fork and exec.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Runs `work` inside, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        Netns::open(&self.path())?.run(work)?
    }

    /// Sets `net.<key>`, written with slashes.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(key);
        let failed = format!("set {}", path.display());
        #[allow(clippy::disallowed_methods)] // no file that anybody reads halfway
        self.run(move || Ok(std::fs::write(path, value)?)).context(failed)
    }

    /// The connections the kernel tracks here.
    pub fn tracked(&self) -> Result<u32> {
        // Absent where the module isn't loaded: then there are none.
        let path = "/proc/sys/net/netfilter/nf_conntrack_count";
        self.run(move || Ok(std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)))
    }

    /// Forgets them, so that the next measurement begins like the first.
    pub fn forget_tracked(&self) -> Result<()> {
        if self.tracked()? == 0 {
            return Ok(());
        }
        self.cmd("conntrack")?.arg("-F").output_of("").map(drop)
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output_of("");
    }
}
