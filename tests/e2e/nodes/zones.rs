//! What comes to a node and is for its own replicas, or for those of its zone, as a Service says it: by the API that this node hears.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Scene, WEB, web};
use crate::harness::{KubeApi, Netns, PORT, Pod, SOON, connect, serve_all, until};

/// Three nodes, of which the first hears an API; a client that asks by it.
struct Zones {
    api: KubeApi,
    client: Netns,
    scene: Scene,
}

fn service(key: &str, value: &str) -> Value {
    let mut service = json!({
        "kind": "Service",
        "metadata": { "namespace": "default", "name": "web", "uid": "s1", "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "type": "LoadBalancer", "loadBalancerClass": "viproute.io/vip", "ports": [{ "name": "http", "port": PORT }] },
    });
    service["spec"][key] = json!(value);
    service
}

/// An endpoint on each of these nodes, for that zone; an empty one: for none in particular.
fn slice(endpoints: &[(u8, &str)]) -> Value {
    let endpoint = |(node, zone): &(u8, &str)| {
        let hints = if zone.is_empty() { json!({}) } else { json!({ "forZones": [{ "name": zone }] }) };
        json!({ "addresses": [format!("10.1.{node}.9")], "nodeName": format!("n{node}"), "conditions": { "ready": true }, "hints": hints })
    };
    json!({
        "kind": "EndpointSlice",
        "metadata": { "namespace": "default", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4", "ports": [{ "name": "http", "port": PORT, "protocol": "TCP" }],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

impl Zones {
    fn new() -> Self {
        let mut scene = Scene::new(3);
        let member = &mut scene.members[0];
        let api = KubeApi::start(&member.node);
        for (number, zone) in [(1, "a"), (2, "a"), (3, "b")] {
            api.set(&json!({
                "kind": "Node",
                "metadata": { "name": format!("n{number}"), "labels": { "topology.kubernetes.io/zone": zone } },
                "status": { "addresses": [{ "type": "InternalIP", "address": format!("192.0.2.{number}") }] },
            }));
        }
        let settings = api.settings(&member.node);
        member.settings = format!("{}\n{settings}", member.settings);
        member.stop();
        member.start();
        let client = scene.lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        Self { api, client, scene }
    }

    /// A pod on each of these two nodes. Pods are called by numbers, each node's its own: the second one is the next.
    fn pods(&self, on: [usize; 2]) -> [Pod; 2] {
        let _first = self.scene.members[on[1]].node.pod();
        let pods = on.map(|at: usize| self.scene.members[at].node.joined(&web()));
        assert_ne!(pods[0].name, pods[1].name);
        pods
    }

    /// Until new connections are answered by these pods and no others.
    fn answer(&self, what: &str, pods: &[&Pod]) {
        let expected: BTreeSet<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
        until(what, SOON, || {
            let tally = connect(&self.client, pods[0].vip(), 40);
            (tally.names.keys().map(String::as_str).collect::<BTreeSet<_>>() == expected).then_some(())
        });
    }
}

#[test]
fn those_of_the_zone_come_first_while_one_is_ready_and_all_have_hints() {
    let zones = Zones::new();
    let scene = &zones.scene;
    let pods = zones.pods([1, 2]);
    let _servers = serve_all(&pods);
    let [near, far] = &pods;
    scene.members[0].has("both", &[("192.0.2.2", "ready", 1), ("192.0.2.3", "ready", 1)]);
    zones.answer("without a Service all do", &[near, far]);
    zones.api.set(&service("trafficDistribution", "PreferSameZone"));
    zones.api.set(&slice(&[(2, "a"), (3, "b")]));
    zones.answer("the one of the zone alone", &[near]);
    zones.api.set(&slice(&[(2, "a"), (3, "")]));
    zones.answer("all, where one has no hint", &[near, far]);
    zones.api.set(&slice(&[(2, "b"), (3, "b")]));
    zones.answer("all, where none is for the zone", &[near, far]);
    zones.api.set(&slice(&[(2, "a"), (3, "b")]));
    zones.answer("the one of the zone again", &[near]);
    // The API doesn't know yet.
    scene.members[1].ctl(&["drain", &near.id]).ok();
    zones.answer("the other one, where that is ready alone", &[far]);
    scene.members[1].ctl(&["undrain", &near.id]).ok();
    zones.answer("the one of the zone once more", &[near]);
    zones.api.delete(&service("trafficDistribution", "PreferSameZone"));
    zones.answer("without the Service all do", &[near, far]);
}

/// `viproutectl where` says what happens.
#[test]
fn what_is_kept_on_a_node_is_known_to_where() {
    let zones = Zones::new();
    let scene = &zones.scene;
    let pods = zones.pods([0, 1]);
    let _servers = serve_all(&pods);
    let [here, far] = &pods;
    scene.members[0].has("n2's", &[("192.0.2.2", "ready", 1)]);
    zones.answer("both do", &[here, far]);
    for (key, value) in [("externalTrafficPolicy", "Local"), ("trafficDistribution", "PreferSameNode")] {
        zones.api.set(&service(key, value));
        zones.api.set(&slice(&[(1, ""), (2, "")]));
        zones.answer(value, &[here]);
        let mut reasons = BTreeSet::new();
        for port in 20_000..20_040 {
            let (from, to) = (format!("192.0.2.50:{port}"), format!("{WEB}:{PORT}"));
            let said = scene.members[0].ctl(&["where", &from, &to, "--output", "json"]).ok();
            let said: Value = serde_json::from_str(&said).unwrap();
            assert_eq!(said["replica"]["pod"], format!("default/{}", here.name), "{said}");
            reasons.insert(said["because"].to_string());
        }
        assert_eq!(reasons, ["\"local\"", "\"route\""].map(str::to_owned).into(), "{value}");
        zones.api.delete(&service(key, value));
        zones.answer("both do again", &[here, far]);
    }
}
