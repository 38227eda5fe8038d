//! The watches: each kind's list, and what changes. Objects are cut to what Services take as they come.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;

use super::objects::{Class, Key, Node, Pod, Slice, key};
use super::store::{Change, Heard, Kind};
use super::{API_SERVICE, api, pause, pool};

/// A watch that fails is tried again after this, then after twice the time, up to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Objects of a page of a list.
const PAGE: u32 = 500;

/// What is watched.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Which Services.
    pub class: Class,
    /// Whose pods: this node's name.
    pub node: String,
    /// Addresses of the pool too.
    pub has_pool: bool,
}

/// Starts all of them. They end with the set.
pub fn start(client: &kube::Client, watched: &Watched, heard: &Sender<Heard>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let page = watcher::Config::default().page_size(PAGE);
    let class = watched.class.clone();
    let reduce = move |service: core::Service| (key(&service.metadata), class.service(service));
    let teller = Teller { identified_by: Some(client.clone()), ..Teller::new(heard, Kind::Services, Heard::Services) };
    tasks.spawn(watch(Api::all(client.clone()), page.clone(), reduce, teller));
    let node = watched.node.clone();
    let reduce = move |slice: EndpointSlice| (key(&slice.metadata), Slice::of(slice, &node));
    let slices = Api::all(client.clone());
    let labelled = page.clone().labels("kubernetes.io/service-name");
    tasks.spawn(watch(slices, labelled, reduce, Teller::new(heard, Kind::Slices, Heard::Slices)));
    let reduce = |pod: core::Pod| (key(&pod.metadata), Some(Pod::of(pod)));
    let pods = Api::all(client.clone());
    let of_node = page.clone().fields(&format!("spec.nodeName={}", watched.node));
    tasks.spawn(watch(pods, of_node, reduce, Teller::new(heard, Kind::Pods, Heard::Pods)));
    let reduce = |node: core::Node| (key(&node.metadata), Some(Node::of(node)));
    let nodes = Api::all(client.clone());
    tasks.spawn(watch(nodes, page, reduce, Teller::new(heard, Kind::Nodes, Heard::Nodes)));
    if watched.has_pool {
        let (label, manager) = pool::MANAGED_BY;
        let ours = watcher::Config::default().page_size(PAGE).labels(&format!("{label}={manager}"));
        let teller = Teller::new(heard, Kind::Addresses, Heard::Addresses);
        tasks.spawn(watch(Api::all(client.clone()), ours, pool::entry, teller));
    }
    tasks
}

/// Says what a kind's watch has heard.
struct Teller<T> {
    heard: Sender<Heard>,
    kind: Kind,
    say: fn(Change<T>) -> Heard,
    /// The list comes together with the sign of which cluster it is of, which is asked here.
    identified_by: Option<kube::Client>,
}

impl<T> Teller<T> {
    fn new(heard: &Sender<Heard>, kind: Kind, say: fn(Change<T>) -> Heard) -> Self {
        Self { heard: heard.clone(), kind, say, identified_by: None }
    }

    /// An error: viprouted ends.
    async fn tell(&self, change: Change<T>) -> Result<(), ()> {
        self.heard.send((self.say)(change)).await.map_err(drop)
    }

    /// `has_api`: the Service of the API server is in the list.
    async fn tell_all(&self, list: BTreeMap<Key, T>, has_api: bool) -> Result<(), ()> {
        if let Some(client) = &self.identified_by {
            let uid = cluster(client, self).await;
            self.heard.send(Heard::Cluster { uid, has_api }).await.map_err(drop)?;
        }
        self.tell(Change::All(list)).await
    }

    async fn failed(&self, why: String) -> Result<(), ()> {
        self.heard.send(Heard::Failed(self.kind, why)).await.map_err(drop)
    }
}

async fn watch<K, T>(api: Api<K>, config: watcher::Config, reduce: impl Fn(K) -> (Key, Option<T>), teller: Teller<T>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut stream = pin!(watcher(api, config).backoff(Jittered::default()));
    let (mut list, mut has_api) = (BTreeMap::new(), false);
    while let Some(event) = stream.next().await {
        let told = match event {
            Ok(Event::Init) => {
                list.clear();
                has_api = false;
                Ok(())
            }
            Ok(Event::InitApply(object)) => {
                let (key, object) = reduce(object);
                has_api |= key == API_SERVICE;
                list.extend(object.map(|object| (key, object)));
                Ok(())
            }
            Ok(Event::InitDone) => teller.tell_all(std::mem::take(&mut list), has_api).await,
            Ok(Event::Apply(object)) => {
                let (key, object) = reduce(object);
                teller.tell(Change::One(key, object)).await
            }
            Ok(Event::Delete(object)) => teller.tell(Change::One(reduce(object).0, None)).await,
            Err(error) => teller.failed(why(&error)).await,
        };
        if told.is_err() {
            return;
        }
    }
}

/// Which cluster it is, asked until the API says it.
async fn cluster<T>(client: &kube::Client, teller: &Teller<T>) -> String {
    let mut pauses = Jittered::default();
    loop {
        let why = match api::cluster(client).await {
            Ok(uid) => return uid,
            Err(api::Error::Client(error)) => api::reason(&error),
            Err(error) => crate::with_causes(&error),
        };
        let _ = teller.failed(why).await;
        tokio::time::sleep(pauses.next().unwrap_or(BACK_OFF.1)).await;
    }
}

fn why(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => api::reason(error),
        watcher::Error::WatchError(status) => format!("{} ({})", status.message, status.code),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

/// Pauses that grow, by chance longer or shorter: not all nodes ask at once when the API is back.
#[derive(Debug, Default)]
struct Jittered {
    failures: u32,
}

impl Iterator for Jittered {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = pause(BACK_OFF, self.failures);
        self.failures = self.failures.saturating_add(1);
        Some(pause.mul_f64(rand::random_range(0.5..1.5)))
    }
}

impl Backoff for Jittered {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_an_end() {
        let mut pauses = Jittered::default();
        let first = pauses.next().unwrap();
        assert!(first >= BACK_OFF.0 / 2 && first < BACK_OFF.0 * 2, "{first:?}");
        let last = pauses.by_ref().take(40).last().unwrap();
        assert!(last >= BACK_OFF.1 / 2 && last < BACK_OFF.1 * 2, "{last:?}");
        pauses.reset();
        assert!(pauses.next().unwrap() < BACK_OFF.0 * 2);
    }
}
