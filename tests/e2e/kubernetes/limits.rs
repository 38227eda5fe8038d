//! More than there is room for: what is left out is named, and the rest goes on.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{RANGE, Scene, named, pod_object, service, slice};
use crate::harness::{LONG, Load, Netns, PORT, until};

/// VIPs of a pod, ports of a Service, pods that are asked for a connection.
const VIPS: usize = 8;
const PORTS: u16 = 64;
const MEMBERS: usize = 256;

/// The slice of another Service than default/web.
fn of(service: &str, mut slice: Value) -> Value {
    slice["metadata"]["name"] = json!(format!("{service}-1"));
    slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!(service);
    slice
}

fn client(scene: &Scene) -> Netns {
    scene.lan.client(50, &[&format!("{RANGE} via {}", scene.node.address())])
}

impl Scene {
    /// Until 10 connections in a row are answered by this pod alone.
    fn is_answered_by(&self, pod: usize, client: &Netns, to: (Ipv4Addr, u16)) {
        until(&format!("{to:?} is answered"), LONG, || {
            let load = Load { to: to.into(), count: 10, rate: None, concurrency: 4 };
            let tally = client.run(|| load.run());
            (tally.failed == 0 && tally.names.keys().eq([&self.pod(pod).name])).then_some(())
        });
    }

    fn address_once(&self, name: &str) -> Ipv4Addr {
        until(&format!("{name} has an address"), LONG, || self.address_of(name)?.parse().ok())
    }
}

#[test]
fn a_pod_of_eight_vips_joins_no_ninth() {
    let scene = Scene::new(2);
    let names: Vec<String> = (0..=VIPS).map(|number| format!("web-{number}")).collect();
    for name in &names {
        scene.api.set(&named(name));
    }
    for name in &names[..VIPS] {
        scene.api.set(&of(name, slice(&[(scene.pod(0), true)])));
    }
    let client = client(&scene);
    for name in &names[..VIPS] {
        scene.is_answered_by(0, &client, (scene.address_once(name), 80));
    }
    let ninth = names.last().expect("a ninth");
    scene.api.set(&of(ninth, slice(&[(scene.pod(0), true), (scene.pod(1), true)])));
    scene.is_told("PodNotAttachable", "it is in 8 VIPs already");
    scene.is_answered_by(1, &client, (scene.address_once(ninth), 80));
    scene.is_answered_by(0, &client, (scene.address_once(&names[0]), 80));
    // Where it leaves one it has room.
    scene.api.delete(&named(&names[3]));
    scene.api.set(&of(ninth, slice(&[(scene.pod(0), true)])));
    scene.is_answered_by(0, &client, (scene.address_once(ninth), 80));
    assert_eq!(scene.pod(0).vips().len(), VIPS);
}

#[test]
fn of_more_ports_than_a_vip_has_the_first_are_served() {
    let scene = Scene::new(1);
    let port = |number: u16| json!({ "name": format!("p{number}"), "port": 8000 + number, "protocol": "TCP" });
    let mut web = service("s1");
    web["spec"]["ports"] = (0..PORTS + 6).map(port).collect();
    let mut of_web = slice(&[(scene.pod(0), true)]);
    let target = |number: u16| json!({ "name": format!("p{number}"), "port": PORT, "protocol": "TCP" });
    of_web["ports"] = (0..PORTS + 6).map(target).collect();
    scene.api.set(&web);
    scene.api.set(&of_web);
    let vip: Ipv4Addr = scene.address().parse().expect("an address");
    scene.is_told("PortRefused", "a VIP has 64 ports at most");
    let client = client(&scene);
    for number in [0, PORTS - 1] {
        scene.is_answered_by(0, &client, (vip, 8000 + number));
    }
    let load = Load { to: (vip, 8000 + PORTS).into(), count: 2, rate: None, concurrency: 1 };
    assert_eq!(client.run(|| load.run()).failed, 2, "it is closed");
    let ports = scene.api.get(&service("s1"))["status"]["loadBalancer"]["ingress"][0]["ports"].clone();
    let errors = ports.as_array().expect("ports").iter().filter(|port| port["error"] == "viproute.io/TooManyPorts");
    assert_eq!(errors.count(), 6, "{ports}");
    scene.ends();
}

/// More pods on the node than are asked for a connection. They needn't be there for that: their Service has no address, since the pool's only
/// one is another's.
#[test]
fn more_pods_than_are_asked_for_a_connection_are_named() {
    let scene = Scene::with(1, "cidr = \"10.118.0.1-10.118.0.1\"", |_| {});
    scene.api.set(&named("other"));
    scene.api.set(&of("other", slice(&[(scene.pod(0), true)])));
    let (client, vip) = (client(&scene), scene.address_once("other"));
    scene.is_answered_by(0, &client, (vip, 80));
    let mut of_web = slice(&[]);
    let pods = (0..=MEMBERS).map(|number| {
        let (name, address) = (format!("w{number}"), format!("10.9.{}.{}", number / 250, number % 250 + 1));
        let mut pod = pod_object(scene.pod(0), &json!({ "name": name, "uid": format!("uid-{name}") }));
        pod["status"]["podIPs"] = json!([{ "ip": address }]);
        scene.api.set(&pod);
        let target = json!({ "kind": "Pod", "namespace": "default", "name": name, "uid": format!("uid-{name}") });
        json!({ "addresses": [address], "nodeName": "n1", "conditions": { "ready": true, "serving": true }, "targetRef": target })
    });
    of_web["endpoints"] = pods.collect();
    scene.api.set(&service("s1"));
    scene.api.set(&of_web);
    until("an Event names them", LONG, || {
        let events = scene.api.events();
        events.iter().any(|(reason, note)| reason == "ManyReplicas" && note.contains("257 of its pods")).then_some(())
    });
    scene.is_answered_by(0, &client, (vip, 80));
}
