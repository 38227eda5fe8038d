//! Under podman with its CNI backend, on the network of `conf/podman-web.conflist`.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use crate::harness::{Lan, Machine, Netns, Node, PATIENCE, Pod, Run, VIPROUTE, connect, share, tool, until};

/// Debian's podman prefers netavark where it is installed; the rest is for machines with less than all capabilities, or with
/// cgroups of both versions.
pub const CONTAINERS: &str = r#"
[network]
network_backend = "cni"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[containers]
cgroupns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
"#;

pub const STORAGE: &str = r#"
[storage]
driver = "vfs"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
"#;

/// A root for containers: this machine's programs and libraries, mounted there, and nothing else.
const ROOT: &str = "
mkdir -p /srv/root/usr /srv/root/proc /srv/root/sys /srv/root/dev /srv/root/etc /srv/root/tmp /srv/root/run
cp -P /lib* /srv/root/
touch /srv/root/peer
cp \"$SOURCE/conf/podman-web.conflist\" /etc/cni/net.d/
";

/// A node that has podman, and a client on its LAN that routes to the VIPs through it.
struct Scene {
    machine: Machine,
    client: Netns,
    node: Node,
    _lan: Lan,
}

impl Scene {
    fn new() -> Self {
        for needed in ["podman", "conmon", "runc", "iptables"] {
            tool(needed);
        }
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let mut machine = Machine::new(&node);
        machine.install("10.118.0.0/16");
        machine.write("/etc/containers/containers.conf", CONTAINERS);
        machine.write("/etc/containers/storage.conf", STORAGE);
        machine.sh(ROOT);
        let scene = Self { machine, client, node, _lan: lan };
        // What is made once and stays (the bridge, directories, the plugins' sysctls) is none of any container's.
        scene.run("first");
        scene.podman(&["rm", "--force", "--time", "0", "first"]);
        scene
    }

    fn podman(&self, arguments: &[&str]) -> String {
        let mut podman: Command = self.machine.cmd("podman");
        podman.args(arguments).finish("").ok()
    }

    /// A container with a server in it, named as the container.
    fn run(&self, name: &str) -> Pod {
        let peer = Path::new(VIPROUTE).with_file_name("examples").join("peer");
        assert!(peer.exists(), "{} is missing: plain `cargo test` builds it", peer.display());
        let (peer, cgroup) = (format!("{}:/peer:ro", peer.display()), self.machine.cgroup());
        let mut arguments = vec!["run", "--detach", "--name", name, "--network", "web", "--cgroup-parent", &cgroup];
        arguments.extend(["--volume", "/usr:/usr:ro", "--volume", &peer, "--rootfs", "/srv/root"]);
        arguments.extend(["/peer", "serve", "--name", name, "--port", "8080"]);
        let id = self.podman(&arguments).trim().to_string();
        until("the server listens", PATIENCE, || self.podman(&["logs", name]).contains("ready").then_some(()));
        let netns = self.podman(&["inspect", "--format", "{{.NetworkSettings.SandboxKey}}", name]);
        let ns = self.machine.netns(netns.trim());
        Pod { ns, id, name: name.into(), base: Mutex::default(), result: Mutex::default() }
    }
}

#[test]
fn three_containers_share_a_vip() {
    let scene = Scene::new();
    let before = scene.machine.snapshot(&scene.node);
    let pods = ["p1", "p2", "p3"].map(|name| scene.run(name));
    let vip = pods[0].vip();
    assert!(pods.iter().all(|pod| pod.vip() == vip));

    let tally = connect(&scene.client, vip, 3000);
    for pod in &pods {
        let share = share(&tally, &pod.name);
        assert!((28.0..=39.0).contains(&share), "{} has {share:.1} %: {tally:?}", pod.name);
    }
    assert_eq!(tally.clients.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.50"]);

    // One dies: podman's monitor takes it out by itself.
    scene.podman(&["kill", "p1"]);
    until("the dead container's DEL", PATIENCE, || (scene.machine.attachments() == 2).then_some(()));
    let tally = connect(&scene.client, vip, 100);
    assert_eq!(tally.names.keys().collect::<Vec<_>>(), ["p2", "p3"]);

    // It is started again, and joins again.
    scene.podman(&["start", "p1"]);
    until("the server listens again", PATIENCE, || {
        (scene.podman(&["logs", "p1"]).matches("ready").count() == 2).then_some(())
    });
    assert_eq!(connect(&scene.client, vip, 200).names.len(), 3);

    scene.podman(&["rm", "--force", "--time", "0", "p1", "p2", "p3"]);
    before.assert_same(&scene.machine.snapshot(&scene.node), "three containers removed");
}
