//! The node changes under its VIPs: its address, its link to the gateways, the id of its boot.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    DhcpServer, Finished, Join, Lan, Netns, Node, Pod, PodServer, RANGE, Run, Sidecar, VIPROUTE, attempt, connect,
    serve_all, until,
};

const POOL: &str = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";
const SOON: Duration = Duration::from_secs(20);

fn web() -> Join {
    Join::annotated("web")
}

/// As a DHCP client or netplan does it.
fn move_address(node: &Node, client: &Netns) {
    node.ns.ip("addr del 192.0.2.1/24 dev eth0");
    node.ns.ip("addr add 192.0.2.7/24 dev eth0");
    node.ns.ip("route replace default via 192.0.2.254");
    client.ip("route replace 10.118.0.0/16 via 192.0.2.7");
}

fn doctor(node: &Node) -> Finished {
    let mut command = node.ctl();
    command.args([
        "doctor",
        "--conf-dir",
        "/nonexistent",
        "--config",
        &node.dir.file("viprouted.toml"),
        "--output",
        "json",
    ]);
    command.finish("")
}

#[test]
fn the_source_of_vips_follows_the_nodes_address() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::start(&node, POOL);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pods = [node.joined(&web()), node.joined(&web())];
    let (vip, _servers) = (pods[0].vip(), serve_all(&pods));
    connect(&client, vip, 10);
    move_address(&node, &client);
    until("the route has the new address", SOON, || {
        node.ns.ip(&format!("route show {vip}")).contains("src 192.0.2.7").then_some(())
    });
    connect(&client, vip, 10);
    connect(&node.ns, vip, 10);
    node.check(&pods[0], &web()).ok();
    let third = node.joined(&web());
    node.remove(&third, &web());
    node.remove(&pods[1], &web());
    connect(&client, vip, 10);
    assert!(sidecar.daemon.log().contains("want 192.0.2.7, found 192.0.2.1"), "{}", sidecar.daemon.log());
}

/// The address comes a while after the other one went.
#[test]
fn a_node_that_has_no_address_for_a_while() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::start(&node, POOL);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pods = [node.joined(&web())];
    let (vip, _servers) = (pods[0].vip(), serve_all(&pods));
    node.ns.ip("addr del 192.0.2.1/24 dev eth0");
    until("nobody is told of the VIP any more", SOON, || {
        let routes = node.ns.ip(&format!("route show {vip}"));
        (!routes.contains("nhid") && routes.contains("metric 4294967295") && !routes.contains("metric 1 "))
            .then_some(())
    });
    node.ns.ip("addr add 192.0.2.7/24 dev eth0");
    node.ns.ip("route replace default via 192.0.2.254");
    client.ip("route replace 10.118.0.0/16 via 192.0.2.7");
    until("it is served again", SOON, || {
        node.ns.ip(&format!("route show {vip}")).contains("src 192.0.2.7").then_some(())
    });
    connect(&client, vip, 10);
}

/// Without viprouted: what can't be made is no reason for a replica to stay, and is not advertised.
#[test]
fn a_replica_leaves_whatever_cannot_be_put() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pods = [node.joined(&web()), node.joined(&web())];
    let vip = pods[0].vip();
    move_address(&node, &client);
    node.remove(&pods[1], &web());
    let routes = node.ns.ip(&format!("route show {vip}"));
    assert!(routes.contains("metric 4294967295") && !routes.contains("nhid"), "{routes}");
    let third = node.joined(&web());
    assert!(node.ns.ip(&format!("route show {vip}")).contains("src 192.0.2.7"), "ADD knows better");
    let pods = [third];
    let _servers = serve_all(&pods);
    attempt(&client, vip, 1);
    node.check(&pods[0], &web()).ok();
    node.remove(&pods[0], &web());
}

#[test]
fn a_node_ip_that_is_none_is_named() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let (good, bad) = (web().key("nodeIP", json!("192.0.2.1")), web().key("nodeIP", json!("192.0.2.99")));
    let pod = node.pod();
    let failure = node.add(&pod, &bad).error();
    assert!(failure.code == 7 && failure.msg.contains("\"nodeIP\" is \"192.0.2.99\""), "{failure:?}");
    assert_eq!(node.records(), Vec::<String>::new());
    let other = Join::nothing().key("nodeIP", json!("192.0.2.99"));
    let passed = node.pod();
    node.add(&passed, &other).ok();
    node.add(&pod, &good).ok();
    node.check(&pod, &good).ok();
    // Whatever the configuration says by now.
    node.del(&pod, &bad).ok();
}

