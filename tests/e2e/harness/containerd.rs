//! containerd on a machine of its own where viproute was installed: as Debian has it, or containerd 2.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use super::command::tool;
use super::cri::Cri;
use super::image::{self, IMAGE};
use super::machine::Machine;
use super::node::Node;
use super::pod::Pod;
use super::wait::{PATIENCE, until};

/// Debian's configuration (its first and third section), and what a test needs besides.
const CONFIG: &str = r#"
version = 2
oom_score = 0
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "IMAGE"
  # Without CAP_SYS_RESOURCE a process can't be given a lower score than its parent's; runc would fail.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  # An overlay can't lie on another one.
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"#;

/// Where viprouted takes VIPs from.
pub const POOL: &str = "10.118.0.0/16";

const START: &str = "containerd --config /etc/containerd/config.toml";

/// What tests/containerd2.sh has built, where a program is looked for first: containerd 2 and base plugins of its time.
const SECOND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/containerd2");

pub struct Containerd {
    pub machine: Machine,
    pub cri: Cri,
    /// Set in front of each command.
    path: &'static str,
    /// What `ctr images import` needs to leave the import to ctr itself, as the first version does.
    import: &'static str,
}

impl Containerd {
    /// On `node`: viproute by install.sh, viprouted with a pool, containerd.
    pub fn start(node: &Node) -> Self {
        let mut machine = Machine::new(node);
        machine.install(POOL);
        Self::first_on(machine)
    }

    /// The same with containerd 2 and this network, to which viproute is to belong.
    pub fn second(node: &Node, conflist: &str) -> Self {
        let mut machine = Machine::new(node);
        machine.install(POOL);
        machine.write("/etc/cni/net.d/10-viproute.conflist", conflist);
        Self::second_on(machine)
    }

    /// Debian's on a machine that has all else.
    pub fn first_on(machine: Machine) -> Self {
        Self::on(machine, "")
    }

    /// containerd 2 on a machine that has all else.
    pub fn second_on(machine: Machine) -> Self {
        assert!(Path::new(SECOND).join("version").is_file(), "{SECOND} is missing: run tests/containerd2.sh");
        machine.sh(&format!("for plugin in ptp loopback host-local; do ln -sfn {SECOND}/$plugin /usr/lib/cni/; done"));
        Self::on(machine, concat!("PATH=", env!("CARGO_MANIFEST_DIR"), "/target/containerd2:$PATH "))
    }

    /// On a machine with another program's network, and without viproute.
    pub fn with_network(node: &Node, conflist: &str) -> Self {
        let machine = Machine::new(node);
        machine.write("/etc/cni/net.d/10-theirs.conflist", conflist);
        Self::first_on(machine)
    }

    fn on(mut machine: Machine, path: &'static str) -> Self {
        let ours: &[&str] = if path.is_empty() { &["containerd", "ctr"] } else { &[] };
        for needed in ours.iter().chain(&["runc", "iptables"]) {
            tool(needed);
        }
        machine.write("/etc/containerd/config.toml", &CONFIG.replace("IMAGE", IMAGE));
        machine.start("containerd", &(path.to_owned() + START));
        let cri = Cri { socket: machine.path("/run/containerd/containerd.sock"), cgroup: machine.cgroup() };
        let import = if path.is_empty() { "" } else { "--local" };
        let containerd = Self { machine, cri, path, import };
        containerd.wait();
        let pause = containerd.machine.path("/root/pause.tar");
        image::write(&pause);
        containerd.import(&pause, IMAGE);
        containerd
    }

    fn wait(&self) {
        until("containerd answers", PATIENCE, || self.cri.answers().then_some(()));
    }

    /// Gives it an image, by an archive of this machine.
    pub fn import(&self, archive: &Path, name: &str) {
        fs::copy(archive, self.machine.path("/root/image.tar")).expect("copy an image");
        self.imported("/root/image.tar", name);
    }

    fn imported(&self, archive: &str, name: &str) {
        let ctr = format!("{}ctr -n k8s.io images", self.path);
        self.machine.sh(&format!("{ctr} import {} --snapshotter native {archive}", self.import));
        // The CRI learns of it by an event, and would otherwise ask a registry.
        let listed = || self.machine.sh(&format!("{ctr} ls -q 'labels.\"io.cri-containerd.image\"==managed'"));
        until("the CRI knows the image", PATIENCE, || listed().contains(name).then_some(()));
    }

    /// `kill -9`; the pods live on.
    pub fn kill(&self) {
        self.machine.kill("containerd");
    }

    pub fn start_again(&mut self) {
        self.machine.start("containerd", &(self.path.to_owned() + START));
        self.wait();
    }

    /// Runs a pod that names `vips`, or none.
    pub fn pod(&self, name: &str, vips: Option<&str>) -> Pod {
        let annotations: Vec<_> = vips.map(|vips| ("viproute.io/vip", vips)).into_iter().collect();
        let id = self.cri.run("shop", name, &annotations).unwrap_or_else(|error| panic!("run {name}: {error}"));
        let info = self.cri.info(&id);
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().expect("namespaces").clone();
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network").expect("a network namespace");
        let ns = self.machine.netns(network["path"].as_str().expect("its path"));
        Pod { ns, id, name: name.into(), base: Mutex::default(), result: Mutex::default() }
    }

    /// Stops and removes it, as the kubelet does.
    pub fn remove(&self, pod: &Pod) {
        self.cri.stop(&pod.id);
        self.cri.remove(&pod.id);
    }
}
