//! Kubernetes Services as a source of desired state: the ready pods of a Service of type `LoadBalancer` become replicas of the VIP of its
//! name.
//!
//! [`watches`] brings the API's objects, cut down to [`objects`]; [`store`] says whether they may be acted upon, [`remembered`] keeps them
//! over a restart; [`sharing`] (pure) says which Services have which VIP, [`desired`] (pure) which pods of this node are to be what, [`apply`] has it done by
//! [`membership`](crate::membership), on a thread of its own; [`status`] and [`events`] tell the API what has come of it; [`engine`]
//! drives all that talks to the API, by [`api`]. Addresses are the daemon's to get: [`addresses`] says for which VIPs. Those of a pool are
//! entered at the API ([`register`], pure, by [`pool`]). Servers that can't be reached at a VIP are found by [`listeners`]. What people ask
//! viprouted is answered by [`describe`], and what only the API can say, and only doctor asks for, by [`examine`].
//!
//! Traffic depends on none of it: while the API is away everything stays as it was.

pub mod addresses;
pub mod api;
mod apply;
mod asked;
mod blocking;
mod describe;
mod desired;
mod engine;
mod events;
mod examine;
mod families;
mod listeners;
mod objects;
mod policies;
mod policy;
mod pool;
mod ports;
mod register;
mod remembered;
mod rights;
mod sharing;
mod status;
mod store;
mod watches;
mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::lease::beside::Beside;
use crate::lease::decider::Order;
use crate::lease::grant::Report;
use crate::lease::nodes::Told;
use crate::lease::settings::Backend;
use crate::lease::state::Demand;
use crate::model::{Addresses, Family, VipKey, VipPolicy};
use crate::net::{self, NodeNet};

use super::config::Config;
use super::subsystems::{KUBERNETES, SERVICES};
use super::{Context, own_name};
use addresses::Lease;
use apply::Applier;
use desired::Note;
use engine::{Engine, Known};
use examine::Examination;
use objects::{Key, Objects};
use policy::Here;
use pool::{Desk, PoolKeeper};
use register::Register;
use sharing::Sharing;
use store::{Change, Store};

/// The Service of the API server itself, which every cluster has.
const API_SERVICE: &str = "default/kubernetes";

/// Of so many Services it is known which addresses they say are their own.
const MAX_EXTERNAL: usize = 5_000;
/// So many Services that nobody serves are known by name.
const MAX_UNCLAIMED: usize = 1_000;

/// What failed is tried again after the first, then after twice the time, up to the last.
fn pause((first, last): (Duration, Duration), failures: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(failures)).min(last)
}

/// Why Services can't be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node has no name.
    #[error("kubernetes.node is missing: expected the node's name (kubectl get nodes), because the host name is {0:?}")]
    Name(String),
    /// Nothing to work with in the kernel.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// No thread.
    #[error("start the threads for Kubernetes")]
    Io(#[from] io::Error),
}

/// VIPs of whose records something may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Touched {
    is_all: bool,
    vips: BTreeSet<VipKey>,
}

/// What viprouted's other parts know of it. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Services(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    shared: Mutex<Shared>,
    /// Something has changed that the API is to hear of.
    changed: Notify,
    /// The nodes' addresses, where nodes serve VIPs together.
    nodes: Told,
}

#[derive(Debug, Default)]
struct Shared {
    store: Store,
    /// The addresses that VIPs are to have, because Services ask for them.
    asked: BTreeMap<VipKey, Ipv4Addr>,
    /// What has become of VIPs' addresses that Services want.
    leases: BTreeMap<VipKey, Lease>,
    /// What Services ask of VIPs, as far as it is known; `None`: no Services are served.
    policies: Option<BTreeMap<VipKey, VipPolicy>>,
    /// What there is to say of Services.
    notes: BTreeMap<VipKey, BTreeSet<Note>>,
    /// Pods of this node that get no connections because of a policy of the network: which.
    kept_out: BTreeMap<Key, Key>,
    excluded: Excluded,
    /// VIPs whose addresses Services wanted when viprouted ended.
    had: BTreeSet<VipKey>,
    /// This node is being shut down, as the cluster says.
    is_node_ending: bool,
    /// Services of type `LoadBalancer` that have neither a class nor an address.
    unclaimed: BTreeSet<Key>,
    /// Addresses that Services of any type say are their own, by their names.
    external: BTreeMap<Key, Vec<IpAddr>>,
    /// The API knows no `ipMode`.
    lacks_mode: bool,
    /// Asks the API on demand; none: it can't be asked.
    examiner: Option<UnboundedSender<Examination>>,
    /// Wakes the thread that applies.
    applier: Option<SyncSender<()>>,
    /// Wakes the loop that reconciles the node: other nodes are excluded.
    reconciler: Option<Arc<EventFd>>,
    /// Where the daemon hears which VIPs are to have addresses.
    demands: Option<UnboundedSender<(VipKey, Demand)>>,
    /// VIPs whose records have changed since it was looked whether they say what Services ask.
    touched: Touched,
    /// The pools' addresses that the API has given out.
    given: BTreeSet<Ipv4Addr>,
    /// What the daemon wants of the pool.
    desk: Option<Desk>,
    /// Which addresses of IPv6 VIPs have beside their leases.
    beside: Beside,
    /// VIPs have addresses of IPv6, or are to have some.
    has_ipv6: bool,
}

