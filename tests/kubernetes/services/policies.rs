//! Policies of the network select pods of a Service.

use std::time::{Duration, Instant};

use serde_json::json;

use super::with_web;
use crate::harness::{Flows, PATIENCE, scaled, until};

/// A policy that comes later drains: connections go on, and there are no new ones.
#[test]
fn pods_that_a_policy_selects_get_no_new_connections() {
    let (cluster, _web) = with_web(2);
    let (control, vip, pods) = (&cluster.control, cluster.external("web"), cluster.pods("web"));
    let mut flows = Flows::open("the client", &cluster.client, vip, 40);
    let one = pods.first().expect("a pod").clone();
    control.run(&["label", "pod", &one, "guarded=yes"]);
    let policy = |selector: serde_json::Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "name": "deny" },
            "spec": { "podSelector": selector, "policyTypes": ["Ingress"] },
        })
    };
    let others = pods.iter().filter(|pod| **pod != one).cloned().collect();
    control.apply(&policy(json!({ "matchLabels": { "guarded": "yes" } })));
    let begun = Instant::now();
    let is_drained = || {
        let replicas = cluster.workers.iter().flat_map(|worker| {
            let status = worker.ctl(&["status"]);
            let vips = status["vips"].as_array().cloned().unwrap_or_default();
            vips.into_iter().flat_map(|vip| vip["replicas"].as_array().cloned().unwrap_or_default())
        });
        let named = format!("default/{one}");
        replicas.into_iter().any(|replica| replica["pod"] == named && replica["state"] == "draining").then_some(())
    };
    until("it drains", PATIENCE, is_drained);
    assert!(begun.elapsed() < scaled(Duration::from_secs(2)), "{:?}", begun.elapsed());
    cluster.answer(vip, &others);
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None, "it keeps its connections");
    control.apply(&policy(json!({})));
    cluster.is_silent(vip);
    until("an Event says it", PATIENCE, || {
        let events = cluster.events("web");
        let says = |(reason, note): &(String, String)| reason == "NetworkPolicyBlocks" && note.contains("default/deny");
        events.iter().any(says).then_some(())
    });
    control.run(&["delete", "networkpolicy", "deny"]);
    cluster.answer(vip, &pods);
}
