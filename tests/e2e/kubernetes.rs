//! Kubernetes Services, by an API that says what the test wants (`harness::KubeApi`). With real parts: `tests/kubernetes`.

mod addresses;
mod answers;
mod asked;
mod clients;
mod doctor;
mod families;
mod limits;
mod listening;
mod named;
mod policies;
mod pools;
mod ports;
mod server;
mod sharing;

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Join, KubeApi, Lan, Load, Node, PORT, Pod, PodServer, SOON, Sidecar, deadline, nothing_left, until,
};

const RANGE: &str = "10.118.0.0/24";

fn registered() -> Join {
    Join::nothing().key("register", json!(true))
}

fn service(uid: &str) -> Value {
    json!({
        "kind": "Service",
        "metadata": { "namespace": "default", "name": "web", "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "viproute.io/vip",
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
        },
    })
}

/// default/web, or another one of that class.
fn named(name: &str) -> Value {
    let mut service = service(&format!("uid-{name}"));
    service["metadata"]["name"] = json!(name);
    service
}

fn pod_object(pod: &Pod, metadata: &Value) -> Value {
    let mut object = json!({
        "kind": "Pod",
        "metadata": { "namespace": "default", "name": pod.name, "uid": uid(pod) },
        "spec": { "nodeName": "n1" },
        "status": { "phase": "Running", "podIPs": [{ "ip": pod.address() }] },
    });
    for (key, value) in metadata.as_object().into_iter().flatten() {
        object["metadata"][key] = value.clone();
    }
    object
}

fn uid(pod: &Pod) -> String {
    format!("uid-{}", pod.name)
}

