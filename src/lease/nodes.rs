//! The cluster's nodes, as far as they are known: by them another node's VIP is told from a stranger's address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::node::ClusterNode;
use crate::model::{Backend, Mac, VipKey};
use crate::registry::{Registry, nodes};

/// The addresses of nodes that a cluster's API tells of, perhaps before any of them was heard: two that start at the same moment probe for
/// the same address. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<Mutex<BTreeSet<IpAddr>>>);

impl Told {
    /// Those that it tells of now.
    pub fn set(&self, addresses: BTreeSet<IpAddr>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    fn get(&self) -> BTreeSet<IpAddr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Where the nodes are known from.
#[derive(Clone, Debug)]
pub struct Nodes {
    registry: Registry,
    /// `peers` of the configuration.
    configured: Vec<IpAddr>,
    told: Told,
}

/// How other nodes are known.
#[derive(Clone, Debug)]
pub struct Known {
    /// Their addresses.
    pub addresses: Vec<IpAddr>,
    /// Their Ethernet addresses on links of IPv6 addresses, as far as they say them.
    pub macs: BTreeSet<Mac>,
}

impl Nodes {
    /// Those of `configured`, those that `registry` has, and those of `told`.
    pub fn new(registry: Registry, configured: Vec<IpAddr>, told: Told) -> Self {
        Self { registry, configured, told }
    }

    /// How they are known now. A file that can't be read names none: what can't be told apart is a stranger's.
    pub fn read(&self) -> Known {
        let cluster = nodes::load(&self.registry).ok().flatten();
        let recorded = cluster.map(|cluster| cluster.nodes).unwrap_or_default();
        let mut addresses = self.told.get();
        addresses.extend(&self.configured);
        addresses.extend(recorded.iter().map(ClusterNode::heard_at));
        let macs = recorded.iter().filter_map(|node| node.mac6).collect();
        Known { addresses: addresses.into_iter().collect(), macs }
    }

    /// Whether other nodes have replicas of the VIP at that address: then it is theirs in the VIP's name.
    pub fn serve(&self, vip: &VipKey, address: IpAddr) -> bool {
        let here = self.registry.vip_record(vip).ok().flatten();
        let has_address = here.is_some_and(|record| record.addresses.contains(address));
        let replicas = || self.registry.replicas(vip).unwrap_or_default();
        has_address && replicas().values().any(|replica| matches!(replica.backend, Backend::Remote(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_the_api_tells_of_is_known_before_it_is_heard() {
        let registry = Registry::new(std::env::temp_dir().join("viproute-no-such-registry"));
        let (told, address) = (Told::default(), |last: u8| IpAddr::from([192, 0, 2, last]));
        let nodes = Nodes::new(registry, vec![address(1)], told.clone());
        assert_eq!(nodes.read().addresses, [address(1)]);
        told.set([address(2)].into());
        assert_eq!(nodes.read().addresses, [address(1), address(2)]);
        told.set(BTreeSet::new());
        assert_eq!(nodes.read().addresses, [address(1)]);
    }
}
