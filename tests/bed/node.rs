//! A node of the cluster: a namespace on the LAN, its directories, and the CNI chain `ptp` → `viproute` run on its pods.

use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::bpffs::BpfFs;
use super::cni::{Container, Environment, NETWORK, Reply, conf};
use super::command::{Run, program, tool};
use super::join::Join;
use super::lan::{GATEWAY, Lan};
use super::netns::Netns;
use super::pod::Pod;
use super::snapshot::{self, Snapshot};
use super::stub::Stub;
use super::tempdir::TempDir;

pub struct Node {
    pub ns: Netns,
    pub dir: TempDir,
    bpf: BpfFs,
    number: u8,
    stub: Mutex<Option<Stub>>,
    pods: AtomicUsize,
    calls: Mutex<Vec<String>>,
    /// Which addresses the base plugin gives to pods.
    pods_have: Families,
}

/// Families of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    Ipv4,
    Ipv6,
    Both,
}

impl Node {
    /// Node 192.0.2.`number` with an allocator that hands out addresses by itself ([`Stub`]), pods in 10.1.`number`.0/24.
    pub fn new(lan: &Lan, number: u8) -> Self {
        let node = Self::without_allocator(lan, number);
        *node.stub.lock().unwrap() = Some(Stub::start(&node.socket()));
        node
    }

    /// The same without an allocator at its socket yet.
    pub fn without_allocator(lan: &Lan, number: u8) -> Self {
        let ns = Self::namespace(lan, number);
        let (pods, calls) = (AtomicUsize::new(0), Mutex::default());
        let pods_have = Families::Ipv4;
        Self { ns, dir: TempDir::new(), bpf: BpfFs::new(), number, stub: Mutex::new(None), pods, calls, pods_have }
    }

    /// A node with `2001:db8::NUMBER`, whose allocator gives VIPs addresses of both families, and its base plugin those to pods.
    pub fn dual(lan: &Lan, number: u8, pods_have: Families) -> Self {
        let mut node = Self::new(lan, number).with_ipv6(lan);
        node.pods_have = pods_have;
        node.stub(Stub::is_dual);
        node.viprouted_has_run();
        node
    }

    /// The node has `2001:db8::NUMBER`, and its pods addresses of both families. Its allocator is of the test's own choice.
    #[must_use]
    pub fn with_ipv6(mut self, lan: &Lan) -> Self {
        self.pods_have = Families::Both;
        lan.add_ipv6(&self.ns, self.number);
        self.ns.ip("route add default via 2001:db8::fe");
        self
    }

    /// As if a viprouted of this version had run in this boot: records of several addresses may be written.
    pub fn viprouted_has_run(&self) {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot's id");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(self.data()).expect("make the registry");
        std::fs::write(self.data() + "/schema", format!("2 {}\n", boot.trim())).expect("write the schema");
    }