/// The nodes that load balancers are to pass by, by a label of theirs. They answer ARP for no VIP that another node can answer for; their pods
/// stay replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excluded {
    /// This one is one of them.
    pub is_own: bool,
    /// The addresses of all of them.
    pub nodes: BTreeSet<IpAddr>,
}

impl Excluded {
    /// `node`: this one.
    fn of(objects: &Objects, node: &str) -> Self {
        let excluded = || objects.nodes.iter().filter(|(_, found)| found.is_excluded);
        let nodes = excluded().flat_map(|(_, found)| found.addresses.iter().copied()).collect();
        Self { is_own: excluded().any(|(name, _)| name == node), nodes }
    }
}

impl Services {
    /// The nodes that load balancers are to pass by.
    pub fn excluded(&self) -> Excluded {
        self.shared().excluded.clone()
    }

    /// Written to with each change of what is excluded.
    pub fn wakes(&self, reconciler: Arc<EventFd>) {
        self.shared().reconciler = Some(reconciler);
    }

    /// Where the daemon hears which VIPs are to have addresses.
    pub fn demands(&self) -> UnboundedReceiver<(VipKey, Demand)> {
        let (sender, demands) = tokio::sync::mpsc::unbounded_channel();
        self.shared().demands = Some(sender);
        demands
    }

    /// A Service wanted an address for that VIP when viprouted ended: where there is none any more, it is told of that.
    pub fn had(&self, vip: VipKey) {
        self.shared().had.insert(vip);
    }

    /// The pool's addresses are given out by the API: what is wanted of them, and where to say what has become of that.
    pub fn keep_pool(&self, orders: UnboundedReceiver<Order>, reports: UnboundedSender<Report>) {
        self.shared().desk = Some(Desk { orders, reports });
    }

    /// The pools' addresses that the API has given out, as far as it is asked.
    pub fn given(&self) -> BTreeSet<Ipv4Addr> {
        self.shared().given.clone()
    }

    fn on_given(&self, given: BTreeSet<Ipv4Addr>) {
        self.shared().given = given;
    }

    /// The address of a family that the Service's status says, which may be all that is known of it.
    pub fn stated(&self, vip: &VipKey, family: Family) -> Option<IpAddr> {
        self.shared().store.objects().services.get(&vip.to_string())?.stated_of(family)
    }

    /// The address that a Service asks for; none: any will do.
    pub fn asked(&self, vip: &VipKey) -> Option<IpAddr> {
        self.shared().asked.get(vip).copied().map(IpAddr::V4)
    }

    /// What Services ask of a VIP: whoever makes its record has it from the first moment on. None: no Services are served.
    pub fn policy(&self, vip: &VipKey) -> Option<VipPolicy> {
        let policies = &self.shared().policies;
        policies.as_ref().map(|policies| policies.get(vip).cloned().unwrap_or_default())
    }

    /// What has become of an address that was demanded; none: nothing is demanded any more.
    pub fn leased(&self, vip: &VipKey, lease: Option<Lease>) {
        let mut shared = self.shared();
        if shared.leases.get(vip) != lease.as_ref() {
            match lease {
                Some(lease) => drop(shared.leases.insert(vip.clone(), lease)),
                None => drop(shared.leases.remove(vip)),
            }
            shared.wake();
            drop(shared);
            self.0.changed.notify_one();
        }
    }

    /// What the watch has heard of Services that nobody serves, for want of a class.
    fn unclaimed(shared: &mut Shared, change: Change<()>) {
        match change {
            Change::All(all) => shared.unclaimed = all.into_keys().take(MAX_UNCLAIMED).collect(),
            Change::One(key, None) => drop(shared.unclaimed.remove(&key)),
            Change::One(key, Some(())) if shared.unclaimed.len() < MAX_UNCLAIMED => {
                shared.unclaimed.insert(key);
            }
            Change::One(..) => {}
        }
    }

