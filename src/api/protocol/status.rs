//! The state of the VIPs and of the express path.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Directory;

/// The answer to `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `dhcp` or `pool`.
    pub backend: String,
    /// In order of their VIPs.
    pub vips: Vec<VipStatus>,
    /// The registry it keeps; none from an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<Directory>,
    /// What is wrong beyond single VIPs, one sentence each: unreadable lease files, say.
    pub problems: Vec<String>,
    /// Why a VIP that is new here would get no address now, one sentence each.
    #[serde(default, alias = "obstacles")]
    pub readiness_errors: Vec<String>,
    /// The express path; none from an older one, and before it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub express: Option<Express>,
    /// What `viprouted --version` says after its name; none from an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// The express path on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Express {
    /// Why no packet takes it; none: it is on.
    pub off: Option<ExpressOff>,
    /// Part of every lease: another number ends all that were given. 0 while it is off.
    pub generation: u64,
    /// The devices by which clients are reached.
    pub uplinks: Vec<ExpressUplink>,
}

/// Why the express path is off on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpressOff {
    /// `express = "off"`.
    Configured,
    /// No VIP is here.
    NoVips,
    /// The flow owner isn't loaded, or no VIP is steered by it.
    NoFlowOwner,
    /// Connections with VIPs are tracked: a packet that passes the tracking by would make the next one invalid.
    Tracked,
    /// The kernel refuses; its words.
    Failed(String),
}

/// One uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpressUplink {
    /// Its name.
    pub device: String,
    /// Why the express path is off there; none: it is on.
    pub off: Option<UplinkOff>,
}

/// Why the express path is off on an uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UplinkOff {
    /// It is off on the whole node.
    Node,
    /// Packets have no Ethernet header there: a tunnel, say.
    NoEthernet,
    /// Others' programs and filters are on it, which the express path would pass by.
    Others(Vec<String>),
    /// The kernel refuses; its words.
    Failed(String),
}

impl fmt::Display for ExpressOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("express = \"off\""),
            Self::NoVips => f.write_str("no VIP is here"),
            Self::NoFlowOwner => f.write_str("no flow owner"),
            Self::Tracked => f.write_str("connections with VIPs are tracked"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl fmt::Display for UplinkOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("off on this node"),
            Self::NoEthernet => f.write_str("no Ethernet header"),
            Self::Others(others) => write!(f, "others are there: {}", others.join(", ")),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// The state of one VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipStatus {
    /// `<namespace>/<name>`.
    pub vip: String,
    /// Its address, if it has one.
    pub address: Option<IpAddr>,
    /// See [`LeaseState`].
    pub state: LeaseState,
    /// Unix seconds; none: never, or no address.
    pub expires: Option<u64>,
    /// The last error, until the lease is in order again.
    pub error: Option<String>,
    /// Unix seconds at which the lease is given up, since no replica is here; none while there is one.
    #[serde(default)]
    pub held_until: Option<u64>,
    /// The Ethernet address of a host on the link that says the VIP's address is its own.
    #[serde(default)]
    pub claimed_by: Option<String>,
    /// The name of the node that renews its lease for all; none: each node does for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewer: Option<String>,
}

/// The states of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// viprouted asks for an address.
    Selecting,
    /// An address was offered and is searched for conflicts.
    Probing,
    /// The VIP has its address.
    Bound,
    /// Taken away by the server or expired; another is being asked for.
    Expired,
    /// No usable address was available; viprouted tries again from time to time.
    Failed,
}

impl LeaseState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Selecting, Self::Probing, Self::Bound, Self::Expired, Self::Failed];

    /// As JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Selecting => "selecting",
            Self::Probing => "probing",
            Self::Bound => "bound",
            Self::Expired => "expired",
            Self::Failed => "failed",
        }
    }
}
