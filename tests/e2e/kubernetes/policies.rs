//! Policies of the network don't hold for what comes by a VIP: pods that they select get nothing by it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Scene, pod_object, service};
use crate::harness::{Run, SOON, Sidecar, scaled, until};

fn policy(app: &str, types: &[&str]) -> Value {
    json!({
        "kind": "NetworkPolicy", "metadata": { "namespace": "default", "name": "deny" },
        "spec": { "podSelector": { "matchLabels": { "app": app } }, "policyTypes": types },
    })
}

impl Scene {
    /// Two pods, `app=web` and `app=api`, both ready.
    fn labelled() -> Self {
        let scene = Self::new(2);
        for (number, app) in [(0, "web"), (1, "api")] {
            scene.api.set(&pod_object(scene.pod(number), &json!({ "labels": { "app": app } })));
        }
        scene
    }

    /// Whether people read that in `viproutectl status`.
    fn shows(&self, words: &str) -> bool {
        self.node.ctl().arg("status").finish("").ok().contains(words)
    }
}

/// What is said of a second pod isn't taken for a repetition of what was said of the first one.
#[test]
fn each_pod_that_is_kept_out_has_an_event_of_its_own() {
    let scene = Scene::labelled();
    scene.api.set(&policy("web", &["Ingress"]));
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true), (1, true)]);
    let words = |number: usize| format!("default/{} gets no connections", scene.pod(number).name);
    scene.is_told("NetworkPolicyBlocks", &words(0));
    scene.api.set(&pod_object(scene.pod(1), &json!({ "labels": { "app": "web" } })));
    scene.is_told("NetworkPolicyBlocks", &words(1));
    scene.api.delete(&policy("web", &["Ingress"]));
    scene.waits_for(&[(0, "ready"), (1, "ready")]);
    scene.ends();
}

#[test]
fn a_pod_that_a_policy_selects_gets_no_connections() {
    let scene = Scene::labelled();
    scene.api.set(&policy("web", &["Ingress"]));
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true), (1, true)]);
    scene.address();
    scene.waits_for(&[(1, "ready")]);
    assert!(scene.pod(0).vips().is_empty(), "it joins no VIP");
    let words =
        format!("default/{} gets no connections: the NetworkPolicy default/deny says who may", scene.pod(0).name);
    scene.is_told("NetworkPolicyBlocks", &words);

    // The policy is gone, then there again: who is a replica by then drains.
    for (types, states) in [
        (&["Egress"][..], &[(0, "ready"), (1, "ready")][..]),
        (&["Ingress"], &[(0, "draining"), (1, "ready")]),
        (&["Egress"], &[(0, "ready"), (1, "ready")]),
    ] {
        let begun = Instant::now();
        scene.api.set(&policy("web", types));
        scene.waits_for(states);
        eprintln!("{types:?} holds after {:?}", begun.elapsed());
        let is_out = types == ["Ingress"];
        assert_eq!(scene.shows("draining (NetworkPolicy default/deny)"), is_out, "{types:?}");
        assert!(begun.elapsed() < scaled(Duration::from_secs(2)), "{types:?}: {:?}", begun.elapsed());
    }
    // Another label of the pod is another answer.
    scene.api.set(&policy("db", &["Ingress"]));
    scene.api.set(&pod_object(scene.pod(1), &json!({ "labels": { "app": "db" } })));
    scene.waits_for(&[(0, "ready"), (1, "draining")]);
    scene.api.delete(&policy("db", &["Ingress"]));
    scene.waits_for(&[(0, "ready"), (1, "ready")]);
    scene.ends();
}

#[test]
fn policies_can_be_ignored() {
    let mut scene = Scene::labelled();
    scene.api.set(&policy("web", &["Ingress"]));
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true), (1, true)]);
    scene.waits_for(&[(1, "ready")]);
    scene.sidecar.stop();
    scene.settings.push_str("network_policy = \"ignore\"\n");
    scene.sidecar = Sidecar::start(&scene.node, &scene.settings);
    scene.waits_for(&[(0, "ready"), (1, "ready")]);
    let asked = scene.api.requests().len();
    scene.api.set(&policy("api", &["Ingress"]));
    scene.serve(&[(0, true), (1, false)]);
    scene.waits_for(&[(0, "ready"), (1, "draining")]);
    let asked: Vec<String> = scene.api.requests().split_off(asked);
    assert!(!asked.iter().any(|request| request.contains("networkpolicies")), "they aren't asked for: {asked:?}");
    scene.ends();
}

/// Without the right to read them nobody joins: what can't be known isn't taken for leave.
#[test]
fn policies_that_cant_be_read_let_nobody_join() {
    let scene = Scene::with(1, &format!("cidr = {:?}", super::RANGE), |api| {
        api.refuse("NetworkPolicy", Some(403));
    });
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true)]);
    until("it is named", SOON, || scene.says("networkpolicies.networking.k8s.io can't be watched"));
    assert!(scene.pod(0).vips().is_empty());
    scene.api.refuse("NetworkPolicy", None);
    scene.waits_for(&[(0, "ready")]);
    scene.ends();
}
