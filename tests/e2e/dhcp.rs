//! VIPs by DHCP, from real servers.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::thread::{self, sleep};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    DhcpServer, Join, KEA_POOL, Lan, Node, PATIENCE, Pod, RANGE, SOON, Sidecar, attempt, connect, serve_all, until,
};

fn web() -> Join {
    Join::annotated("web").namespace("shop")
}

fn is_in_range(address: Ipv4Addr) -> bool {
    address.octets()[..3] == [192, 0, 2] && (100..=150).contains(&address.octets()[3])
}

/// The registry's record of `shop/web`.
fn record(node: &Node) -> Value {
    let path = node.dir.path().join("data/vips/shop_web/vip.json");
    serde_json::from_str(&fs::read_to_string(path).expect("vip.json")).expect("vip.json is JSON")
}

fn is_withdrawn(node: &Node) -> bool {
    record(node)["withdrawn"] == true
}

/// What of `vip` is in the node's routing tables.
fn routes(node: &Node, vip: Ipv4Addr) -> Vec<Value> {
    node.ns.ip_json(&format!("route show {vip} proto 118"))
}

/// The sidecar notices a new replica in the registry, a moment after the ADD.
fn wait_until_announced(node: &Node, vip: Ipv4Addr) {
    until("the node answers ARP for the VIP", SOON, || {
        node.ns.ip("neigh show proxy").contains(&format!("{vip} dev eth0")).then_some(())
    });
}

#[test]
fn dnsmasq_hands_out_the_vip() {
    let lan = Lan::new();
    let server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    let pod = node.joined(&web());
    assert!(is_in_range(pod.vip()), "{}", pod.vip());
    assert_eq!(server.host_name(pod.vip()), "web-shop");
    server.has_leases(1);
    let status = sidecar.status("shop/web").unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let left = status["expires"].as_u64().unwrap().saturating_sub(now);
    assert!((500..=600).contains(&left), "ten minutes: {status}");
    node.check(&pod, &web()).ok();
}

/// Kea and ISC dhcpd as well.
#[test]
fn other_servers_hand_out_the_vip() {
    for name in ["kea", "dhcpd"] {
        let lan = Lan::new();
        let _server = match name {
            "kea" => DhcpServer::kea(&lan, 600, Some(KEA_POOL)),
            _ => DhcpServer::dhcpd(&lan, 600),
        };
        let node = Node::without_allocator(&lan, 1);
        let _sidecar = Sidecar::dhcp(&node, "");
        let pod = node.joined(&web());
        assert!(is_in_range(pod.vip()), "{name} gave {}", pod.vip());
    }
}

#[test]
fn renewal_keeps_it_past_several_lease_times() {
    let lan = Lan::new();
    let server = DhcpServer::kea(&lan, 6, Some(KEA_POOL));
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    let client = lan.client(50, &[]);
    let pods = [node.joined(&web())];
    let _servers = serve_all(&pods);
    let vip = pods[0].vip();
    wait_until_announced(&node, vip);
    let before = node.snapshot(&[&pods[0]]);
    for _ in 0..20 {
        sleep(Duration::from_secs(1));
        connect(&client, vip, 2);
        assert!(!is_withdrawn(&node));
    }
    before.assert_same(&node.snapshot(&[&pods[0]]), "20 seconds of a lease of 6");
    assert_eq!(sidecar.acquire("shop/web").unwrap(), vip);
    // Kea appends a line for each grant: the first, its confirmation, and one every three seconds or so.
    let grants = server.leases().iter().filter(|line| line.starts_with(&format!("{vip},"))).count();
    assert!((5..=14).contains(&grants), "{grants} grants in 20 s:\n{}", server.leases().join("\n"));
}

/// A node with one pod whose six-second lease is about to be in trouble.
struct Served {
    lan: Lan,
    server: DhcpServer,
    node: Node,
    sidecar: Sidecar,
    pod: Pod,
    vip: Ipv4Addr,
}

fn served(settings: &str) -> Served {
    let lan = Lan::new();
    let server = DhcpServer::kea(&lan, 6, Some(KEA_POOL));
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, settings);
    let pod = node.joined(&web());
    let vip = pod.vip();
    Served { lan, server, node, sidecar, pod, vip }
}