#[test]
fn a_node_without_any_route() {
    let lan = Lan::new();
    let (node, bare) = (Node::new(&lan, 1), Netns::new());
    let strict = Join::nothing().version("1.1.0").key("strictStatus", json!(true));
    let conf = node.conf(&strict).to_string();
    let failure = node.run(&mut bare.cmd(VIPROUTE), &node.verb("STATUS"), &conf).error();
    assert!(failure.code == 50 && failure.msg.contains("no IPv4 address to be found"), "{failure:?}");
}

/// A node with a VIP from the LAN, and a client there that has no route to it.
struct Scene {
    _servers: Vec<PodServer>,
    pods: Vec<Pod>,
    client: Netns,
    sidecar: Sidecar,
    node: Node,
    _server: DhcpServer,
    lan: Lan,
}

impl Scene {
    fn new(settings: &str) -> Self {
        let lan = Lan::new();
        let server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
        let node = Node::without_allocator(&lan, 1);
        let sidecar = Sidecar::dhcp(&node, settings);
        let client = lan.client(50, &[]);
        let pods = vec![node.joined(&web())];
        let servers = serve_all(&pods);
        let scene = Self { _servers: servers, pods, client, sidecar, node, _server: server, lan };
        scene.is_reached("at first");
        scene
    }

    /// By a client that must ask by ARP.
    fn is_reached(&self, when: &str) {
        let vip = self.pods[0].vip();
        until(&format!("the VIP is reached {when}"), SOON, || {
            self.client.cmd("ip").args(["neigh", "del", &vip.to_string(), "dev", "eth0"]).finish("");
            (attempt(&self.client, vip, 1).failed == 0).then_some(())
        });
    }

    /// Whom the client takes for the VIP.
    fn neighbour(&self) -> Value {
        let vip = self.pods[0].vip().to_string();
        let entries = self.client.ip_json("neigh show dev eth0");
        entries.into_iter().find(|entry| entry["dst"] == vip).map_or(Value::Null, |entry| entry["lladdr"].clone())
    }

    /// Another VIP: an address is asked for, and searched for, on the link as it is now.
    fn gives_addresses(&mut self) {
        let pod = self.node.joined(&Join::annotated("api"));
        pod.vip();
        self.node.remove(&pod, &Join::annotated("api"));
        assert!(!self.sidecar.daemon.ended(), "viprouted lives on");
    }

    fn logs(&self, text: &str) {
        until(&format!("the log says {text:?}"), SOON, || self.sidecar.daemon.log().contains(text).then_some(()));
    }

    /// Log, status and doctor say so.
    fn names(&self, text: &str) {
        self.logs(text);
        assert!(self.status().contains(text), "{}", self.status());
        let found = doctor(&self.node).stdout;
        assert!(found.contains(text), "{found}");
    }

    fn status(&self) -> String {
        self.sidecar.ask(&json!({ "status": {} })).to_string()
    }

    fn is_over(&self, text: &str) {
        until("that is over", SOON, || (!self.status().contains(text)).then_some(()));
    }
}

#[test]
fn a_link_that_was_down() {
    let mut scene = Scene::new("");
    scene.node.ns.ip("link set eth0 down");
    scene.names("eth0 is down");
    scene.node.ns.ip("link set eth0 up");
    scene.node.ns.ip("route replace default via 192.0.2.254");
    scene.is_reached("after the link came up");
    scene.is_over("eth0 is down");
    scene.gives_addresses();
}

#[test]
fn another_mac_address() {
    let mut scene = Scene::new("");
    scene.node.ns.ip("link set eth0 address 02:00:00:00:00:77");
    // Unsolicited: neighbours are notified.
    until("the client has heard", SOON, || (scene.neighbour() == "02:00:00:00:00:77").then_some(()));
    scene.is_reached("by the new address");
    scene.gives_addresses();
}

