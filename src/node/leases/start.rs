//! viprouted's start: everything is opened, and what the run before left is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::lease::cluster::{self, Cluster, Others};
use crate::lease::search::Search;
use crate::lease::settings::Backend;
use crate::lease::source::Sources;
use crate::lease::state::{Rules, State};
use crate::lease::store::Store;
use crate::lease::writer::LeaseWriter;
use crate::model::{Family, VipKey};
use crate::net::NodeNet;
use crate::net::acd::Acd;
use crate::node;
use crate::node::config::Config;
use crate::node::subsystems::{LEASES, ROUTES};
use crate::node::uplink;
use crate::registry::Registry;
use crate::registry::watch::Update;

use super::callers::Callers;
use super::claims::Claims;
use super::dataplane::{self, Node, Order};
use super::event_log::LeaseEventLog;
use super::events::Events;
use super::executor::Executor;
use super::foreign::ForeignServers;
use super::leasing::Leasing;
use super::pool;
use super::sharing::Sharing;
use super::usage::Batch;
use super::{Daemon, Error, failed};

/// Opens everything, reads the leases and the registry, and goes on where the run before stopped.
pub(super) async fn start(config: &Config) -> Result<(Daemon, Events), Error> {
    let node = NodeNet::open()?;
    let store = Store::open(&config.state_dir)?;
    let contents = store.load_all(Family::V4)?;
    let contents6 = store.load_all(Family::V6)?;
    // No other viprouted runs by now: it would have the store's lock.
    let registry = open_registry(config);
    let link = uplink::find(&node, config)?;
    let (acd, claims) = link.as_ref().map(Acd::open).transpose()?.unzip();
    let agent = node::Context::new(registry.clone(), config.wanted())?;
    let heartbeat = agent.subsystems.begin(&ROUTES);
    let told = agent.services.nodes();
    let search = Search::new(&config.lease, &registry, link.as_ref().zip(acd.clone()), heartbeat, told)?;
    let (sender, reports) = tokio::sync::mpsc::unbounded_channel();
    let cluster = cluster(config, !(contents.records.is_empty() && contents6.records.is_empty()))?;
    let others = node::peers::start(&agent, config, cluster.as_ref().map(|cluster| cluster.name.as_str()))?;
    let interface = link.as_ref().map(|link| link.name.as_str());
    let told = sender.clone();
    let started = Sources::start((Family::V4, &config.lease), cluster.as_ref(), interface, sender.clone())?;
    let (mut sources, notices) = started;
    let sources6 = config.lease6.as_ref();
    let sources6 = sources6.map(|lease| Sources::start((Family::V6, lease), cluster.as_ref(), interface, sender));
    let (sources6, notices6) = sources6.transpose()?.unzip();
    let is_shared = others.is_some() && cluster.is_some();
    if is_shared {
        sources.share();
    }
    let sharing = Sharing::new(is_shared);
    let (pool, wanted) = pool::start(config, &mut sources, (&agent.services, told));
    let writer = LeaseWriter::start(store, agent.subsystems.begin(&LEASES));
    let (writer, done) = writer.map_err(failed("start the thread that keeps leases"))?;
    let writer = Arc::new(writer);
    let (orders, failures) = start_dataplane(&agent)?;
    let (strangers, strange) = tokio::sync::mpsc::unbounded_channel();
    let (finds, found) = tokio::sync::mpsc::unbounded_channel();
    let has_both = sources6.is_some();
    let leasing = |rules: Rules, (family, sources)| {
        let executor = Executor::new((family, sources), search.clone(), writer.clone(), finds.clone());
        let event_log = LeaseEventLog::new(agent.journal.clone(), Some(family).filter(|_| has_both));
        Leasing::new(State::new(rules), executor, event_log)
    };
    let mut v4 = leasing(rules(config, cluster.as_ref()), (Family::V4, sources));
    v4.executor.beside = config.lease.beside.clone();
    let v6 = sources6.zip(config.lease6.as_ref());
    let v6 = v6.map(|(sources, lease)| leasing(Rules::of(lease, cluster.as_ref()), (Family::V6, sources)));
    let mut updates = watch(&agent)?;
    let first = Batch::of(&updates.recv().await.ok_or(Error::Ended("the registry's watcher"))?);
    let events = Events {
        calls: tokio::sync::mpsc::unbounded_channel().1,
        status_requests: tokio::sync::mpsc::unbounded_channel().1,
        reports,
        notices,
        notices6: notices6.flatten(),
        done,
        found,
        registry: updates,
        links: tokio::sync::mpsc::unbounded_channel().1,
        others,
        wanted,
        demands: agent.services.demands(),
        failures,
        claims,
        strange,
        terminate: signal(SignalKind::terminate()).map_err(failed("handle SIGTERM"))?,
        interrupt: signal(SignalKind::interrupt()).map_err(failed("handle SIGINT"))?,
    };
    let mut daemon = Daemon {
        v4,
        v6,
        callers: Callers::default(),
        orders,
        registry,
        agent,
        advertised: None,
        settings: config.lease.clone(),
        settings6: config.lease6.clone(),
        next_link: None,
        acd,
        claims: Claims::new(strangers),
        infrastructure: BTreeSet::new(),
        foreign: ForeignServers::default(),
        sharing,
        pool,
        cluster,
        demanded: BTreeSet::new(),
        unlike: BTreeMap::new(),
        beside: BTreeMap::new(),
        node,
        link,
        last_caller: 0,
        strangers: contents.strangers.iter().chain(&contents6.strangers).cloned().collect(),
    };
    daemon.permit_link();
    daemon.resume(contents, contents6, first);
    Ok((daemon, events))
}

