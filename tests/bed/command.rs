//! Running programs: found or named with their Debian package, never longer than [`LONG`].

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Once, mpsc};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::wait::{LONG, PATIENCE, scaled, until};

/// Each tool the tests run and the Debian package that brings it.
const PACKAGES: &[(&str, &str)] = &[
    ("bird", "bird2"),
    ("birdc", "bird2"),
    ("busybox", "busybox-static"),
    ("conmon", "conmon"),
    ("conntrack", "conntrack"),
    ("containerd", "containerd"),
    ("curl", "curl"),
    ("ctr", "containerd"),
    ("dash", "dash"),
    ("dhcpd", "isc-dhcp-server"),
    ("dnsmasq", "dnsmasq-base"),
    ("host-local", "containernetworking-plugins"),
    ("haproxy", "haproxy"),
    ("ip", "iproute2"),
    ("kea-dhcp4", "kea-dhcp4-server"),
    ("iptables", "iptables"),
    ("jq", "jq"),
    ("ldd", "libc-bin"),
    ("nc.openbsd", "netcat-openbsd"),
    ("nft", "nftables"),
    ("nginx", "nginx-light"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("pivot_root", "util-linux"),
    ("podman", "podman"),
    ("promtool", "prometheus"),
    ("ptp", "containernetworking-plugins"),
    ("qemu-aarch64-static", "qemu-user-static"),
    ("runc", "runc"),
    ("setpriv", "util-linux"),
    ("ss", "iproute2"),
    ("strace", "strace"),
    ("sysctl", "procps"),
    ("systemctl", "systemd"),
    ("systemd-analyze", "systemd"),
    ("systemd-nspawn", "systemd-container"),
    ("tc", "iproute2"),
    ("tcpdump", "tcpdump"),
    ("unshare", "util-linux"),
    ("vtysh", "frr"),
    ("wget", "wget"),
];

/// Where Debian puts the base CNI plugins, and where everybody else does.
pub const CNI_DIRS: &[&str] = &["/usr/lib/cni", "/opt/cni/bin"];

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut dirs = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/bin"]).chain(CNI_DIRS.iter().copied());
    dirs.by_ref().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

fn missing(name: &str) -> String {
    let package = PACKAGES.iter().find(|(tool, _)| *tool == name).map_or(name, |(_, package)| package);
    format!("{name} is missing: apt-get install {package}")
}

/// The tool's path; a missing one fails the test.
pub fn tool(name: &str) -> PathBuf {
    find(name).unwrap_or_else(|| panic!("{}", missing(name)))
}

/// What a command is started by: a path as it is, a name where it is found.
pub fn path_of(program: &Path) -> PathBuf {
    let found = || find(program.to_str()?);
    if program.components().count() > 1 { program.into() } else { found().unwrap_or_else(|| program.into()) }
}

/// A program of the project, as it was built: beside this program's directory (`deps`, `examples`), or in `BINARIES`.
pub fn program(name: &str) -> String {
    let built = || std::env::current_exe().ok()?.parent()?.parent().map(Path::to_path_buf);
    let dir = std::env::var_os("BINARIES").map(PathBuf::from).or_else(built).expect("a directory of programs");
    dir.join(name).to_str().expect("a path that is text").to_owned()
}

/// A base CNI plugin's path. Not by [`tool`]: iproute2 has a `bridge` of its own.
pub fn base_plugin(name: &str) -> String {
    try_base_plugin(name).unwrap_or_else(|error| panic!("{error}"))
}

/// The same where it may be missing.
pub fn try_base_plugin(name: &str) -> Result<String> {
    let found = CNI_DIRS.iter().map(|dir| format!("{dir}/{name}")).find(|path| Path::new(path).is_file());
    found.with_context(|| format!("the plugin {name} is missing: apt-get install containernetworking-plugins"))
}

/// Has memory that is freed go back to the kernel at once. The system call that starts a program (fork) copies the table of all pages this
/// one has, and the allocator keeps of some ten megabytes that a test had once as many for each thread.
pub fn give_memory_back() {
    const KEPT: libc::c_int = 128 << 10;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (option, value) in [(libc::M_TRIM_THRESHOLD, KEPT), (libc::M_MMAP_THRESHOLD, KEPT), (libc::M_ARENA_MAX, 2)]
        {
            // SAFETY: it sets a number of the allocator's, under its own lock.
            assert_eq!(unsafe { libc::mallopt(option, value) }, 1, "mallopt({option}, {value})");
        }
    });
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

/// A program that another thread is just starting has all files that are open here until it begins, and with them one that was written
/// here and is no longer: the kernel starts none that somebody could write to (`ETXTBSY`).
fn spawn_when_free(command: &mut Command) -> std::io::Result<Child> {
    until("nobody else has the program open", PATIENCE, || match command.spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => None,
        other => Some(other),
    })
}

pub trait Run {
    /// Runs it with `input` on stdin. A program that takes longer than [`LONG`] hangs: it is killed, and what it said so far is
    /// part of the error.
    fn try_finish(&mut self, input: &str) -> Result<Finished>;

    /// The same where neither a missing program nor one that hangs is expected.
    fn finish(&mut self, input: &str) -> Finished;

    /// Its stdout. Anything but success is an error that tells what it said.
    fn output_of(&mut self, input: &str) -> Result<String>;

    /// The kernel kills it when the thread that starts it ends, so that nothing outlives a test, even one that is killed.
    fn dies_with_us(&mut self) -> &mut Self;
}

impl Run for Command {
    fn try_finish(&mut self, input: &str) -> Result<Finished> {
        // A group of its own, so that a hanging program is killed with what it has started and its pipes close.
        self.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).dies_with_us().process_group(0);
        let mut child = spawn_when_free(self).with_context(|| {
            let name = self.get_program().to_string_lossy();
            if name.contains('/') { format!("can't start {self:?}") } else { missing(&name) }
        })?;
        let mut stdin = child.stdin.take().context("stdin is a pipe")?;
        let pid = Pid::from_raw(child.id().try_into()?);
        let (done, finished) = mpsc::channel::<()>();
        let (output, hung) = thread::scope(|scope| {
            // A program that doesn't read its input closes the pipe early; that is its right.
            scope.spawn(move || stdin.write_all(input.as_bytes()));
            let watchdog = scope.spawn(move || {
                let hung = finished.recv_timeout(scaled(LONG)) == Err(mpsc::RecvTimeoutError::Timeout);
                if hung {
                    let _ = killpg(pid, Signal::SIGKILL);
                }
                hung
            });
            let output = child.wait_with_output();
            drop(done);
            (output, watchdog.join())
        });
        let (output, text) = (output?, |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned());
        let finished = Finished { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) };
        ensure!(matches!(hung, Ok(false)), "{self:?} was killed after {:?}: {finished:?}", scaled(LONG));
        Ok(finished)
    }

    fn finish(&mut self, input: &str) -> Finished {
        self.try_finish(input).unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn output_of(&mut self, input: &str) -> Result<String> {
        let Finished { status, stdout, stderr } = self.try_finish(input)?;
        ensure!(status.success(), "{self:?}: {status}: {}{}", stdout.trim(), stderr.trim());
        Ok(stdout)
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
