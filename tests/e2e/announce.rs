//! `announce = "arp"`: a VIP from the LAN is reached on the LAN without any route.

use std::thread::sleep;
use std::time::Duration;

use crate::harness::{DhcpServer, Join, Lan, Node, RANGE, SOON, Sidecar, attempt, connect, serve_all, until};

fn web() -> Join {
    Join::annotated("web")
}

#[test]
fn a_client_on_the_lan_needs_no_route() {
    let lan = Lan::new();
    let _server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::dhcp(&node, "");
    let client = lan.client(50, &[]);
    let pods = [node.joined(&web()), node.joined(&web())];
    let vip = pods[0].vip();
    let servers = serve_all(&pods);
    until("the node answers ARP for the VIP", SOON, || (attempt(&client, vip, 1).failed == 0).then_some(()));
    assert_eq!(connect(&client, vip, 100).names.len(), 2);
    for server in &servers {
        assert_eq!(server.clients(), ["192.0.2.50".parse::<std::net::IpAddr>().unwrap()]);
    }
    let proxied = |vip| node.ns.ip("neigh show proxy").contains(&format!("{vip} dev eth0"));
    assert!(proxied(vip));
    node.remove(&pods[0], &web());
    sleep(Duration::from_millis(300));
    assert!(proxied(vip), "a replica is left");
    node.remove(&pods[1], &web());
    until("the node stops answering", SOON, || (!proxied(vip)).then_some(()));
    client.ip("neigh flush all");
    assert_eq!(attempt(&client, vip, 1).failed, 1);
}

/// A neighbour that still has another link address for the VIP is notified at once.
#[test]
fn neighbours_are_told_when_it_begins() {
    let lan = Lan::new();
    let _server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::dhcp(&node, "");
    let client = lan.client(50, &[]);
    let pod = node.joined(&web());
    let vip = pod.vip();
    let ours = node.ns.ip_json("link show dev eth0")[0]["address"].clone();
    node.remove(&pod, &web());
    until("the node stops answering", SOON, || node.ns.ip("neigh show proxy").is_empty().then_some(()));
    client.ip(&format!("neigh replace {vip} lladdr 02:00:00:00:00:99 dev eth0 nud stale"));
    // An entry isn't replaced within a second (`locktime`).
    sleep(Duration::from_millis(1200));
    let pod = node.joined(&web());
    assert_eq!(pod.vip(), vip);
    until("the client has heard", SOON, || {
        let entries = client.ip_json("neigh show dev eth0");
        let entry = entries.iter().find(|entry| entry["dst"] == vip.to_string())?;
        (entry["lladdr"] == ours).then_some(())
    });
}

#[test]
fn none_means_none() {
    let lan = Lan::new();
    let _server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::dhcp(&node, "announce = \"none\"");
    let pods = [node.joined(&web())];
    let vip = pods[0].vip();
    let _servers = serve_all(&pods);
    sleep(Duration::from_millis(500));
    assert_eq!(node.ns.ip("neigh show proxy"), "");
    assert_eq!(attempt(&lan.client(50, &[]), vip, 1).failed, 1);
    connect(&lan.client(51, &[&format!("{vip} via 192.0.2.1")]), vip, 10);
}
