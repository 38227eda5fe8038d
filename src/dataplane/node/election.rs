//! Which node of a LAN answers ARP for a VIP, of those that have ready replicas of it, and which one renews its lease, of those that
//! have one: the one of the greatest weight, a hash of the VIP and the node (rendezvous hashing, Thaler and Ravishankar 1998). All nodes come to the same answer without a word; the VIPs
//! are spread over the nodes, and a node that comes or goes moves its own alone. Where nodes don't know the same for a moment two
//! of them answer, or for that moment none: neither breaks a connection, since each node hands over what another one has.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::model::VipKey;
use crate::model::node::NodeId;

/// The one of `nodes` that answers for `vip`; `None`: there is none.
pub fn answers(vip: IpAddr, nodes: impl IntoIterator<Item = NodeId>) -> Option<NodeId> {
    match vip {
        IpAddr::V4(vip) => elected(&vip.octets(), nodes),
        IpAddr::V6(vip) => elected(&vip.octets(), nodes),
    }
}

/// The one of `nodes` that renews the lease of `vip` and writes its Service's status, by the same rule; the VIP may have no address yet.
pub fn renews(vip: &VipKey, nodes: impl IntoIterator<Item = NodeId>) -> Option<NodeId> {
    elected(vip.to_string().as_bytes(), nodes)
}

fn elected(of: &[u8], nodes: impl IntoIterator<Item = NodeId>) -> Option<NodeId> {
    let weight =
        |node: NodeId| -> [u8; 32] { Sha256::new().chain_update(of).chain_update(node.0.octets()).finalize().into() };
    nodes.into_iter().max_by_key(|node| (weight(*node), *node))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn vip(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a76_0000 + number).into()
    }

    fn nodes(count: u32) -> impl Iterator<Item = NodeId> {
        (1..=count).map(|number| NodeId(Ipv4Addr::from(0xc000_0200 + number)))
    }

    #[test]
    fn vips_are_spread_over_the_nodes() {
        let mut counts: BTreeMap<NodeId, u32> = BTreeMap::new();
        for number in 0..3000 {
            *counts.entry(answers(vip(number), nodes(3)).unwrap()).or_default() += 1;
        }
        assert_eq!(counts.len(), 3);
        assert!(counts.values().all(|count| (900..1100).contains(count)), "{counts:?}");
        assert_eq!(answers(vip(1), []), None);
    }

    proptest! {
        #[test]
        fn all_nodes_come_to_the_same_answer(number: u16, count in 1u32..20) {
            let mut turned: Vec<_> = nodes(count).collect();
            turned.reverse();
            prop_assert_eq!(answers(vip(number.into()), turned), answers(vip(number.into()), nodes(count)));
        }

        #[test]
        fn a_node_that_goes_moves_its_own_vips_alone(number: u16, count in 2u32..20, gone in 1u32..20) {
            let gone = NodeId(Ipv4Addr::from(0xc000_0200 + gone));
            let before = answers(vip(number.into()), nodes(count));
            let after = answers(vip(number.into()), nodes(count).filter(|node| *node != gone));
            prop_assert!(before == Some(gone) || before == after);
        }
    }
}
