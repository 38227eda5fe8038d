//! A machine for a container runtime: this one's files, its own processes, mounts and devices, in a node's network.
//!
//! Runtimes want real places (`/etc/cni/net.d`, `/run/netns`, `/var/lib/cni`) and leave processes behind that outlive
//! them. Here every change to a file is kept in memory, and when the first process ends the kernel ends all others and
//! unmounts everything: nothing reaches the machine under the test, however the test ends.

use std::fs;
use std::io::Write;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use super::VIPROUTE;
use super::command::{Run, tool};
use super::netns::Netns;
use super::node::Node;
use super::root::Root;
use super::snapshot::{self, Snapshot};
use super::tempdir::TempDir;
use super::wait::{PATIENCE, until};

pub struct Machine {
    outside: Child,
    /// Its end is the machine's end.
    stdin: Option<ChildStdin>,
    root: Root,
    dir: TempDir,
}

/// Waits for the machine's end, then takes away the one thing that outlives its processes: empty cgroups.
const OUTSIDE: &str = r#"
unshare --mount --propagation private --pid --fork bash -c "$INSIDE"
for attempt in 1 2 3 4 5; do
    find /sys/fs/cgroup -depth -type d -path "*/$NAME*" -exec rmdir {} + 2>/dev/null && break
    sleep 0.1
done
"#;

/// Makes the machine, says which process is its first, and from then on runs each line it reads.
const INSIDE: &str = r#"
set -e
read -r init rest </proc/self/stat
mount -t tmpfs tmpfs "$DIR"
cd "$DIR"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs dev/shm
# Which devices /sys/class/net shows is settled by who mounts it.
mount -t sysfs sysfs sys
mount --rbind /sys/fs/cgroup sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
for part in run tmp var/lib var/log; do mount -t tmpfs tmpfs $part; done
for part in "$SOURCE" "$BINARIES"; do mkdir -p ".$part"; mount --bind "$part" ".$part"; done
mkdir -p mnt run/lock var/lib/dpkg
mount -o bind,ro /var/lib/dpkg var/lib/dpkg
rm -rf etc/cni
pivot_root . mnt
cd /
umount -l /mnt
echo "$init"
exec bash -c 'while read -r line; do eval "$line"; done'
"#;

impl Deref for Machine {
    type Target = Root;

    fn deref(&self) -> &Root {
        &self.root
    }
}

impl Machine {
    /// A machine in the network of `node`. It has no network configuration of its own yet.
    pub fn new(node: &Node) -> Self {
        let dir = TempDir::new();
        for needed in ["unshare", "pivot_root", "nsenter"] {
            tool(needed);
        }
        let mut command = node.ns.cmd("sh");
        command.args(["-c", OUTSIDE]).env("INSIDE", INSIDE).env("DIR", dir.path()).env("NAME", name(&dir));
        command.env("SOURCE", env!("CARGO_MANIFEST_DIR")).env("BINARIES", binaries()).env_remove("DESTDIR");
        let log = fs::File::create(dir.file("machine.log")).expect("a log file");
        let mut outside = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("can't start {command:?}: {error}"));
        let stdin = outside.stdin.take();
        let root = Root::of(&mut outside);
        let machine = Self { outside, stdin, root, dir };
        assert!(!machine.root.init.is_empty(), "no machine:\n{}", machine.read_outside("machine.log"));
        machine
    }

    /// A command that will run in the machine.
    pub fn cmd(&self, program: &str) -> Command {
        let mut command = Command::new(tool("nsenter"));
        command.args(["--target", &self.root.init, "--mount", "--net", "--pid", "--", program]).env_remove("DESTDIR");
        command
    }

    /// Runs a shell script in the machine, which must succeed.
    pub fn sh(&self, script: &str) -> String {
        self.cmd("sh")
            .args(["-euc", script])
            .env("BINARIES", binaries())
            .env("SOURCE", env!("CARGO_MANIFEST_DIR"))
            .finish("")
            .ok()
    }

    /// Starts a daemon: `command` is a line of shell. What it says goes to `/var/log/NAME.log`.
    pub fn start(&mut self, name: &str, command: &str) {
        let line = format!("{command} >>/var/log/{name}.log 2>&1 </dev/null & echo $! >/run/{name}.pid\n");
        let stdin = self.stdin.as_mut().expect("the machine runs");
        stdin.write_all(line.as_bytes()).expect("tell the machine to start a daemon");
    }

    /// SIGKILL.
    pub fn kill(&self, name: &str) {
        self.sh(&format!(
            "kill -KILL $(cat /run/{name}.pid); while kill -0 $(cat /run/{name}.pid) 2>/dev/null; do sleep 0.02; done"
        ));
    }

    /// `install.sh install`, and what its unit would start: viprouted, with a pool of VIPs.
    pub fn install(&mut self, cidr: &str) {
        self.install_with(&format!("backend = \"pool\"\n[pool]\ncidr = \"{cidr}\"\n"));
    }

    /// The same with this configuration of viprouted.
    pub fn install_with(&mut self, settings: &str) {
        self.sh("\"$SOURCE/install.sh\" install");
        self.write("/etc/viproute/viprouted.toml", settings);
        self.sh("mkdir -p /run/viproute");
        self.start_viprouted();
    }

    /// viprouted as install.sh has it configured, until it answers.
    pub fn start_viprouted(&mut self) {
        self.start("viprouted", "/usr/local/bin/viprouted --config /etc/viproute/viprouted.toml");
        until("viprouted answers", PATIENCE, || {
            let status = self.cmd("/usr/local/bin/viproutectl").arg("status").finish("");
            status.status.success().then_some(())
        });
    }

    /// A network namespace by its path in the machine.
    pub fn netns(&self, path: &str) -> Netns {
        // A link there, `/var/run` say, would lead back to this machine's.
        Netns::open(&self.path(&path.replace("/var/run/", "/run/")))
    }

    /// The cgroup to put containers under, so that it can be told whose they are.
    pub fn cgroup(&self) -> String {
        format!("/{}", name(&self.dir))
    }

    /// The network of `node`, where the machine is, and what base plugins, viproute and runtime keep in `/var/lib/cni`.
    pub fn snapshot(&self, node: &Node) -> Snapshot {
        // Which address it gave last is all host-local keeps of a removed pod.
        self.sh("rm -f /var/lib/cni/networks/*/last_reserved_ip.*");
        Snapshot::take(&[("node", &node.ns)], &self.path("/var/lib/cni"), &self.path("/sys/fs/bpf/viproute"))
    }

    /// How many attachments the registry has.
    pub fn attachments(&self) -> usize {
        let files = snapshot::files(&self.path("/var/lib/cni/viproute/attachments"));
        files.iter().filter(|file| file.contains(".json: ")).count()
    }

    fn read_outside(&self, file: &str) -> String {
        fs::read_to_string(self.dir.file(file)).unwrap_or_default()
    }
}

fn name(dir: &TempDir) -> String {
    dir.path().file_name().and_then(|name| name.to_str()).expect("a name").to_string()
}

/// Where the programs are that machines install: `VIPROUTE_PROGRAMS` says where else than cargo has put those of this build, such as what
/// packaging/build.sh has made.
pub fn binaries() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| match std::env::var_os("VIPROUTE_PROGRAMS") {
        Some(directory) => directory.into(),
        None => Path::new(VIPROUTE).parent().expect("a directory").to_owned(),
    })
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            snapshot::logs(&self.path("/var/log"));
        }
        self.stdin = None;
        let _ = self.outside.wait();
    }
}
