//! What is deleted or changed by hand is repaired by the agent, soon; live connections survive it, others' objects stay as
//! they are, and once all is well nothing more is done.
//!
//! What is broken and what is repaired is judged by snapshots of the kernel's tables, the registry's files and the flow owner's
//! maps; CHECK, which shares its code with repairs, must then agree.

mod strangers;
mod takeover;

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use viproute::internals::ebpf::{Known, Maps};

use crate::harness::{
    Crowd, Flows, Join, Lan, Netns, Node, PATIENCE, Page, Pod, REPAIRED, Run, Sidecar, Snapshot, allow_many_files,
    bare_pod, connect, deadline, for_each, nothing_left, quiet, until,
};

const POOL: &str = "10.118.0.0/24";

fn web() -> Join {
    Join::annotated("web")
}

/// A node whose agent runs, three replicas of a VIP, and a client. Fields are dropped in this order.
struct Scene {
    servers: Vec<Crowd>,
    sidecar: Option<Sidecar>,
    pods: Vec<Pod>,
    client: Netns,
    node: Node,
    lan: Lan,
    vip: Ipv4Addr,
    /// All as it should be.
    healthy: Snapshot,
}

impl Scene {
    fn new() -> Self {
        Self::with(3, &web())
    }

    fn with(replicas: usize, join: &Join) -> Self {
        allow_many_files();
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let sidecar = Some(Sidecar::pool(&node, POOL));
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let pods: Vec<_> = (0..replicas).map(|_| node.pod()).collect();
        let servers = pods.iter().map(Crowd::start).collect();
        for pod in &pods {
            node.add(pod, join).ok();
        }
        let vip = pods[0].vips()[0];
        let healthy = snapshot(&node, &pods.iter().collect::<Vec<_>>());
        Self { servers, sidecar, pods, client, node, lan, vip, healthy }
    }

    fn sidecar(&self) -> &Sidecar {
        self.sidecar.as_ref().expect("viprouted runs")
    }

    fn snapshot(&self) -> Snapshot {
        snapshot(&self.node, &self.pods.iter().collect::<Vec<_>>())
    }

    /// The first pod's host veth.
    fn host_veth(&self) -> String {
        let result = self.pods[0].result.lock().unwrap();
        let interfaces = result.as_ref().unwrap()["interfaces"].as_array().unwrap().clone();
        let names = interfaces.iter().filter_map(|interface| interface["name"].as_str());
        names.into_iter().find(|name| name.starts_with("vip") && *name != "vip0").expect("a host veth").into()
    }

    fn index(&self, device: &str) -> u32 {
        let links = self.node.ns.ip_json(&format!("link show dev {device}"));
        u32::try_from(links[0]["ifindex"].as_u64().unwrap()).unwrap()
    }

    fn group(&self) -> String {
        let objects = self.node.ns.ip_json("nexthop show proto 118");
        objects.iter().find(|object| object.get("group").is_some()).expect("our group")["id"].to_string()
    }

    fn tc(&self, arguments: &str) -> String {
        self.node.ns.cmd("tc").args(arguments.split_whitespace()).finish("").ok()
    }

    fn maps(&self) -> Maps {
        Maps::open(self.node.bpf_dir().as_ref()).expect("maps").expect("the flow owner's maps")
    }

    /// CHECK's complaint about any of the pods.
    fn complaint(&self) -> Option<String> {
        self.pods.iter().find_map(|pod| {
            let reply = self.node.check(pod, &web());
            (!reply.succeeded()).then(|| reply.error().text())
        })
    }

    /// Waits until CHECK has none.
    fn becomes_content(&self, what: &str) {
        until(what, PATIENCE, || {
            // A CHECK has the attachment to itself: with one after the other the agent would have to wait for its turn.
            thread::sleep(Duration::from_millis(200));
            self.complaint().is_none().then_some(())
        });
    }

