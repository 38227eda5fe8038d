//! Other hosts on the LAN, and a VIP's address.

use std::net::UdpSocket;

use serde_json::{Value, json};

use crate::harness::{DhcpServer, Lan, Netns, Node, Page, RANGE, Run, Sidecar, connect, serve_all, until};

use super::{SOON, ctl, wait_until_answered_for, web};

/// Who `ns` takes for the owner of an address.
fn owner(ns: &Netns, address: impl std::fmt::Display) -> Option<String> {
    ns.neighbour(address).map(|(mac, _)| mac)
}

#[test]
fn a_host_that_takes_a_vips_address_is_named_and_answered() {
    let lan = Lan::new();
    let _server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    let pods = [node.joined(&web())];
    let _servers = serve_all(&pods);
    let vip = pods[0].vip();
    wait_until_answered_for(&node, vip);
    let client = lan.client(50, &[]);
    connect(&client, vip, 1);
    assert_eq!(owner(&client, vip), Some(node.ns.mac("eth0")));

    let claimant = lan.client(60, &[]);
    claimant.ip(&format!("addr add {vip}/32 dev eth0"));
    // Whatever it asks for now, it asks in that address's name.
    let ask_for = |address: &str| {
        claimant.run(|| UdpSocket::bind((vip, 0)).and_then(|socket| socket.send_to(b"?", (address, 9))).expect("send"));
    };
    ask_for("192.0.2.50");
    let stranger = claimant.mac("eth0");
    let labels = [("namespace", "shop"), ("vip", "web")];
    until("the claim is counted", SOON, || {
        (Page::of(&node).value("viproute_address_claims_total", &labels) > 0).then_some(())
    });
    let says = format!("{stranger} says that {vip} is its own");
    assert!(ctl(&node, &["events", "--vip", "shop/web"]).contains(&says), "{}", ctl(&node, &["events"]));
    assert_eq!(sidecar.status("shop/web").unwrap()["claimed_by"], json!(stranger));
    until("the client has heard the node again", SOON, || {
        (owner(&client, vip) == Some(node.ns.mac("eth0"))).then_some(())
    });
    assert_eq!(sidecar.status("shop/web").unwrap()["state"], "bound", "it goes on");
    let found = doctor(&node);
    let what = format!("{stranger} says that {vip}, the address of shop/web, is its own");
    assert!(found.iter().any(|finding| finding["what"] == what && finding["severity"] == "error"), "{found:#?}");
    let counted = Page::of(&node).value("viproute_address_claims_total", &labels);
    ask_for("192.0.2.254");
    until("that claim is counted", SOON, || {
        (Page::of(&node).value("viproute_address_claims_total", &labels) > counted).then_some(())
    });
    assert_eq!(ctl(&node, &["events"]).matches("is its own").count(), 1, "told once");
}

fn doctor(node: &Node) -> Vec<Value> {
    let mut command = node.ctl();
    command.args(["doctor", "--output", "json"]);
    let report: Value = serde_json::from_str(&command.finish("").stdout).expect("doctor --output json is JSON");
    report["findings"].as_array().expect("a list").clone()
}

/// A node of another installation wants the address: it asks the link first, and learns that it is taken.
#[test]
fn who_probes_for_a_served_vip_hears_that_it_is_taken() {
    let lan = Lan::new();
    let _server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let nodes = [Node::without_allocator(&lan, 1), Node::without_allocator(&lan, 2)];
    let _sidecar = Sidecar::dhcp(&nodes[0], "");
    let vip = nodes[0].joined(&web()).vip();
    wait_until_answered_for(&nodes[0], vip);
    let pinned = format!("backend = \"pool\"\nannounce = \"arp\"\n[[pin]]\nvip = \"a/b\"\naddress = \"{vip}\"");
    let other = Sidecar::start(&nodes[1], &pinned);
    let error = other.acquire("a/b").unwrap_err();
    assert!(error.msg.contains(&format!("{} answers ARP for it", nodes[0].ns.mac("eth0"))), "{error:?}");
}

/// Peers serve the same VIP: what they say about it is no claim.
#[test]
fn a_peer_is_no_stranger() {
    let lan = Lan::new();
    let _server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let nodes = [Node::without_allocator(&lan, 1), Node::without_allocator(&lan, 2)];
    let settings = "cluster = \"blue\"\npeers = [\"192.0.2.1\", \"192.0.2.2\"]";
    let sidecars = nodes.each_ref().map(|node| Sidecar::dhcp(node, settings));
    let pods = nodes.each_ref().map(|node| node.joined(&web()));
    assert_eq!(pods[0].vip(), pods[1].vip());
    for node in &nodes {
        // The last of three announcements has been made a while after the first.
        wait_until_answered_for(node, pods[0].vip());
    }
    std::thread::sleep(std::time::Duration::from_secs(4));
    for (node, sidecar) in nodes.iter().zip(&sidecars) {
        let labels = [("namespace", "shop"), ("vip", "web")];
        assert_eq!(Page::of(node).value("viproute_address_claims_total", &labels), 0, "{}", sidecar.daemon.log());
        assert_eq!(sidecar.status("shop/web").unwrap()["claimed_by"], Value::Null);
    }
}

/// Two installations on one LAN that know nothing of each other, nothing configured.
#[test]
fn two_installations_dont_take_each_others_vips() {
    let lan = Lan::new();
    let server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let nodes = [Node::without_allocator(&lan, 1), Node::without_allocator(&lan, 2)];
    let _sidecars = nodes.each_ref().map(|node| Sidecar::start(node, ""));
    let vips = nodes.each_ref().map(|node| node.joined(&web()).vip());
    assert_ne!(vips[0], vips[1]);
    server.has_leases(2);
}
