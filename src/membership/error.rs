//! What can go wrong where a pod becomes a replica.

use std::path::PathBuf;

use crate::api::client;
use crate::api::protocol::Refusal;
use crate::model::{Family, FamilyChoice};
use crate::{dataplane, ebpf, net, registry};

/// Why a pod's VIPs are as they were.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel is older than VIPs need.
    #[error("the kernel is {0}: VIPs need Linux 5.14")]
    KernelTooOld(String),
    /// Which address is the node's?
    #[error("the node has no IPv4 address to be found: set \"nodeIP\"")]
    NoNodeAddress,
    /// The conflist's is another node's.
    #[error("\"nodeIP\" is \"{0}\": expected an address of this node (left out, the default route's source is taken)")]
    NotOurAddress(std::net::IpAddr),
    /// There is a `vip0`.
    #[error("the pod has a vip0 already: another attachment's, or not viproute's")]
    DeviceInTheWay,
    /// The pod's interface is missing.
    #[error("the pod has no interface {0}")]
    NoInterface(String),
    /// The pod's namespace is missing.
    #[error("network namespace {0} doesn't exist any more")]
    NoNetns(String),
    /// The pod's namespace is the node's.
    #[error("{0} is the node's own network namespace: the pod has none of its own")]
    NodesOwnNetns(String),
    /// The allocator.
    #[error("no address for VIP {vip}")]
    Allocator {
        /// For which VIP.
        vip: String,
        /// Why not.
        #[source]
        source: client::Error,
    },
    /// The VIP has no address of a family that the pod wants it to be served by.
    #[error("viproute.io/families is \"{asked}\": VIP {vip} has no {} address", family.name())]
    NoFamily {
        /// Which VIP.
        vip: String,
        /// What the pod wants.
        asked: FamilyChoice,
        /// What there isn't.
        family: Family,
        /// What viprouted says of that.
        #[source]
        why: Option<Refusal>,
    },
    /// viprouted keeps another registry.
    #[error(
        "\"dataDir\" is {}: expected viprouted's data_dir, {}, or it doesn't see the replica", ours.display(), theirs.display()
    )]
    OtherRegistry {
        /// Ours.
        ours: PathBuf,
        /// viprouted's.
        theirs: PathBuf,
    },
    /// The VIP got another address while the pod joined it.
    #[error("VIP {0} has just got another address")]
    Renumbered(String),
    /// The pair of a pod that serves VIPs of IPv6 is too narrow.
    #[error(
        "the pod's MTU is {0}: IPv6 needs 1280 at least (set \"mtu\" in the conflist, or take cidr6 out of [pool])"
    )]
    NarrowForIpv6(u32),
    /// The node has no IPv6.
    #[error(
        "{0} can't carry IPv6, which a VIP of the pod needs: the node's kernel has it switched off (ipv6.disable=1)"
    )]
    NoIpv6(String),
    /// The programs that run know none.
    #[error(
        "the flow owner knows no IPv6 on this kernel, which has no BTF (CONFIG_DEBUG_INFO_BTF): take cidr6 out of [pool], or set \
         \"flowOwner\" to \"off\""
    )]
    NoIpv6Programs,
    /// A pod's VIPs disagree about the flow owner.
    #[error("VIP {0} and VIP {1} differ in \"flowOwner\" or \"bpfDir\": one pod's VIPs must agree")]
    MixedOwners(String, String),
    /// Two VIPs are recorded with one group.
    #[error("{0}")]
    SharedGroup(String),
    /// What is asked for doesn't go together.
    #[error(transparent)]
    Want(#[from] super::WantError),
    /// The kernel's objects.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The flow owner.
    #[error(transparent)]
    Bpf(#[from] ebpf::Error),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// Several things failed; the others come with their causes.
    #[error("{first}")]
    Several {
        /// The first.
        first: Box<Error>,
        /// The others.
        others: Vec<String>,
    },
}

impl From<dataplane::Error> for Error {
    fn from(error: dataplane::Error) -> Self {
        match error {
            dataplane::Error::Net(e) => Self::Net(e),
            dataplane::Error::Bpf(e) => Self::Bpf(e),
            dataplane::Error::Registry(e) => Self::Registry(e),
            shared @ dataplane::Error::SharedGroup { .. } => Self::SharedGroup(shared.to_string()),
            dataplane::Error::Several { first, others } => {
                Self::Several { first: Box::new(Self::from(*first)), others }
            }
        }
    }
}

impl Error {
    /// This error, and what the way back met with.
    pub(super) fn and(self, undone: dataplane::Result<()>) -> Self {
        match undone {
            Ok(()) => self,
            Err(further) => Self::Several { first: Box::new(self), others: vec![crate::with_causes(&further)] },
        }
    }
}
