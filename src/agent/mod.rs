//! The node's agent, the other half of viprouted: keeps the node as the registry says, and shows what goes on.
//!
//! Each part has a thread and a netlink socket of its own and knows nothing of the others. They meet in the registry,
//! whose locks keep them and the plugin apart; what they do to the kernel they do by way of `vip`.

pub mod calls;
mod former;
mod health;
pub mod journal;
pub mod log;
pub mod metrics;
mod notrack;
pub mod parts;
mod reconcile;
mod replicas;

use std::io;

pub use journal::{Journal, Kind};
pub use metrics::{Counters, Inquiries, Standing};
pub use parts::Parts;

use crate::allocator::config::Metrics;
use crate::net;
use crate::net::unix::SocketFile;
use crate::registry::Registry;
use crate::vip;
use metrics::Syncer;

/// What every part is started with.
#[derive(Clone, Debug)]
pub struct Context {
    /// The plugin's registry.
    pub registry: Registry,
    /// Where events are told.
    pub journal: Journal,
    /// Where things are counted.
    pub counters: Counters,
    /// Where a part says that it is at work.
    pub parts: Parts,
    /// Whether VIP traffic is to be kept out of connection tracking.
    pub notrack: bool,
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

impl Context {
    /// With nothing told and nothing counted so far.
    pub fn new(registry: Registry, notrack: bool) -> Result<Self, Error> {
        let (journal, parts) = (Journal::default(), Parts::default());
        Ok(Self { registry, journal, counters: Counters::new()?, parts, notrack })
    }
}

/// What is left to do when the agent ends: drop it.
#[derive(Debug)]
pub struct Agent {
    _metrics: Option<SocketFile>,
}

/// Starts all parts. They end with the process: what they were at, the next start finishes.
pub fn start(context: &Context, metrics: &Metrics, inquiries: Inquiries) -> Result<Agent, Error> {
    let counters = context.counters.clone();
    vip::observe_syncs(move |taken| counters.synced(Syncer::Agent, taken));
    let failed = |op| move |source| Error::Io { op, source };
    replicas::start(context).map_err(failed("watch the registry for events"))?;
    health::start(context)?;
    reconcile::start(context)?;
    former::start(context).map_err(failed("start the part that keeps former addresses"))?;
    notrack::start(context).map_err(failed("start the part that keeps VIPs out of connection tracking"))?;
    Ok(Agent { _metrics: metrics::start(context, metrics, inquiries)? })
}