fn slice(pods: &[(&Pod, bool)]) -> Value {
    let endpoint = |(pod, ready): &(&Pod, bool)| {
        json!({
            "addresses": [pod.address()], "nodeName": "n1",
            "conditions": { "ready": ready, "serving": ready, "terminating": false },
            "targetRef": { "kind": "Pod", "namespace": "default", "name": pod.name, "uid": uid(pod) },
        })
    };
    json!({
        "kind": "EndpointSlice",
        "metadata": { "namespace": "default", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": PORT, "protocol": "TCP" }],
        "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// A node whose viprouted serves Services, with pods that the runtime has named, and a server in each.
struct Scene {
    api: KubeApi,
    sidecar: Sidecar,
    settings: String,
    pods: Vec<(Pod, Option<PodServer>)>,
    node: Node,
    lan: Lan,
}

impl Scene {
    fn new(pods: usize) -> Self {
        Self::with(pods, &format!("cidr = {RANGE:?}"), |_| {})
    }

    /// With that pool, and an API that has something from the beginning.
    fn with(pods: usize, pool: &str, prepare: impl FnOnce(&KubeApi)) -> Self {
        Self::with_tables(pods, &format!("[pool]\n{pool}\n"), prepare)
    }

    /// With these tables of its configuration.
    fn with_tables(pods: usize, tables: &str, prepare: impl FnOnce(&KubeApi)) -> Self {
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let api = KubeApi::start(&node);
        prepare(&api);
        let settings = format!("backend = \"pool\"\n{tables}{}", api.settings(&node));
        let sidecar = Sidecar::start(&node, &settings);
        let pods = (0..pods).map(|_| {
            let pod = node.joined(&registered());
            api.set(&pod_object(&pod, &json!({})));
            let server = PodServer::start(&pod);
            (pod, Some(server))
        });
        let pods = pods.collect();
        Self { api, sidecar, settings, pods, node, lan }
    }

    fn pod(&self, number: usize) -> &Pod {
        &self.pods[number].0
    }

    fn serve(&self, ready: &[(usize, bool)]) {
        let pods: Vec<_> = ready.iter().map(|(number, ready)| (self.pod(*number), *ready)).collect();
        self.api.set(&slice(&pods));
    }

    /// The address of a Service, if its status has one.
    fn address_of(&self, name: &str) -> Option<String> {
        let service = self.api.get(&named(name));
        service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned)
    }

    /// Whether viprouted says that of what is wrong.
    fn says(&self, what: &str) -> Option<()> {
        let status = self.sidecar.ask(&json!({ "status": {} }));
        status["problems"].to_string().contains(what).then_some(())
    }

    /// An Event of that reason and with these words.
    fn is_told(&self, reason: &str, words: &str) {
        until(&format!("an Event {reason} with {words:?}"), SOON, || {
            let events = self.api.events();
            events.iter().any(|(of, note)| of == reason && note.contains(words)).then_some(())
        });
    }

    /// `EXTERNAL-IP`, once the Service's status has one.
    fn address(&self) -> String {
        until("the Service has an address", SOON, || {
            let service = self.api.get(&service("s1"));
            let ingress = &service["status"]["loadBalancer"]["ingress"][0];
            (ingress["ipMode"] == "Proxy").then(|| ingress["ip"].as_str().unwrap().to_owned())
        })
    }

    /// The replicas' states, by pod; one that isn't a replica isn't there.
    fn states(&self) -> Vec<(String, String)> {
        let finished = self.node.ctl().args(["status", "--output", "json"]).output().expect("run viproutectl");
        let report: Value = serde_json::from_slice(&finished.stdout).unwrap_or_default();
        let vips = report["vips"].as_array().cloned().unwrap_or_default();
        let replicas =
            vips.iter().filter(|vip| vip["vip"] == "default/web").flat_map(|vip| vip["replicas"].as_array().unwrap());
        let mut states: Vec<_> = replicas
            .map(|replica| (replica["pod"].as_str().unwrap().to_owned(), replica["state"].as_str().unwrap().to_owned()))
            .collect();
        states.sort();
        states
    }

    fn waits_for(&self, wanted: &[(usize, &str)]) {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(number, state)| (format!("default/{}", self.pod(*number).name), (*state).to_owned()))
            .collect();
        let mut last = Vec::new();
        let end = deadline(SOON);
        while std::time::Instant::now() < end {
            last = self.states();
            if last == wanted {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("replicas are {last:?}: expected {wanted:?}");
    }

    fn ends(self) {
        let Self { api, sidecar, pods, node, .. } = self;
        api.delete(&service("s1"));
        until("the VIP is gone", SOON, || pods[0].0.vips().is_empty().then_some(()));
        until("its address is given back", SOON, || api.names("IPAddress").is_empty().then_some(()));
        sidecar.stop();
        for (pod, _) in &pods {
            node.remove(pod, &registered());
        }
        nothing_left(&node);
    }
}

#[test]
fn a_service_gets_an_address_and_its_ready_pods_serve_it() {
    let scene = Scene::new(3);
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true), (1, false)]);
    let address = scene.address();
    scene.waits_for(&[(0, "ready"), (1, "pending")]);
    assert!(scene.pod(2).vips().is_empty(), "no slice names it");
    let client = scene.lan.client(50, &[&format!("{RANGE} via {}", scene.node.address())]);
    let address: Ipv4Addr = address.parse().unwrap();
    let tally = client.run(|| Load { to: (address, 80).into(), count: 10, rate: None, concurrency: 4 }.run());
    assert_eq!(tally.failed, 0, "{tally:?}");
    assert_eq!(tally.names.keys().collect::<Vec<_>>(), [&scene.pod(0).name]);
    assert!(scene.api.reasons().contains(&"AddressAssigned".to_owned()), "{:?}", scene.api.reasons());
    // The other becomes ready; the first ends, which its slice doesn't say yet.
    scene.serve(&[(0, true), (1, true)]);
    scene.waits_for(&[(0, "ready"), (1, "ready")]);
    scene.api.set(&pod_object(scene.pod(0), &json!({ "deletionTimestamp": "2026-01-01T00:01:00Z" })));
    scene.waits_for(&[(0, "draining"), (1, "ready")]);
    // It is gone.
    scene.api.delete(&pod_object(scene.pod(0), &json!({})));
    scene.serve(&[(1, true)]);
    scene.waits_for(&[(1, "ready")]);
    assert_eq!(scene.api.names("IPAddress"), [format!("/{address}")], "the address is entered");
    // Idle: nothing is written.
    let writes = scene.api.writes();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(scene.api.writes(), writes);
    scene.ends();
}

#[test]
fn while_the_api_is_away_everything_stays() {
    let mut scene = Scene::new(1);
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true)]);
    let address = scene.address();
    scene.waits_for(&[(0, "ready")]);
    until("what is known is on disk", Duration::from_secs(30), || {
        std::fs::read_to_string(scene.node.dir.path().join("state/kubernetes.json"))
            .ok()
            .filter(|text| text.contains(&address))
    });
    scene.api.become_cluster("c1", true);
    scene.sidecar.stop();
    scene.sidecar = Sidecar::start(&scene.node, &scene.settings);
    until("the API's silence is named", SOON, || scene.says("can't be watched"));
    scene.waits_for(&[(0, "ready")]);
    // Another cluster's API answers in its place, and has nothing.
    scene.api.delete(&service("s1"));
    scene.api.become_cluster("c2", false);
    until("the other cluster is named", SOON, || scene.says("another cluster's"));
    scene.waits_for(&[(0, "ready")]);
    // The right one is back, and says that the Service is gone.
    scene.api.become_cluster("c1", false);
    until("the replica has left", Duration::from_secs(60), || scene.pod(0).vips().is_empty().then_some(()));
    scene.ends();
}

#[test]
fn a_second_writer_is_answered_and_named() {
    let scene = Scene::new(1);
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true)]);
    let address = scene.address();
    let mut written = scene.api.get(&service("s1"));
    written["status"]["loadBalancer"]["ingress"] = json!([{ "ip": "192.0.2.99", "ipMode": "VIP" }]);
    written["metadata"]["managedFields"] = json!([{
        "manager": "other", "subresource": "status", "operation": "Update", "fieldsType": "FieldsV1", "time": "2026-01-01T00:00:01Z",
        "fieldsV1": { "f:status": { "f:loadBalancer": {} } },
    }]);
    std::thread::sleep(Duration::from_secs(1));
    let before = scene.api.writes().len();
    for _ in 0..20 {
        scene.api.set(&written);
        std::thread::sleep(Duration::from_millis(200));
    }
    let status = |writes: &[String]| writes.iter().filter(|write| write.ends_with("/status")).count();
    let answers = status(&scene.api.writes()[before..]);
    assert!((1..=3).contains(&answers), "{answers} answers in four seconds");
    until("its own address is back", Duration::from_secs(15), || (scene.address() == address).then_some(()));
    until("the other is named", SOON, || scene.api.reasons().contains(&"StatusOverwritten".to_owned()).then_some(()));
    scene.ends();
}
