//! What this node makes of the others' words: a leg per VIP and node. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::membership::peer::Leg;
use crate::model::VipKey;
use crate::model::node::{NodeId, NodeState};
use crate::registry::State;

use super::view::Node;
use super::word::{MAX_VIPS, Phase, Share};

/// What this node has of a VIP itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Its share of it; no replicas: the VIP is known by the others' words alone.
    pub share: Share,
    /// It serves it: the address is in force.
    pub serves: bool,
}

impl Own {
    fn is_local(&self) -> bool {
        self.share.replicas > 0
    }
}

/// A VIP's legs to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Far {
    /// The VIP's address, as the others say where this node has no replica.
    pub address: IpAddr,
    /// By the nodes' numbers.
    pub legs: BTreeMap<u32, Leg>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Legs {
    /// By VIP; one that isn't here has none.
    pub vips: BTreeMap<VipKey, Far>,
    /// What of the others' words is not used, and why, a sentence each.
    pub findings: BTreeSet<String>,
}

/// The legs that follow from what nodes say. `permits`: why an address can't be a VIP's here; none: it can.
pub fn legs(
    nodes: &BTreeMap<NodeId, Node>,
    own: &BTreeMap<VipKey, Own>,
    mut permits: impl FnMut(&VipKey, IpAddr) -> Option<String>,
) -> Legs {
    let mut legs = Legs::default();
    let keys: BTreeSet<&VipKey> = nodes.values().flat_map(|node| node.vips.keys()).collect();
    let mut far_alone = 0;
    for key in keys {
        let said: Vec<(&NodeId, &Node, &Share)> =
            nodes.iter().filter_map(|(id, node)| Some((id, node, node.vips.get(key)?))).collect();
        let own = own.get(key);
        let Some(address) = address(own, &said) else { continue };
        for (id, node, share) in said.iter().filter(|(_, _, share)| share.address != address) {
            let name = &node.word.name;
            legs.findings.insert(format!(
                "{key} is {address} here and {} on node {name} ({id}): no connection is sent there",
                share.address
            ));
        }
        if let Some(why) = permits(key, address) {
            legs.findings.insert(format!("{key} is {address} on other nodes, and {why}: it isn't served here"));
            continue;
        }
        let is_local = own.is_some_and(Own::is_local);
        far_alone += usize::from(!is_local);
        if !is_local && far_alone > MAX_VIPS {
            legs.findings.insert(format!("other nodes have more than {MAX_VIPS} VIPs that have no replica here"));
            continue;
        }
        let agreed = said.into_iter().filter(|(_, _, share)| share.address == address);
        let found = of_vip(own, agreed);
        if !found.is_empty() {
            legs.vips.insert(key.clone(), Far { address, legs: found });
        }
    }
    legs
}

/// This node's, where it has replicas; else what the others say, a ready and live one before the others, then the lowest id;
/// what is in force stays as long as anybody says it. `None`: a VIP without replicas here begins with a node that lives and
/// has ready ones.
fn address(own: Option<&Own>, said: &[(&NodeId, &Node, &Share)]) -> Option<IpAddr> {
    if let Some(own) = own.filter(|own| own.is_local()) {
        return Some(own.share.address);
    }
    let serving = |(_, node, share): &&(&NodeId, &Node, &Share)| is_live(node) && share.ready > 0;
    let first = said.iter().find(serving).map(|(_, _, share)| share.address);
    let Some(own) = own else { return first };
    let is_said = |only_serving: bool| {
        said.iter().any(|one| one.2.address == own.share.address && (!only_serving || serving(&one)))
    };
    if is_said(true) || first.is_none() && is_said(false) { Some(own.share.address) } else { first }
}

fn is_live(node: &Node) -> bool {
    node.state == NodeState::Live
}

