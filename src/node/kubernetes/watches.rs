//! The watches: each kind's list, and what changes. Objects are cut to what Services take as they come.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{NetworkPolicy, ServiceCIDR};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;

use super::objects::{Class, Key, Node, Pod, Service, Slice, key};
use super::policies::Policy;
use super::store::{Change, Heard, Kind};
use super::{api, pause, pool};

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
    /// Nodes that a label excludes are as any other.
    pub ignores_exclude_label: bool,
    /// Policies of the network mean nothing.
    pub ignores_policies: bool,
    /// Addresses of the pool too.
    pub has_pool: bool,
}

/// Starts all of them. They end with the set.
pub fn start(client: &kube::Client, watched: &Watched, heard: &Sender<Heard>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let page = watcher::Config::default().page_size(PAGE);
    let class = watched.class.clone();
    let reduce = move |service: core::Service| (key(&service.metadata), Offer::of(service, &class));
    tasks.spawn(watch(page.clone(), reduce, teller(client, heard, Kind::Services, offered)));
    let node = watched.node.clone();
    let reduce = move |slice: EndpointSlice| (key(&slice.metadata), Slice::of(slice, &node));
    let labelled = page.clone().labels("kubernetes.io/service-name");
    tasks.spawn(watch(labelled, reduce, teller(client, heard, Kind::Slices, |change| vec![Heard::Slices(change)])));
    let reduce = |pod: core::Pod| (key(&pod.metadata), Some(Pod::of(pod)));
    let of_node = page.clone().fields(&format!("spec.nodeName={}", watched.node));
    tasks.spawn(watch(of_node, reduce, teller(client, heard, Kind::Pods, |change| vec![Heard::Pods(change)])));
    let ignores_label = watched.ignores_exclude_label;
    let reduce = move |node: core::Node| (key(&node.metadata), Some(Node::of(node, ignores_label)));
    tasks.spawn(watch(page.clone(), reduce, teller(client, heard, Kind::Nodes, |change| vec![Heard::Nodes(change)])));
    let reduce = |range: ServiceCIDR| (key(&range.metadata), range.spec.and_then(|spec| spec.cidrs));
    let ranges = teller(client, heard, Kind::Ranges, |change| vec![Heard::Ranges(change)]);
    tasks.spawn(watch(page.clone(), reduce, ranges));
    let policies = teller(client, heard, Kind::Policies, |change| vec![Heard::Policies(change)]);
    if watched.ignores_policies {
        // It is as if there were none.
        tasks.spawn(async move {
            // An error: viprouted ends.
            let _ = policies.tell_all(BTreeMap::new()).await;
        });
    } else {
        let reduce = |policy: NetworkPolicy| (key(&policy.metadata), Policy::of(policy));
        tasks.spawn(watch(page.clone(), reduce, policies));
    }
    if watched.has_pool {
        let (label, manager) = pool::MANAGED_BY;
        let ours = page.labels(&format!("{label}={manager}"));
        tasks.spawn(watch(
            ours,
            pool::entry,
            teller(client, heard, Kind::Addresses, |change| vec![Heard::Addresses(change)]),
        ));
    }
    tasks
}

/// Says what a kind's watch has heard.
struct Teller<T> {
    client: kube::Client,
    heard: Sender<Heard>,
    kind: Kind,
    say: fn(Change<T>) -> Vec<Heard>,
}

fn teller<T>(client: &kube::Client, heard: &Sender<Heard>, kind: Kind, say: fn(Change<T>) -> Vec<Heard>) -> Teller<T> {
    Teller { client: client.clone(), heard: heard.clone(), kind, say }
}

impl<T> Teller<T> {
    /// An error: viprouted ends.
    async fn tell(&self, change: Change<T>) -> Result<(), ()> {
        for heard in (self.say)(change) {
            self.heard.send(heard).await.map_err(drop)?;
        }
        Ok(())
    }

    async fn failed(&self, why: String) -> Result<(), ()> {
        self.heard.send(Heard::Failed(self.kind, why)).await.map_err(drop)
    }

