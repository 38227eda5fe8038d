//! viprouted's start: everything is opened, and what the run before left is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::lease::cluster::{self, Cluster, Others};
use crate::lease::decider::{self, PoolClaims};
use crate::lease::grant::Report;
use crate::lease::search::Search;
use crate::lease::settings::{Backend, Settings};
use crate::lease::source::{Notices, Sources};
use crate::lease::state::{Rules, State};
use crate::lease::store::{Contents, Delegated, Store};
use crate::lease::writer::LeaseWriter;
use crate::model::{Family, VipKey};
use crate::net::NodeNet;
use crate::net::link::Link;
use crate::node;
use crate::node::config::Config;
use crate::node::peers::OthersLeases;
use crate::node::problems::PREFIX;
use crate::node::subsystems::{LEASES, ROUTES};
use crate::node::uplink;
use crate::registry::Registry;
use crate::registry::watch::Update;
use crate::with_causes;

use super::callers::Callers;
use super::claims::Claims;
use super::dataplane::{self, Node, Order};
use super::delegation::Delegation;
use super::event_log::LeaseEventLog;
use super::events::Events;
use super::executor::{Executor, Found};
use super::foreign::ForeignServers;
use super::leasing::Leasing;
use super::links::{Links, OneLink};
use super::pool;
use super::sharing::Sharing;
use super::usage::Batch;
use super::{Daemon, Error, failed};

/// Opens everything, reads the leases and the registry, and goes on where the run before stopped.
pub(super) async fn start(config: &Config) -> Result<(Daemon, Events), Error> {
    let (base, kept) = Base::open(config)?;
    let Kept { store, contents, contents6, prefix } = kept;
    let (uplink, claims) = OneLink::open(base.link.clone())?;
    let (ipv6, claims6) = base.other.clone().map(|other| OneLink::open(Some(other))).transpose()?.unzip();
    let links = Links::new(uplink, ipv6);
    let (reports, reported) = tokio::sync::mpsc::unbounded_channel();
    let (asking, answers) = Asking::start(config, &base, (reports, prefix.as_ref()))?;
    let writer = LeaseWriter::start(store, base.agent.subsystems.begin(&LEASES));
    let (writer, done) = writer.map_err(failed("start the thread that keeps leases"))?;
    let (v4, v6, found) =
        leasings(config, &base, &asking.settings, (asking.sources, asking.sources6), (&links, writer))?;
    let (orders, failures) = start_dataplane(&base.agent)?;
    let (strangers, strange) = tokio::sync::mpsc::unbounded_channel();
    let mut updates = watch(&base.agent)?;
    let first = Batch::of(&updates.recv().await.ok_or(Error::Ended("the registry's watcher"))?);
    let events = Events {
        calls: tokio::sync::mpsc::unbounded_channel().1,
        status_requests: tokio::sync::mpsc::unbounded_channel().1,
        reports: reported,
        notices: answers.notices,
        notices6: answers.notices6,
        prefix: answers.prefix,
        done,
        found,
        registry: updates,
        links: tokio::sync::mpsc::unbounded_channel().1,
        others: answers.others,
        wanted: answers.wanted,
        demands: base.agent.services.demands(),
        failures,
        claims,
        claims6: claims6.flatten(),
        strange,
        terminate: signal(SignalKind::terminate()).map_err(failed("handle SIGTERM"))?,
        interrupt: signal(SignalKind::interrupt()).map_err(failed("handle SIGINT"))?,
    };
    let mut daemon = Daemon {
        v4,
        v6,
        delegation: asking.delegation,
        callers: Callers::default(),
        orders,
        registry: base.registry,
        agent: base.agent,
        advertised: None,
        settings: asking.settings,
        settings6: config.lease6.clone(),
        links,
        claims: Claims::new(strangers),
        infrastructure: BTreeSet::new(),
        foreign: ForeignServers::default(),
        sharing: Sharing::new(asking.is_shared),
        pool: asking.pool,
        cluster: base.cluster,
        demanded: BTreeSet::new(),
        unlike: BTreeMap::new(),
        beside: BTreeMap::new(),
        node: base.node,
        last_caller: 0,
        strangers: contents.strangers.iter().chain(&contents6.strangers).cloned().collect(),
    };
    daemon.permit_link();
    daemon.resume(contents, contents6, first);
    Ok((daemon, events))
}

/// What all else is opened with.
struct Base {
    node: NodeNet,
    registry: Registry,
    link: Option<Link>,
    /// The link that IPv6 addresses are leased by, where that is another one.
    other: Option<Link>,
    agent: node::Context,
    /// Who this node is to a DHCP server; none without one.
    cluster: Option<Cluster>,
}

/// What is kept on disk of leases.
struct Kept {
    store: Store,
    contents: Contents,
    contents6: Contents,
    prefix: Option<Delegated>,
}

impl Base {
    fn open(config: &Config) -> Result<(Self, Kept), Error> {
        let node = NodeNet::open()?;
        let store = Store::open(&config.state_dir)?;
        let (contents, contents6) = (store.load_all(Family::V4)?, store.load_all(Family::V6)?);
        // No other viprouted runs by now: it would have the store's lock.
        let registry = open_registry(config);
        let link = uplink::find(&node, config)?;
        let other = uplink::find_ipv6(&node, config)?;
        let agent = node::Context::new(registry.clone(), config.wanted())?;
        let cluster = cluster(config, !(contents.records.is_empty() && contents6.records.is_empty()))?;
        let prefix = config.delegate.and_then(|_| {
            // As a lease file that can't be understood it is left alone until there is another prefix.
            let found = store.load_prefix().map_err(|error| with_causes(&error));
            found.unwrap_or_else(|why| {
                agent.problems.set(PREFIX, Some(format!("the delegated prefix of before isn't known: {why}")));
                None
            })
        });
        Ok((Self { node, registry, link, other, agent, cluster }, Kept { store, contents, contents6, prefix }))
    }

