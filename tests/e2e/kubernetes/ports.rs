//! Ports of Services: what is served of them, and what the status says of those that aren't.

use std::net::{Ipv4Addr, UdpSocket};

use serde_json::{Value, json};

use super::{RANGE, Scene, service, slice};
use crate::answers::Wild;
use crate::harness::{Flows, PORT, SOON, scaled, until};

/// The pods' UDP server.
const DNS: u16 = 5353;

/// HTTP by two ports, as Argo CD's, DNS by UDP on one of their numbers, and what isn't served.
fn of_ports(more: &[(&str, u16, &str)]) -> Value {
    let mut service = service("s1");
    let all = [("http", 80, "TCP"), ("https", 443, "TCP"), ("dns", 443, "UDP")];
    let port = |(name, port, protocol): &(&str, u16, &str)| json!({ "name": name, "port": port, "protocol": protocol });
    service["spec"]["ports"] = all.iter().chain(more).map(port).collect();
    service
}

fn served(scene: &Scene) {
    let mut slice = slice(&[(scene.pod(0), true)]);
    slice["ports"] = json!([
        { "name": "http", "port": PORT, "protocol": "TCP" },
        { "name": "https", "port": PORT, "protocol": "TCP" },
        { "name": "dns", "port": DNS, "protocol": "UDP" },
        { "name": "sctp", "port": 82, "protocol": "SCTP" },
    ]);
    scene.api.set(&slice);
}

fn status(scene: &Scene) -> Value {
    scene.api.get(&service("s1"))["status"].clone()
}

#[test]
fn a_port_that_cannot_be_served_is_named_and_the_others_work() {
    let scene = Scene::new(1);
    scene.api.set(&of_ports(&[("sctp", 80, "SCTP")]));
    served(&scene);
    let vip: Ipv4Addr = scene.address().parse().expect("an address");
    scene.waits_for(&[(0, "ready")]);
    let said = status(&scene);
    let expected = json!([
        { "port": 80, "protocol": "TCP" },
        { "port": 443, "protocol": "TCP" },
        { "port": 443, "protocol": "UDP" },
        { "port": 80, "protocol": "SCTP", "error": "viproute.io/ProtocolNotSupported" },
    ]);
    assert_eq!(said["loadBalancer"]["ingress"][0]["ports"], expected);
    let condition = &said["conditions"][0];
    assert_eq!((&condition["type"], &condition["status"]), (&json!("LoadBalancerPortsError"), &json!("True")));
    assert!(condition["message"].as_str().is_some_and(|text| text.contains("80/SCTP")), "{condition}");
    until("an Event names it", SOON, || scene.api.reasons().contains(&"PortRefused".to_owned()).then_some(()));
    let client = scene.lan.client(50, &[&format!("{RANGE} via {}", scene.node.address())]);
    for port in [80, 443] {
        let mut flows = Flows::on("the client", &client, (vip, port), 20);
        flows.ask();
        flows.hear();
        assert_eq!(flows.complaint(&[]), None, "{port}");
    }
    let _server = Wild::start(&scene.pod(0).ns, DNS);
    let socket = client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket");
    socket.connect((vip, 443)).expect("connect");
    socket.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
    socket.send(b"question").expect("send");
    assert_eq!(socket.recv(&mut [0; 64]).expect("an answer of the VIP's"), 8);
    // What isn't so any more is taken back.
    let mut fewer = of_ports(&[]);
    fewer["status"] = said;
    scene.api.set(&fewer);
    until("nothing is wrong any more", SOON, || {
        let now = status(&scene);
        let is_taken_back = now["conditions"].is_null() && now["loadBalancer"]["ingress"][0]["ports"].is_null();
        (is_taken_back && now["loadBalancer"]["ingress"][0]["ip"] == vip.to_string()).then_some(())
    });
    scene.ends();
}
