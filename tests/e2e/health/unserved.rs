//! While no replica is ready a request fails at once, unless another way to the VIP is known.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{PATIENCE, Scene, web};
use crate::harness::{Join, Netns, Node, PORT, PodServer, connect, until};

/// A request that wanders to a gateway ends by a time-out of minutes.
const AT_ONCE: Duration = Duration::from_secs(3);

fn is_refused_at_once(from: &str, ns: &Netns, to: SocketAddr) {
    let start = Instant::now();
    let error = ns.run(|| TcpStream::connect_timeout(&to, AT_ONCE)).expect_err("nobody is ready");
    assert!(
        matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable),
        "from {from} after {:?}: {error}",
        start.elapsed()
    );
}

#[test]
fn a_request_fails_at_once_while_nobody_is_ready() {
    let scene = Scene::new();
    let pod = scene.node.joined(&web("listen interval=200ms fall=1"));
    let to = SocketAddr::from((scene.vip(), PORT));
    let routes = scene.node.ns.ip(&format!("route show {}", scene.vip()));
    assert_eq!(routes.trim(), format!("unreachable {} proto 118 metric 4294967295", scene.vip()));
    let refused = || {
        is_refused_at_once("the client", &scene.client, to);
        is_refused_at_once("the node", &scene.node.ns, to);
    };
    refused();
    let server = PodServer::start(&pod);
    scene.becomes(&pod, "ready");
    connect(&scene.client, scene.vip(), 10);
    connect(&scene.node.ns, scene.vip(), 10);
    drop(server);
    scene.becomes(&pod, "draining");
    refused();
}

/// Another node has ready replicas, and a routing daemon has brought the route.
#[test]
fn a_route_learned_from_another_node_wins_while_nobody_is_ready() {
    let scene = Scene::new();
    let other = Node::new(&scene.lan, 2);
    // Pods are called p1, p2 and so on, on each node.
    let _p1 = other.pod();
    let theirs = other.joined(&Join::annotated("web"));
    let _their_server = PodServer::start(&theirs);
    let ours = scene.node.joined(&web("listen interval=200ms fall=1"));
    let vip = scene.vip();
    assert_eq!(theirs.vip(), vip, "the same VIP on both nodes");
    scene.node.ns.ip(&format!("route add {vip} via 192.0.2.2 proto bgp metric 20"));
    let answered_by = |pod: &str| {
        for ns in [&scene.client, &scene.node.ns] {
            let names = connect(ns, vip, 10).names;
            assert_eq!(names.get(pod), Some(&10), "{names:?}");
        }
    };
    let is_ours = || scene.node.ns.ip(&format!("route get {vip}")).contains("dev vip");
    assert!(!is_ours());
    answered_by(&theirs.name);
    assert_ne!(theirs.name, ours.name);
    let server = PodServer::start(&ours);
    scene.becomes(&ours, "ready");
    assert!(is_ours());
    answered_by(&ours.name);
    drop(server);
    until("the learned route is in use again", PATIENCE, || (!is_ours()).then_some(()));
    answered_by(&theirs.name);
}
