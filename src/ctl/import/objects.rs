//! `MetalLB`'s objects, as far as they are read (`metallb.io/v1beta1` and `v1beta2`). What isn't named here has no meaning that would be lost.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Any object of Kubernetes, or a list of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Object {
    /// Its kind.
    pub kind: String,
    pub metadata: Metadata,
    pub spec: Value,
    /// Of a list.
    pub items: Vec<Object>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Metadata {
    pub name: String,
    pub labels: BTreeMap<String, String>,
}

/// `IPAddressPool`
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressPool {
    pub addresses: Vec<String>,
    pub auto_assign: bool,
    #[serde(rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,
    pub service_allocation: Option<Allocation>,
}

impl Default for AddressPool {
    fn default() -> Self {
        Self { addresses: Vec::new(), auto_assign: true, avoid_buggy_ips: false, service_allocation: None }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Allocation {
    /// The least comes first; 0: after all others.
    pub priority: u64,
    pub namespaces: Vec<String>,
    pub namespace_selectors: Vec<Selector>,
    pub service_selectors: Vec<Selector>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    pub match_labels: BTreeMap<String, String>,
    pub match_expressions: Vec<Value>,
}

/// `L2Advertisement` and `BGPAdvertisement`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Advertisement {
    #[serde(rename = "ipAddressPools")]
    pub pools: Vec<String>,
    #[serde(rename = "ipAddressPoolSelectors")]
    pub pool_selectors: Vec<Selector>,
    pub node_selectors: Vec<Selector>,
    pub interfaces: Vec<String>,
    pub aggregation_length: Option<u8>,
    pub local_pref: Option<u32>,
    pub communities: Vec<String>,
    pub peers: Vec<String>,
}

/// `BGPPeer`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    #[serde(rename = "myASN")]
    pub my_asn: u32,
    #[serde(rename = "peerASN")]
    pub asn: u32,
    #[serde(rename = "dynamicASN")]
    pub dynamic_asn: String,
    #[serde(rename = "peerAddress")]
    pub address: String,
    pub ebgp_multi_hop: bool,
    /// Everything, to find what isn't taken over.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}