impl Served {
    /// Until its routes are deleted and the registry says so.
    fn wait_until_withdrawn(&self) {
        until("the VIP is withdrawn", PATIENCE, || {
            (routes(&self.node, self.vip).is_empty() && is_withdrawn(&self.node)).then_some(())
        });
        assert_eq!(self.sidecar.status("shop/web").unwrap()["state"], "expired");
        // Another thread's work.
        until("it doesn't answer ARP", SOON, || self.node.ns.ip("neigh show proxy").is_empty().then_some(()));
    }

    /// Until it is served at an address of the new server's; returns that.
    fn wait_until_served(&self) -> Ipv4Addr {
        until("the VIP is served again", PATIENCE, || {
            let address: Ipv4Addr = record(&self.node)["addresses"][0].as_str()?.parse().ok()?;
            let serving = !is_withdrawn(&self.node) && routes(&self.node, address).len() == 2;
            (serving && self.pod.vips() == [address]).then_some(address)
        })
    }

    fn assert_reached(&self, vip: Ipv4Addr) {
        let client = self.lan.client(50, &[&format!("{vip} via 192.0.2.1")]);
        let pods = std::slice::from_ref(&self.pod);
        let _servers = serve_all(pods);
        connect(&client, vip, 10);
        self.node.check(&self.pod, &web()).ok();
    }
}

#[test]
fn expiry_withdraws_and_a_server_brings_it_back() {
    let mut served = served("");
    served.server.stop();
    served.wait_until_withdrawn();
    let late = served.node.pod();
    assert_eq!(served.node.add(&late, &Join::annotated("api")).error().code, 11, "no server, no address");
    served.server = DhcpServer::kea(&served.lan, 600, Some("192.0.2.120 - 192.0.2.130"));
    let vip = served.wait_until_served();
    served.assert_reached(vip);
    let second = served.node.joined(&web());
    assert_eq!(second.vip(), vip);
}

/// The server has forgotten it and has nothing else to give: its NAK withdraws at once, long before the lease is over.
#[test]
fn a_nak_withdraws() {
    let mut served = served("");
    served.server.stop();
    served.server = DhcpServer::kea(&served.lan, 600, None);
    served.wait_until_withdrawn();
    served.server.stop();
    served.server = DhcpServer::kea(&served.lan, 600, Some("192.0.2.120 - 192.0.2.130"));
    let vip = served.wait_until_served();
    assert_ne!(vip, served.vip);
    served.assert_reached(vip);
    assert_eq!(routes(&served.node, served.vip).len(), 0, "nothing is left at the former address");
}

/// A NAK with another address to be had moves the VIP there, pods and all.
#[test]
fn a_nak_renumbers() {
    let mut served = served("");
    served.server.stop();
    served.server = DhcpServer::kea(&served.lan, 600, Some("192.0.2.120 - 192.0.2.130"));
    until("the VIP has moved", PATIENCE, || (routes(&served.node, served.vip).is_empty()).then_some(()));
    let vip = served.wait_until_served();
    assert!((120..=130).contains(&vip.octets()[3]), "{vip}");
    served.assert_reached(vip);
    served.node.remove(&served.pod, &web());
    assert_eq!(served.node.records(), Vec::<String>::new());
}

#[test]
fn on_lost_keep_goes_on_serving() {
    let mut served = served("[dhcp]\non_lost = \"keep\"");
    served.server.stop();
    until("the loss is noticed", PATIENCE, || (served.sidecar.status("shop/web")?["state"] == "expired").then_some(()));
    sleep(Duration::from_secs(1));
    assert!(!is_withdrawn(&served.node));
    served.assert_reached(served.vip);
}

/// A restart, of viprouted or of the machine, begins with the lease that is on disk.
#[test]
fn a_lease_outlives_a_restart() {
    let Served { server, node, sidecar, pod, vip, .. } = served("");
    let grants = || server.leases().iter().filter(|line| line.starts_with(&format!("{vip},"))).count();
    wait_until_announced(&node, vip);
    let before = (grants(), node.snapshot(&[&pod]));
    sidecar.stop();
    sleep(Duration::from_secs(1));
    let before = (grants(), before.1);
    let sidecar = Sidecar::dhcp(&node, "");
    until("the server has confirmed it", SOON, || (grants() > before.0).then_some(()));
    assert_eq!(sidecar.acquire("shop/web").unwrap(), vip);
    wait_until_announced(&node, vip);
    before.1.assert_same(&node.snapshot(&[&pod]), "a restart of viprouted");
}

