//! Which pod is a replica of which VIP: the only writer of replicas, which are the records of endpoints and of attachments.
//!
//! [`attach`] makes a new pod a replica of its VIPs, [`set_vips`] changes a running pod's VIPs, [`detach`] ends them all.
//! Each replica has its source ([`Source`](crate::model::Source)); an operator's goes before all others.
//!
//! An attachment's record is its lock, which all of them hold. `set_vips` records what it is about to change before it
//! changes it: a caller that takes the lock and finds such a record knows that the call died, and takes the pod out of
//! those VIPs ([`set_vips`] itself, [`detach`], GC, viprouted). An ADD that died is its runtime's to undo, by DEL or GC.

pub mod admission;
mod attach;
mod detach;
mod error;
mod families;
pub mod find;
pub mod gc;
mod host;
mod ipv6;
mod join;
pub mod node;
#[cfg(feature = "node")]
pub mod peer;
#[cfg(feature = "node")]
pub mod policy;
pub mod repair;
#[cfg(feature = "node")]
pub mod running;
mod set_vips;
pub mod want;

pub use attach::{Registration, attach, register};
pub use detach::{Detach, detach};
pub use error::Error;
pub use host::{Host, Pod};
pub use set_vips::{Change, set_vips};
pub use want::{Want, WantError};