    fn namespace(lan: &Lan, number: u8) -> Netns {
        let ns = Netns::new();
        lan.plug(&ns, number);
        ns.ip(&format!("route add default via {GATEWAY}"));
        ns
    }

    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self.number)
    }

    /// The registry.
    pub fn data(&self) -> String {
        self.dir.file("data")
    }

    /// Where the flow owner is pinned.
    pub fn bpf_dir(&self) -> String {
        self.bpf.path() + "/viproute"
    }

    pub fn socket(&self) -> String {
        self.dir.file("viprouted.sock")
    }

    /// viproutectl on the node, about its registry and its viprouted.
    pub fn ctl(&self) -> Command {
        let mut command = self.ns.cmd(program("viproutectl"));
        command.args(["--data-dir", &self.data(), "--allocator", &self.socket()]);
        command
    }

    /// The sidecar's socket for metrics.
    pub fn metrics(&self) -> String {
        self.dir.file("metrics.sock")
    }

    pub fn stop_allocator(&self) {
        *self.stub.lock().unwrap() = None;
    }

    pub fn stub<T>(&self, work: impl FnOnce(&Stub) -> T) -> T {
        work(self.stub.lock().unwrap().as_ref().expect("this node's allocator is a stub"))
    }

    /// A pod that `ptp` has given its `eth0`.
    pub fn pod(&self) -> Pod {
        self.pod_of_version("1.0.0")
    }

    /// The same from a base plugin that was asked for `version`, so that its result is of that format.
    pub fn pod_of_version(&self, version: &str) -> Pod {
        let pod = Pod::new(self.pods.fetch_add(1, Ordering::Relaxed) + 1);
        // ptp takes the pod's address as a route's source, which the kernel refuses while the address is tentative.
        pod.ns.set_sysctl("net/ipv6/conf/default/accept_dad", "0");
        let base = self.ptp("ADD", &pod, version).ok();
        *pod.base.lock().unwrap() = base;
        pod
    }

    /// A pod that has joined. Its namespace ends with it; another that begins then may have its path and its inode, which is all that records
    /// know of it.
    #[must_use = "a pod that is dropped leaves its name to the next"]
    pub fn joined(&self, join: &Join) -> Pod {
        let pod = self.pod();
        self.add(&pod, join).ok();
        pod
    }

    /// ADD, the result kept as a runtime keeps it.
    pub fn add(&self, pod: &Pod, join: &Join) -> Reply {
        let reply = self.call("ADD", pod, join);
        if reply.succeeded() {
            *pod.result.lock().unwrap() = Some(reply.ok());
        }
        reply
    }

    pub fn check(&self, pod: &Pod, join: &Join) -> Reply {
        self.call("CHECK", pod, join)
    }

    /// DEL of the plugin alone; the base plugin's part stays.
    pub fn del(&self, pod: &Pod, join: &Join) -> Reply {
        self.call("DEL", pod, join)
    }

    /// DEL of the whole chain, in reverse order, as a runtime does it.
    pub fn remove(&self, pod: &Pod, join: &Join) {
        self.del(pod, join).ok();
        self.ptp("DEL", pod, "1.0.0").ok();
    }

    /// GC with `pods` as the attachments that are still valid.
    pub fn gc(&self, pods: &[&Pod], join: &Join) -> Reply {
        let valid: Vec<_> = pods.iter().map(|pod| json!({ "containerID": pod.id, "ifname": "eth0" })).collect();
        let mut conf = self.conf(&join.clone().version("1.1.0"));
        conf["cni.dev/valid-attachments"] = json!(valid);
        self.raw(&self.verb("GC"), &conf.to_string())
    }

    pub fn status(&self, join: &Join) -> Reply {
        self.raw(&self.verb("STATUS"), &self.conf(&join.clone().version("1.1.0")).to_string())
    }

    /// A verb of an attachment.
    pub fn call(&self, verb: &str, pod: &Pod, join: &Join) -> Reply {
        self.raw(&self.environment(verb, pod, join), &self.stdin(verb, pod, join).to_string())
    }

    /// Any call, on the node.
    pub fn raw(&self, environment: &Environment, stdin: &str) -> Reply {
        self.run(&mut self.ns.cmd(program("viproute")), environment, stdin)
    }

    /// A call by `command`: the plugin, or something that runs it.
    pub fn run(&self, command: &mut Command, environment: &Environment, stdin: &str) -> Reply {
        let reply = Reply::of(command, environment, stdin);
        let verb = environment.command.as_deref().unwrap_or("?");
        let container = environment.container.as_deref().unwrap_or("");
        self.calls.lock().unwrap().push(format!("{verb} {container}\n  stdin {stdin}\n  {:?}", reply.0));
        reply
    }

    /// The environment of a verb about an attachment.
    #[allow(clippy::unused_self)] // reads like the other calls on a node
    pub fn environment(&self, verb: &str, pod: &Pod, join: &Join) -> Environment {
        Environment::about(verb, Container { id: &pod.id, pod: &pod.name, netns: pod.ns.path() }, join)
    }

    /// The environment of a verb about the network.
    #[allow(clippy::unused_self)] // reads like the other calls on a node
    pub fn verb(&self, verb: &str) -> Environment {
        Environment::of(verb)
    }

    /// What the plugin gets on stdin for a verb about an attachment.
    pub fn stdin(&self, verb: &str, pod: &Pod, join: &Join) -> Value {
        let mut conf = self.conf(join);
        let previous = match verb {
            "ADD" => Some(pod.base.lock().unwrap().clone()),
            _ => pod.result.lock().unwrap().clone(),
        };
        if let Some(mut previous) = previous {
            // As libcni: a result goes in as the version the conflist has.
            previous["cniVersion"] = json!(join.version);
            conf["prevResult"] = previous;
        }
        conf
    }

    /// The conflist entry as libcni completes it.
    pub fn conf(&self, join: &Join) -> Value {
        conf(self.dir.path(), &self.bpf_dir(), join)
    }

    /// The chain's first plugin.
    fn ptp(&self, verb: &str, pod: &Pod, version: &str) -> Reply {
        let (mut ranges, mut routes) = (Vec::new(), Vec::new());
        if self.pods_have != Families::Ipv6 {
            ranges.push(json!([{ "subnet": format!("10.1.{}.0/24", self.number) }]));
            routes.push(json!({ "dst": "0.0.0.0/0" }));
        }
        if self.pods_have != Families::Ipv4 {
            ranges.push(json!([{ "subnet": format!("fd00:1:{}::/64", self.number) }]));
            routes.push(json!({ "dst": "::/0" }));
        }
        let conf = json!({
            "cniVersion": version,
            "name": NETWORK,
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "ranges": ranges,
                "routes": routes,
                "dataDir": self.dir.file("host-local"),
            },
        });
        let ptp = tool("ptp");
        let environment = self.environment(verb, pod, &Join::nothing());
        Reply::of(&mut self.ns.cmd(ptp.to_str().unwrap()), &environment, &conf.to_string())
    }

    /// The node starts anew: its kernel's objects are lost, its disk is as it was, and it is another boot.
    pub fn reboot(&mut self, lan: &Lan) {
        self.ns = Self::namespace(lan, self.number);
        self.bpf = BpfFs::new();
        let boot_id = self.dir.path().join("data/boot-id");
        let old = std::fs::read_to_string(&boot_id).expect("the registry's boot-id");
        // The machine under the test has not been rebooted: what it recorded is made another boot's instead.
        let other: String = old
            .chars()
            .map(|c| {
                if c == '0' {
                    '1'
                } else if c.is_ascii_hexdigit() {
                    '0'
                } else {
                    c
                }
            })
            .collect();
        std::fs::write(&boot_id, other).expect("write boot-id");
    }

    /// As if another build had loaded the flow owner: its programs have another version, one of its maps another form.
    pub fn make_programs_another_builds(&self) {
        for entry in std::fs::read_dir(self.bpf_dir()).expect("the pins' directory") {
            let pin = entry.expect("a pin").path();
            let other = match pin
                .file_name()
                .and_then(|name| name.to_str()?.rsplit_once('_'))
                .expect("a version in the name")
            {
                (
                    program @ ("owner" | "guard" | "owner6" | "guard6" | "express_in" | "express_seen" | "inward"
                    | "outward" | "udp_asked" | "udp_asked_own" | "udp_answer"),
                    _,
                ) => format!("{program}_000000000000"),
                ("vips", _) => "vips_v0".to_owned(),
                _ => continue,
            };
            std::fs::rename(&pin, pin.with_file_name(other)).expect("rename a pin");
        }
    }

    /// The names of what is pinned of the flow owner.
    pub fn pins(&self) -> Vec<String> {
        let name =
            |pin: std::io::Result<std::fs::DirEntry>| pin.expect("a pin").file_name().into_string().expect("a name");
        let mut names: Vec<_> = std::fs::read_dir(self.bpf_dir()).expect("the pins' directory").map(name).collect();
        names.sort();
        names
    }

    /// The registry's records of VIPs, endpoints and attachments.
    pub fn records(&self) -> Vec<String> {
        snapshot::files(Path::new(&self.data())).into_iter().filter(|file| file.contains(".json: ")).collect()
    }

    /// What of the node's tells quickly whether anything of ours has changed: [`Node::snapshot`] takes a dozen programs.
    pub fn brief(&self) -> Vec<String> {
        let mut brief = snapshot::files(Path::new(&self.data()));
        let views = "link show\nnexthop show proto 118\nroute show proto 118\n";
        brief.push(self.ns.cmd("ip").args(["-brief", "-batch", "-"]).finish(views).ok());
        brief
    }

    /// Everything of the node, these pods and the registry.
    pub fn snapshot(&self, pods: &[&Pod]) -> Snapshot {
        let mut namespaces = vec![("node", &self.ns)];
        namespaces.extend(pods.iter().map(|pod| (pod.name.as_str(), &pod.ns)));
        Snapshot::take(&namespaces, Path::new(&self.data()), Path::new(&self.bpf_dir()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- node {}", self.address());
            snapshot::dump(
                &self.ns,
                &["-4 rule", "-4 route show table all", "-6 route", "nexthop", "-d link", "addr", "neigh"],
            );
            eprintln!("{}", snapshot::files(Path::new(&self.data())).join("\n"));
            for call in self.calls.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().rev().take(5).rev()
            {
                eprintln!("call: {call}");
            }
            snapshot::logs(self.dir.path());
        }
    }
}
