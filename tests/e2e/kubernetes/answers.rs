//! What the API may answer in place of what was asked for: nothing changes for traffic, and what is wrong is named.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Scene, named, pod_object, service, slice};
use crate::harness::{KubeApi, SOON, Sidecar, until};

impl Scene {
    fn serving() -> Self {
        let scene = Self::new(2);
        scene.api.set(&service("s1"));
        scene.serve(&[(0, true), (1, true)]);
        scene.address();
        scene.waits_for(&[(0, "ready"), (1, "ready")]);
        scene
    }

    /// For so long, nothing changes for traffic.
    fn stays(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let states = self.states();
            assert!(states.len() == 2 && states.iter().all(|(_, state)| state == "ready"), "{states:?}");
            sleep(Duration::from_millis(200));
        }
    }

    /// The API's word counts.
    fn follows(&self) {
        self.serve(&[(0, true), (1, false)]);
        self.waits_for(&[(0, "ready"), (1, "draining")]);
    }
}

/// etcd was compacted, say: the lists are read anew.
#[test]
fn a_version_that_is_too_old_is_listed_anew() {
    let scene = Scene::serving();
    let lists = || scene.api.requests().iter().filter(|asked| *asked == "GET /api/v1/services").count();
    let (before, writes) = (lists(), scene.api.writes());
    for _ in 0..3 {
        scene.api.expire();
        scene.stays(Duration::from_secs(1));
    }
    assert!(lists() > before, "listed again");
    assert_eq!(scene.api.writes(), writes, "nothing is written for it");
    // What happened meanwhile is in the list.
    scene.api.expire();
    scene.follows();
    scene.ends();
}

/// Of one kind: the others are followed, nothing is taken from the Service, and the missing right is named.
#[test]
fn a_refusal_changes_nothing_and_is_named() {
    let mut scene = Scene::serving();
    for code in [403, 429] {
        scene.api.refuse("EndpointSlice", Some(code));
        let words = format!("Kubernetes' endpointslices.discovery.k8s.io can't be watched: Refused ({code})");
        let words = if code == 403 { "conf/kubernetes-rbac.yaml".to_owned() } else { words };
        until("the refusal is named", SOON, || scene.says(&words));
        scene.stays(Duration::from_secs(1));
        // A start knows no more than before.
        scene.sidecar.stop();
        scene.sidecar = Sidecar::start(&scene.node, &scene.settings);
        until("the refusal is named after a start", SOON, || scene.says("can't be watched"));
        scene.stays(Duration::from_secs(1));
        let asked = scene.api.requests().len();
        scene.stays(Duration::from_secs(4));
        let asked = scene.api.requests().len() - asked;
        assert!(asked < 40, "{asked} requests in four seconds");
        scene.api.refuse("EndpointSlice", None);
        until("the refusal is over", Duration::from_secs(40), || {
            let status = scene.sidecar.ask(&json!({ "status": {} }));
            (!status["problems"].to_string().contains("can't be watched")).then_some(())
        });
        scene.follows();
        scene.serve(&[(0, true), (1, true)]);
        scene.waits_for(&[(0, "ready"), (1, "ready")]);
    }
    scene.ends();
}

/// The same cluster, with nothing in it: a backup was played back wrong, or a proxy answers.
#[test]
fn an_api_that_is_suddenly_empty_isnt_believed() {
    let scene = Scene::serving();
    let kubernetes = json!({ "kind": "Service", "metadata": { "namespace": "default", "name": "kubernetes", "uid": "api" }, "spec": {} });
    let address = scene.address();
    // What a watch says is believed; a list in which everything is missing isn't.
    scene.api.become_cluster("c1", true);
    scene.api.delete(&kubernetes);
    scene.api.delete(&service("s1"));
    scene.api.delete(&slice(&[]));
    (0..2).for_each(|number| scene.api.delete(&pod_object(scene.pod(number), &json!({}))));
    scene.api.expire();
    scene.api.become_cluster("c1", false);
    until("the empty API is named", Duration::from_secs(60), || {
        scene.says("has not even the Service default/kubernetes")
    });
    scene.stays(Duration::from_secs(2));
    scene.api.set(&kubernetes);
    (0..2).for_each(|number| scene.api.set(&pod_object(scene.pod(number), &json!({}))));
    let mut again = service("s1");
    again["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": address, "ipMode": "Proxy" }] } });
    scene.api.set(&again);
    scene.serve(&[(0, true), (1, true)]);
    until("the API is believed again", Duration::from_secs(60), || {
        let status = scene.sidecar.ask(&json!({ "status": {} }));
        (!status["problems"].to_string().contains("Kubernetes API")).then_some(())
    });
    scene.follows();
    assert_eq!(scene.address(), address);
    scene.ends();
}

/// Kubernetes 1.32 and before: no addresses, and why.
#[test]
fn an_api_without_ip_addresses_is_named() {
    let scene = Scene::with(1, "cidr = \"10.118.0.0/24\"", |api| api.refuse("IPAddress", Some(404)));
    scene.api.set(&named("web"));
    scene.is_told("NoAddress", "the addresses that the Kubernetes API has given out can't be read: Refused (404)");
    until("it is named", SOON, || scene.says("ipaddresses.networking.k8s.io can't be watched"));
    assert_eq!(scene.address_of("web"), None);
    scene.api.refuse("IPAddress", None);
    until("it gets its address", Duration::from_secs(20), || scene.address_of("web"));
    scene.ends();
}

/// Kubernetes 1.28 and before: the address is written all the same, once, and doctor says what is missing.
#[test]
fn an_api_without_ip_mode_gets_the_address() {
    let scene = Scene::with(1, "cidr = \"10.118.0.0/24\"", KubeApi::forget_mode);
    scene.api.set(&named("web"));
    until("it has an address", SOON, || scene.address_of("web"));
    let written = || scene.api.writes().iter().filter(|write| write.ends_with("/status")).count();
    let before = written();
    sleep(Duration::from_secs(7));
    assert_eq!(written(), before, "nothing differs");
    let found = scene.sidecar.ask(&json!({ "kubernetes": {} }));
    assert!(found["findings"].to_string().contains("doesn't know ipMode"), "{found}");
    scene.ends();
}