    /// Does `deed`, which must break something, while the agent sleeps; then all becomes as it was before.
    fn breaks_and_heals(&self, what: &str, deed: impl FnOnce(&Self)) {
        let healthy = self.snapshot();
        let daemon = &self.sidecar().daemon;
        daemon.freeze();
        deed(self);
        let damage = healthy.changes_but_indexes(&self.snapshot());
        daemon.thaw();
        assert!(!damage.is_empty(), "{what}: nothing was broken, so nothing can heal");
        self.heals(what, &healthy);
    }

    /// All becomes as it was when it was `healthy`, but for the indexes of what is made anew.
    fn heals(&self, what: &str, healthy: &Snapshot) {
        let start = Instant::now();
        let end = deadline(REPAIRED);
        loop {
            let damage = healthy.changes_but_indexes(&self.snapshot());
            if damage.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "{what}: after {:?}\n{}", start.elapsed(), damage.join("\n"));
        }
        eprintln!("{what}: {:?}", start.elapsed());
        assert_eq!(self.complaint(), None, "{what}: CHECK of what is as it was");
    }

    /// How many repairs the agent has made since its start.
    fn repairs(&self) -> i64 {
        repairs(&self.node)
    }

    /// Nothing more is done.
    fn settles(&self) {
        quiet("repairs", || self.repairs());
    }
}

/// Everything that heals: also the flow owner's pins, which other snapshots leave out, as they stay until the next boot.
fn snapshot(node: &Node, pods: &[&Pod]) -> Snapshot {
    node.snapshot(pods).with("pins", node.pins())
}

fn repairs(node: &Node) -> i64 {
    Page::of(node).value("viproute_repairs_total", &[])
}

fn restart(mut scene: Scene) -> Scene {
    drop(scene.sidecar.take());
    scene.sidecar = Some(Sidecar::pool(&scene.node, POOL));
    scene
}

