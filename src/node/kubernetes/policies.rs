//! Which pods policies of the network (`NetworkPolicy`) select whose ingress rules say who may reach them. Pure.
//!
//! What comes for a VIP enters a pod by `vip0`, where engines of such policies don't look: a pod that one of them selects gets nothing by VIPs.
//! What can't be understood selects.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use serde::{Deserialize, Serialize};

use super::objects::Key;

/// A pod's labels.
pub type Labels = BTreeMap<String, String>;

/// A policy with ingress rules, as far as it selects pods of its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Labels that a pod must have.
    pub equal: Labels,
    /// What else must hold for its labels.
    pub conditions: Vec<Condition>,
}

/// A condition for a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// The label.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// With `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub values: BTreeSet<String>,
}

/// What is asked of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // as the API has them
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    /// One that only a later API knows.
    Unknown,
}

impl Policy {
    /// `None`: it says nothing of who may reach pods.
    pub fn of(policy: NetworkPolicy) -> Option<Self> {
        // What isn't said is empty, and that selects all pods (networking/v1).
        let spec = policy.spec.unwrap_or_default();
        // Without types every policy is one of ingress.
        let is_of_ingress = spec.policy_types.as_ref().is_none_or(|types| types.iter().any(|of| of == "Ingress"));
        let selector = spec.pod_selector.unwrap_or_default();
        let conditions = selector.match_expressions.into_iter().flatten().map(Condition::of).collect();
        is_of_ingress.then(|| Self { equal: selector.match_labels.unwrap_or_default(), conditions })
    }

    /// Whether it says who may reach a pod with these labels; `None`: they aren't known.
    pub fn selects(&self, labels: Option<&Labels>) -> bool {
        let Some(labels) = labels else { return true };
        let is_equal = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.equal.iter().all(is_equal) && self.conditions.iter().all(|condition| condition.is_met(labels))
    }
}

impl Condition {
    fn of(requirement: LabelSelectorRequirement) -> Self {
        let operator = match requirement.operator.as_str() {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            _ => Operator::Unknown,
        };
        Self { key: requirement.key, operator, values: requirement.values.into_iter().flatten().collect() }
    }

    fn is_met(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let is_listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => is_listed,
            Operator::NotIn => !is_listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Unknown => true,
        }
    }
}

/// The first of the policies that says who may reach a pod of that name with these labels.
pub fn selecting<'a>(policies: &'a BTreeMap<Key, Policy>, pod: &str, labels: Option<&Labels>) -> Option<&'a Key> {
    let namespace = &pod[..=pod.find('/')?];
    let of_namespace = policies.range(namespace.to_owned()..).take_while(|(key, _)| key.starts_with(namespace));
    of_namespace.filter(|(_, policy)| policy.selects(labels)).map(|(key, _)| key).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: &serde_json::Value) -> Option<Policy> {
        let metadata = serde_json::json!({ "name": "deny", "namespace": "shop" });
        Policy::of(serde_json::from_value(serde_json::json!({ "metadata": metadata, "spec": spec })).unwrap())
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
            (expression("Later", "tier", &[]), true),
        ] {
            let policy = policy(&spec);
            assert_eq!(policy.as_ref().is_some_and(|policy| policy.selects(Some(&labels))), selected, "{spec}");
            assert!(policy.is_none_or(|policy| policy.selects(None)), "labels that aren't known");
        }
    }

    #[test]
    fn policies_are_those_of_the_pods_namespace() {
        let all = Policy::default();
        let policies = ["shop/deny", "shop-2/deny", "sho/deny", "shop/also"];
        let policies: BTreeMap<Key, Policy> = policies.map(|key| (key.to_owned(), all.clone())).into();
        let of = |pod: &str| selecting(&policies, pod, Some(&Labels::new())).map(String::as_str);
        assert_eq!(of("shop/web-1"), Some("shop/also"));
        assert_eq!(of("shop-2/web-1"), Some("shop-2/deny"));
        assert_eq!((of("sh/web-1"), of("web-1")), (None, None));
    }
}
