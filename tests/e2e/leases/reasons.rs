//! Why there is no address: said to who asks, by `/readyz` and by `status`.

use std::time::Duration;

use crate::harness::{DhcpServer, Lan, Node, RANGE, Sidecar, get, until};

use super::{SOON, ctl, readiness_errors, web};

/// ADD's refusal, and what `/readyz` and status say then.
fn refused(node: &Node, sidecar: &Sidecar, why: &str) {
    let pod = node.pod();
    let error = node.add(&pod, &web()).error();
    assert!(error.code == 11 && error.text().contains(why), "expected {why:?}: {error:?}\n{}", sidecar.daemon.log());
    let ready = get(node, "/readyz");
    assert!(ready.status == 503 && ready.body.contains(why), "{ready:?}");
    let status = ctl(node, &["status"]);
    assert!(status.contains("a new VIP would get no address now: ") && status.contains(why), "{status}");
}

#[test]
fn no_server_then_one() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    assert_eq!(get(&node, "/readyz").status, 200, "nobody has asked yet");
    refused(&node, &sidecar, "no DHCP server answers");
    let _server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let pod = node.joined(&web());
    assert_eq!(get(&node, "/readyz").status, 200, "{} has one", pod.name);
    assert_eq!(readiness_errors(&sidecar), Vec::<String>::new());
}

#[test]
fn a_link_that_is_down() {
    let lan = Lan::new();
    let _server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    node.ns.ip("link set eth0 down");
    let error = sidecar.acquire("shop/web").unwrap_err();
    assert!(error.msg.contains("DHCP messages don't leave: Network is down"), "{error:?}");
    let ready = get(&node, "/readyz");
    assert!(ready.status == 503 && ready.body.contains("eth0 is down"), "{ready:?}");
}

/// Two addresses, three VIPs in use.
#[test]
fn a_pool_that_is_empty() {
    let lan = Lan::new();
    let _server = DhcpServer::dnsmasq(&lan, "192.0.2.100,192.0.2.101", "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    let _pods = ["one", "two"].map(|name| node.joined(&crate::harness::Join::annotated(name)));
    refused(&node, &sidecar, "the DHCP server 192.0.2.254 answers others and offers nothing here: its pool is empty");
}

/// The server has a subnet that isn't the link's, and nothing is configured.
#[test]
fn addresses_that_are_not_the_links() {
    let lan = Lan::new();
    lan.ns.ip("addr del 192.0.2.254/24 dev br0");
    lan.ns.ip("addr add 10.99.0.254/24 dev br0");
    let _server = DhcpServer::dnsmasq(&lan, "10.99.0.100,10.99.0.110", "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::start(&node, "");
    let said = "which allow doesn't hold (192.0.2.0/24, the prefix of eth0)";
    // Within a call's time the server may not have answered yet.
    until("it says why", SOON, || {
        let error = sidecar.acquire("shop/web").unwrap_err();
        (error.code == 11 && error.msg.contains(said)).then_some(())
    });
    // The link gets such an address: from then on they will do.
    drop(sidecar);
    node.ns.ip("addr add 10.99.0.1/24 dev eth0");
    let sidecar = Sidecar::start(&node, "");
    let address = until("it is leased", SOON, || sidecar.acquire("shop/web").ok());
    assert_eq!(address.octets()[..3], [10, 99, 0]);
}

/// A host that answers ARP for every address, as a router with proxy ARP does: the server's pool isn't declined away.
#[test]
fn a_host_that_answers_for_everything() {
    let lan = Lan::new();
    let server = DhcpServer::kea(&lan, 600, Some(crate::harness::KEA_POOL));
    let host = lan.client(60, &[]);
    host.ip("route add local 192.0.2.96/27 dev lo");
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    let error = sidecar.acquire("shop/web").unwrap_err();
    assert!(error.code == 11 && error.msg.contains(" answers for whatever is offered"), "{error:?}");
    let declined = || server.log().matches("DHCP4_DECLINE_LEASE").count();
    assert_eq!(declined(), 1, "{}", server.log());
    until("the next one is refused without asking", SOON, || sidecar.acquire("shop/web").err());
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(declined(), 1, "nobody asks meanwhile");
}

/// A pool in the subnet of the pods' bridge.
#[test]
fn a_pool_that_is_the_pods() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    node.ns.ip("link add cni0 type bridge");
    node.ns.ip("addr add 10.9.0.1/16 dev cni0");
    node.ns.ip("link set cni0 up");
    let sidecar = Sidecar::pool(&node, "10.9.0.0/28");
    let error = sidecar.acquire("shop/web").unwrap_err();
    assert!(error.code == 11 && error.msg.contains("10.9.0.0/16 is connected on cni0"), "{error:?}");
}

/// The gateway is in the range, and no host answers at its address just now.
#[test]
fn the_gateways_address_is_never_taken() {
    let lan = Lan::new();
    lan.ns.ip("addr del 192.0.2.254/24 dev br0");
    lan.ns.ip("addr add 192.0.2.253/24 dev br0");
    let server = DhcpServer::kea(&lan, 600, Some("192.0.2.254 - 192.0.2.254"));
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    let error = sidecar.acquire("shop/web").unwrap_err();
    assert!(error.msg.contains("192.0.2.254: it is a gateway of this node's routes"), "{error:?}\n{}", server.log());
}
