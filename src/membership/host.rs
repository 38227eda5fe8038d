//! What membership works with: the node, and a pod.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::dataplane::ids::VethNames;
use crate::model::{Addresses, AttachmentId, NetworkSpec};
use crate::net::NodeNet;
use crate::registry::record;
use crate::registry::{AttachmentRecord, Boot, Netns, Registry};

use super::detach::Detach;
use super::{Error, gc};

/// The node, ready for changes.
#[derive(Debug)]
pub struct Host {
    /// Its kernel.
    pub net: NodeNet,
    /// Its registry.
    pub registry: Registry,
    /// The allocator's socket.
    pub allocator: PathBuf,
    /// What the pod's network says of VIPs.
    pub network: NetworkSpec,
}

impl Host {
    /// Nothing is changed so far.
    pub fn open(network: NetworkSpec, registry: Registry, allocator: PathBuf) -> Result<Self, Error> {
        Ok(Self { net: NodeNet::open()?, registry, allocator, network })
    }

    /// Must come before any change: what is recorded of another boot is discarded.
    pub(super) fn begin(&self) -> Result<(), Error> {
        if self.registry.begin()? == Boot::Discarded {
            gc::everything(&self.net, &self.registry, &self.network.bpf_dir)?;
        }
        Ok(())
    }

    pub(super) fn removal(&self) -> Detach<'_> {
        Detach { net: &self.net, registry: &self.registry, allocator: Some(&self.allocator), netns: None }
    }

    /// The way back of what failed: the allocator keeps the address for the next try.
    pub(super) fn way_back(&self) -> Detach<'_> {
        Detach { allocator: None, ..self.removal() }
    }
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its attachment.
    pub attachment: AttachmentId,
    /// Its network namespace.
    pub netns: Netns,
    /// Its address.
    pub address: IpAddr,
    /// Those of IPv6 beside it, where its VIPs have some.
    pub others: Vec<IpAddr>,
    /// What it is called.
    pub name: record::Pod,
}

impl Pod {
    pub(super) fn addresses(&self) -> Addresses {
        let mut all = vec![self.address];
        all.extend(self.others.iter().filter(|other| **other != self.address));
        Addresses::try_from(all).unwrap_or_else(|_| self.address.into())
    }

    pub(super) fn veth_names(&self) -> VethNames {
        VethNames::of(&self.attachment)
    }

    /// Its record, in no VIP so far.
    pub(super) fn record(&self, network: &NetworkSpec) -> AttachmentRecord {
        let (pod, address) = (self.name.clone(), Some(self.address));
        AttachmentRecord { pod, address, ..AttachmentRecord::new(network.clone(), self.netns.clone()) }
    }
}
