//! Where a replica is.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What a member of a VIP's group leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A pod of this node, behind its veth pair.
    #[default]
    Local,
    /// Another node with its ready replicas, behind the tunnel: it chooses among them itself.
    Remote(Peer),
}

/// Another node, as this one reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its number among this node's peers, which its nexthop's id is made of.
    pub number: u32,
    /// Its address on the tunnel's device.
    pub address: IpAddr,
}

impl Backend {
    /// As records leave it out.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_it_as_documented() {
        let peer = Peer { number: 3, address: [10, 0, 0, 12].into() };
        let json = serde_json::json!({"remote": {"number": 3, "address": "10.0.0.12"}});
        assert_eq!(serde_json::to_value(Backend::Remote(peer)).unwrap(), json);
        assert_eq!(serde_json::from_value::<Backend>(json).unwrap(), Backend::Remote(peer));
        assert!(serde_json::from_value::<Backend>(serde_json::json!("elsewhere")).is_err());
    }
}
