//! Which VIPs are to have an address for a Service's sake, whether they have replicas here or not, and what has become of it. The leases
//! themselves are the daemon's (`node::leases`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::api::protocol::{LIVE, NodeEntry, Nodes};
use crate::dataplane::node::election::renews;
use crate::lease::state::Demand;
use crate::model::VipKey;
use crate::model::node::NodeId;

/// What has become of a VIP's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The address, if it has one.
    pub address: Option<IpAddr>,
    /// The IPv6 address that it leases beside that one, if it has one.
    pub ipv6: Option<IpAddr>,
    /// Such an address is being asked for, and nothing is in the way so far.
    pub asks_ipv6: bool,
    /// What keeps it from that one.
    pub error6: Option<String>,
    /// What keeps it from one.
    pub error: Option<String>,
}

/// What is to be said to the daemon, after what was said before: `wanted` here, and of the others whether the Service itself is gone.
pub fn demands(before: &BTreeMap<VipKey, Demand>, wanted: &BTreeMap<VipKey, Demand>) -> Vec<(VipKey, Demand)> {
    let new = wanted.iter().filter(|(vip, demand)| before.get(vip) != Some(demand));
    let over = before.keys().filter(|vip| !wanted.contains_key(vip));
    new.map(|(vip, demand)| (vip.clone(), *demand)).chain(over.map(|vip| (vip.clone(), Demand::Ended))).collect()
}

/// Whether this node is the one that keeps the VIP's address and writes its Service's status, of the nodes that live. Two halves of a
/// partition have one each, which write the same.
pub fn is_keeper(vip: &VipKey, nodes: Option<&Nodes>) -> bool {
    let own = nodes.and_then(|nodes| nodes.own.as_ref());
    keeper(vip, nodes).map(|keeper| keeper.id) == own.map(|own| own.id)
}

/// That node; none: this one, which knows no others.
pub fn keeper<'a>(vip: &VipKey, nodes: Option<&'a Nodes>) -> Option<&'a NodeEntry> {
    let own = nodes?.own.as_ref()?;
    let mut live = nodes?.nodes.iter().filter(|node| node.state == LIVE).chain([own]);
    let keeper = renews(vip, live.clone().map(|node| NodeId(node.id)))?;
    live.find(|node| NodeId(node.id) == keeper)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn node(last: u8, state: &str) -> NodeEntry {
        NodeEntry {
            name: format!("n{last}"),
            id: Ipv4Addr::new(192, 0, 2, last),
            tunnel: Ipv4Addr::new(192, 0, 2, last).into(),
            state: state.into(),
            silent_ms: 0,
            vips: 0,
            ready: 0,
            version: String::new(),
        }
    }

    /// As each of these nodes sees it.
    fn keepers(vip: &VipKey, lives: &[u8], silent: &[u8]) -> Vec<u8> {
        let seen_by = |own: &u8| {
            let others = lives.iter().filter(|other| *other != own).map(|other| node(*other, LIVE));
            let silent = silent.iter().map(|other| node(*other, "suspect"));
            Nodes { own: Some(node(*own, LIVE)), nodes: others.chain(silent).collect(), findings: Vec::new() }
        };
        lives.iter().copied().filter(|own| is_keeper(vip, Some(&seen_by(own)))).collect()
    }

    #[test]
    fn each_vip_has_one_keeper_and_they_share_the_work() {
        let mut count = BTreeMap::<u8, usize>::new();
        for number in 0..300 {
            let vip: VipKey = format!("shop/web-{number}").parse().unwrap();
            let [keeper] = keepers(&vip, &[1, 2, 3], &[])[..] else { panic!("{vip}") };
            *count.entry(keeper).or_default() += 1;
            // Who goes takes along its own alone.
            let [later] = keepers(&vip, &[1, 2], &[3])[..] else { panic!("{vip}") };
            assert!(keeper == 3 || later == keeper);
        }
        assert!(count.values().all(|count| *count > 60), "{count:?}");
        assert!(is_keeper(&"a/b".parse().unwrap(), None), "a node that stands alone keeps all");
    }

    #[test]
    fn only_differences_are_said() {
        let vip = |name: &str| -> VipKey { format!("shop/{name}").parse().unwrap() };
        let wanted = |names: &[&str]| names.iter().map(|name| (vip(name), Demand::Wanted)).collect::<BTreeMap<_, _>>();
        assert_eq!(demands(&wanted(&[]), &wanted(&["a"])), [(vip("a"), Demand::Wanted)]);
        assert!(demands(&wanted(&["a"]), &wanted(&["a"])).is_empty());
        assert_eq!(demands(&wanted(&["a", "b"]), &wanted(&["b"])), [(vip("a"), Demand::Ended)]);
        let kept_elsewhere = BTreeMap::from([(vip("a"), Demand::Elsewhere)]);
        assert_eq!(demands(&wanted(&["a"]), &kept_elsewhere), [(vip("a"), Demand::Elsewhere)]);
        // It may be held here still.
        assert_eq!(demands(&kept_elsewhere, &wanted(&[])), [(vip("a"), Demand::Ended)]);
    }
}