/// Something done by hand, by name.
type Deed = (&'static str, fn(&Scene));

const ON_THE_NODE: &[Deed] = &[
    ("the data route", |scene| drop(scene.node.ns.ip(&format!("route del {} proto 118 metric 0", scene.vip)))),
    ("the announcement", |scene| drop(scene.node.ns.ip(&format!("route del unreachable {} metric 3", scene.vip)))),
    ("the group", |scene| drop(scene.node.ns.ip(&format!("nexthop del id {}", scene.group())))),
    ("a nexthop", |scene| {
        let id = 0x7600_0000 | scene.index(&scene.host_veth());
        scene.node.ns.ip(&format!("nexthop del id {id}"));
    }),
    ("all routes and nexthops of ours", |scene| {
        scene.node.ns.ip(&format!("route del {} proto 118", scene.vip));
        scene.node.ns.ip(&format!("route del unreachable {} proto 118", scene.vip));
        scene.node.ns.ip("nexthop flush proto 118");
    }),
    ("a host veth's address", |scene| {
        scene.node.ns.ip(&format!("addr del 169.254.118.1/32 dev {}", scene.host_veth()));
    }),
    ("a host veth's neighbour", |scene| {
        let pod = &scene.pods[0];
        scene.node.ns.ip(&format!("neigh del {} dev {}", pod.address(), scene.host_veth()));
    }),
    ("a host veth's rp_filter", |scene| {
        scene.node.ns.set_sysctl(&format!("net/ipv4/conf/{}/rp_filter", scene.host_veth()), "1");
    }),
    ("a host veth's forwarding", |scene| {
        scene.node.ns.set_sysctl(&format!("net/ipv4/conf/{}/forwarding", scene.host_veth()), "0");
    }),
    ("the qdisc", |scene| {
        scene.tc(&format!("qdisc del dev {} clsact", scene.host_veth()));
    }),
    ("a filter", |scene| {
        scene.tc(&format!("filter del dev {} egress pref 118", scene.host_veth()));
    }),
    ("a host veth that is down", |scene| {
        scene.node.ns.ip(&format!("link set {} down", scene.host_veth()));
    }),
    ("a host veth", |scene| drop(scene.node.ns.ip(&format!("link del {}", scene.host_veth())))),
    ("the hash policy", |scene| scene.node.ns.set_sysctl("net/ipv4/fib_multipath_hash_policy", "1")),
    ("the hash fields", |scene| scene.node.ns.set_sysctl("net/ipv4/fib_multipath_hash_fields", "7")),
    ("forwarding", |scene| scene.node.ns.set_sysctl("net/ipv4/ip_forward", "0")),
];

const IN_THE_MAPS: &[Deed] = &[
    ("a replica's entry", |scene| {
        scene.maps().detach(scene.index(&scene.host_veth()), scene.vip).expect("detach");
    }),
    ("the members", |scene| scene.maps().set(scene.vip, &Known::default(), 0).expect("no members")),
    ("the VIP", |scene| scene.maps().forget(scene.vip).expect("forget")),
    ("a pinned program", |scene| remove_pin(scene, "owner_")),
    ("a pinned map", |scene| remove_pin(scene, "vips_")),
];

fn remove_pin(scene: &Scene, prefix: &str) {
    let pins = std::fs::read_dir(scene.node.bpf_dir()).expect("the pins").flatten();
    let pin = pins.into_iter().find(|pin| pin.file_name().to_string_lossy().starts_with(prefix)).expect("the pin");
    std::fs::remove_file(pin.path()).expect("remove a pin");
}

const IN_A_POD: &[Deed] = &[
    ("a pod's VIP", |scene| drop(scene.pods[0].ns.ip(&format!("addr del {}/32 dev vip0", scene.vip)))),
    ("a pod's rule", |scene| drop(scene.pods[0].ns.ip(&format!("rule del from {} lookup 118", scene.vip)))),
    ("a pod's route", |scene| drop(scene.pods[0].ns.ip("route del default table 118"))),
    ("a pod's neighbour", |scene| drop(scene.pods[0].ns.ip("neigh del 169.254.118.1 dev vip0"))),
    ("a vip0 that is down", |scene| drop(scene.pods[0].ns.ip("link set vip0 down"))),
    ("a pod's arp_ignore", |scene| scene.pods[0].ns.set_sysctl("net/ipv4/conf/eth0/arp_ignore", "0")),
    ("a vip0", |scene| drop(scene.pods[0].ns.ip("link del vip0"))),
    ("a vip0 by another name", |scene| {
        scene.pods[0].ns.ip("link set vip0 down");
        scene.pods[0].ns.ip("link set vip0 name mine");
    }),
];

/// Each heals, connections from outside and from the node survive it, and then all is as it was.
fn each_heals(deeds: &[Deed]) {
    let scene = Scene::new();
    let mut flows = [
        Flows::open("the client", &scene.client, scene.vip, 100),
        Flows::open("the node", &scene.node.ns, scene.vip, 100),
    ];
    for (name, deed) in deeds {
        scene.breaks_and_heals(name, deed);
        flows.iter_mut().for_each(Flows::ask);
        flows.iter_mut().for_each(Flows::hear);
        let complaints: Vec<_> = flows.iter().filter_map(|flows| flows.complaint(&[])).collect();
        assert!(complaints.is_empty(), "{name}: {}", complaints.join("\n"));
        connect(&scene.client, scene.vip, 20);
    }
    scene.settles();
    assert_eq!(scene.healthy.changes_but_indexes(&scene.snapshot()), [""; 0]);
}

#[test]
fn what_is_deleted_on_the_node_comes_back() {
    each_heals(ON_THE_NODE);
}

#[test]
fn what_is_deleted_in_the_flow_owner_comes_back() {
    each_heals(IN_THE_MAPS);
}

#[test]
fn what_is_deleted_in_a_pod_comes_back() {
    each_heals(IN_A_POD);
}

/// More changes than the socket can keep while the agent sleeps; ours is among them.
#[test]
fn a_flood_of_changes_hides_nothing() {
    let scene = Scene::new();
    let node = &scene.node.ns;
    node.ip("link add other type veth peer name other1");
    node.ip("link set other up");
    node.ip("link set other1 up");
    let line =
        |n: usize, verb: &str| format!("route {verb} 10.{}.{}.0/24 dev other table 9 proto 118\n", n / 200, n % 200);
    let storm: String = (0..9000).flat_map(|n| [line(n, "add"), line(n, "del")]).collect();
    scene.breaks_and_heals("after the flood", |scene| {
        node.cmd("ip").args(["-batch", "-"]).finish(&storm).ok();
        node.ip(&format!("route del {} proto 118 metric 0", scene.vip));
        scene.pods[0].ns.ip(&format!("rule del from {} lookup 118", scene.vip));
    });
    assert!(scene.sidecar().daemon.log().contains("netlink overrun"), "no flood");
    scene.settles();
}

/// An agent that is killed takes nothing along; one that starts breaks nothing, and repairs what happened meanwhile.
#[test]
fn a_restart_breaks_no_connection() {
    let mut scene = Scene::new();
    let mut flows = Flows::open("the client", &scene.client, scene.vip, 300);
    scene.sidecar().daemon.signal(Signal::SIGKILL);
    drop(scene.sidecar.take());
    connect(&scene.client, scene.vip, 20);
    scene.node.ns.ip(&format!("nexthop del id {}", scene.group()));
    scene.pods[1].ns.ip(&format!("rule del from {} lookup 118", scene.vip));
    assert_ne!(scene.healthy.changes_but_indexes(&scene.snapshot()), [""; 0], "nothing was broken");
    scene.sidecar = Some(Sidecar::pool(&scene.node, POOL));
    scene.heals("after a restart", &scene.healthy);
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None);
    scene.settles();
    scene.healthy.assert_same(&scene.snapshot(), "a restart");
}

