//! What the chart's Jobs ask of the Kubernetes API, by the rights of their own pods.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use tokio::time::{sleep, timeout};

use crate::node::api;
use crate::node::config::Kubernetes;
use crate::node::peers::key;

/// The key's file in the Secret, as viprouted's pods have it.
pub const KEY: &str = "membership.key";
/// Between two looks at a `DaemonSet`.
const LOOK: Duration = Duration::from_millis(500);

/// Why it couldn't be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to ask it with.
    #[error("start asking the API")]
    Runtime(#[from] std::io::Error),
    /// No way to the API.
    #[error(transparent)]
    Api(#[from] api::Error),
    /// The API's own word.
    #[error("{what}: {}", api::reason(source))]
    Refused {
        /// What was asked.
        what: String,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// Not in time.
    #[error("after {limit} s {what}")]
    Late {
        /// Seconds.
        limit: u64,
        /// What is left.
        what: String,
    },
}

/// A new key of the nodes, in a Secret; false: there was one, which stays.
pub fn new_key((namespace, name): &(String, String)) -> Result<bool, Error> {
    with_client(|client| async move {
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let text = BTreeMap::from([(KEY.to_owned(), key::new_text())]);
        let secret = Secret { metadata, string_data: Some(text), ..Secret::default() };
        let secrets: Api<Secret> = Api::namespaced(client, namespace);
        match asked(secrets.create(&PostParams::default(), &secret)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(source) => Err(refused(&format!("make the Secret {namespace}/{name}"), source)),
        }
    })
}

/// Ends a `DaemonSet`, and waits until each pod of another one is ready: each node has been cleaned then.
pub fn retire(namespace: &str, (old, by): (&str, &str), limit: Duration) -> Result<(), Error> {
    with_client(|client| async move {
        let daemonsets: Api<DaemonSet> = Api::namespaced(client, namespace);
        match asked(daemonsets.delete(old, &DeleteParams::background())).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => drop(other.map_err(|source| refused(&format!("delete the DaemonSet {old}"), source))?),
        }
        let mut found = String::new();
        let cleaned = timeout(limit, cleaned(&daemonsets, by, &mut found)).await;
        cleaned.unwrap_or_else(|_| Err(Error::Late { limit: limit.as_secs(), what: found }))
    })
}

async fn cleaned(daemonsets: &Api<DaemonSet>, by: &str, found: &mut String) -> Result<(), Error> {
    loop {
        let daemonset = asked(daemonsets.get(by)).await;
        let daemonset = daemonset.map_err(|source| refused(&format!("read the DaemonSet {by}"), source))?;
        match waits_for(&daemonset) {
            None => return Ok(()),
            Some(what) => *found = format!("{what} (kubectl logs, and --no-hooks where a node is lost for good)"),
        }
        sleep(LOOK).await;
    }
}

/// What of it isn't there; none: all.
fn waits_for(daemonset: &DaemonSet) -> Option<String> {
    let name = daemonset.metadata.name.as_deref().unwrap_or_default();
    let status = daemonset.status.as_ref();
    let is_seen = status.is_some_and(|status| status.observed_generation == daemonset.metadata.generation);
    let Some(status) = status.filter(|_| is_seen) else {
        return Some(format!("the controller of DaemonSets hasn't taken up {name}"));
    };
    let (ready, wanted) = (status.number_ready, status.desired_number_scheduled);
    (ready < wanted).then(|| format!("{ready} of {wanted} nodes are cleaned: see the pods of the DaemonSet {name}"))
}

fn with_client<T, F>(ask: impl FnOnce(Client) -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = api::client(&Kubernetes::in_cluster(), &api::Place::Configured).await?;
        ask(client).await
    })
}

/// A server that is silent is no reason to wait for ever.
async fn asked<T>(answer: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let silent = |_| kube::Error::Service("no answer in time".into());
    timeout(api::ANSWER, answer).await.map_err(silent)?
}

fn refused(what: &str, source: kube::Error) -> Error {
    Error::Refused { what: what.to_owned(), source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::DaemonSetStatus;

    use super::*;

    #[test]
    fn each_node_counts_once_the_controller_has_seen_it() {
        let daemonset = |observed, wanted, ready| DaemonSet {
            metadata: ObjectMeta { generation: Some(2), ..ObjectMeta::default() },
            status: Some(DaemonSetStatus {
                observed_generation: observed,
                desired_number_scheduled: wanted,
                number_ready: ready,
                ..DaemonSetStatus::default()
            }),
            ..DaemonSet::default()
        };
        assert!(waits_for(&daemonset(None, 0, 0)).is_some() && waits_for(&daemonset(Some(1), 2, 2)).is_some());
        assert!(waits_for(&daemonset(Some(2), 2, 1)).is_some_and(|what| what.starts_with("1 of 2 nodes")));
        assert_eq!((waits_for(&daemonset(Some(2), 2, 2)), waits_for(&daemonset(Some(2), 0, 0))), (None, None));
    }
}
