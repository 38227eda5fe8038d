//! Each VIP has a nexthop group of its own, whatever a full disk, a kill or a file left behind: one group for two VIPs would
//! bring one tenant's connections to another's pods.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{
    Join, Lan, Netns, Node, Pod, PodServer, Run, SmallFs, VIPROUTE, attempt, connect, serve_all, tool,
};

/// One VIP a pod: alice's, of which the first is removed so that a slot below those in use is free.
struct Scene {
    alice: Vec<Pod>,
    /// They serve for as long as the scene lasts.
    #[allow(dead_code)]
    servers: Vec<PodServer>,
    client: Netns,
    node: Node,
    _lan: Lan,
    /// Keys of the conflist entry.
    entry: Vec<(&'static str, Value)>,
}

impl Scene {
    fn new() -> Self {
        Self::with(Vec::new())
    }

    fn with(entry: Vec<(&'static str, Value)>) -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let mut scene = Self { alice: Vec::new(), servers: Vec::new(), client, node, _lan: lan, entry };
        scene.alice = (0..3).map(|n| scene.node.joined(&scene.join("alice", &format!("x{n}")))).collect();
        scene.node.remove(&scene.alice.remove(0), &scene.join("alice", "x0"));
        scene.servers = serve_all(&scene.alice);
        scene
    }

    fn join(&self, namespace: &str, vip: &str) -> Join {
        let join = Join::annotated(vip).namespace(namespace);
        self.entry.iter().fold(join, |join, (key, value)| join.key(key, value.clone()))
    }

    /// Pods of mallory's, each of a VIP of its own.
    fn mallory(&self, names: &[&str]) -> Vec<Pod> {
        names.iter().map(|name| self.node.joined(&self.join("mallory", name))).collect()
    }

    /// The id of the group that a pod's VIP is routed to.
    fn group(&self, pod: &Pod) -> u64 {
        let routes = self.node.ns.ip_json(&format!("route show {}", pod.vip()));
        routes.iter().find_map(|route| route["nhid"].as_u64()).expect("a group")
    }

    /// VIPs by the group of their route: one each, and alice's are answered by their own pods alone.
    fn is_kept_apart(&self, when: &str) {
        let mut groups: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for route in self.node.ns.ip_json("route show proto 118") {
            if let Some(group) = route["nhid"].as_u64() {
                groups.entry(group).or_default().push(route["dst"].to_string());
            }
        }
        assert!(groups.len() >= 2 && groups.values().all(|vips| vips.len() == 1), "{when}: {groups:?}");
        for pod in &self.alice {
            let names: BTreeSet<_> = connect(&self.client, pod.vip(), 20).names.into_keys().collect();
            assert_eq!(names, [pod.name.clone()].into(), "{when}: who answers for {}", pod.vip());
        }
    }

    /// An ADD of mallory's during which the kernel fails, or kills, each call of one kind on the registry's lock file.
    fn add_with(&self, call: &str, fault: &str) {
        let (pod, join) = (self.node.pod(), self.join("mallory", "y"));
        let strace = tool("strace");
        let mut command = self.node.ns.cmd(strace.to_str().unwrap());
        let lock = format!("{}/lock", self.node.data());
        let inject = format!("inject={call}:{fault}");
        command.args(["-f", "-o", "/dev/null", "-P", &lock, "-e", &format!("trace={call}"), "-e", &inject, VIPROUTE]);
        let stdin = self.node.stdin("ADD", &pod, &join).to_string();
        self.node.run(&mut command, &self.node.environment("ADD", &pod, &join), &stdin);
        self.node.remove(&pod, &join);
    }
}

/// A call of a system's on the file where slots were counted fails, or is the plugin's last.
#[test]
fn a_fault_at_the_lock_file_gives_no_slot_twice() {
    for fault in ["error=ENOSPC", "error=EIO", "signal=SIGKILL"] {
        let scene = Scene::new();
        for call in ["write", "pwrite64", "ftruncate", "read"] {
            scene.add_with(call, fault);
        }
        let _mallory = scene.mallory(&["y0", "y1", "y2"]);
        scene.is_kept_apart(fault);
    }
}

/// The same on a disk that is really full, by one page or one file more each time.
#[test]
fn a_full_disk_gives_no_slot_twice() {
    let disk = SmallFs::new(96, 192);
    let scene = Scene::with(vec![("dataDir", json!(disk.path().join("data")))]);
    for room in 0..6 {
        let (pod, join) = (scene.node.pod(), scene.join("mallory", &format!("y{room}")));
        disk.fill(room, 20);
        scene.node.add(&pod, &join);
        disk.fill(0, 0);
        scene.node.add(&pod, &join);
        disk.empty();
        scene.node.remove(&pod, &join);
    }
    let _mallory = scene.mallory(&["z0", "z1", "z2"]);
    scene.is_kept_apart("a full disk");
}

#[test]
fn whatever_the_lock_file_says_no_slot_is_given_twice() {
    let scene = Scene::new();
    let lock = format!("{}/lock", scene.node.data());
    let mut mallory = Vec::new();
    for (number, text) in
        ["", "1", "2\n", "3\n3\n", "x", "-1", "16777215\n", "16777216\n", "\0\0\0\0"].iter().enumerate()
    {
        std::fs::write(&lock, text).expect("write the lock file");
        mallory.extend(scene.mallory(&[&format!("y{number}")]));
        scene.is_kept_apart(&format!("{text:?}"));
    }
}

fn edit(path: &Path, change: impl Fn(&mut Value)) {
    let mut record = serde_json::from_str(&std::fs::read_to_string(path).expect("a record")).expect("JSON");
    change(&mut record);
    std::fs::write(path, record.to_string()).expect("write a record");
}

/// What a build before this one could write: it is reported, no connection is misplaced, and the DEL of one
/// repairs the other.
#[test]
fn two_vips_recorded_with_one_group_are_an_error() {
    let scene = Scene::new();
    let mallory = scene.mallory(&["y"]);
    let _servers = serve_all(&mallory);
    let (alice, vip) = (&scene.alice[0], mallory[0].vip());
    let record = |dir: &str| Path::new(&scene.node.data()).join("vips").join(dir).join("vip.json");
    let slot: Value = serde_json::from_str(&std::fs::read_to_string(record("alice_x1")).unwrap()).unwrap();
    let group = || scene.node.ns.ip(&format!("nexthop show id {}", scene.group(alice)));
    let before = group();
    edit(&record("mallory_y"), |record| record["slot"] = slot["slot"].clone());

    let (join, valid) = (scene.join("mallory", "y"), [&scene.alice[0], &scene.alice[1], &mallory[0]]);
    let error = scene.node.gc(&valid, &join).error();
    assert!(error.text().contains("alice/x1") && error.text().contains("mallory/y"), "both are named: {error:?}");
    let error = scene.node.check(&mallory[0], &join).error();
    assert!(error.text().contains("the same nexthop group"), "{error:?}");
    scene.node.check(alice, &scene.join("alice", "x1")).ok();
    let late = scene.node.pod();
    let error = scene.node.add(&late, &join).error();
    assert_eq!(error.code, 105, "{error:?}");
    assert_eq!(group(), before, "alice's group is alice's");
    scene.is_kept_apart("one group recorded twice");

    scene.node.remove(&mallory[0], &join);
    scene.node.gc(&valid[..2], &join).ok();
    scene.is_kept_apart("the other one has gone");
    assert_eq!(attempt(&scene.client, vip, 5).names.len(), 0, "mallory's VIP is gone");
}

/// Should a packet come to a pod of another VIP all the same, it goes no further than its host veth, and is counted.
#[test]
fn what_is_for_no_vip_of_the_pods_is_dropped_and_counted() {
    let scene = Scene::new();
    let (pod, other) = (&scene.alice[0], &scene.alice[1]);
    let route = |to: u64| scene.node.ns.ip(&format!("route replace {} nhid {to} proto 118", pod.vip()));
    let good = scene.group(pod);
    route(scene.group(other));
    assert_eq!(attempt(&scene.client, pod.vip(), 3).names, BTreeMap::new(), "another VIP's pod answers");
    let status = |pod: &Pod| {
        let mut command = scene.node.ctl();
        command.args(["status", "--output", "json"]);
        let report: Value = serde_json::from_str(&command.finish("").ok()).expect("JSON");
        let vips = report["vips"].as_array().expect("VIPs").clone();
        vips.into_iter().find(|vip| vip["address"] == json!(pod.vip())).expect("the VIP")["flows"].clone()
    };
    assert!(status(other)["misrouted"].as_u64().unwrap() >= 3, "{}", status(other));
    assert_eq!(status(pod)["misrouted"], 0);
    route(good);
    scene.is_kept_apart("its own group again");
}
