//! An address that is in use elsewhere is not used: the conflict search asks the routing information and the
//! link.

use std::net::Ipv4Addr;

use crate::harness::{DhcpServer, Join, KEA_POOL, Lan, Node, Sidecar};

fn web() -> Join {
    Join::annotated("web")
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

/// Kea offers its pool in order: .100 is the first.
fn with_kea(disturb: impl FnOnce(&Lan, &Node)) -> (Ipv4Addr, String) {
    let lan = Lan::new();
    let server = DhcpServer::kea(&lan, 600, Some(KEA_POOL));
    let node = Node::without_allocator(&lan, 1);
    disturb(&lan, &node);
    let _sidecar = Sidecar::dhcp(&node, "");
    let pod = node.joined(&web());
    node.check(&pod, &web()).ok();
    (pod.vip(), server.log())
}

fn assert_declined((vip, log): (Ipv4Addr, String)) {
    assert_eq!(vip, address(101));
    let declined: Vec<_> = log.lines().filter(|line| line.contains("DHCP4_DECLINE_LEASE")).collect();
    assert!(declined.len() == 1 && declined[0].contains("192.0.2.100"), "what Kea heard: {declined:?}\n{log}");
}

#[test]
fn without_a_conflict_the_first_offer_is_taken() {
    let (vip, log) = with_kea(|_, _| {});
    assert_eq!(vip, address(100));
    assert!(!log.contains("DHCP4_DECLINE_LEASE"), "{log}");
}

#[test]
fn a_foreign_route_to_the_first_offer() {
    assert_declined(with_kea(|_, node| {
        node.ns.ip("route add 192.0.2.100/32 via 192.0.2.254 proto static");
    }));
}

#[test]
fn a_foreign_route_in_another_table() {
    assert_declined(with_kea(|_, node| {
        node.ns.ip("route add 192.0.2.100/32 via 192.0.2.254 proto bgp table 77");
    }));
}

#[test]
fn a_host_that_answers_arp_for_the_first_offer() {
    let mut host = None;
    assert_declined(with_kea(|lan, _| host = Some(lan.client(100, &[]))));
}

/// A route as wide as the addresses that VIPs may have, or wider, says nothing about a single one.
#[test]
fn an_aggregate_is_no_conflict() {
    let (vip, _) = with_kea(|_, node| {
        node.ns.ip("route add 192.0.0.0/16 via 192.0.2.254 proto bgp");
    });
    assert_eq!(vip, address(100));
}

#[test]
fn dnsmasq_hears_the_decline_too() {
    let lan = Lan::new();
    let server = DhcpServer::dnsmasq(&lan, "192.0.2.100,192.0.2.101", "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let first = {
        let _sidecar = Sidecar::dhcp(&node, "cluster = \"same\"");
        let pod = node.joined(&web());
        let vip = pod.vip();
        node.remove(&pod, &web());
        vip
    };
    // Another node of the cluster, where that address is taken: dnsmasq offers it the lease that is there.
    let other = Node::without_allocator(&lan, 2);
    other.ns.ip(&format!("route add {first}/32 via 192.0.2.254 proto static"));
    let _sidecar = Sidecar::dhcp(&other, "cluster = \"same\"");
    assert_ne!(other.joined(&web()).vip(), first);
    assert!(server.log().contains(&format!("DHCPDECLINE(br0) {first}")), "{}", server.log());
}

#[test]
fn when_all_are_taken_add_fails_and_leaves_nothing() {
    let lan = Lan::new();
    let _server = DhcpServer::kea(&lan, 600, Some("192.0.2.100 - 192.0.2.102"));
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::dhcp(&node, "");
    for last in 100..=102 {
        node.ns.ip(&format!("route add {}/32 via 192.0.2.254 proto static", address(last)));
    }
    let pod = node.pod();
    let before = node.snapshot(&[&pod]);
    let error = node.add(&pod, &web()).error();
    assert_eq!(error.code, 11, "{error:?}");
    assert!(error.text().contains("default/web") && error.text().contains("192.0.2.10"), "{error:?}");
    assert!(error.text().contains("static route"), "what is in conflict: {error:?}");
    let after = node.snapshot(&[&pod]);
    // The first ADD of a node, even one that fails, brings the registry's directories and the node's settings.
    let unexpected: Vec<_> = before
        .changes(&after)
        .into_iter()
        .filter(|line| !line.contains(" files: ") || line.contains(".json"))
        .filter(|line| !line.contains("node sysctl"))
        .collect();
    assert_eq!(unexpected, Vec::<String>::new());
    assert_eq!(node.records(), Vec::<String>::new());
}

#[test]
fn more_than_eight_taken_are_enough() {
    let lan = Lan::new();
    let server = DhcpServer::kea(&lan, 600, Some(KEA_POOL));
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::dhcp(&node, "");
    node.ns.ip("route add 192.0.2.96/27 via 192.0.2.254 proto static");
    let error = node.add(&node.pod(), &web()).error();
    assert_eq!(error.code, 11, "{error:?}");
    let declined = server.log().lines().filter(|line| line.contains("DHCP4_DECLINE_LEASE")).count();
    assert_eq!(declined, 8, "{}", server.log());
}

/// The pool's addresses are searched for as well.
#[test]
fn a_pool_passes_over_what_is_taken() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    node.ns.ip("route add 10.118.0.1/32 via 192.0.2.254 proto static");
    node.ns.ip("route add 10.118.0.2/32 via 192.0.2.254 proto bgp");
    let sidecar = Sidecar::pool(&node, "10.118.0.0/30");
    let error = sidecar.acquire("default/web").unwrap_err();
    assert_eq!(error.code, 11, "{error:?}");
    assert!(error.msg.contains("static route 10.118.0.1/32"), "{error:?}");
    drop(sidecar);
    let sidecar = Sidecar::pool(&node, "10.118.0.0/29");
    assert_eq!(sidecar.acquire("default/api").unwrap().to_string(), "10.118.0.3");
}
