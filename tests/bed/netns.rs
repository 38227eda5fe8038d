//! Network namespaces without names: each is a file descriptor of the test process and vanishes with it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, id};
use std::thread;

use anyhow::Result;
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use super::command::{Finished, Run, give_memory_back, path_of};
use super::wait::{PATIENCE, until};

pub struct Netns(OwnedFd);

impl Netns {
    /// A new namespace with its loopback up.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the end-to-end tests make network namespaces: run them as root");
        give_memory_back();
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

    /// A namespace that another program has made.
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

    /// The same of what may fail.
    pub fn try_run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.run(work)
    }

    /// A command that will run inside.
    pub fn cmd(&self, program: impl AsRef<Path>) -> Command {
        let (mut command, fd) = (Command::new(path_of(program.as_ref())), self.0.as_raw_fd());
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

    /// Lines of `ip` commands, in one go.
    pub fn ip_lines(&self, lines: &str) -> Result<String> {
        self.cmd("ip").args(["-batch", "-"]).output_of(lines)
    }

    /// `ip -j` with `arguments`, which must succeed: its list of objects. A table without a route is one that the kernel
    /// doesn't have.
    pub fn ip_json(&self, arguments: &str) -> Vec<Value> {
        let finished = whole(|| self.cmd("ip").arg("-j").args(arguments.split_whitespace()).finish(""));
        if finished.stderr.contains("FIB table does not exist") {
            return Vec::new();
        }
        lists(&format!("ip -j {arguments}"), &finished).concat()
    }

    /// The Ethernet address of a device.
    pub fn mac(&self, device: &str) -> String {
        self.ip_json(&format!("link show {device}"))[0]["address"].as_str().expect("a MAC").to_owned()
    }

    /// What it knows of a neighbour on `eth0`: the Ethernet address, and how far that is to be trusted.
    pub fn neighbour(&self, address: impl std::fmt::Display) -> Option<(String, String)> {
        let entries = self.ip_json(&format!("neigh show {address} dev eth0"));
        let entry = entries.first()?;
        Some((entry["lladdr"].as_str()?.to_owned(), entry["state"][0].as_str()?.to_owned()))
    }

    /// The lists of objects that `program` (`ip` or `tc`) shows for each of `views`, in one go; `None`: a device that one of
    /// them names isn't there.
    pub fn batch(&self, program: &str, options: &[&str], views: &[String]) -> Option<Vec<Vec<Value>>> {
        let lines = views.join("\n") + "\n";
        let finished = whole(|| self.cmd(program).args(options).args(["-batch", "-"]).finish(&lines));
        if finished.stderr.contains("Cannot find device") {
            return None;
        }
        let lists = lists(&format!("{program} {views:?}"), &finished);
        assert_eq!(lists.len(), views.len(), "{program} {views:?}: {finished:?}");
        Some(lists)
    }

    pub fn has_device(&self, name: &str) -> bool {
        self.ip_json("link").iter().any(|link| link["ifname"] == name)
    }

    pub fn set_sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{key}");
        self.run(|| std::fs::write(&path, value)).unwrap_or_else(|error| panic!("write {value} to {path}: {error}"));
    }

    pub fn sysctl(&self, key: &str) -> String {
        self.sysctls(&[key.to_owned()]).remove(0).unwrap_or_else(|| panic!("there is no setting {key}"))
    }

    /// A counter of `/proc/net/snmp`: `counter("Ip", "FragCreates")`.
    pub fn counter(&self, protocol: &str, name: &str) -> u64 {
        let text = self.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).expect("the kernel's counters");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(": "));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let found = names.split(' ').zip(values.split(' ')).find(|(found, _)| *found == name);
        found
            .and_then(|(_, value)| value.parse().ok())
            .unwrap_or_else(|| panic!("there is no counter {protocol} {name}"))
    }

    /// The values of settings; `None`: there is no such device.
    pub fn sysctls(&self, keys: &[String]) -> Vec<Option<String>> {
        let read = |key: &String| match std::fs::read_to_string(format!("/proc/sys/{key}")) {
            Ok(value) => Some(value.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => panic!("read {key}: {error}"),
        };
        self.run(|| keys.iter().map(read).collect())
    }
}

/// A table that changes while it is read may be shown without what was in it all the time (`NLM_F_DUMP_INTR`), and `ip` only
/// says so: it is read again.
fn whole(read: impl Fn() -> Finished) -> Finished {
    until("a table that doesn't change while it is read", PATIENCE, || {
        Some(read()).filter(|finished| !finished.stderr.contains("Dump was interrupted"))
    })
}

/// What `ip -j` and `tc -j` print: a list for each command.
fn lists(command: &str, finished: &Finished) -> Vec<Vec<Value>> {
    assert!(finished.status.success(), "{command}: {finished:?}");
    let lists = serde_json::Deserializer::from_str(&finished.stdout).into_iter::<Vec<Value>>();
    lists.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{command}: {error}: {finished:?}"))
}

fn enter(fd: i32) -> std::io::Result<()> {
    // SAFETY: a system call on a descriptor that the caller keeps open.
    match unsafe { libc::setns(fd, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
