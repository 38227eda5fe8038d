//! What viprouted says of the nodes it knows.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// The state of a node that is heard.
pub const LIVE: &str = "live";

/// The reply to [`Request::Nodes`](super::Request::Nodes).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes {
    /// This node; none: it stands alone.
    #[serde(default)]
    pub own: Option<NodeEntry>,
    /// The others.
    #[serde(default)]
    pub nodes: Vec<NodeEntry>,
    /// What is wrong with them.
    #[serde(default)]
    pub findings: Vec<NodeFinding>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: Ipv4Addr,
    /// Where its end of the tunnel is.
    pub tunnel: IpAddr,
    /// [`LIVE`], `suspect`, `restarting` or `left`.
    pub state: String,
    /// For how many milliseconds its viprouted has said nothing.
    pub silent_ms: u64,
    /// How many VIPs it has replicas of.
    pub vips: usize,
    /// The weights of its ready replicas, all VIPs together.
    pub ready: u64,
    /// Its viprouted's version.
    pub version: String,
}

/// What is wrong with other nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeFinding {
    /// What it is about.
    pub kind: NodeFindingKind,
    /// A sentence.
    pub text: String,
}

/// What a finding about nodes is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeFindingKind {
    /// A seed has another key.
    Key,
    /// A seed doesn't answer.
    Seed,
    /// A seed has addresses of another family than this node's alone.
    Family,
    /// Two nodes have one id.
    Id,
    /// Two nodes have one name.
    Name,
    /// Nodes have different names for DHCP.
    Cluster,
    /// A VIP's address.
    Address,
    /// Nodes run different versions.
    Version,
    /// What this node sends by the tunnel is a stranger's to another.
    Tunnel,
    /// A later version's.
    #[serde(other)]
    Other,
}

/// The reply to [`Request::Depart`](super::Request::Depart).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departed {
    /// There are others to be told; false: this node stands alone.
    pub departed: bool,
}