    /// The link that addresses of a family are leased by.
    fn link_of(&self, family: Family) -> Option<&Link> {
        self.other.as_ref().filter(|_| family == Family::V6).or(self.link.as_ref())
    }

    fn interface(&self, family: Family) -> Option<&str> {
        self.link_of(family).map(|link| link.name.as_str())
    }
}

/// Those that are asked for addresses, and who decides with them.
struct Asking {
    sources: Sources,
    sources6: Option<Sources>,
    delegation: Option<Delegation>,
    pool: Option<PoolClaims>,
    /// Other nodes may have the same leases.
    is_shared: bool,
    /// Those of the configuration, with the prefix that is delegated.
    settings: Settings,
}

/// Where their answers come from.
struct Answers {
    notices: Notices,
    notices6: Notices,
    prefix: Notices,
    others: OthersLeases,
    wanted: UnboundedReceiver<decider::Order>,
}

impl Asking {
    /// `prefix`: the one of before.
    fn start(
        config: &Config,
        base: &Base,
        (reports, prefix): (UnboundedSender<Report>, Option<&Delegated>),
    ) -> Result<(Self, Answers), Error> {
        let cluster = base.cluster.as_ref();
        let name = cluster.map(|cluster| cluster.name.as_str());
        let others = node::peers::start(&base.agent, config, name)?;
        let is_shared = others.is_some() && cluster.is_some();
        let of = |family, lease| Sources::start((family, lease), cluster, base.interface(family), reports.clone());
        let (mut sources, notices) = of(Family::V4, &config.lease)?;
        let (mut sources6, notices6) = config.lease6.as_ref().map(|lease| of(Family::V6, lease)).transpose()?.unzip();
        if is_shared {
            sources.share();
            sources6.as_mut().map(Sources::share);
        }
        let allow = config.lease.allow.clone().unwrap_or_default();
        let delegation = config.delegate.zip(cluster);
        let delegation = delegation.map(|(on_lost, cluster)| {
            Delegation::start(on_lost, (cluster, base.interface(Family::V6)), (prefix, &allow))
        });
        let (delegation, prefix) = delegation.transpose()?.unzip();
        let mut settings = config.lease.clone();
        if let Some(delegation) = &delegation {
            settings.beside.set_network(delegation.network);
        }
        let (pool, wanted) = pool::start(config, &mut sources, (&base.agent.services, reports.clone()));
        let answers = Answers { notices, notices6: notices6.flatten(), prefix: prefix.flatten(), others, wanted };
        Ok((Self { sources, sources6, delegation, pool, is_shared, settings }, answers))
    }
}

/// The leases of both families, and where searches for conflicts say what they have found.
fn leasings(
    config: &Config,
    base: &Base,
    settings: &Settings,
    (sources, sources6): (Sources, Option<Sources>),
    (links, writer): (&Links, LeaseWriter),
) -> Result<(Leasing, Option<Leasing>, UnboundedReceiver<Found>), Error> {
    let (heartbeat, told) = (base.agent.subsystems.begin(&ROUTES), base.agent.services.nodes());
    let search = Search::new(&config.lease, &base.registry, links.asked(), heartbeat, told)?;
    let (finds, found) = tokio::sync::mpsc::unbounded_channel();
    let (writer, has_both) = (Arc::new(writer), sources6.is_some());
    let leasing = |lease: &Settings, family: Family, sources| {
        let executor = Executor::new((family, sources), search.clone(), writer.clone(), finds.clone());
        let event_log = LeaseEventLog::new(base.agent.journal.clone(), Some(family).filter(|_| has_both));
        Leasing::new(State::new(rules(config, lease, base.cluster.as_ref())), executor, event_log)
    };
    let v6 = sources6.zip(config.lease6.as_ref());
    let v6 = v6.map(|(sources, lease)| leasing(lease, Family::V6, sources));
    let mut v4 = leasing(&config.lease, Family::V4, sources);
    v4.executor.beside = settings.beside.clone();
    Ok((v4, v6, found))
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

/// By which rules the leases of a family are kept.
fn rules(config: &Config, lease: &Settings, cluster: Option<&Cluster>) -> Rules {
    let rules = Rules::of(lease, cluster);
    // Also where all seeds are names.
    let knows_others = config.membership.is_some();
    let is_shared = knows_others || config.kubernetes.is_some();
    let trusts_memory = !(is_shared && matches!(lease.backend, Backend::Pool(_)));
    Rules { has_peers: rules.has_peers || knows_others, trusts_memory, ..rules }
}

/// Who this node is to a DHCP server; none without one.
fn cluster(config: &Config, leases: bool) -> Result<Option<Cluster>, Error> {
    let mut backends = std::iter::once(&config.lease).chain(&config.lease6).map(|lease| &lease.backend);
    if config.delegate.is_none() && !backends.any(|backend| matches!(backend, Backend::Dhcp(_))) {
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
