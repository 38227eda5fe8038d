//! The nodes that serve the same VIPs: this one and the others, as it knows them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Mac;

/// A node's id: 32 bits, written as an IPv4 address. No two nodes have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub Ipv4Addr);

impl NodeId {
    /// That of the node that is heard at this address: its IPv4 address itself; of IPv6 27 bits of its SHA-256, in 240.0.0.0/5, where no node
    /// has an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(address.octets()));
                Self(Ipv4Addr::new(0xf0 | a & 7, b, c, d))
            }
        }
    }

    /// The Ethernet address of the node's end of the tunnel, which packets for it bear: `02:76` and the id.
    pub fn mac(self) -> Mac {
        let [a, b, c, d] = self.0.octets();
        Mac([0x02, 0x76, a, b, c, d])
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is known of another node's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It answers.
    Live,
    /// It has been silent for about a second: it gets no new connections, and those it has still reach it.
    Suspect,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNode {
    /// Its id.
    pub id: NodeId,
    /// Its name, for people.
    pub name: String,
    /// Its number among the nodes that this one knows: [`NUMBERS`]; the same for as long as it is known. Its nexthop's id is made
    /// of it.
    pub number: u32,
    /// The address of its end of the tunnel.
    pub tunnel: IpAddr,
    /// Where it is heard, where that is an address of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard6: Option<Ipv6Addr>,
    /// Its Ethernet address on the link by which it answers for IPv6 addresses of VIPs, where that is another than the one to its gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac6: Option<Mac>,
    /// Whether it answers.
    pub state: NodeState,
}

impl ClusterNode {
    /// Where it is heard.
    pub fn heard_at(&self) -> IpAddr {
        self.heard6.map_or(IpAddr::V4(self.id.0), IpAddr::V6)
    }
}

/// The numbers that other nodes may have.
pub const NUMBERS: std::ops::Range<u32> = 1..1 << 24;

/// This node, as the others know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnNode {
    /// Its id.
    pub id: NodeId,
    /// Its name, for people.
    pub name: String,
    /// The address of its end of the tunnel.
    pub tunnel: IpAddr,
    /// Where it is heard, where that is an address of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard6: Option<Ipv6Addr>,
    /// It has said that it leaves: what others can do for its VIPs is theirs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
}

impl OwnNode {
    /// Where it is heard.
    pub fn heard_at(&self) -> IpAddr {
        self.heard6.map_or(IpAddr::V4(self.id.0), IpAddr::V6)
    }
}

/// This node and the others. A node that stands alone has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Cluster {
    /// This node.
    pub own: OwnNode,
    /// The others.
    pub nodes: Vec<ClusterNode>,
}

/// What no cluster can be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCluster {
    /// Two nodes can't be told apart.
    #[error("node {0}: expected an id that no other node has, this one included")]
    SameId(NodeId),
    /// Two nodes can't be told apart by what comes from them.
    #[error("node {id}: expected a tunnel address that no other node has, found {address}")]
    SameTunnel {
        /// The second of them.
        id: NodeId,
        /// The address of both.
        address: IpAddr,
    },
    /// Its nexthop would have no id, or another node's.
    #[error("node {id}: expected a number from 1 to 16777215 that no other node has, found {number}")]
    Number {
        /// The node.
        id: NodeId,
        /// Its number.
        number: u32,
    },
}

impl Cluster {
    /// One whose ids, numbers and addresses tell its nodes apart.
    pub fn new(own: OwnNode, nodes: Vec<ClusterNode>) -> Result<Self, BadCluster> {
        let (mut ids, mut tunnels) = (BTreeSet::from([own.id]), BTreeSet::from([own.tunnel]));
        let mut numbers = BTreeSet::new();
        for ClusterNode { id, number, tunnel, .. } in &nodes {
            if !ids.insert(*id) {
                return Err(BadCluster::SameId(*id));
            }
            if !tunnels.insert(*tunnel) {
                return Err(BadCluster::SameTunnel { id: *id, address: *tunnel });
            }
            if !NUMBERS.contains(number) || !numbers.insert(*number) {
                return Err(BadCluster::Number { id: *id, number: *number });
            }
        }
        Ok(Self { own, nodes })
    }

    /// The other node of that id, written as an address.
    pub fn by_address(&self, id: IpAddr) -> Option<&ClusterNode> {
        self.nodes.iter().find(|node| IpAddr::V4(node.id.0) == id)
    }

    /// Of the nodes with these numbers: the one behind this node in the order of their ids, suspects left out; and whether one
    /// of them is suspect.
    pub fn ring(&self, numbers: &BTreeSet<u32>) -> (Option<NodeId>, bool) {
        let of_ring = || self.nodes.iter().filter(|node| numbers.contains(&node.number));
        let live = || of_ring().filter(|node| node.state == NodeState::Live).map(|node| node.id);
        let behind = live().filter(|id| *id > self.own.id).min();
        (behind.or_else(|| live().min()), of_ring().any(|node| node.state == NodeState::Suspect))
    }
}

/// As it is read, before anything of it is believed.
#[derive(Deserialize)]
struct Unchecked {
    own: OwnNode,
    nodes: Vec<ClusterNode>,
}

impl TryFrom<Unchecked> for Cluster {
    type Error = BadCluster;

    fn try_from(read: Unchecked) -> Result<Self, BadCluster> {
        Self::new(read.own, read.nodes)
    }
}

