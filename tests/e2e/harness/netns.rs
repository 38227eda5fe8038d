//! Network namespaces without names: each is a file descriptor of the test process and vanishes with it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, id};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use super::command::{Run, tool};

pub struct Netns(OwnedFd);

impl Netns {
    /// A new namespace with its loopback up.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the end-to-end tests make network namespaces: run them as root");
        // On a thread of its own: the namespace a thread has unshared can't be left again safely.
        let made = thread::scope(|scope| {
            let maker = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("unshare(CLONE_NEWNET)");
                File::open("/proc/thread-self/ns/net").expect("open the new namespace")
            });
            maker.join().expect("the thread that makes a namespace")
        });
        let ns = Self(made.into());
        ns.ip("link set lo up");
        ns
    }

    /// A namespace that somebody else has made.
    pub fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        Self(file.into())
    }

    /// A path any process of root's can open while the test runs: what goes into `CNI_NETNS`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", id(), self.0.as_raw_fd())
    }

    /// Runs `work` inside. Sockets it makes stay in the namespace, and so do threads it starts.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let fd = self.0.as_raw_fd();
        let result = thread::scope(|scope| {
            let worker = scope.spawn(move || {
                enter(fd).expect("enter a network namespace");
                work()
            });
            worker.join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A command that will run inside.
    pub fn cmd(&self, program: &str) -> Command {
        let path = if program.contains('/') { program.into() } else { tool(program) };
        let (mut command, fd) = (Command::new(path), self.0.as_raw_fd());
        // SAFETY: setns is a plain system call, and the descriptor stays open for as long as `self` lives.
        unsafe {
            command.pre_exec(move || enter(fd));
        }
        command
    }

    /// `ip` with `arguments` (split at blanks), which must succeed.
    pub fn ip(&self, arguments: &str) -> String {
        let finished = self.cmd("ip").args(arguments.split_whitespace()).finish("");
        assert!(finished.status.success(), "ip {arguments}: {}{}", finished.stdout, finished.stderr);
        finished.stdout
    }

    /// `ip -j` with `arguments`: its list of objects. No such object is an empty list.
    pub fn ip_json(&self, arguments: &str) -> Vec<Value> {
        let finished = self.cmd("ip").arg("-j").args(arguments.split_whitespace()).finish("");
        match serde_json::from_str(&finished.stdout) {
            Ok(Value::Array(list)) => list,
            _ => Vec::new(),
        }
    }

    pub fn set_sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{key}");
        self.run(|| std::fs::write(&path, value)).unwrap_or_else(|error| panic!("write {value} to {path}: {error}"));
    }

    pub fn sysctl(&self, key: &str) -> String {
        self.run(|| std::fs::read_to_string(format!("/proc/sys/{key}"))).unwrap_or_default().trim().to_string()
    }
}

fn enter(fd: i32) -> std::io::Result<()> {
    // SAFETY: a system call on a descriptor that the caller keeps open.
    match unsafe { libc::setns(fd, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
