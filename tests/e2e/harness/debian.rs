//! A bare Debian 12 with systemd at work, in a node's network: what tests/debian.sh has made, each change to it kept in memory.
//!
//! Unlike a [`super::Machine`] it has nothing that Debian doesn't install by itself; units run in their own sandboxes, and apt-get installs from
//! the packages that were fetched beforehand.

use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::command::{Run, tool};
use super::netns::Netns;
use super::node::Node;
use super::root::Root;
use super::tempdir::TempDir;
use super::wait::{LONG, until};

const TREE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/debian12");

pub struct Debian {
    outside: Child,
    /// Its end is the machine's end.
    stdin: Option<ChildStdin>,
    root: Root,
    dir: TempDir,
}

/// Boots it, says which process is its first, and ends it when this script's input ends. In a mount namespace of its own: cgroups are those of
/// version 2, of which the machine has a folder, and /sys is the network's.
const OUTSIDE: &str = r#"
set -e
mount -t tmpfs tmpfs "$DIR"
mkdir "$DIR/upper" "$DIR/work" "$DIR/root"
mount -t overlay overlay -o "lowerdir=$TREE,upperdir=$DIR/upper,workdir=$DIR/work" "$DIR/root"
mount -t tmpfs tmpfs /run
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$NAME"
echo $$ >"/sys/fs/cgroup/$NAME/cgroup.procs"
export SYSTEMD_SECCOMP=0 SYSTEMD_NSPAWN_API_VFS_WRITABLE=1
systemd-nspawn --quiet --register=no --keep-unit --capability=all --network-namespace-path=/proc/self/ns/net --machine="$NAME" \
    --console=pipe --directory="$DIR/root" --boot >"$LOG" 2>&1 </dev/null &
spawner=$!
first() {
    for child in $(cat /proc/$spawner/task/$spawner/children); do
        [ "$(cat /proc/$child/comm)" != systemd ] || echo "$child"
    done
}
while [ -z "${init:-}" ] && [ -e /proc/$spawner ]; do init=$(first 2>/dev/null); sleep 0.02; done
echo "$init"
cat >/dev/null
kill -KILL $init
wait $spawner || true
echo $$ >/sys/fs/cgroup/cgroup.procs
for attempt in 1 2 3 4 5; do
    find "/sys/fs/cgroup/$NAME" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.1
done
"#;

/// apt-get asks nobody, and takes what was fetched: what is only recommended wasn't. A service that is installed is started, as on any machine.
const APT: &str = "APT::Get::Assume-Yes \"true\";\nAPT::Install-Recommends \"false\";\n";

impl Deref for Debian {
    type Target = Root;

    fn deref(&self) -> &Root {
        &self.root
    }
}

impl Debian {
    /// Booted: systemd says so.
    pub fn boot(node: &Node) -> Self {
        assert!(Path::new(TREE).join("made").is_file(), "{TREE} is missing: run tests/debian.sh");
        tool("systemd-nspawn");
        let dir = TempDir::new();
        let log = dir.path().with_extension("boot.log");
        let mut command = node.ns.cmd("unshare");
        command.args(["--mount", "--propagation", "private", "bash", "-c", OUTSIDE]).env("DIR", dir.path());
        command.env("TREE", TREE).env("LOG", &log).env("NAME", dir.path().file_name().expect("a name"));
        let mut outside = command
            .env_remove("DESTDIR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("can't start {command:?}: {error}"));
        let stdin = outside.stdin.take();
        let root = Root::of(&mut outside);
        let said = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(&log);
        let machine = Self { outside, stdin, root, dir };
        assert!(!machine.root.init.is_empty(), "no machine:\n{said}");
        until("systemd has booted", LONG, || {
            let state = machine.cmd("systemctl").arg("is-system-running").finish("").stdout;
            ["running", "degraded"].contains(&state.trim()).then_some(())
        });
        // nspawn's own boot_id lies over the kernel's where a unit has no /proc of its own: two boots for one machine.
        machine.sh("umount /proc/sys/kernel/random/boot_id");
        machine.sh("mkdir -p /sys/fs/bpf && mount -t bpf bpf /sys/fs/bpf && mount --make-shared /sys/fs/bpf");
        machine.write("/etc/apt/apt.conf.d/90test", APT);
        machine
    }

    /// A file of this machine's, to a path there.
    pub fn copy(&self, from: &Path, to: &str) {
        fs::copy(from, self.path(to)).unwrap_or_else(|error| panic!("copy {} to {to}: {error}", from.display()));
    }

    /// A command that will run in the machine, with root's environment there.
    pub fn cmd(&self, program: &str) -> Command {
        let mut command = Command::new(tool("nsenter"));
        command.args(["--target", &self.root.init, "--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup"]);
        command.args([
            "--",
            "env",
            "--chdir=/root",
            "-i",
            "HOME=/root",
            "LANG=C.UTF-8",
            "DEBIAN_FRONTEND=noninteractive",
        ]);
        command.args(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", program]);
        command
    }

    /// Runs a script in the machine, which must succeed.
    pub fn sh(&self, script: &str) -> String {
        self.cmd("bash").args(["-euc", script]).finish("").ok()
    }

    /// The network namespace of a process there, by its number there.
    pub fn netns_of(&self, process: u32) -> Netns {
        Netns::open(&self.path(&format!("/proc/{process}/ns/net")))
    }

    /// Everything on its disk but what apt-get, dpkg and the journal note of each call.
    pub fn tree(&self) -> Vec<String> {
        let script = "find / -xdev ! -path '/var/lib/dpkg/*' ! -path '/var/log/*' ! -path '/var/cache/*' ! -path '/root/*' \
                      ! -path '/tmp/*' ! -path '/var/tmp/*' ! -path '/var/lib/systemd/*' -printf '%p %y %m %l\\n'";
        let mut lines: Vec<_> = self.sh(script).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn journal(&self) -> String {
        self.cmd("journalctl").args(["--no-pager", "--lines=60"]).finish("").stdout
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the journal of {}:\n{}", self.dir.path().display(), self.journal());
        }
        self.stdin = None;
        let _ = self.outside.wait();
    }
}
