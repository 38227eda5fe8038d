//! Addresses that Services ask for: `spec.loadBalancerIP` and `viproute.io/address`.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{RANGE, Scene, named, service};
use crate::harness::{DhcpServer, KubeApi, Lan, Load, Node, RANGE as LEASED, SOON, Sidecar, until};

/// Made in that second, and asking for that address by its field.
fn asking(name: &str, second: usize, address: &str) -> Value {
    let mut service = named(name);
    service["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:{second:02}Z"));
    service["spec"]["loadBalancerIP"] = json!(address);
    service
}

impl Scene {
    fn comes_to(&self, name: &str, address: &str) {
        until(&format!("{name} has {address}"), SOON, || (self.address_of(name)? == address).then_some(()));
    }

    /// What a Service asks for changes; what its status says stays.
    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut service = self.api.get(&named(name));
        change(&mut service);
        self.api.set(&service);
    }

    fn ends_without(self, names: &[&str]) {
        for name in names {
            self.api.delete(&named(name));
        }
        until("all addresses are given back", crate::harness::LONG, || {
            self.api.names("IPAddress").is_empty().then_some(())
        });
        self.sidecar.stop();
    }
}

#[test]
fn a_service_has_the_address_that_it_asks_for() {
    let scene = Scene::new(1);
    let mut annotated = named("annotated");
    annotated["metadata"]["annotations"] = json!({ "viproute.io/address": " 10.118.0.77 " });
    scene.api.set(&annotated);
    scene.api.set(&asking("web", 1, "10.118.0.70"));
    scene.api.set(&named("other"));
    scene.comes_to("annotated", "10.118.0.77");
    scene.comes_to("web", "10.118.0.70");
    scene.comes_to("other", "10.118.0.1");
    // Both, and the same.
    scene.edit("web", |web| web["metadata"]["annotations"] = json!({ "viproute.io/address": "10.118.0.70" }));
    // An older one asks for another one's: it has none, and that one keeps it.
    scene.api.set(&asking("older", 0, "10.118.0.1"));
    scene.is_told("AddressRefused", "10.118.0.1 is default/other's");
    scene.api.set(&asking("twin", 2, "10.118.0.70"));
    scene.is_told("AddressRefused", "10.118.0.70 is default/web's, which asks for it too");
    assert_eq!((scene.address_of("older"), scene.address_of("twin")), (None, None));
    scene.comes_to("other", "10.118.0.1");
    // It is free.
    scene.api.delete(&named("other"));
    scene.comes_to("older", "10.118.0.1");
    scene.api.delete(&named("web"));
    scene.comes_to("twin", "10.118.0.70");
    scene.ends_without(&["annotated", "older", "twin"]);
}

#[test]
fn what_cant_be_asked_for_is_refused_by_name() {
    let scene = Scene::with(1, &format!("cidr = {RANGE:?}\nexclude = [\"10.118.0.9\"]"), |api| {
        api.set(&json!({ "kind": "ServiceCIDR", "metadata": { "name": "kubernetes" }, "spec": { "cidrs": ["10.118.0.128/28"] } }));
        api.set(&json!({
            "kind": "Node", "metadata": { "name": "n1" }, "spec": { "podCIDRs": ["10.118.0.240/28"] },
            "status": { "addresses": [{ "type": "InternalIP", "address": "10.118.0.33" }] },
        }));
    });
    let cases = [
        ("pods", "10.118.0.241", "the pods' range 10.118.0.240/28 of node n1"),
        ("services", "10.118.0.130", "10.118.0.128/28 of Services' own addresses"),
        ("nodes", "10.118.0.33", "the address of node n1"),
        ("outside", "192.0.2.99", "no address of a pool"),
        ("excluded", "10.118.0.9", "doesn't give out"),
        ("six", "fd00::7", "no pool has cidr6"),
    ];
    for (second, (name, address, why)) in cases.iter().enumerate() {
        scene.api.set(&asking(name, second, address));
        scene.is_told("AddressRefused", why);
        assert_eq!(scene.address_of(name), None, "{name}");
    }
    let mut both = asking("both", 7, "10.118.0.70");
    both["metadata"]["annotations"] = json!({ "viproute.io/address": "10.118.0.71" });
    scene.api.set(&both);
    scene.is_told(
        "AddressRefused",
        "spec.loadBalancerIP says 10.118.0.70 and the annotation viproute.io/address says 10.118.0.71",
    );
    let found = scene.sidecar.ask(&json!({ "kubernetes": {} }));
    let entries = found["services"].as_array().unwrap();
    assert_eq!(entries.len(), cases.len() + 1);
    assert!(
        entries.iter().all(|entry| entry["waits"].as_str().is_some_and(|why| why.contains("asks for"))),
        "{entries:?}"
    );
    // What is put right is had.
    scene.edit("both", |both| both["metadata"]["annotations"] = json!({}));
    scene.comes_to("both", "10.118.0.70");
    scene.edit("six", |six| six["spec"]["loadBalancerIP"] = Value::Null);
    scene.comes_to("six", "10.118.0.1");
    // Who had one keeps it.
    scene.edit("both", |both| both["spec"]["loadBalancerIP"] = json!("10.118.0.33"));
    until("it is refused too", SOON, || {
        let findings = scene.sidecar.ask(&json!({ "kubernetes": {} }))["findings"].to_string();
        findings.contains("default/both: it can't have the address that it asks for: 10.118.0.33").then_some(())
    });
    scene.comes_to("both", "10.118.0.70");
    let mut names: Vec<&str> = cases.iter().map(|(name, ..)| *name).collect();
    names.push("both");
    scene.ends_without(&names);
}

