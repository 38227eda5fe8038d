//! The node's agent, the other half of viprouted: reconciles the node with the registry, and serves events and metrics.
//!
//! Each part has a thread and a netlink socket of its own and knows nothing of the others. They meet in the registry,
//! whose locks keep them and the plugin apart; what they do to the kernel they do by way of `vip`.

pub mod arguments;
mod calls;
mod chain;
pub mod config;
mod express;
mod generation;
mod health;
mod journal;
mod kubernetes;
mod leases;
pub mod log;
mod metrics;
mod notify;
pub mod peers;
mod problems;
mod reconcile;
mod replicas;
mod retirement;
mod subsystems;
mod uplink;

use std::io;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;

pub use express::Express;
pub use journal::{Journal, Kind};
pub use kubernetes::{Services, api};
pub use leases::run;
pub use metrics::{AllocatorStatus, Counters, StatusRequests};
pub use peers::Peers;
pub use problems::Problems;
pub use subsystems::Subsystems;

use crate::net::unix::SocketFile;
use crate::node::config::Metrics;
use crate::registry::Registry;
use crate::registry::watch::{self, Watch};
use crate::{dataplane, net};
use metrics::Syncer;
use reconcile::NodeSettings;

/// What every part is started with.
#[derive(Clone, Debug)]
pub struct Context {
    /// The plugin's registry.
    pub registry: Registry,
    /// Records events.
    pub journal: Journal,
    /// Where things are counted.
    pub counters: Counters,
    /// The subsystems and whether each still turns.
    pub subsystems: Subsystems,
    /// What is wrong with the node for the time being.
    pub problems: Problems,
    /// Publishes changes of the registry.
    pub watch: Watch,
    /// The express path's switch and state.
    pub express: Express,
    /// The other nodes.
    pub peers: Peers,
    /// The Kubernetes Services.
    pub services: Services,
    /// What the configuration asks for.
    pub wanted: Wanted,
}

/// What the configuration asks of the node's packet paths.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// VIP traffic is to be kept out of connection tracking.
    pub notrack: bool,
    /// Packets may take the express path.
    pub express: bool,
}

/// Why the agent can't start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No counters.
    #[error("no metrics")]
    Counters(#[from] prometheus::Error),
    /// No metrics.
    #[error(transparent)]
    Metrics(#[from] metrics::Error),
    /// No health checks.
    #[error(transparent)]
    Health(#[from] health::Error),
    /// Nothing to work with in the kernel.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// No thread, no watch.
    #[error("{op}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// This node's name: the configured one, else the host's. An error is the host's name, where that can't be one.
fn own_name(configured: Option<&str>) -> Result<String, String> {
    let of_host = || {
        nix::sys::utsname::uname()
            .map_or_else(|_| String::new(), |host| host.nodename().to_string_lossy().to_lowercase())
    };
    match configured {
        Some(name) => Ok(name.to_owned()),
        None => Some(of_host()).filter(|name| config::is_node_name(name)).ok_or_else(of_host),
    }
}

impl Context {
    /// With an empty journal and all counters at zero.
    pub fn new(registry: Registry, wanted: Wanted) -> Result<Self, Error> {
        let (journal, subsystems, watch) = (Journal::default(), Subsystems::default(), Watch::default());
        let problems = Problems::new(journal.clone());
        let (counters, express, peers) = (Counters::new()?, Express::default(), Peers::default());
        let services = Services::default();
        Ok(Self { registry, journal, counters, subsystems, problems, watch, express, peers, services, wanted })
    }

    /// Starts the watcher of the registry and of the runtime's networks.
    fn start_watch(&self) -> io::Result<()> {
        let (registry, watch, follower) = (self.registry.clone(), self.watch.clone(), chain::start(self)?);
        let run = move |guard: subsystems::SubsystemGuard| watch::run(&registry, &watch, follower, || guard.turn());
        self.subsystems.spawn(&subsystems::REGISTRY, run)
    }
}

/// What is left to do when the agent ends: drop it.
#[derive(Debug)]
pub struct Agent {
    _metrics: Option<SocketFile>,
}

/// Starts all subsystems. They end with the process: what they were at, the next start finishes.
pub fn start(
    context: &Context,
    metrics: &Metrics,
    status_requests: StatusRequests,
    (wake, settings): (Arc<EventFd>, NodeSettings),
) -> Result<Agent, Error> {
    let counters = context.counters.clone();
    dataplane::observe_syncs(move |taken| counters.synced(Syncer::Agent, taken));
    let failed = |op| move |source| Error::Io { op, source };
    replicas::start(context).map_err(failed("watch the registry for events"))?;
    health::start(context)?;
    generation::start(context)?;
    reconcile::start(context, wake, settings)?;
    retirement::start(context).map_err(failed("start the retirement of previous addresses"))?;
    Ok(Agent { _metrics: metrics::start(context, metrics, status_requests)? })
}