    /// A whole list comes with the sign of which cluster it is of, whatever it is a list of: where an API is empty of a sudden, nothing says
    /// which kind is listed first.
    async fn tell_all(&self, all: BTreeMap<Key, T>) -> Result<(), ()> {
        let (uid, has_api) = self.cluster().await;
        self.heard.send(Heard::Cluster { uid, has_api }).await.map_err(drop)?;
        self.tell(Change::All(all)).await
    }

    /// Which cluster it is, and whether it has the API's own Service: asked until the API says it.
    async fn cluster(&self) -> (String, bool) {
        let mut pauses = Jittered::default();
        loop {
            let why = match api::cluster(&self.client).await {
                Ok(found) => return found,
                Err(api::Error::Client(error)) => api::reason(&error),
                Err(error) => crate::with_causes(&error),
            };
            let _ = self.failed(why).await;
            tokio::time::sleep(pauses.next().unwrap_or(BACK_OFF.1)).await;
        }
    }
}

async fn watch<K, T>(config: watcher::Config, reduce: impl Fn(K) -> (Key, Option<T>), teller: Teller<T>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let api: Api<K> = Api::all(teller.client.clone());
    let mut stream = pin!(watcher(api, config).backoff(Jittered::default()));
    let mut list = BTreeMap::new();
    while let Some(event) = stream.next().await {
        let told = match event {
            Ok(Event::Init) => {
                list.clear();
                Ok(())
            }
            Ok(Event::InitApply(object)) => {
                let (key, object) = reduce(object);
                list.extend(object.map(|object| (key, object)));
                Ok(())
            }
            Ok(Event::InitDone) => teller.tell_all(std::mem::take(&mut list)).await,
            Ok(Event::Apply(object)) => {
                let (key, object) = reduce(object);
                teller.tell(Change::One(key, object)).await
            }
            Ok(Event::Delete(object)) => teller.tell(Change::One(reduce(object).0, None)).await,
            // An API before 1.33 doesn't say them.
            Err(error) if teller.kind == Kind::Ranges && is_unknown(&error) => Ok(()),
            Err(error) => teller.failed(why(&error)).await,
        };
        if told.is_err() {
            return;
        }
    }
}

/// What is of interest of a Service.
struct Offer {
    /// As one that is served here.
    served: Option<Service>,
    /// Nobody serves it, for want of a class.
    unclaimed: Option<()>,
    /// Addresses that it says are its own.
    external: Option<Vec<IpAddr>>,
}

impl Offer {
    fn of(service: core::Service, class: &Class) -> Option<Self> {
        let unclaimed = class.is_unclaimed(&service).then_some(());
        let external = service.spec.as_ref().and_then(|spec| spec.external_ips.as_ref());
        let external: Vec<IpAddr> = external.into_iter().flatten().filter_map(|address| address.parse().ok()).collect();
        let external = Some(external).filter(|addresses| !addresses.is_empty());
        let served = class.service(service);
        let is_of_interest = served.is_some() || unclaimed.is_some() || external.is_some();
        is_of_interest.then_some(Self { served, unclaimed, external })
    }
}

fn offered(change: Change<Offer>) -> Vec<Heard> {
    match change {
        Change::All(all) => {
            let (mut served, mut unclaimed, mut external) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
            for (key, offer) in all {
                unclaimed.extend(offer.unclaimed.map(|()| (key.clone(), ())));
                external.extend(offer.external.map(|addresses| (key.clone(), addresses)));
                served.extend(offer.served.map(|service| (key, service)));
            }
            vec![
                Heard::Unclaimed(Change::All(unclaimed.into_iter().collect())),
                Heard::External(Change::All(external)),
                Heard::Services(Box::new(Change::All(served))),
            ]
        }
        Change::One(key, offer) => {
            let Offer { served, unclaimed, external } =
                offer.unwrap_or(Offer { served: None, unclaimed: None, external: None });
            vec![
                Heard::Unclaimed(Change::One(key.clone(), unclaimed)),
                Heard::External(Change::One(key.clone(), external)),
                Heard::Services(Box::new(Change::One(key, served))),
            ]
        }
    }
}

/// The API has no such kind.
fn is_unknown(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
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