#[cfg(test)]
impl ClusterNode {
    /// The one of tests at 192.0.2.`last`, alive, with that number.
    pub fn at(last: u8) -> Self {
        let id = NodeId(Ipv4Addr::new(192, 0, 2, last));
        Self {
            id,
            name: format!("n{last}"),
            number: last.into(),
            tunnel: id.0.into(),
            heard6: None,
            mac6: None,
            state: NodeState::Live,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(last: u8) -> NodeId {
        NodeId(Ipv4Addr::new(192, 0, 2, last))
    }

    fn node(last: u8, number: u32) -> ClusterNode {
        ClusterNode { number, ..ClusterNode::at(last) }
    }

    fn cluster(nodes: Vec<ClusterNode>) -> Result<Cluster, BadCluster> {
        Cluster::new(OwnNode { id: id(1), name: "n1".into(), tunnel: id(1).0.into(), heard6: None, left: false }, nodes)
    }

    #[test]
    fn an_id_is_part_of_the_tunnels_ethernet_address() {
        assert_eq!(id(7).mac().to_string(), "02:76:c0:00:02:07");
    }

    #[test]
    fn an_id_is_made_of_the_address_at_which_a_node_is_heard() {
        let of = |address: &str| NodeId::of(address.parse().unwrap()).to_string();
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
        // printf 20010db8000000000000000000000001 | xxd -r -p | sha256sum
        assert_eq!(of("2001:db8::1"), "246.3.215.225");
        assert_eq!(of("2001:db8::2"), "241.68.234.35");
    }

    #[test]
    fn the_ring_is_in_the_order_of_ids_and_skips_suspects() {
        let own = OwnNode { id: id(5), name: "n5".into(), tunnel: id(5).0.into(), heard6: None, left: false };
        let suspect = ClusterNode { state: NodeState::Suspect, ..node(7, 3) };
        let cluster = Cluster::new(own, vec![node(2, 1), node(9, 2), suspect]).unwrap();
        assert_eq!(cluster.ring(&[1, 2, 3].into()), (Some(id(9)), true));
        assert_eq!(cluster.ring(&[1, 2].into()), (Some(id(9)), false));
        assert_eq!(cluster.ring(&[1].into()), (Some(id(2)), false));
        assert_eq!(cluster.ring(&[3].into()), (None, true));
        assert_eq!(cluster.ring(&[4].into()), (None, false));
    }

    #[test]
    fn the_file_has_it_as_documented() {
        let json = serde_json::json!({
            "own": { "id": "192.0.2.1", "name": "n1", "tunnel": "192.0.2.1" },
            "nodes": [{ "id": "192.0.2.2", "name": "n2", "number": 1, "tunnel": "192.0.2.2", "state": "live" }],
        });
        let known = cluster(vec![node(2, 1)]).unwrap();
        assert_eq!(serde_json::to_value(&known).unwrap(), json);
        assert_eq!(serde_json::from_value::<Cluster>(json).unwrap(), known);
    }

    /// Nodes that are heard by IPv4 are recorded as ever: plugin and daemon are replaced one after the other.
    #[test]
    fn the_file_says_where_nodes_are_heard_by_ipv6() {
        let text = r#"{"own":{"id":"240.0.0.1","name":"n1","tunnel":"2001:db8::1","heard6":"2001:db8::1"},
            "nodes":[{"id":"240.0.0.2","name":"n2","number":1,"tunnel":"2001:db8:1::2","heard6":"2001:db8::2","state":"live"}]}"#;
        let cluster: Cluster = serde_json::from_str(text).unwrap();
        let heard = [cluster.own.heard_at(), cluster.nodes[0].heard_at()].map(|address| address.to_string());
        assert_eq!(heard, ["2001:db8::1", "2001:db8::2"]);
        assert_eq!(serde_json::from_value::<Cluster>(serde_json::to_value(&cluster).unwrap()).unwrap(), cluster);
        assert_eq!(node(2, 1).heard_at(), IpAddr::V4(id(2).0));
    }

    #[test]
    fn nodes_that_cant_be_told_apart_are_refused() {
        assert_eq!(cluster(vec![node(1, 1)]), Err(BadCluster::SameId(id(1))));
        assert_eq!(cluster(vec![node(2, 1), node(2, 2)]), Err(BadCluster::SameId(id(2))));
        assert_eq!(cluster(vec![node(2, 1), node(3, 1)]), Err(BadCluster::Number { id: id(3), number: 1 }));
        for number in [0, 1 << 24] {
            assert_eq!(cluster(vec![node(2, number)]), Err(BadCluster::Number { id: id(2), number }));
        }
        let same = ClusterNode { tunnel: id(2).0.into(), ..node(3, 2) };
        let expected = BadCluster::SameTunnel { id: id(3), address: id(2).0.into() };
        assert_eq!(cluster(vec![node(2, 1), same]), Err(expected));
        let text = r#"{"own":{"id":"192.0.2.1","name":"","tunnel":"192.0.2.1"},
            "nodes":[{"id":"192.0.2.1","name":"","number":1,"tunnel":"192.0.2.2","state":"live"}]}"#;
        let error = serde_json::from_str::<Cluster>(text).unwrap_err().to_string();
        assert!(error.starts_with("node 192.0.2.1: expected an id that no other node has"), "{error}");
    }
}
