//! What this node makes of the others' words: a leg per VIP and node. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use crate::membership::peer::Leg;
use crate::model::node::{NodeId, NodeState};
use crate::model::{Addresses, VipKey};
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
    /// The VIP's addresses, as the others say where this node has no replica.
    pub addresses: Addresses,
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
        let said: Vec<Said<'_>> = nodes.iter().filter_map(|(id, node)| Some((id, node, node.vips.get(key)?))).collect();
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
        let of_ipv6 = address6(own, address, &said);
        let refused = of_ipv6.filter(|_| !is_local).and_then(|six| Some((six, permits(key, six.into())?)));
        if let Some((six, why)) = &refused {
            legs.findings
                .insert(format!("{key} is {six} on other nodes, and {why}: by that address it isn't served here"));
        }
        let of_ipv6 = of_ipv6.filter(|_| refused.is_none());
        far_alone += usize::from(!is_local);
        if !is_local && far_alone > MAX_VIPS {
            legs.findings.insert(format!("other nodes have more than {MAX_VIPS} VIPs that have no replica here"));
            continue;
        }
        let agreed: Vec<_> = said.into_iter().filter(|(_, _, share)| share.address == address).collect();
        if refused.is_none() {
            legs.findings.extend(agreed.iter().filter_map(|one| unlike(key, of_ipv6, one)));
        }
        let mut addresses = Addresses::from(address);
        of_ipv6.map(|six| addresses.replace(six.into()));
        let found = of_vip(own, of_ipv6, &agreed);
        if !found.is_empty() {
            legs.vips.insert(key.clone(), Far { addresses, legs: found });
        }
    }
    legs
}

/// What a node says of a VIP.
type Said<'a> = (&'a NodeId, &'a Node, &'a Share);

