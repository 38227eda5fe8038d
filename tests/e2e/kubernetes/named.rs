//! What can't be served is named by an Event, and is not served half.

use serde_json::json;

use super::{Scene, pod_object, service, slice, uid};

#[test]
fn endpoints_that_are_no_pods_of_their_own_network_are_named() {
    let scene = Scene::new(2);
    scene.api.set(&service("s1"));
    // The first is in the node's network.
    let mut host = pod_object(scene.pod(0), &json!({}));
    host["spec"]["hostNetwork"] = json!(true);
    scene.api.set(&host);
    // A third endpoint is an address that somebody wrote there, the fourth says that it is the second pod and has another address.
    let mut endpoints = slice(&[(scene.pod(0), true), (scene.pod(1), true)]);
    let stranger = json!({
        "addresses": ["10.1.77.77"], "nodeName": "n1", "conditions": { "ready": true },
        "targetRef": { "kind": "Pod", "namespace": "default", "name": scene.pod(1).name, "uid": uid(scene.pod(1)) },
    });
    let list = endpoints["endpoints"].as_array_mut().unwrap();
    list.extend([json!({ "addresses": ["203.0.113.9"] }), stranger]);
    scene.api.set(&endpoints);
    scene.address();
    scene.waits_for(&[(1, "ready")]);
    scene.is_told("PodNotAttachable", "it is in the node's own network");
    scene.is_told("ForeignEndpoints", "no pod of a node");
    assert!(scene.pod(0).vips().is_empty());
    scene.api.set(&pod_object(scene.pod(0), &json!({})));
    scene.waits_for(&[(0, "ready"), (1, "ready")]);
    scene.ends();
}

/// A Service without a selector, whose endpoints are other machines.
#[test]
fn a_service_of_foreign_addresses_gets_an_address_and_serves_nothing() {
    let scene = Scene::new(1);
    scene.api.set(&service("s1"));
    let mut endpoints = slice(&[]);
    endpoints["endpoints"] = json!([{ "addresses": ["203.0.113.9"], "conditions": { "ready": true } }]);
    scene.api.set(&endpoints);
    scene.address();
    scene.is_told("ForeignEndpoints", "no pod of a node");
    assert!(scene.states().is_empty());
    scene.ends();
}

#[test]
fn nodes_that_are_all_to_be_passed_by_are_named() {
    let scene = Scene::new(1);
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    let node = |name: &str, labels: serde_json::Value| json!({ "kind": "Node", "metadata": { "name": name, "labels": labels } });
    scene.api.set(&node("n1", json!({ label: "" })));
    scene.api.set(&node("n2", json!({})));
    scene.api.set(&service("s1"));
    scene.serve(&[(0, true)]);
    scene.address();
    scene.waits_for(&[(0, "ready")]);
    scene.api.set(&node("n2", json!({ label: "true" })));
    scene.is_told("AllNodesExcluded", label);
    let told = scene.api.events().into_iter().map(|(reason, _)| reason);
    assert_eq!(told.collect::<Vec<_>>(), ["AddressAssigned", "AllNodesExcluded"]);
    scene.waits_for(&[(0, "ready")]);
    scene.ends();
}
