//! The cluster's nodes, as far as they are known: by them another node's VIP is told from a stranger's address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Backend, VipKey};
use crate::registry::{Registry, nodes};

/// Where the nodes are known from.
#[derive(Clone, Debug)]
pub struct Nodes {
    registry: Registry,
    /// `peers` of the configuration.
    configured: Vec<IpAddr>,
}

impl Nodes {
    /// Those of `configured`, and those that `registry` has.
    pub fn new(registry: Registry, configured: Vec<IpAddr>) -> Self {
        Self { registry, configured }
    }

    /// Their addresses. A file that can't be read names none: what can't be told apart is a stranger's.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses: BTreeSet<_> = self.configured.iter().copied().collect();
        let cluster = nodes::load(&self.registry).ok().flatten();
        addresses.extend(cluster.iter().flat_map(|cluster| &cluster.nodes).map(|node| IpAddr::V4(node.id.0)));
        addresses.into_iter().collect()
    }

    /// Whether other nodes have replicas of the VIP at that address: then it is theirs in the VIP's name.
    pub fn serve(&self, vip: &VipKey, address: IpAddr) -> bool {
        let here = self.registry.vip_record(vip).ok().flatten();
        let has_address = here.is_some_and(|record| record.addresses.contains(address));
        let replicas = || self.registry.replicas(vip).unwrap_or_default();
        has_address && replicas().values().any(|replica| matches!(replica.backend, Backend::Remote(_)))
    }
}
