//! VIPs in the kernel: a projection of the registry.
//!
//! [`sync`] is the one way anybody changes a VIP's routes: it reads what the kernel has ([`plan::Have`]), works out what
//! the registry says it must have ([`plan::Want`]) and applies the [`plan::difference`]. Run twice it changes nothing;
//! CHECK is "the difference is empty". [`pair`] does the same for an attachment's veth pair and its pod.

pub mod admission;
pub mod ids;
pub mod lease;
pub mod owner;
pub mod pair;
pub mod plan;
mod sync;

pub use sync::{differs, drop_former, sync};

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
}

/// What a call here gives.
pub type Result<T> = std::result::Result<T, Error>;