fn of_vip<'a>(
    own: Option<&Own>,
    said: impl Iterator<Item = (&'a NodeId, &'a Node, &'a Share)> + Clone,
) -> BTreeMap<u32, Leg> {
    let ready = |node: &Node, share: &Share| share.ready > 0 && node.word.phase != Phase::Left;
    // On suspicion alone no VIP loses its last ready legs.
    let others = own.is_some_and(|own| own.serves && own.share.ready > 0)
        || said.clone().any(|(_, node, share)| is_live(node) && ready(node, share));
    let legs = said.map(|(id, node, share)| {
        let serves = ready(node, share) && (is_live(node) || !others);
        let state = if serves { State::Ready } else { State::Draining };
        let Share { ready, replicas, udp_sticky, served, .. } = share.clone();
        (node.number, Leg { id: *id, ready, replicas, state, udp_sticky, served })
    });
    legs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::ClusterNode;
    use std::net::Ipv4Addr;

    const WEB: &str = "shop/web";

    fn node(last: u8, state: NodeState, share: &str) -> (NodeId, Node) {
        let id = NodeId(Ipv4Addr::new(192, 0, 2, last));
        let known = ClusterNode { id, name: format!("n{last}"), number: last.into(), tunnel: id.0, state };
        let vips = BTreeMap::from([(WEB.parse().unwrap(), share.parse().unwrap())]);
        (id, Node::remembered(&known, vips))
    }

    fn states(nodes: &[(NodeId, Node)], own: Option<&str>) -> (Option<IpAddr>, Vec<(u32, &'static str)>, usize) {
        let own = own.map(|text| {
            let numbers: Vec<&str> = text.split(' ').collect();
            let [ready, replicas] = [1, 2].map(|n| numbers[n].parse().unwrap());
            let share =
                Share { address: numbers[0].parse().unwrap(), ready, replicas, udp_sticky: false, served: None };
            (WEB.parse().unwrap(), Own { share, serves: true })
        });
        let found = legs(&nodes.iter().cloned().collect(), &own.into_iter().collect(), |_, _| None);
        let far = found.vips.values().next().cloned();
        let legs =
            far.iter().flat_map(|far| far.legs.iter().map(|(number, leg)| (*number, leg.state.name()))).collect();
        (far.map(|far| far.address), legs, found.findings.len())
    }

    const ADDRESS: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(10, 118, 0, 7)));

    #[test]
    fn a_suspect_node_gets_no_connections_unless_no_other_is_left() {
        let (live, suspect) =
            (node(2, NodeState::Live, "10.118.0.7 2 3"), node(3, NodeState::Suspect, "10.118.0.7 1 1"));
        let both = [live.clone(), suspect.clone()];
        assert_eq!(states(&both, None), (ADDRESS, vec![(2, "ready"), (3, "draining")], 0));
        let alone = std::slice::from_ref(&suspect);
        assert_eq!(states(alone, Some("10.118.0.7 1 1")).1, [(3, "draining")]);
        assert_eq!(states(alone, Some("10.118.0.7 0 1")).1, [(3, "ready")], "none is ready here");
        assert_eq!(states(alone, Some("10.118.0.7 0 0")).1, [(3, "ready")], "none is here");
        let draining = node(2, NodeState::Live, "10.118.0.7 0 3");
        assert_eq!(states(&[draining, suspect], None).1, [], "a VIP doesn't begin with a suspect node");
    }

    #[test]
    fn a_node_that_leaves_gets_none_even_if_no_other_is_left() {
        let mut leaving = node(2, NodeState::Live, "10.118.0.7 2 3");
        leaving.1.word.phase = Phase::Left;
        assert_eq!(states(&[leaving], Some("10.118.0.7 0 0")).1, [(2, "draining")]);
    }

    #[test]
    fn addresses_that_contradict_are_named_and_not_used() {
        let other = node(2, NodeState::Live, "10.118.0.9 2 3");
        assert_eq!(states(std::slice::from_ref(&other), Some("10.118.0.7 1 1")), (None, vec![], 1));
        assert_eq!(
            states(std::slice::from_ref(&other), Some("10.118.0.7 0 0")).0,
            Some([10, 118, 0, 9].into()),
            "it moved"
        );
        let agreed = node(3, NodeState::Live, "10.118.0.7 1 1");
        let both = [other, agreed];
        assert_eq!(states(&both, Some("10.118.0.7 0 0")), (ADDRESS, vec![(3, "ready")], 1), "what is in force stays");
        assert_eq!(states(&both, None).1, [(2, "ready")], "the lowest id");
    }

    #[test]
    fn an_address_that_isnt_permitted_is_not_served() {
        let nodes = [node(2, NodeState::Live, "10.118.0.7 2 3")].into_iter().collect();
        let found = legs(&nodes, &BTreeMap::new(), |_, _| Some("it is this node's own".into()));
        assert!(found.vips.is_empty());
        let expected = "shop/web is 10.118.0.7 on other nodes, and it is this node's own: it isn't served here";
        assert_eq!(found.findings.into_iter().collect::<Vec<_>>(), [expected]);
    }
}