/// The registry as this boot and this version want it. Where that fails viprouted runs all the same, and says so.
fn open_registry(config: &Config) -> Registry {
    let registry = Registry::for_daemon(&config.data_dir);
    match registry.close_to_others() {
        Ok(false) => {}
        Ok(true) => tracing::info!(path = %config.data_dir.display(), "taken from all but root: mode 0700"),
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "others may read the registry"),
    }
    if registry.exists()
        && let Err(error) = registry.begin()
    {
        tracing::warn!(error = &error as &dyn std::error::Error, "registry not checked for another boot's state");
    }
    if let Err(error) = registry.raise_schema() {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "registry not rewritten, its files stay in the schema before");
    }
    registry
}

/// What the dataplane could not do.
type Failures = UnboundedReceiver<(VipKey, crate::dataplane::Error)>;

/// Starts the thread that renumbers and withdraws VIPs: where its orders go, and what it couldn't do.
fn start_dataplane(agent: &node::Context) -> Result<(Sender<Order>, Failures), Error> {
    let (sender, failures) = tokio::sync::mpsc::unbounded_channel();
    let dataplane = Node::open(agent.registry.clone(), agent.journal.clone())?;
    let orders = dataplane::start(dataplane, &agent.subsystems, sender);
    Ok((orders.map_err(failed("start the dataplane's thread"))?, failures))
}

/// Subscribes to the registry's changes, and starts watching it.
fn watch(agent: &node::Context) -> Result<UnboundedReceiver<Update>, Error> {
    let (sender, updates) = tokio::sync::mpsc::unbounded_channel();
    agent.watch.subscribe(move |update| sender.send(update).is_ok());
    agent.start_watch().map_err(failed("watch the registry"))?;
    Ok(updates)
}

/// By which rules leases are kept.
fn rules(config: &Config, cluster: Option<&Cluster>) -> Rules {
    let rules = Rules::of(&config.lease, cluster);
    // Also where all seeds are names.
    let knows_others = config.membership.is_some();
    let is_shared = knows_others || config.kubernetes.is_some();
    let trusts_memory = !(is_shared && matches!(config.lease.backend, Backend::Pool(_)));
    Rules { has_peers: rules.has_peers || knows_others, trusts_memory, ..rules }
}

/// Who this node is to a DHCP server; none without one.
fn cluster(config: &Config, leases: bool) -> Result<Option<Cluster>, Error> {
    let mut backends = std::iter::once(&config.lease).chain(&config.lease6).map(|lease| &lease.backend);
    if !backends.any(|backend| matches!(backend, Backend::Dhcp(_))) {
        return Ok(None);
    }
    let derived = node::peers::keys(config)?.map(|keys| keys.cluster());
    let others = match derived {
        Some(name) => Others::Keyed(name),
        None if config.lease.peers.is_empty() => Others::None,
        None => Others::Listed,
    };
    Ok(Some(cluster::find(config.lease.cluster.as_deref(), &config.state_dir, leases, others)?))
}