/// Connections of before go on, and somebody answers at every moment.
#[test]
fn another_address_is_taken_up_before_the_one_of_before_goes() {
    let scene = Scene::new(1);
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true)]);
    let before = scene.address();
    scene.waits_for(&[(0, "ready")]);
    let client = scene.lan.client(50, &[&format!("{RANGE} via {}", scene.node.address())]);
    let answers = |address: &str| {
        let address: Ipv4Addr = address.parse().unwrap();
        client.run(|| Load { to: (address, 80).into(), count: 1, rate: None, concurrency: 1 }.run()).failed == 0
    };
    assert!(answers(&before));
    scene.edit("web", |web| web["spec"]["loadBalancerIP"] = json!("10.118.0.70"));
    let mut asked = 0;
    until("the other is in service", SOON, || {
        let is_new = answers("10.118.0.70");
        assert!(answers(&before) || is_new, "neither answers");
        asked += 1;
        is_new.then_some(())
    });
    scene.comes_to("web", "10.118.0.70");
    assert!(asked > 0);
    assert!(scene.pod(0).vips().contains(&Ipv4Addr::new(10, 118, 0, 70)));
    let entered = scene.api.names("IPAddress");
    assert!(entered.contains(&"/10.118.0.70".to_owned()), "{entered:?}");
    // Ports, type and scale change nothing of it.
    scene.edit("web", |web| {
        web["spec"]["ports"] = json!([{ "name": "http", "port": 81, "protocol": "TCP" }]);
    });
    scene.serve(&[]);
    scene.serve(&[(0, true)]);
    scene.comes_to("web", "10.118.0.70");
    scene.ends_without(&["web"]);
}

#[test]
fn a_dhcp_server_is_asked_for_it() {
    let lan = Lan::new();
    let _server = DhcpServer::dnsmasq(&lan, LEASED, "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let api = KubeApi::start(&node);
    let sidecar = Sidecar::dhcp(&node, &api.settings(&node));
    let (free, foreign) = ("192.0.2.120", "192.0.2.77");
    api.set(&asking("web", 1, free));
    let address = |name: &str| {
        let service = api.get(&named(name));
        service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned)
    };
    until("the server gives it", SOON, || (address("web")? == free).then_some(()));
    api.set(&asking("other", 2, foreign));
    until("the server offers another", SOON, || {
        let events = api.events();
        let is_it = |(reason, note): &(String, String)| reason == "AddressRefused" && note.contains("the DHCP server");
        events.iter().any(is_it).then_some(())
    });
    assert_eq!(address("other"), None);
    // It asks for none any more.
    api.set(&named("other"));
    until("the server gives one", SOON, || address("other"));
    // A lease doesn't move.
    let mut web = api.get(&named("web"));
    web["spec"]["loadBalancerIP"] = json!(foreign);
    api.set(&web);
    until("that is said", SOON, || {
        let is_it = |(reason, note): &(String, String)| reason == "AddressRefused" && note.contains("moves no lease");
        api.events().iter().any(is_it).then_some(())
    });
    assert_eq!(address("web").as_deref(), Some(free));
    sidecar.stop();
}

/// kube-proxy would take what comes for it there.
#[test]
fn an_address_that_another_service_says_as_its_own_is_named() {
    let scene = Scene::new(1);
    scene.api.set(&service("s1"));
    let address = scene.address();
    let mut theirs = json!({
        "kind": "Service", "metadata": { "namespace": "ops", "name": "old", "uid": "old" },
        "spec": { "type": "ClusterIP", "externalIPs": [address], "ports": [{ "port": 80 }] },
    });
    scene.api.set(&theirs);
    scene.is_told("ExternalIpConflict", "ops/old has 10.118.0.1 in its spec.externalIPs");
    let findings = || scene.sidecar.ask(&json!({ "kubernetes": {} }))["findings"].to_string().contains("externalIPs");
    assert!(findings());
    theirs["spec"]["externalIPs"] = json!([]);
    scene.api.set(&theirs);
    until("it is said no more", SOON, || (!findings()).then_some(()));
    scene.ends_without(&["web"]);
}
