//! The node's agent, the other half of viprouted: keeps the node as the registry says, and shows what goes on.
//!
//! Each part has a thread and a netlink socket of its own and knows nothing of the others. They meet in the registry,
//! whose locks keep them and the plugin apart; what they do to the kernel they do by way of `vip`.

mod former;
pub mod journal;
mod notrack;

pub use journal::Journal;

use crate::registry::Registry;

/// What every part is started with.
#[derive(Clone, Debug)]
pub struct Context {
    /// The plugin's registry.
    pub registry: Registry,
    /// Where events are told.
    pub journal: Journal,
    /// Whether VIP traffic is to be kept out of connection tracking.
    pub notrack: bool,
}

/// Why the agent can't start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No thread, or nothing to watch the registry with.
    #[error("start the part that keeps {0}")]
    Start(&'static str, #[source] std::io::Error),
}

/// Starts all parts. They end with the process: what they were at, the next start finishes.
pub fn start(context: &Context) -> Result<(), Error> {
    former::start(context).map_err(|error| Error::Start("former addresses", error))?;
    notrack::start(context).map_err(|error| Error::Start("VIP traffic out of connection tracking", error))
}
