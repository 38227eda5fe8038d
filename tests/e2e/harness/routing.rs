//! Routing daemons, each in a namespace: BIRD 2 and FRR with zebra, bgpd and bfdd.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Daemon, Finished, Netns, PATIENCE, Run, TempDir, tool};

/// BIRD 2.
pub struct Bird {
    _daemon: Daemon,
    dir: TempDir,
}

impl Bird {
    pub fn start(ns: &Netns, conf: &str) -> Self {
        let dir = TempDir::new();
        fs::write(dir.path().join("bird.conf"), conf).expect("write bird.conf");
        let mut command = ns.cmd(tool("bird"));
        command.args(["-f", "-c", &dir.file("bird.conf"), "-s", &dir.file("bird.ctl"), "-P", &dir.file("bird.pid")]);
        let mut daemon = Daemon::start("bird", &mut command, &dir);
        // The socket is there before the configuration is read.
        let answers = || birdc(&dir.file("bird.ctl"), "show status").stdout.contains("up and running");
        daemon.ready("BIRD answers", PATIENCE, answers).unwrap_or_else(|error| panic!("{error:#}"));
        Self { _daemon: daemon, dir }
    }

    /// Its control socket.
    pub fn socket(&self) -> String {
        self.dir.file("bird.ctl")
    }

    /// What it answers to a command.
    pub fn ask(&self, command: &str) -> String {
        birdc(&self.socket(), command).stdout
    }
}

fn birdc(socket: &str, command: &str) -> Finished {
    Command::new(tool("birdc")).args(["-s", socket, command]).finish("")
}

/// FRR: a configuration is given to zebra, bfdd and bgpd by vtysh, as its start does.
pub struct Frr {
    daemons: Vec<Daemon>,
    dir: TempDir,
}

impl Frr {
    pub fn start(ns: &Netns, conf: &str) -> Self {
        let dir = TempDir::new();
        let run = dir.path().join("run");
        fs::create_dir(&run).expect("a directory for FRR");
        // Its daemons run as a user of their own.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("open FRR's directory");
        let user = nix::unistd::User::from_name("frr").expect("read users").expect("the package frr makes a user");
        std::os::unix::fs::chown(&run, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("give it to FRR");
        for empty in ["empty.conf", "run/vtysh.conf"] {
            fs::write(dir.path().join(empty), "").expect("write a configuration");
        }
        fs::write(dir.path().join("frr.conf"), conf).expect("write frr.conf");
        let mut frr = Self { daemons: Vec::new(), dir };
        for name in ["zebra", "bfdd", "bgpd"] {
            frr.launch(ns, name, &run);
        }
        let said = frr.vtysh(&["-f", &frr.dir.file("frr.conf")]);
        // What a line is refused for goes to stdout, and the exit status is none of an error.
        let refused = said.stdout.contains('%') || said.stderr.contains('%') || said.stderr.contains("rror");
        assert!(said.status.success() && !refused, "FRR refuses its configuration: {said:?}");
        frr
    }

    fn launch(&mut self, ns: &Netns, name: &str, run: &Path) {
        let file = |name: &str| run.join(name).display().to_string();
        let mut command = ns.cmd(daemon_path(name));
        let (pid, conf) = (file(&format!("{name}.pid")), self.dir.file("empty.conf"));
        command.args(["-u", "frr", "-g", "frr", "-P", "0", "--log", "stdout", "-z", &file("zserv.api"), "-i", &pid]);
        command.args(["-f", &conf, "--vty_socket", &run.display().to_string()]);
        if name == "bfdd" {
            command.args(["--bfdctl", &file("bfdd.sock")]);
        }
        let mut daemon = Daemon::start(name, &mut command, &self.dir);
        let sockets = [run.join(format!("{name}.vty")), run.join("zserv.api")];
        let ready = daemon.ready(name, PATIENCE, || sockets.iter().all(|socket| socket.exists()));
        ready.unwrap_or_else(|error| panic!("{error:#}"));
        self.daemons.push(daemon);
    }

    /// The directory of its daemons' sockets.
    fn sockets(&self) -> String {
        self.dir.file("run")
    }

    /// The socket by which bgpd is asked.
    pub fn socket(&self) -> String {
        self.dir.file("run/bgpd.vty")
    }

    fn vtysh(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(tool("vtysh"));
        command.args(["--vty_socket", &self.sockets(), "--config_dir", &self.sockets()]).args(arguments).finish("")
    }

    /// What it answers to a command.
    pub fn ask(&self, command: &str) -> String {
        self.vtysh(&["-c", command]).ok()
    }
}

/// Debian keeps them out of every `PATH`.
fn daemon_path(name: &str) -> PathBuf {
    let path = Path::new("/usr/lib/frr").join(name);
    assert!(path.is_file(), "{} is missing: apt-get install frr", path.display());
    path
}
