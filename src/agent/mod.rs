//! The node's agent, the other half of viprouted: keeps the node as the registry says, and shows what goes on.
//!
//! Each part has a thread and a netlink socket of its own and knows nothing of the others. They meet in the registry,
//! whose locks keep them and the plugin apart; what they do to the kernel they do by way of `vip`.

pub mod journal;
mod reconcile;

pub use journal::Journal;
pub use reconcile::Repairs;

use crate::net;
use crate::registry::Registry;

/// What every part is started with.
#[derive(Clone, Debug)]
pub struct Context {
    /// The plugin's registry.
    pub registry: Registry,
    /// Where events are told.
    pub journal: Journal,
    /// How many times something was put right.
    pub repairs: Repairs,
}

/// Why the agent can't start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to work with in the kernel.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// No thread, no watch.
    #[error("{op}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// Starts all parts. They end with the process: what they were at, the next start finishes.
pub fn start(context: &Context) -> Result<(), Error> {
    reconcile::start(context)
}