/// Every node asks as the same client, so the server is who makes them agree.
#[test]
fn nodes_of_a_cluster_get_the_same_address() {
    let lan = Lan::new();
    let server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let nodes = [Node::without_allocator(&lan, 1), Node::without_allocator(&lan, 2)];
    let settings = "cluster = \"blue\"\npeers = [\"192.0.2.1\", \"192.0.2.2\"]";
    let _sidecars = [Sidecar::dhcp(&nodes[0], settings), Sidecar::dhcp(&nodes[1], settings)];
    let pods = [nodes[0].joined(&web()), nodes[1].joined(&web())];
    assert_eq!(pods[0].vip(), pods[1].vip());
    let api = [nodes[0].joined(&Join::annotated("api")), nodes[1].joined(&Join::annotated("api"))];
    assert_eq!(api[0].vip(), api[1].vip());
    assert_ne!(api[0].vip(), pods[0].vip());
    server.has_leases(2);
    // Both serve it.
    let _servers = serve_all(&pods);
    for (at, node) in ["192.0.2.1", "192.0.2.2"].into_iter().enumerate() {
        let route = format!("{} via {node}", pods[0].vip());
        let client = lan.client(60 + u8::try_from(at).unwrap(), &[&route]);
        assert_eq!(connect(&client, pods[0].vip(), 5).names.len(), 1);
    }
}

#[test]
fn another_cluster_is_another_client() {
    let lan = Lan::new();
    let _server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let nodes = [Node::without_allocator(&lan, 1), Node::without_allocator(&lan, 2)];
    let _sidecars = [Sidecar::dhcp(&nodes[0], "cluster = \"blue\""), Sidecar::dhcp(&nodes[1], "cluster = \"green\"")];
    assert_ne!(nodes[0].joined(&web()).vip(), nodes[1].joined(&web()).vip());
}

#[test]
fn two_hundred_vips_at_once() {
    let lan = Lan::new();
    let server = DhcpServer::dnsmasq(&lan, "192.0.2.10,192.0.2.249", "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "[limits]\nvips_per_namespace = 200");
    let addresses: BTreeSet<_> = thread::scope(|scope| {
        let ask = |number| sidecar.acquire(&format!("default/vip-{number}"));
        let asking: Vec<_> = (0..200).map(|number| scope.spawn(move || ask(number))).collect();
        asking.into_iter().map(|one| one.join().expect("a caller").expect("an address")).collect()
    });
    assert_eq!(addresses.len(), 200, "an address of its own for each");
    server.has_leases(200);
}

/// With no server at all a pod waits for about as long as the plugin does, and gets the reason.
#[test]
fn without_a_server_add_says_so() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::dhcp(&node, "");
    let pod = node.pod();
    let error = node.add(&pod, &web()).error();
    assert_eq!(error.code, 11, "{error:?}");
    assert!(error.text().contains("no DHCP server answers"), "{error:?}");
    assert_eq!(node.records(), Vec::<String>::new());
    assert_eq!(attempt(&node.ns, Ipv4Addr::new(192, 0, 2, 100), 1).failed, 1);
}

/// By DHCP a VIP is on the LAN's own link: a node that doesn't have it yet redirects clients to the VIP itself, where who has it answers.
#[test]
fn who_was_too_early_is_answered_as_soon_as_the_vip_is_there() {
    let lan = Lan::new();
    let _server = DhcpServer::dnsmasq(&lan, "192.0.2.100,192.0.2.100", "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::dhcp(&node, "");
    // So that it forwards.
    node.ns.set_sysctl("net/ipv4/ip_forward", "1");
    let (client, vip) = (lan.client(50, &["192.0.2.100 via 192.0.2.1"]), Ipv4Addr::new(192, 0, 2, 100));
    for _ in 0..2 {
        assert_eq!(attempt(&client, vip, 2).failed, 2, "the VIP isn't there");
    }
    let pods = [node.joined(&web())];
    assert_eq!(pods[0].vip(), vip);
    let _servers = serve_all(&pods);
    until("it is answered", SOON, || (attempt(&client, vip, 20).failed == 0).then_some(()));
}
