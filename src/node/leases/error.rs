//! What ends viprouted.

use std::io;

use crate::lease::{cluster, search, source, store};
use crate::net::{self, acd, unix};
use crate::node;

/// Why viprouted can't start, or can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No runtime, thread or signal handler.
    #[error("{op}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Nothing to work with in the kernel.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// No link.
    #[error(transparent)]
    Uplink(#[from] node::uplink::Error),
    /// No probes on it.
    #[error(transparent)]
    Acd(#[from] acd::Error),
    /// No lease files.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// No socket.
    #[error(transparent)]
    Server(#[from] unix::Error),
    /// No name for DHCP.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// No DHCP.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// No searches.
    #[error(transparent)]
    Search(#[from] search::Error),
    /// No gossip with other nodes.
    #[error(transparent)]
    Peers(#[from] node::peers::Error),
    /// No agent.
    #[error(transparent)]
    Agent(#[from] node::Error),
    /// No Services.
    #[error(transparent)]
    Kubernetes(#[from] node::kubernetes::Error),
    /// A part that must not end has ended.
    #[error("{0} has ended")]
    Ended(&'static str),
}

pub(super) fn failed(op: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { op, source }
}
