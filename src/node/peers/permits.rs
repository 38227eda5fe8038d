//! Which addresses of other nodes' VIPs may be VIPs here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::lease::allow::Allow;
use crate::lease::beside::Beside;
use crate::model::node::NodeId;
use crate::model::{Family, VipKey};
use crate::net::{address, link};
use crate::node::uplink;
use crate::with_causes;

use super::far::Own;
use super::state::{Setup, State};
use super::view::Node;

/// What decides that.
pub struct Permits {
    allow: Allow,
    /// Nodes' and pods' own.
    hosts: BTreeSet<IpAddr>,
    /// By VIP, of those that have replicas here and those that were permitted.
    taken: BTreeMap<IpAddr, VipKey>,
    /// The addresses of IPv6 that VIPs have by this node's configuration.
    pinned: BTreeSet<(VipKey, IpAddr)>,
}

impl Permits {
    /// As it is now.
    pub fn read(state: &State, own: IpAddr, others: &BTreeMap<NodeId, Node>) -> Result<Self, String> {
        let mut addresses = Vec::new();
        for family in Family::ALL {
            addresses.extend(address::list(&state.setup.net, family, None).map_err(|e| with_causes(&e))?);
        }
        let Setup { pools, beside, allow, leases_ipv6, leases_on, net, .. } = &state.setup;
        let is_own = |at: &&address::Address| at.address == own;
        let named = leases_on.as_ref().map(|name| link::by_name(net, name)).transpose().map_err(|e| with_causes(&e))?;
        let index = named.map_or_else(|| addresses.iter().find(is_own).map(|at| at.index), |link| Some(link?.index));
        let index = index.filter(|_| *leases_ipv6 && allow.is_none());
        let leased = index.map(|index| uplink::prefixes(net, Family::V6, index)).transpose();
        let leased = leased.map_err(|e| with_causes(&e))?.unwrap_or_default();
        let allow = match (allow, &pools[..]) {
            (Some(allow), _) => allow.clone(),
            (None, []) => of_link(&addresses, own, beside),
            (None, pools) => {
                Allow::new(pools.iter().copied().map(Into::into).chain(beside.networks().map(Into::into)).collect())
            }
        };
        // Where a DHCPv6 server gives them, and nothing else is configured: those of the link, as its own are.
        let allow = allow.and(leased);
        let nodes = others.values().flat_map(|node| [node.at, node.word.tunnel]);
        let hosts = addresses.iter().map(|at| at.address).chain(nodes).chain(state.pods.values().flatten().copied());
        let local = state.own.iter().filter(|(_, own)| own.share.replicas > 0);
        let of_ipv6 = |own: &Own| own.share.address6.map(IpAddr::V6);
        let both = |own: &Own| [own.share.address].into_iter().chain(of_ipv6(own)).collect::<Vec<_>>();
        let taken = local.flat_map(|(key, own)| both(own).into_iter().map(|address| (address, key.clone()))).collect();
        let pinned = beside.pins.iter().map(|(key, address)| (key.clone(), IpAddr::V6(*address))).collect();
        Ok(Self { allow, hosts: hosts.collect(), taken, pinned })
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
        if !self.allow.permits(address) && !self.pinned.contains(&(key.clone(), address)) {
            return Some(format!("that is none of: {}", self.allow));
        }
        self.taken.insert(address, key.clone());
        None
    }
}

/// The prefixes of the link by which other nodes are reached: where nothing else is configured, VIPs are leased from there.
fn of_link(addresses: &[address::Address], own: IpAddr, beside: &Beside) -> Allow {
    let here = addresses.iter().find(|at| at.address == own).map(|at| at.index);
    let of_link = addresses.iter().filter(|at| Some(at.index) == here);
    let networks = of_link.filter_map(uplink::prefix).chain(beside.networks().map(Into::into));
    Allow::of_link("the nodes' link", networks.collect())
}
