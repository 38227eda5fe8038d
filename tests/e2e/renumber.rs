//! A VIP gets another address while it is in use: open connections go on by the one they began with, for a while.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Crowd, DhcpServer, Flows, Join, LONG, Lan, Netns, Node, Pod, Run, Sidecar, Software, allow_many_files, connect,
    until,
};

const OLD: Ipv4Addr = Ipv4Addr::new(10, 118, 0, 9);
const NEW: Ipv4Addr = Ipv4Addr::new(10, 118, 0, 20);
const FLOWS: usize = 300;

fn web() -> Join {
    Join::annotated("web")
}

/// A pool of two addresses, the VIP pinned.
fn pinned(address: Ipv4Addr) -> String {
    format!(
        "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.8/30\"\n[[pin]]\nvip = \"default/web\"\naddress = \"{address}\""
    )
}

/// Three replicas, connections from a client and from the node.
struct Scene {
    flows: Vec<Flows>,
    _servers: Vec<Crowd>,
    pods: Vec<Pod>,
    spare: Pod,
    client: Netns,
    sidecar: Option<Sidecar>,
    node: Node,
    _lan: Lan,
}

impl Scene {
    fn new() -> Self {
        allow_many_files();
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let sidecar = Some(Sidecar::start(&node, &pinned(OLD)));
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let (pods, spare): (Vec<_>, _) = ((0..3).map(|_| node.pod()).collect(), node.pod());
        let servers = pods.iter().chain([&spare]).map(Crowd::start).collect();
        for pod in &pods {
            node.add(pod, &web()).ok();
        }
        assert_eq!(pods[0].vip(), OLD);
        let flows =
            vec![Flows::open("the client", &client, OLD, FLOWS), Flows::open("the node", &node.ns, OLD, FLOWS / 3)];
        Self { flows, _servers: servers, pods, spare, client, sidecar, node, _lan: lan }
    }

    fn restart(&mut self, settings: &str) {
        drop(self.sidecar.take());
        self.sidecar = Some(Sidecar::start(&self.node, settings));
    }

    fn sidecar(&self) -> &Sidecar {
        self.sidecar.as_ref().expect("a sidecar")
    }

    /// Until the VIP is served by its new address.
    fn move_to_new(&mut self) {
        self.restart(&pinned(NEW));
        until("the VIP moves", LONG, || (route(&self.node, NEW).len() == 2).then_some(()));
    }

    fn question(&mut self) {
        self.flows.iter_mut().for_each(Flows::ask);
        self.flows.iter_mut().for_each(Flows::hear);
        let complaints: Vec<_> = self.flows.iter().filter_map(|flows| flows.complaint(&[])).collect();
        assert!(complaints.is_empty(), "{}\n{}", complaints.join("\n"), self.sidecar().daemon.log());
    }

    /// By the new address, from everybody.
    fn serves(&self) {
        for ns in [&self.client, &self.node.ns] {
            connect(ns, NEW, 30);
        }
    }

    fn check(&self, pods: &[&Pod]) {
        for pod in pods {
            self.node.check(pod, &web()).ok();
        }
    }

    /// Until connection tracking leaves exactly these alone.
    fn untracked(&self, vips: &str) {
        until("the nftables set follows", LONG, || {
            let set = self.node.ns.cmd("nft").args(["list", "set", "ip", "viproute", "vips"]).finish("").stdout;
            set.contains(&format!("{{ {vips} }}")).then_some(())
        });
    }

    /// Until the old address is nowhere.
    fn old_is_gone(&self) {
        until("the old address is gone", LONG, || {
            let gone = route(&self.node, OLD).is_empty() && self.pods.iter().all(|pod| pod.vips() == [NEW]);
            (gone && record(&self.node)["previous_addresses"].is_null()).then_some(())
        });
        let pods: Vec<&Pod> = self.pods.iter().collect();
        self.check(&pods);
        for pod in pods {
            assert!(!pod.ns.ip("rule").contains(&OLD.to_string()), "{}", pod.ns.ip("rule"));
        }
        self.untracked(&NEW.to_string());
        self.serves();
    }
}

/// The routes to one address.
fn route(node: &Node, address: Ipv4Addr) -> Vec<String> {
    let shown = node.ns.ip(&format!("route show {address} proto 118"));
    shown.lines().filter(|line| !line.starts_with(char::is_whitespace)).map(str::to_owned).collect()
}

fn record_path(node: &Node, vip: &str) -> PathBuf {
    PathBuf::from(node.data()).join("vips").join(vip)
}

fn record(node: &Node) -> Value {
    let text = fs::read_to_string(record_path(node, "default_web").join("vip.json")).expect("vip.json");
    serde_json::from_str(&text).expect("vip.json is JSON")
}

