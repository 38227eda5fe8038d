//! VIPs in the kernel: a projection of the registry.
//!
//! [`sync`] is the one way anybody changes a VIP's routes: it reads what the kernel has ([`plan::Have`]), works out what
//! the registry says it must have ([`plan::Want`]) and applies the [`plan::difference`]. Run twice it changes nothing;
//! CHECK is "the difference is empty". [`pair`] does the same for an attachment's veth pair and its pod.

pub mod admission;
pub mod ids;
pub mod joined;
pub mod lease;
pub mod owner;
pub mod pair;
pub mod plan;
pub mod repair;
pub mod settings;
pub mod sweep;
mod sync;
mod timing;

pub use sync::{Synced, Tables, differs, drop_former, put_right, put_right_by, sync};
pub use timing::observe_syncs;

use crate::{bpf, net, registry};

/// What can go wrong on the way from registry to kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The flow owner.
    #[error(transparent)]
    Bpf(#[from] bpf::Error),
    /// A file was in the way.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// Several things failed; the others are told with their causes.
    #[error("{}", crate::with_causes(.first))]
    Several {
        /// The first.
        first: Box<Error>,
        /// The others.
        others: Vec<String>,
    },
}

/// What a call here gives.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The first of several errors, and the others as text.
    pub fn several(errors: Vec<Self>) -> Result<()> {
        let mut errors = errors.into_iter();
        let Some(first) = errors.next() else { return Ok(()) };
        let others: Vec<String> = errors.map(|e| crate::with_causes(&e)).collect();
        Err(if others.is_empty() { first } else { Self::Several { first: Box::new(first), others } })
    }
}
