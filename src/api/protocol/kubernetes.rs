//! What viprouted knows of Kubernetes Services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The request `kubernetes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesRequest {
    /// The API is to be asked too, for what is wrong; it is answered within five seconds.
    #[serde(default)]
    pub examine: bool,
}

/// The answer to it. Empty where no Services are served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    /// In order of their names.
    #[serde(default)]
    pub services: Vec<ServiceEntry>,
    /// What is wrong with them, or with the way to the API.
    #[serde(default)]
    pub findings: Vec<ClusterFinding>,
    /// Pods of the node that get no connections by VIPs because a `NetworkPolicy` selects them: both `<namespace>/<name>`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept_out: BTreeMap<String, String>,
}

/// A Service of type `LoadBalancer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// `<namespace>/<name>`, which is its VIP's name.
    pub service: String,
    /// Its identity: one that is made again under the same name is another.
    pub uid: String,
    /// Its address, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The one of the other family, if it has that too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<IpAddr>,
    /// The name of the node that gets its address and writes its status; none: this one, which knows no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<String>,
    /// What it waits for; none: it has its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// The ranges that its clients are of; none: they may be anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<Vec<String>>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterFinding {
    /// About what.
    pub kind: ClusterFindingKind,
    /// What, in a sentence.
    pub text: String,
}

/// About what something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterFindingKind {
    /// viprouted may not do something at the API.
    Right,
    /// The API server's clock and the node's differ.
    Clock,
    /// A `NetworkPolicy` selects a replica.
    Policy,
    /// Services that nobody serves, for want of a class.
    Class,
    /// The API is older than viprouted expects.
    Api,
    /// A Service, as Events say it.
    Service,
    /// What a later version adds.
    #[serde(other)]
    Other,
}
