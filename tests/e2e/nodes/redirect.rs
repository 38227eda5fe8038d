//! Clients that come before the VIP does: a node without a route to it has its default route out of the link that they came by.

use std::net::UdpSocket;
use std::time::Instant;

use super::{DISCARD, Scene, WEB, web};
use crate::harness::{GATEWAY, Lan, Netns, Node, PATIENCE, SOON, Sidecar, attempt, serve_all, until};

/// A client's kernel acts on a redirect only if it knows the Ethernet address of the gateway that it names.
fn knows_the_gateway(client: &Netns) {
    until("the client knows the gateway", SOON, || {
        client.run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", (GATEWAY, 9))).expect("a datagram is sent");
        client.ip(&format!("neigh show {GATEWAY}")).contains("lladdr").then_some(())
    });
}

/// What the node has in the VIP's place.
fn discards(scene: &Scene, at: usize) -> String {
    scene.members[at].node.ns.ip(&format!("route show type unreachable proto 118 {DISCARD}"))
}

#[test]
fn who_was_too_early_is_answered_as_soon_as_the_vip_is_there() {
    let scene = Scene::new(2);
    let client = scene.lan.client(50, &["10.118.0.0/16 via 192.0.2.2"]);
    knows_the_gateway(&client);
    for _ in 0..3 {
        assert_eq!(attempt(&client, [10, 118, 9, 1], 2).failed, 2, "the VIP isn't there");
    }
    let way = client.ip(&format!("route get {WEB}"));
    assert!(way.contains("via 192.0.2.2") && !way.contains("redirected"), "{way}");
    let pods = [scene.members[0].node.joined(&web())];
    let _servers = serve_all(&pods);
    scene.members[1].has("n1's replica", &[("192.0.2.1", "ready", 1)]);
    let begun = Instant::now();
    until("it is answered", SOON, || (attempt(&client, pods[0].vip(), 20).failed == 0).then_some(()));
    eprintln!("answered {:?} after the other node was told", begun.elapsed());
}

/// A node that knows no others has no discard routes.
#[test]
fn nor_is_anybody_sent_to_the_gateway_by_a_node_that_stands_alone() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    node.ns.set_sysctl("net/ipv4/ip_forward", "1");
    let quiet =
        || ["all", "eth0"].iter().all(|of| node.ns.sysctl(&format!("net/ipv4/conf/{of}/send_redirects")) == "0");
    until("it sends no redirects", SOON, || quiet().then_some(()));
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    knows_the_gateway(&client);
    assert_eq!(attempt(&client, [10, 118, 0, 1], 4).failed, 4, "the VIP isn't there");
    let pods = [node.joined(&web())];
    assert_eq!(pods[0].vip().to_string(), "10.118.0.1");
    let _servers = serve_all(&pods);
    until("it is answered", SOON, || (attempt(&client, pods[0].vip(), 20).failed == 0).then_some(()));
    node.ns.set_sysctl("net/ipv4/conf/eth0/send_redirects", "1");
    until("it sends none again", SOON, || quiet().then_some(()));
}

#[test]
fn discard_routes_heal_and_follow_the_links() {
    let scene = Scene::new(2);
    until("they are there", SOON, || discards(&scene, 1).contains("10.118.2.0/24").then_some(()));
    assert!(discards(&scene, 1).contains(WEB), "a pin beside the pool: {}", discards(&scene, 1));
    let ns = &scene.members[1].node.ns;
    ns.ip(&format!("route del unreachable 10.118.2.0/24 proto 118 {DISCARD}"));
    until("it is back", SOON, || discards(&scene, 1).contains("10.118.2.0/24").then_some(()));
    // The pool is on a link now: who is there is to be reached.
    ns.ip("addr add 10.118.2.200/24 dev eth0");
    until("it is gone", SOON, || (!discards(&scene, 1).contains("10.118.2.0/24")).then_some(()));
    ns.ip("addr del 10.118.2.200/24 dev eth0");
    until("it is back again", PATIENCE, || discards(&scene, 1).contains("10.118.2.0/24").then_some(()));
}

#[test]
fn discard_routes_go_with_the_configuration() {
    let mut scene = Scene::new(2);
    until("they are there", SOON, || discards(&scene, 1).contains("10.118.2.0/24").then_some(()));
    let member = &mut scene.members[1];
    member.stop();
    assert!(member.node.ns.ip("route show proto 118").contains("10.118.2.0/24"), "they hold while viprouted is away");
    member.settings = member.settings.replace("10.118.2.0/24", "10.118.5.0/24").replace("10.118.2.1", "10.118.5.1");
    member.start();
    until("others are there", SOON, || {
        let found = discards(&scene, 1);
        (found.contains("10.118.5.0/24") && !found.contains("10.118.2.0/24")).then_some(())
    });
    scene.members[1].stop();
    let said = scene.members[1].ctl(&["unload"]).ok();
    assert!(said.contains("unreachable 10.118.5.0/24"), "{said}");
    assert_eq!(discards(&scene, 1), "");
}