#[test]
fn open_connections_survive_and_the_old_address_goes_with_the_last() {
    let mut scene = Scene::new();
    scene.move_to_new();
    scene.question();
    scene.serves();
    let old = route(&scene.node, OLD);
    // Neither FRR (no `unreachable`) nor BIRD (no `cwnd`) advertises it.
    assert!(old.len() == 1 && old[0].contains("nhid") && !old[0].contains("cwnd"), "{old:?}");
    assert!(route(&scene.node, NEW).iter().any(|route| route.contains("cwnd 3")));
    assert_eq!(scene.pods[0].vips(), [OLD, NEW]);
    scene.untracked(&format!("{OLD}, {NEW}"));
    scene.check(&scene.pods.iter().collect::<Vec<_>>());
    // Clients of the old one are let in as well: they can't be told apart.
    connect(&scene.client, OLD, 10);
    // A replica more: a connection by the old address may be brought to it.
    scene.node.add(&scene.spare, &web()).ok();
    scene.check(&[&scene.spare, &scene.pods[0]]);
    thread::sleep(Duration::from_millis(2500));
    scene.question();
    // It is given to no other VIP meanwhile, also after a restart, which loses nothing.
    scene.restart(&pinned(NEW));
    assert_eq!(scene.sidecar().acquire("default/api").unwrap(), Ipv4Addr::new(10, 118, 0, 10));
    scene.question();
    scene.node.gc(&scene.pods.iter().chain([&scene.spare]).collect::<Vec<_>>(), &web()).ok();
    scene.question();
    scene.check(&scene.pods.iter().collect::<Vec<_>>());
    let log = scene.sidecar().daemon.log();
    assert_eq!(log.matches(" renumbered ").count(), 1, "{log}");
    scene.flows.clear();
    scene.old_is_gone();
    assert_eq!(scene.spare.vips(), [NEW]);
    assert!(scene.sidecar().daemon.log().contains("no connection uses it any more"));
    assert_eq!(scene.sidecar().acquire("default/late").unwrap(), OLD, "free again");
}

#[test]
fn a_connection_that_lingers_is_cut() {
    let mut scene = Scene::new();
    scene.move_to_new();
    scene.question();
    let dir = record_path(&scene.node, "default_web");
    {
        let lock = File::open(dir.join("lock")).expect("the VIP's lock");
        lock.lock().expect("lock the VIP");
        let mut record = record(&scene.node);
        let until = record["previous_addresses"][0]["until"].as_u64().expect("a time");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!((now + 30..=now + 60).contains(&until), "{record}");
        record["previous_addresses"][0]["until"] = json!(now);
        fs::write(dir.join("vip.json"), record.to_string()).expect("write vip.json");
    }
    scene.old_is_gone();
    assert!(scene.sidecar().daemon.log().contains("its time is over"));
}

/// The last replica takes everything along, a former address too.
#[test]
fn the_last_replica_takes_a_former_address_along() {
    let mut scene = Scene::new();
    scene.move_to_new();
    for pod in &scene.pods {
        scene.node.remove(pod, &web());
    }
    assert_eq!(scene.node.ns.ip("route show proto 118"), "");
    assert_eq!(scene.node.ns.ip("nexthop show proto 118"), "");
    assert!(!record_path(&scene.node, "default_web").exists());
}

/// The server has given the address to another client (NAK): nothing goes to it until there is another one, then open
/// connections go on, though the node no longer answers ARP for it.
#[test]
fn after_a_refusal_of_the_server() {
    let lan = Lan::new();
    let mut server = DhcpServer::quick(Software::Dnsmasq, &lan, 600);
    let node = Node::without_allocator(&lan, 1);
    let mut sidecar = Sidecar::dhcp(&node, "");
    let client = lan.client(50, &[]);
    let pods = [node.joined(&web()), node.joined(&web())];
    let _servers: Vec<_> = pods.iter().map(Crowd::start).collect();
    let old = pods[0].vip();
    until("the VIP is announced", LONG, || node.ns.ip("neigh show proxy").contains(&old.to_string()).then_some(()));
    let mut flows = Flows::open("the client", &client, old, 100);
    // A first lease is confirmed a moment after; the server must have written that.
    thread::sleep(Duration::from_secs(4));
    sidecar.stop();
    server.stop();
    server.give_away();
    server.start_again(&lan);
    sidecar = Sidecar::dhcp(&node, "");
    let new = until("the VIP moves", LONG, || {
        record(&node)["addresses"][0].as_str()?.parse().ok().filter(|new: &Ipv4Addr| *new != old)
    });
    until("the new address is announced", LONG, || {
        let proxied = node.ns.ip("neigh show proxy");
        let announced = proxied.contains(&new.to_string()) && !proxied.contains(&old.to_string());
        (announced && route(&node, old).len() == 1).then_some(())
    });
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None, "{}", sidecar.daemon.log());
    connect(&client, new, 10);
    for pod in &pods {
        node.check(pod, &web()).ok();
    }
    drop(flows);
    until("the old address is gone", LONG, || {
        (route(&node, old).is_empty() && pods.iter().all(|pod| pod.vips() == [new])).then_some(())
    });
}
