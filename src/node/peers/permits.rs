//! Which addresses of other nodes' VIPs may be VIPs here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use crate::lease::allow::Allow;
use crate::model::node::NodeId;
use crate::model::{Family, VipKey};
use crate::net::address;
use crate::with_causes;

use super::state::State;
use super::view::Node;

/// What decides that.
pub struct Permits {
    allow: Allow,
    /// Nodes' and pods' own.
    hosts: BTreeSet<IpAddr>,
    /// By VIP, of those that have replicas here and those that were permitted.
    taken: BTreeMap<IpAddr, VipKey>,
}

impl Permits {
    /// As it is now.
    pub fn read(state: &State, own: Ipv4Addr, others: &BTreeMap<NodeId, Node>) -> Result<Self, String> {
        let addresses = address::list(&state.setup.net, Family::V4, None).map_err(|e| with_causes(&e))?;
        let allow = match (&state.setup.allow, &state.setup.pools[..]) {
            (Some(allow), _) => allow.clone(),
            (None, []) => of_link(&addresses, own),
            (None, pools) => Allow::new(pools.iter().copied().map(Into::into).collect()),
        };
        let nodes = others.iter().flat_map(|(id, node)| [id.0, node.word.tunnel]).map(IpAddr::V4);
        let hosts = addresses.iter().map(|at| at.address).chain(nodes).chain(state.pods.values().flatten().copied());
        let local = state.own.iter().filter(|(_, own)| own.share.replicas > 0);
        let taken = local.map(|(key, own)| (own.share.address, key.clone())).collect();
        Ok(Self { allow, hosts: hosts.collect(), taken })
    }

    /// Why it can't be that VIP's; none: it can, and no other's.
    pub fn refusal(&mut self, key: &VipKey, address: IpAddr) -> Option<String> {
        match self.taken.get(&address) {
            Some(own) if own == key => return None,
            Some(other) => return Some(format!("that is the address of {other}")),
            None => {}
        }
        if self.hosts.contains(&address) {
            return Some("that is a node's or a pod's own".to_owned());
        }
        if !self.allow.permits(address) {
            return Some(format!("that is none of: {}", self.allow));
        }
        self.taken.insert(address, key.clone());
        None
    }
}

/// The prefixes of the link by which other nodes are reached: where nothing else is configured, VIPs are leased from there.
fn of_link(addresses: &[address::Address], own: Ipv4Addr) -> Allow {
    let here = addresses.iter().find(|at| at.address == IpAddr::V4(own)).map(|at| at.index);
    let of_link = addresses.iter().filter(|at| Some(at.index) == here && at.global && at.prefix < 31);
    let network = |at: &address::Address| {
        let network = IpNetwork::new(at.address, at.prefix).ok()?;
        IpNetwork::new(network.network(), at.prefix).ok()
    };
    Allow::of_link("the nodes' link", of_link.filter_map(network).collect())
}