    /// The addresses of the cluster's nodes, where they serve VIPs together.
    pub fn nodes(&self) -> Told {
        self.0.nodes.clone()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// All addresses of a VIP that Services want; `None`: it has none so far.
    fn addresses(&self, vip: &VipKey) -> Option<Addresses> {
        let lease = self.leases.get(vip)?;
        let mut addresses = self.beside.addresses(vip, lease.address?);
        lease.ipv6.map(|leased| addresses.replace(leased));
        Some(addresses)
    }

    /// Those of all VIPs that have some.
    fn all_addresses(&self) -> BTreeMap<VipKey, Addresses> {
        self.leases.keys().filter_map(|vip| Some((vip.clone(), self.addresses(vip)?))).collect()
    }

    /// What the watch has heard of addresses that Services say are their own.
    fn has_external(&mut self, change: Change<Vec<IpAddr>>) {
        match change {
            Change::All(all) => self.external = all.into_iter().take(MAX_EXTERNAL).collect(),
            Change::One(key, None) => drop(self.external.remove(&key)),
            Change::One(key, Some(addresses))
                if self.external.len() < MAX_EXTERNAL || self.external.contains_key(&key) =>
            {
                self.external.insert(key, addresses);
            }
            Change::One(..) => {}
        }
    }

    /// Who answers ARP follows at once, on all nodes alike: what lies between is a moment in which no node does.
    fn exclude(&mut self, excluded: Excluded) {
        if std::mem::replace(&mut self.excluded, excluded) != self.excluded
            && let Some(reconciler) = &self.reconciler
        {
            // A full eventfd wakes the loop just as well.
            let _ = reconciler.write(1);
        }
    }

    /// Has the thread that applies look again. One that has work before it looks in any case.
    fn wake(&self) {
        if let Some(applier) = &self.applier {
            let _ = applier.try_send(());
        }
    }
}

/// Starts the threads, where the configuration wants them.
pub fn start(context: &Context, config: &Config) -> Result<(), Error> {
    let Some(settings) = config.kubernetes.clone() else { return Ok(()) };
    let name = own_name(settings.node.as_deref()).map_err(Error::Name)?;
    let services = &context.services;
    let (applier, wakes) = std::sync::mpsc::sync_channel(1);
    let remembered = remembered::Remembered::load(&config.state_dir);
    {
        let mut shared = services.shared();
        shared.excluded = Excluded::of(&remembered.objects, &name);
        shared.beside = config.lease.beside.clone();
        shared.has_ipv6 = config.lease6.is_some() || !shared.beside.is_nothing();
        let here = Here { node: &name, has_ipv6: shared.has_ipv6, addresses: &BTreeMap::new() };
        shared.policies = Some(policy::policies(&remembered.objects, &Sharing::of(&remembered.objects), here).vips);
        shared.store = Store::new(remembered.cluster.clone(), remembered.objects.clone());
        shared.applier = Some(applier.clone());
    }
    // Replicas come and go by other ways too.
    let told = services.clone();
    context.watch.subscribe(move |update| {
        {
            let mut shared = told.shared();
            shared.touched.is_all |= update.full;
            shared.touched.vips.extend(update.changed);
        }
        !matches!(applier.try_send(()), Err(std::sync::mpsc::TrySendError::Disconnected(())))
    });
    let work = Applier::new(context.clone(), NodeNet::open()?, (config, &name));
    context.subsystems.spawn(&SERVICES, move |guard| work.run(&wakes, &guard))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pool = match (&config.lease.backend, services.shared().desk.take()) {
        (Backend::Pool(pools), Some(desk)) => {
            Some(PoolKeeper::new(Register::new(pools.clone(), config.lease.pins.clone()), desk))
        }
        _ => None,
    };
    let together = config.membership.is_some();
    let permitted = asked::Permitted::of(&config.lease);
    let labels = match &config.lease.backend {
        Backend::Pool(pools) => pools.iter().flat_map(|pool| pool.labels.keys().cloned()).collect(),
        Backend::Dhcp(_) => BTreeSet::new(),
    };
    let state_dir = config.state_dir.clone();
    let known = Known { state_dir, saved: remembered, pool, labels, together, permitted };
    let engine = Engine::new(context.clone(), settings, name, known);
    context.subsystems.spawn(&KUBERNETES, move |guard| runtime.block_on(engine.run(&guard)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::objects::Node;
    use super::*;

    #[test]
    fn nodes_that_load_balancers_pass_by_are_known_by_name_and_address() {
        let node =
            |last: u8, is_excluded| Node { addresses: vec![[192, 0, 2, last].into()], is_excluded, ..Node::default() };
        let nodes = [("n1".to_owned(), node(1, true)), ("n2".to_owned(), node(2, false))];
        let objects = Objects { nodes: nodes.into(), ..Objects::default() };
        let addresses = BTreeSet::from([IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(Excluded::of(&objects, "n1"), Excluded { is_own: true, nodes: addresses.clone() });
        assert_eq!(Excluded::of(&objects, "n2"), Excluded { is_own: false, nodes: addresses });
    }
}
