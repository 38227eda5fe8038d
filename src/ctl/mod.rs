//! The verbs of `viproutectl`, which read the registry, the kernel and the allocator.

use std::time::Duration;

/// How long viprouted may take for an answer that it gives from memory.
const ANSWER: Duration = Duration::from_secs(2);

pub mod announce;
pub mod arguments;
pub mod bundle;
mod child;
pub mod cluster;
pub mod doctor;
pub mod drain;
pub mod events;
pub mod identity;
pub mod import;
pub mod join;
pub mod manual;
pub mod networks;
pub mod nodes;
pub mod probe;
pub mod status;
pub mod trace;
pub mod uninstall;
pub mod unload;
pub mod watch;
pub mod way;
