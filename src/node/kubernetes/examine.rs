//! What only the API can say of what is wrong: asked when doctor asks, and at no other time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::jiff::fmt::rfc2822;
use kube::api::ListParams;
use kube::client::Body;
use kube::{Api, ResourceExt};
use tokio::sync::oneshot;

use crate::api::protocol::{ClusterFinding, ClusterFindingKind, Kubernetes};
use crate::api::server;
use crate::model::VipKey;

use super::objects::key;
use super::policies::Policy;
use super::rights;

/// All of it takes so long at most.
const LIMIT: Duration = Duration::from_secs(4);
/// Clocks may differ by so much: the API server says whole seconds, and an answer takes its time.
const SKEW: i64 = 5;
/// More policies than that aren't read.
const MOST: u32 = 5_000;

/// A question, with what is known without the API.
#[derive(Debug)]
pub struct Examination {
    /// What is known.
    pub found: Kubernetes,
    /// Takes the answer.
    pub reply: oneshot::Sender<Vec<u8>>,
}

/// What is asked about.
#[derive(Clone, Debug)]
pub struct Subject {
    /// This node's name.
    pub node: String,
    /// Addresses come from a pool.
    pub has_pool: bool,
    /// The VIPs of pods here, by pod: `<namespace>/<name>`.
    pub replicas: BTreeMap<String, BTreeSet<VipKey>>,
}

/// Asks, and answers. What the API doesn't say in time is left out.
pub async fn examine(client: kube::Client, subject: Subject, examination: Examination) {
    let Examination { mut found, reply } = examination;
    let of = |kind| move |text| ClusterFinding { kind, text };
    let asked = async {
        tokio::join!(rights::missing(&client, subject.has_pool), clocks(&client), selected(&client, &subject))
    };
    if let Ok((rights, clocks, policies)) = tokio::time::timeout(LIMIT, asked).await {
        found.findings.extend(rights.into_iter().map(of(ClusterFindingKind::Right)));
        found.findings.extend(clocks.map(of(ClusterFindingKind::Clock)));
        found.findings.extend(policies.into_iter().map(of(ClusterFindingKind::Policy)));
    } else {
        let text = format!("the Kubernetes API didn't answer all of doctor's questions within {} s", LIMIT.as_secs());
        found.findings.push(of(ClusterFindingKind::Api)(text));
    }
    // The caller may have closed its connection.
    let _ = reply.send(server::line(&Ok(found)));
}

/// By how much the API server's clock and this node's differ, where that is too much.
async fn clocks(client: &kube::Client) -> Option<String> {
    let request = hyper::Request::get("/version").body(Body::empty()).ok()?;
    let answer = client.send(request).await.ok()?;
    let theirs = rfc2822::parse(answer.headers().get("date")?.to_str().ok()?).ok()?.timestamp().as_second();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    differ(theirs, i64::try_from(now).ok()?)
}

/// Both in Unix seconds.
fn differ(theirs: i64, ours: i64) -> Option<String> {
    let ahead = ours - theirs;
    let which = if ahead > 0 { "ahead of" } else { "behind" };
    (ahead.abs() > SKEW).then(|| format!("this node's clock is {} s {which} the Kubernetes API server's", ahead.abs()))
}

/// Which replicas here are selected by policies that say who may reach them, a sentence a policy.
async fn selected(client: &kube::Client, subject: &Subject) -> Vec<String> {
    if subject.replicas.is_empty() {
        return Vec::new();
    }
    let (pods, all): (Api<Pod>, Api<NetworkPolicy>) = (Api::all(client.clone()), Api::all(client.clone()));
    let here = ListParams::default().fields(&format!("spec.nodeName={}", subject.node));
    let most = ListParams::default().limit(MOST);
    let (Ok(pods), Ok(all)) = tokio::join!(pods.list(&here), all.list(&most)) else { return Vec::new() };
    all.items.into_iter().filter_map(|policy| of_policy(policy, &pods.items, subject)).collect()
}

fn of_policy(policy: NetworkPolicy, pods: &[Pod], subject: &Subject) -> Option<String> {
    let replica = |pod: &Pod| subject.replicas.get(&key(&pod.metadata));
    let (name, namespace) = (key(&policy.metadata), policy.metadata.namespace.clone());
    let policy = Policy::of(policy)?;
    let is_selected = |pod: &&Pod| pod.metadata.namespace == namespace && policy.selects(Some(pod.labels()));
    let selected: Vec<&Pod> = pods.iter().filter(|pod| replica(pod).is_some()).filter(is_selected).collect();
    let first = selected.first()?;
    let vips: Vec<String> = replica(first)?.iter().map(ToString::to_string).collect();
    let others = match selected.len() - 1 {
        0 => String::new(),
        number => format!(" and {number} other replicas here"),
    };
    let pod = key(&first.metadata);
    Some(format!("the NetworkPolicy {name} says who may reach {pod}{others}, which serves {}", vips.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_may_differ_by_a_few_seconds() {
        assert_eq!((differ(100, 100), differ(100, 105), differ(105, 100)), (None, None, None));
        assert_eq!(differ(100, 160).as_deref(), Some("this node's clock is 60 s ahead of the Kubernetes API server's"));
        assert_eq!(differ(160, 100).as_deref(), Some("this node's clock is 60 s behind the Kubernetes API server's"));
        let date = rfc2822::parse("Mon, 30 Nov 2026 15:15:42 GMT").unwrap();
        assert_eq!(date.timestamp().as_second(), 1_796_051_742);
    }

    #[test]
    fn only_replicas_here_are_named() {
        let pod = |name: &str| -> Pod {
            let metadata = serde_json::json!({ "name": name, "namespace": "shop", "labels": { "app": "web" } });
            serde_json::from_value(serde_json::json!({ "metadata": metadata })).unwrap()
        };
        let policy = |app: &str| -> NetworkPolicy {
            let metadata = serde_json::json!({ "name": "deny", "namespace": "shop" });
            let spec = serde_json::json!({ "podSelector": { "matchLabels": { "app": app } } });
            serde_json::from_value(serde_json::json!({ "metadata": metadata, "spec": spec })).unwrap()
        };
        let replicas = ["shop/a", "shop/b"].map(|pod| (pod.to_owned(), BTreeSet::from(["shop/web".parse().unwrap()])));
        let subject = Subject { node: "n1".into(), has_pool: true, replicas: replicas.into() };
        let pods = [pod("bystander"), pod("a"), pod("b")];
        let expected =
            "the NetworkPolicy shop/deny says who may reach shop/a and 1 other replicas here, which serves shop/web";
        assert_eq!(of_policy(policy("web"), &pods, &subject).as_deref(), Some(expected));
        assert_eq!(of_policy(policy("api"), &pods, &subject), None);
        assert_eq!(of_policy(policy("web"), &pods[..1], &subject), None);
    }
}