/// A pod that is removed without a DEL: its attachment stays recorded for the runtime's DEL, gets
/// nothing, and costs nothing.
#[test]
fn a_pod_that_is_gone_is_left_to_the_runtime() {
    let mut scene = Scene::new();
    let gone = scene.pods.pop().unwrap();
    scene.servers.pop();
    let id = gone.id.clone();
    drop(gone);
    until("its device is gone", PATIENCE, || {
        let group = scene.node.ns.ip_json(&format!("nexthop show id {}", scene.group()));
        (group[0]["group"].as_array().unwrap().len() == 2).then_some(())
    });
    // The kernel took the replica out of the group; what the agent has to repair besides takes it a moment more.
    scene.settles();
    assert!(scene.node.records().iter().any(|record| record.contains(&format!("attachments/{id}"))));
    connect(&scene.client, scene.vip, 50);
}

/// Pods come and go as fast as they can while the agent reconciles: nothing of theirs is taken for a
/// difference, or for an orphan.
#[test]
fn calls_under_way_are_left_alone() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::pool(&node, POOL);
    let deadline = Instant::now() + Duration::from_secs(8);
    let calls = for_each(0..4, |lane| {
        let join = Join::annotated(if lane < 2 { "web" } else { "api,web" });
        let (mut calls, pod) = (0, bare_pod(lane + 1));
        while Instant::now() < deadline {
            node.add(&pod, &join).ok();
            node.check(&pod, &join).ok();
            node.del(&pod, &join).ok();
            calls += 3;
        }
        calls
    });
    eprintln!("{} calls", calls.iter().sum::<i32>());
    assert_eq!(repairs(&node), 0, "{}", sidecar.daemon.log());
    nothing_left(&node);
}

/// Without it pods' events aren't received. That is logged, and the node's own objects are repaired as ever.
#[test]
fn without_the_capability_to_hear_pods() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let settings = format!("backend = \"pool\"\n[pool]\ncidr = \"{POOL}\"");
    let without = ["--bounding-set", "-net_broadcast", "--inh-caps", "-net_broadcast"];
    let sidecar = Sidecar::run_by("setpriv", &without, &node, &settings);
    let pod = node.joined(&web());
    let healthy = snapshot(&node, &[&pod]);
    assert!(sidecar.daemon.log().contains("CAP_NET_BROADCAST is missing"), "{}", sidecar.daemon.log());
    node.ns.ip(&format!("route del {} proto 118", pod.vip()));
    until("it is repaired", REPAIRED, || (repairs(&node) > 0).then_some(()));
    until("the route is back", REPAIRED, || (snapshot(&node, &[&pod]) == healthy).then_some(()));
}