/// The address of IPv6 that a VIP has beside: this node's, where it has replicas; else what is in force, as long as a node says it, or what a
/// node says that serves it, the lowest id first.
fn address6(own: Option<&Own>, address: IpAddr, said: &[Said<'_>]) -> Option<Ipv6Addr> {
    if let Some(own) = own.filter(|own| own.is_local()) {
        return own.share.address6;
    }
    let agreed = || said.iter().filter(|(_, _, share)| share.address == address);
    let in_force = own.and_then(|own| own.share.address6);
    let stays = in_force.filter(|six| agreed().any(|(_, _, share)| share.address6 == Some(*six)));
    let mut serving = agreed().filter(|(_, node, share)| is_live(node) && share.ready > 0);
    stays.or_else(|| serving.find_map(|(_, _, share)| share.address6))
}

/// What is wrong where a node doesn't serve a VIP by that address of IPv6, or by another.
fn unlike(key: &VipKey, of_ipv6: Option<Ipv6Addr>, (id, node, share): &Said<'_>) -> Option<String> {
    let name = &node.word.name;
    let what = match (of_ipv6, share.address6) {
        (here, there) if here == there => return None,
        (Some(here), Some(there)) => format!("is {here} here and {there} on node {name} ({id})"),
        (Some(here), None) => format!("is {here} here and has no address of IPv6 on node {name} ({id})"),
        (None, Some(there)) => format!("has no address of IPv6 here and is {there} on node {name} ({id})"),
        (None, None) => return None,
    };
    Some(format!(
        "{key} {what}: by IPv6 no connection is sent there (cidr6, or [dhcp6], is to be the same on all nodes)"
    ))
}

/// This node's, where it has replicas; else what the others say, a ready and live one before the others, then the lowest id;
/// what is in force stays as long as anybody says it. `None`: a VIP without replicas here begins with a node that lives and
/// has ready ones.
fn address(own: Option<&Own>, said: &[Said<'_>]) -> Option<IpAddr> {
    if let Some(own) = own.filter(|own| own.is_local()) {
        return Some(own.share.address);
    }
    let serving = |(_, node, share): &&Said<'_>| is_live(node) && share.ready > 0;
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

fn of_vip(own: Option<&Own>, of_ipv6: Option<Ipv6Addr>, said: &[Said<'_>]) -> BTreeMap<u32, Leg> {
    let ready = |node: &Node, share: &Share| share.ready > 0 && node.word.phase != Phase::Left;
    // On suspicion alone no VIP loses its last ready legs.
    let others = own.is_some_and(|own| own.serves && own.share.ready > 0)
        || said.iter().any(|(_, node, share)| is_live(node) && ready(node, share));
    let legs = said.iter().map(|(id, node, share)| {
        let serves = ready(node, share) && (is_live(node) || !others);
        let state = if serves { State::Ready } else { State::Draining };
        let Share { ready, replicas, udp_sticky, served, address6, family, .. } = (*share).clone();
        let serves_ipv6 = of_ipv6.is_some() && address6 == of_ipv6;
        (node.number, Leg { id: **id, ready, replicas, state, udp_sticky, served, serves_ipv6, family })
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
        let known = ClusterNode { state, ..ClusterNode::at(last) };
        let vips = BTreeMap::from([(WEB.parse().unwrap(), share.parse().unwrap())]);
        (known.id, Node::remembered(&known, vips))
    }

    fn states(nodes: &[(NodeId, Node)], own: Option<&str>) -> (Option<IpAddr>, Vec<(u32, &'static str)>, usize) {
        let own = own.map(|text| {
            let numbers: Vec<&str> = text.split(' ').collect();
            let [ready, replicas] = [1, 2].map(|n| numbers[n].parse().unwrap());
            let share = Share { ready, replicas, ..format!("{} 1 1", numbers[0]).parse::<Share>().unwrap() };
            (WEB.parse().unwrap(), Own { share, serves: true })
        });
        let found = legs(&nodes.iter().cloned().collect(), &own.into_iter().collect(), |_, _| None);
        let far = found.vips.values().next().cloned();
        let legs =
            far.iter().flat_map(|far| far.legs.iter().map(|(number, leg)| (*number, leg.state.name()))).collect();
        (far.map(|far| far.addresses.first()), legs, found.findings.len())
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

    /// The VIP's addresses, which nodes serve both, and what is found.
    fn of_ipv6(
        nodes: &[(NodeId, Node)],
        own: Option<Own>,
        refused: Option<&str>,
    ) -> (Vec<String>, Vec<u32>, Vec<String>) {
        let own = own.map(|own| (WEB.parse().unwrap(), own)).into_iter().collect();
        let found = legs(&nodes.iter().cloned().collect(), &own, |_, address| {
            refused.filter(|_| address.is_ipv6()).map(str::to_owned)
        });
        let far = found.vips.into_values().next().unwrap();
        let both = far.legs.iter().filter(|(_, leg)| leg.serves_ipv6).map(|(number, _)| *number);
        (
            far.addresses.iter().map(|address| address.to_string()).collect(),
            both.collect(),
            found.findings.into_iter().collect(),
        )
    }

    #[test]
    fn nodes_are_reached_by_ipv6_that_say_the_same_address() {
        let both = node(2, NodeState::Live, "10.118.0.7 2 3 ipv6=fd00:118::7");
        let none = node(3, NodeState::Live, "10.118.0.7 1 1");
        let other = node(4, NodeState::Live, "10.118.0.7 1 1 ipv6=fd00:119::7");
        let own = |text: &str| Some(Own { share: text.parse().unwrap(), serves: true });
        let addresses = ["10.118.0.7", "fd00:118::7"].map(str::to_owned);
        let all = [both.clone(), none, other];
        let here = own("10.118.0.7 1 1 ipv6=fd00:118::7");
        let (found, reached, findings) = of_ipv6(&all, here, None);
        assert_eq!((&found[..], &reached[..], findings.len()), (&addresses[..], &[2][..], 2), "{findings:?}");
        assert!(findings[0].contains("fd00:119::7 on node n4"), "{findings:?}");
        assert!(findings[1].contains("has no address of IPv6 on node n3"), "{findings:?}");
        // Without replicas here: what a node says that serves it.
        let (found, reached, findings) = of_ipv6(std::slice::from_ref(&both), None, None);
        assert_eq!((&found[..], &reached[..], findings.len()), (&addresses[..], &[2][..], 0));
        // This node's configuration has none.
        let (found, reached, findings) = of_ipv6(std::slice::from_ref(&both), own("10.118.0.7 1 1"), None);
        assert_eq!((&found[..], &reached[..]), (&addresses[..1], &[][..]));
        assert!(findings[0].contains("has no address of IPv6 here"), "{findings:?}");
        let (found, reached, findings) = of_ipv6(&[both], None, Some("that is none of: fd00:1::/96"));
        assert_eq!((&found[..], &reached[..], findings.len()), (&addresses[..1], &[][..], 1), "{findings:?}");
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
