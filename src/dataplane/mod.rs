//! VIPs in the kernel: a projection of the registry.
//!
//! Only [`reconcile_vip`] changes a VIP's routes: it reads what the kernel has ([`plan::Have`]), works out what the registry
//! says it must have ([`plan::Want`]) and applies the [`plan::difference`]. A second run changes nothing; CHECK is
//! "the difference is empty". [`attachment`] does the same for an attachment's veth pair and its pod.

pub mod address;
pub mod attachment;
pub mod gc;
pub mod ids;
pub mod joined;
mod near;
pub mod node;
pub mod owner;
pub mod plan;
mod reconcile;
pub mod serving;
mod timing;

pub use node::settings;
pub use reconcile::{
    Tables, compare, differs, differs_for, drop_previous, gateway, member_id, reconcile_vip, reconcile_with,
    reconcile_without,
};
pub use timing::observe_syncs;

use crate::model::VipKey;
use crate::{ebpf, net, registry};

/// What can go wrong on the way from registry to kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The flow owner.
    #[error(transparent)]
    Bpf(#[from] ebpf::Error),
    /// A file was in the way.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// Two VIPs are recorded with one group: each would send its connections to the other's pods.
    #[error(
        "VIP {vip} and VIP {other} are recorded with the same nexthop group ({group}): delete the pods of one of them, what \
         their runtime makes in their place gets another"
    )]
    SharedGroup {
        /// The one to reconcile.
        vip: VipKey,
        /// The other.
        other: VipKey,
        /// The group's id.
        group: u32,
    },
    /// Several things failed; the text of each error has its causes.
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
