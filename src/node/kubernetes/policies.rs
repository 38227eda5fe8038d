//! Which pods policies of the network (`NetworkPolicy`) select whose ingress rules say who may reach them. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// A pod's labels.
pub type Labels = BTreeMap<String, String>;

/// Whether the policy says who may reach a pod of that namespace with these labels.
pub fn selects(policy: &NetworkPolicy, namespace: &str, labels: &Labels) -> bool {
    let Some(spec) = &policy.spec else { return false };
    // Without types every policy is one of ingress.
    let is_of_ingress = spec.policy_types.as_ref().is_none_or(|types| types.iter().any(|of| of == "Ingress"));
    let is_here = policy.metadata.namespace.as_deref() == Some(namespace);
    is_of_ingress && is_here && spec.pod_selector.as_ref().is_none_or(|selector| matches(selector, labels))
}

fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let mut equal = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    equal.all(|(key, value)| labels.get(key) == Some(value)) && expressions.all(|one| is_met(one, labels))
}

fn is_met(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let is_listed = || requirement.values.iter().flatten().any(|listed| Some(listed) == value);
    match requirement.operator.as_str() {
        "In" => is_listed(),
        "NotIn" => !is_listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        // One that only a later API knows.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: &serde_json::Value) -> NetworkPolicy {
        let metadata = serde_json::json!({ "name": "deny", "namespace": "shop" });
        serde_json::from_value(serde_json::json!({ "metadata": metadata, "spec": spec })).unwrap()
    }

    #[test]
    fn a_policy_selects_pods_by_labels_and_expressions() {
        let labels = Labels::from([("app".into(), "web".into()), ("tier".into(), "front".into())]);
        let expression = |operator: &str, key: &str, values: &[&str]| serde_json::json!({ "podSelector": { "matchExpressions": [{ "key": key, "operator": operator, "values": values }] } });
        for (spec, selected) in [
            (serde_json::json!({ "podSelector": {} }), true),
            (serde_json::json!({}), true),
            (serde_json::json!({ "podSelector": { "matchLabels": { "app": "web" } } }), true),
            (serde_json::json!({ "podSelector": { "matchLabels": { "app": "web", "tier": "back" } } }), false),
            (serde_json::json!({ "podSelector": {}, "policyTypes": ["Egress"] }), false),
            (serde_json::json!({ "podSelector": {}, "policyTypes": ["Egress", "Ingress"] }), true),
            (expression("In", "app", &["web", "api"]), true),
            (expression("In", "app", &["api"]), false),
            (expression("NotIn", "app", &["api"]), true),
            (expression("NotIn", "missing", &["api"]), true),
            (expression("Exists", "tier", &[]), true),
            (expression("DoesNotExist", "tier", &[]), false),
            (expression("Later", "tier", &[]), false),
        ] {
            assert_eq!(selects(&policy(&spec), "shop", &labels), selected, "{spec}");
            assert!(!selects(&policy(&spec), "other", &labels));
        }
    }
}
