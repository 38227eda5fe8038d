//! Servers that the kubelet reaches and the VIP doesn't.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;

use super::{Scene, service, slice};
use crate::harness::{Load, PORT, PodServer, SOON, Server, until};

impl Scene {
    /// The pod's server ends, and listens there from now on.
    fn listens(&mut self, number: usize, address: Ipv4Addr) {
        self.pods[number].1 = None;
        self.pods[number].1 = Some(PodServer::at(self.pod(number), address));
    }
}

/// One that listens on the pod's own address only is named and gets nothing, until it listens on all of them.
#[test]
fn a_server_on_the_pods_own_address_waits() {
    let mut scene = Scene::new(2);
    scene.listens(0, scene.pod(0).address());
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true), (1, true)]);
    let address: Ipv4Addr = scene.address().parse().unwrap();
    scene.waits_for(&[(0, "pending"), (1, "ready")]);
    let at = SocketAddr::from((scene.pod(0).address(), PORT));
    scene.is_told("NotListening", &format!("default/{} serves 80/tcp at {at} only", scene.pod(0).name));
    let client = scene.lan.client(50, &[&format!("{} via {}", super::RANGE, scene.node.address())]);
    let load = || client.run(|| Load { to: (address, 80).into(), count: 20, rate: None, concurrency: 4 }.run());
    let tally = load();
    assert_eq!((tally.failed, tally.names.len()), (0, 1), "{tally:?}");
    let found = scene.sidecar.ask(&json!({ "kubernetes": {} }));
    assert!(found["findings"].to_string().contains("only, the pod's own address"), "{found}");

    scene.listens(0, Ipv4Addr::UNSPECIFIED);
    scene.waits_for(&[(0, "ready"), (1, "ready")]);
    let tally = load();
    assert_eq!((tally.failed, tally.names.len()), (0, 2), "{tally:?}");
    // And back.
    scene.listens(0, scene.pod(0).address());
    scene.waits_for(&[(0, "draining"), (1, "ready")]);
    assert_eq!(load().failed, 0);
    // The VIP's own address does as well.
    scene.listens(0, address);
    scene.waits_for(&[(0, "ready"), (1, "ready")]);
    scene.ends();
}

/// A pod on whose port nothing listens is as its Service has it: that is no matter of addresses.
#[test]
fn a_pod_without_a_server_is_ready_while_its_service_says_so() {
    let mut scene = Scene::new(1);
    scene.pods[0].1 = None;
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true)]);
    scene.address();
    scene.waits_for(&[(0, "ready")]);
    scene.ends();
}

/// The same by UDP.
#[test]
fn a_udp_server_on_the_pods_own_address_waits() {
    let mut scene = Scene::new(1);
    scene.pods[0].1 = None;
    let pod = scene.pod(0);
    let server = |address: Ipv4Addr| {
        // The one before has the port until its thread has ended.
        until("a UDP server", SOON, || {
            pod.ns.run(|| Server::start(&pod.name, (address, PORT).into(), true, |_| {})).ok()
        })
    };
    let own = server(pod.address());
    let mut udp = service("s1");
    udp["spec"]["ports"][0]["protocol"] = json!("UDP");
    scene.api.set(&udp);
    let mut of_udp = slice(&[(pod, true)]);
    of_udp["ports"][0]["protocol"] = json!("UDP");
    scene.api.set(&of_udp);
    scene.address();
    scene.waits_for(&[(0, "pending")]);
    scene.is_told("NotListening", "80/udp");
    drop(own);
    let _all = server(Ipv4Addr::UNSPECIFIED);
    scene.waits_for(&[(0, "ready")]);
    until("nothing is to say any more", SOON, || {
        let found = scene.sidecar.ask(&json!({ "kubernetes": {} }));
        (!found["findings"].to_string().contains("only, the pod's own address")).then_some(())
    });
    scene.ends();
}
