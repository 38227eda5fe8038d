//! Running programs: found or named with their Debian package, never longer than a minute.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A program that takes longer hangs; it is killed, and what it said so far is part of the failure.
const LIMIT: Duration = Duration::from_secs(60);

/// Each tool the tests run and the Debian package that brings it.
const PACKAGES: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("conmon", "conmon"),
    ("conntrack", "conntrack"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("dhcpd", "isc-dhcp-server"),
    ("dnsmasq", "dnsmasq-base"),
    ("host-local", "containernetworking-plugins"),
    ("ip", "iproute2"),
    ("kea-dhcp4", "kea-dhcp4-server"),
    ("iptables", "iptables"),
    ("jq", "jq"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("pivot_root", "util-linux"),
    ("podman", "podman"),
    ("promtool", "prometheus"),
    ("ptp", "containernetworking-plugins"),
    ("runc", "runc"),
    ("setpriv", "util-linux"),
    ("ss", "iproute2"),
    ("strace", "strace"),
    ("sysctl", "procps"),
    ("systemctl", "systemd"),
    ("systemd-analyze", "systemd"),
    ("tc", "iproute2"),
    ("tcpdump", "tcpdump"),
    ("unshare", "util-linux"),
];

/// Where Debian puts the base CNI plugins, and where everybody else does.
pub const CNI_DIRS: &[&str] = &["/usr/lib/cni", "/opt/cni/bin"];

/// The tool's path; a missing one fails the test.
pub fn tool(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/bin"]).chain(CNI_DIRS.iter().copied());
    let found = dirs.map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        let package = PACKAGES.iter().find(|(tool, _)| *tool == name).map_or(name, |(_, package)| package);
        panic!("{name} is missing: apt-get install {package}")
    })
}

/// A base CNI plugin's path. Not by [`tool`]: iproute2 has a `bridge` of its own.
pub fn base_plugin(name: &str) -> String {
    let found = CNI_DIRS.iter().map(|dir| format!("{dir}/{name}")).find(|path| Path::new(path).is_file());
    found.unwrap_or_else(|| panic!("the plugin {name} is missing: apt-get install containernetworking-plugins"))
}

/// What a program did.
#[derive(Debug, Clone)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Its stdout; anything but success fails the test.
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{}\n{}{}", self.status, self.stdout, self.stderr);
        self.stdout
    }
}

pub trait Run {
    /// Runs it with `input` on stdin, to its end or to [`LIMIT`]'s.
    fn finish(&mut self, input: &str) -> Finished;

    /// The kernel kills it when the thread that starts it ends, so that nothing outlives a test, even one that is killed.
    fn dies_with_us(&mut self) -> &mut Self;
}

impl Run for Command {
    fn finish(&mut self, input: &str) -> Finished {
        // A group of its own, so that a hanging program is killed with what it has started and its pipes close.
        self.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).dies_with_us().process_group(0);
        let mut child = self.spawn().unwrap_or_else(|error| panic!("can't start {self:?}: {error}"));
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        let pid = Pid::from_raw(child.id().try_into().expect("a pid"));
        let (done, finished) = mpsc::channel::<()>();
        let (output, hung) = thread::scope(|scope| {
            // A program that doesn't read its input closes the pipe early; that is its right.
            scope.spawn(move || stdin.write_all(input.as_bytes()));
            let watchdog = scope.spawn(move || {
                let hung = finished.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout);
                if hung {
                    let _ = killpg(pid, Signal::SIGKILL);
                }
                hung
            });
            let output = child.wait_with_output().expect("wait for a child");
            drop(done);
            (output, watchdog.join().expect("the watchdog"))
        });
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let finished = Finished { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!hung, "{self:?} was killed after {LIMIT:?}: {finished:?}");
        finished
    }

    fn dies_with_us(&mut self) -> &mut Self {
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent's memory.
        unsafe {
            self.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            })
        }
    }
}
