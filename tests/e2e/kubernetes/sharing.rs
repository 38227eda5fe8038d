//! Ports of one VIP with different pods: of one Service, and of several that share an address.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{RANGE, Scene, service, slice};
use crate::harness::{Crowd, Load, Netns, PORT, SOON, attempt, until};

/// What a second server of each pod has.
const OTHER: u16 = 9090;

fn set_ports(object: &mut Value, ports: &[(&str, u16)]) {
    let port = |(name, number): &(&str, u16)| json!({ "name": name, "port": number, "protocol": "TCP" });
    let ports: Vec<_> = ports.iter().map(port).collect();
    if object["kind"] == "Service" { object["spec"]["ports"] = json!(ports) } else { object["ports"] = json!(ports) }
}

/// A slice of that Service's with these pods.
fn slice_of(scene: &Scene, (service, name): (&str, &str), pods: &[usize], ports: &[(&str, u16)]) -> Value {
    let pods: Vec<_> = pods.iter().map(|number| (scene.pod(*number), true)).collect();
    let mut slice = slice(&pods);
    slice["metadata"]["name"] = json!(name);
    slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!(service);
    set_ports(&mut slice, ports);
    slice
}

/// A Service, made in that second, on the VIP of another one.
fn joining(name: &str, vip: &str, second: u8, ports: &[(&str, u16)]) -> Value {
    let mut object = service(&format!("uid-{name}"));
    object["metadata"]["name"] = json!(name);
    object["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:{second:02}Z"));
    object["metadata"]["annotations"] = json!({ "viproute.io/vip": vip });
    set_ports(&mut object, ports);
    object
}

fn client(scene: &Scene) -> Netns {
    scene.lan.client(50, &[&format!("{RANGE} via {}", scene.node.address())])
}

impl Scene {
    /// A second server in each pod, of no Service's port by itself.
    fn crowds(&self) -> Vec<Crowd> {
        self.pods.iter().map(|(pod, _)| Crowd::on(pod, OTHER)).collect()
    }

    /// A port is answered by these pods and no others; none: it is closed.
    fn answers(&self, client: &Netns, to: (Ipv4Addr, u16), pods: &[usize]) {
        let expected: Vec<&String> = pods.iter().map(|number| &self.pod(*number).name).collect();
        until(&format!("{to:?} is answered by {expected:?}"), SOON, || {
            let load = Load { to: to.into(), count: 60, rate: None, concurrency: 4 };
            let tally = client.run(|| load.run());
            let is_fine = if expected.is_empty() { tally.failed == 60 } else { tally.failed == 0 };
            (is_fine && tally.names.keys().eq(expected.iter().copied())).then_some(())
        });
    }

    fn ingress(&self, object: &Value) -> Option<String> {
        let ingress = self.api.get(object)["status"]["loadBalancer"]["ingress"][0].clone();
        ingress["ip"].as_str().map(str::to_owned)
    }
}

#[test]
fn a_named_port_is_answered_by_the_pods_that_have_it() {
    let scene = Scene::new(3);
    let _servers = scene.crowds();
    let mut web = service("s1");
    set_ports(&mut web, &[("http", 80), ("admin", 81)]);
    scene.api.set(&web);
    scene.api.set(&slice_of(&scene, ("web", "web-1"), &[0, 1], &[("http", PORT)]));
    scene.api.set(&slice_of(&scene, ("web", "web-2"), &[2], &[("http", PORT), ("admin", OTHER)]));
    let vip: Ipv4Addr = scene.address().parse().unwrap();
    scene.waits_for(&[(0, "ready"), (1, "ready"), (2, "ready")]);
    let client = client(&scene);
    scene.answers(&client, (vip, 80), &[0, 1, 2]);
    scene.answers(&client, (vip, 81), &[2]);
    assert_eq!(attempt(&client, vip, 5).failed, 5, "{PORT} is no port of the Service");
    // The pod that has it goes on without it.
    scene.api.set(&slice_of(&scene, ("web", "web-2"), &[2], &[("http", PORT)]));
    scene.answers(&client, (vip, 81), &[]);
    scene.answers(&client, (vip, 80), &[0, 1, 2]);
    scene.ends();
}

#[test]
fn services_of_one_namespace_share_an_address() {
    let scene = Scene::new(2);
    let _servers = scene.crowds();
    let api = joining("api", "web", 5, &[("tls", 443), ("http", 80)]);
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true)]);
    let address = scene.address();
    // A node without a way to the VIP would send the client elsewhere (ICMP redirect), and it would remember that.
    scene.waits_for(&[(0, "ready")]);
    scene.api.set(&api);
    scene.api.set(&slice_of(&scene, ("api", "api-1"), &[1], &[("tls", OTHER), ("http", PORT)]));
    until("both show the address", SOON, || (scene.ingress(&api).as_ref() == Some(&address)).then_some(()));
    // What is sent before, the node sends elsewhere, by a redirect that the client remembers.
    scene.waits_for(&[(0, "ready"), (1, "ready")]);
    let (vip, client): (Ipv4Addr, _) = (address.parse().unwrap(), client(&scene));
    scene.answers(&client, (vip, 80), &[0]);
    scene.answers(&client, (vip, 443), &[1]);
    for pods_own in [PORT, OTHER] {
        scene.answers(&client, (vip, pods_own), &[]);
    }
    scene.is_told("PortRefused", "is older");
    let refused = json!({ "port": 80, "protocol": "TCP", "error": "viproute.io/PortTaken" });
    until("its status says so of the port", SOON, || {
        let said = scene.api.get(&api)["status"]["loadBalancer"]["ingress"][0]["ports"].clone();
        (said == json!([{ "port": 443, "protocol": "TCP" }, refused])).then_some(())
    });
    assert_eq!(scene.api.names("IPAddress"), [format!("/{address}")], "one address is given out");

    // The first one is gone, and the address stays the other's, which has the port that it left.
    scene.api.delete(&service("s1"));
    scene.answers(&client, (vip, 80), &[1]);
    scene.answers(&client, (vip, 443), &[1]);
    assert_eq!(scene.api.names("IPAddress"), [format!("/{address}")]);
    assert_eq!(scene.ingress(&api), Some(address));
    until("its pod has left", SOON, || scene.pod(0).vips().is_empty().then_some(()));
    scene.api.delete(&api);
    until("the VIP is gone", SOON, || scene.pod(1).vips().is_empty().then_some(()));
    scene.ends();
}

#[test]
fn another_namespaces_address_takes_its_services_word() {
    let scene = Scene::new(1);
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true)]);
    let address = scene.address();
    let mut api = joining("api", "default/web", 5, &[("tls", 443)]);
    api["metadata"]["namespace"] = json!("pay");
    scene.api.set(&api);
    scene.is_told("NotShared", "viproute.io/shared-with");
    assert_eq!(scene.ingress(&api), None);
    let mut owner = scene.api.get(&service("s1"));
    owner["metadata"]["annotations"] = json!({ "viproute.io/shared-with": "pay" });
    scene.api.set(&owner);
    until("both show the address", SOON, || (scene.ingress(&api).as_ref() == Some(&address)).then_some(()));
    // The word is taken back.
    owner = scene.api.get(&service("s1"));
    owner["metadata"]["annotations"] = json!({});
    scene.api.set(&owner);
    until("the guest shows none any more", SOON, || scene.ingress(&api).is_none().then_some(()));
    assert_eq!(scene.ingress(&service("s1")), Some(address));
    scene.api.delete(&api);
    scene.ends();
}