#[test]
fn a_link_that_is_made_anew() {
    let mut scene = Scene::new("");
    scene.node.ns.ip("link del eth0");
    scene.names("eth0 is gone");
    scene.lan.plug(&scene.node.ns, 1);
    scene.node.ns.ip("route replace default via 192.0.2.254");
    scene.is_reached("by the new link");
    scene.is_over("eth0 is gone");
    scene.gives_addresses();
}

/// As libvirt and nmstate do it.
#[test]
fn a_link_that_becomes_a_bridges_port() {
    let mut scene = Scene::new("");
    for line in [
        "link add br0 type bridge forward_delay 0",
        "link set br0 up",
        "link set eth0 master br0",
        "addr del 192.0.2.1/24 dev eth0",
        "addr add 192.0.2.1/24 dev br0",
        "route replace default via 192.0.2.254",
    ] {
        scene.node.ns.ip(line);
    }
    scene.is_reached("by the bridge");
    // Over as soon as the lease is confirmed there: status and doctor may be too late.
    scene.logs("leases that were granted on eth0 are asked for on br0");
    assert!(!scene.node.ns.ip("neigh show proxy").contains("dev eth0"), "none is left behind");
    scene.gives_addresses();
}

#[test]
fn a_configured_link_that_is_a_port_is_named() {
    let scene = Scene::new("[dhcp]\ninterface = \"eth0\"");
    scene.node.ns.ip("link add br0 type bridge");
    scene.node.ns.ip("link set eth0 master br0");
    scene.names("eth0 is a port of br0");
    scene.node.ns.ip("link set eth0 nomaster");
    scene.is_over("eth0 is a port of br0");
    scene.is_reached("again");
}

/// While viprouted is away: the lease file says where the lease is from.
#[test]
fn a_lease_remembered_from_another_link_is_named() {
    let mut scene = Scene::new("");
    scene.sidecar.daemon.signal(Signal::SIGTERM);
    until("viprouted has ended", SOON, || scene.sidecar.daemon.ended().then_some(()));
    for line in [
        "link add eth1 type veth peer name nobody",
        "link set nobody up",
        "link set eth1 up",
        "addr add 198.51.100.1/24 dev eth1",
        "route replace default via 198.51.100.254 dev eth1",
    ] {
        scene.node.ns.ip(line);
    }
    scene.sidecar = Sidecar::dhcp(&scene.node, "");
    scene.names("leases that were granted on eth0 are asked for on eth1");
    scene.node.ns.ip("route replace default via 192.0.2.254 dev eth0");
    scene.is_over("leases that were granted on eth0");
    scene.is_reached("by the link of its lease");
}

#[test]
fn the_default_route_moves_to_another_link() {
    let mut scene = Scene::new("");
    let (lan, node) = (&scene.lan, &scene.node);
    lan.ns.ip(&format!("link add name second type veth peer name eth1 netns {}", node.ns.path()));
    lan.ns.ip("link set second master br0 up");
    node.ns.ip("addr add 192.0.2.8/24 dev eth1");
    node.ns.ip("link set eth1 up");
    let mac = node.ns.ip_json("link show dev eth1")[0]["address"].clone();
    node.ns.ip("route replace default via 192.0.2.254 dev eth1");
    until("the client has heard", SOON, || (scene.neighbour() == mac).then_some(()));
    scene.is_reached("by the other link");
    scene.gives_addresses();
}

/// In a system container viprouted, a service there, may see another boot id than the runtime's plugin.
#[test]
fn another_boot_id_does_not_make_living_pods_another_boots() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::start(&node, POOL);
    let pods = [node.joined(&web()), node.joined(&web())];
    let (vip, _servers) = (pods[0].vip(), serve_all(&pods));
    let records = node.records();
    sidecar.stop();
    let path = format!("{}/boot-id", node.data());
    fs::write(&path, "01234567-89ab-cdef-0123-456789abcdef\n").expect("write boot-id");
    let sidecar = Sidecar::start(&node, POOL);
    until("it is said", SOON, || sidecar.daemon.log().contains("the registry is kept").then_some(()));
    assert_eq!(node.records(), records);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    connect(&client, vip, 20);
    node.check(&pods[0], &web()).ok();
    let found = doctor(&node).stdout;
    assert!(found.contains("the registry is of boot 01234567-89ab-cdef-0123-456789abcdef"), "{found}");
    let third = node.joined(&web());
    node.remove(&third, &web());
    for pod in &pods {
        node.remove(pod, &web());
    }
}
