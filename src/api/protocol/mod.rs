//! The protocol of the unix socket: one JSON object a line, one reply object a line.
//!
//! ```text
//! {"acquire": {"vip": "shop/web", "pod": "10.1.0.5", "node": "192.0.2.1", "gateway": "192.0.2.254"}}
//! {"address": "10.118.0.7", "expires": 1790000000, "registry": {"path": "/var/lib/cni/viproute", …}}
//! {"release": {"vip": "shop/web"}}            {"released": "shop/web"}
//! {"leases": {}}                              {"leases": [{"vip": …}]}
//! {"status": {}}                              {"backend": "dhcp", "vips": [{"vip": …}], "problems": []}
//! {"identity": {"vip": "shop/web"}}           {"vip": "shop/web", "client_id": "ff:…", "mac": "02:…", …}
//! {"events": {"after": 0}}                    {"events": [{"number": 17, "at": 1790000000123, "kind": "lease", …}]}
//! {"nodes": {}}                               {"own": {"name": "n1", "id": "192.0.2.1", …}, "nodes": [{"name": "n2", …}]}
//! {"kubernetes": {"examine": true}}           {"services": [{"service": "shop/web", …}], "findings": [{"kind": "right", …}]}
//! {"depart": {}}                              {"departed": true}
//! {"called": {"verb": "ADD", "code": 0, …}}   no reply: the connection is closed
//! anything else                               {"error": {"code": 6, "msg": "…"}}
//! ```
//!
//! Each side ignores unknown keys, so either may be the newer one.

mod directory;
mod kubernetes;
mod nodes;
mod status;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{Addresses, VipPolicy};

pub use directory::Directory;
pub use kubernetes::{ClusterFinding, ClusterFindingKind, Kubernetes, KubernetesRequest, ServiceEntry};
pub use nodes::{Departed, LIVE, NodeEntry, NodeFinding, NodeFindingKind, Nodes};
pub use status::{Express, ExpressOff, ExpressUplink, LeaseState, Status, UplinkOff, VipStatus};

/// The longest request line, in bytes, without its newline.
pub const MAX_REQUEST: usize = 64 * 1024;

/// CNI codes an error carries; the plugin hands them on as they are.
pub mod code {
    /// I/O failure on the allocator's side (a lease file that can't be written).
    pub const IO: u32 = 5;
    /// The line is no request.
    pub const UNDECODABLE: u32 = 6;
    /// The request names something impossible (a VIP that is no `<namespace>/<name>`).
    pub const INVALID: u32 = 7;
    /// No address now; asking again later may help.
    pub const TRY_AGAIN: u32 = 11;
}

/// A request line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// An address for a VIP, wanted by a replica.
    Acquire(AcquireRequest),
    /// The VIP's last replica on this node has left.
    Release(ReleaseRequest),
    /// All leases.
    Leases {},
    /// The state of every VIP known here.
    Status {},
    /// Who a VIP is to the DHCP server.
    Identity(IdentityRequest),
    /// What has happened lately.
    Events(EventsRequest),
    /// This node and the others.
    Nodes {},
    /// What is known of Kubernetes Services.
    Kubernetes(KubernetesRequest),
    /// The others are to be told that this node leaves.
    Depart {},
    /// The plugin was called, and has answered. The client waits for no reply to this.
    Called(Called),
}

/// See [`Request::Events`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsRequest {
    /// Only those with a higher number.
    #[serde(default)]
    pub after: u64,
}

/// A call of the plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Called {
    /// `ADD`, `DEL`, …
    pub verb: String,
    /// The CNI error code it was answered with; 0: success.
    pub code: u16,
    /// How long it took, microseconds.
    pub micros: u64,
    /// Whose: `<namespace>/<name>` of the pod where the runtime names it, else the container; empty for calls about none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// The VIPs it was about, `<namespace>/<name>`, as far as it came to know them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<String>,
    /// The error, with its causes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// How long each reconciliation of a VIP took, microseconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub syncs: Vec<u64>,
}

/// Address conflict search's base information and the VIP the replica joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcquireRequest {
    /// `<namespace>/<name>`.
    pub vip: String,
    /// The replica's own address.
    pub pod: IpAddr,
    /// Its node's address.
    pub node: IpAddr,
    /// Its node's gateway; none on a node without a default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// See [`Request::Release`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRequest {
    /// `<namespace>/<name>`.
    pub vip: String,
}

/// See [`Request::Identity`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRequest {
    /// `<namespace>/<name>`.
    pub vip: String,
}

/// The answer to `identity`: what a server's reservation for the VIP has to name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The VIP, as it was named.
    pub vip: String,
    /// The cluster's name, of which the others are made.
    pub cluster: String,
    /// Option 61, octets in hexadecimal with colons.
    pub client_id: String,
    /// `chaddr`, likewise.
    pub mac: String,
    /// Option 12.
    pub host_name: String,
}

/// The answer to an acquire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The VIP's address.
    pub address: IpAddr,
    /// Its other addresses: of the other family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<IpAddr>,
    /// Unix seconds; none: it never expires.
    pub expires: Option<u64>,
    /// The registry that viprouted keeps; none from an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<Directory>,
    /// What Services ask of the VIP; none: no Services are served, or an older viprouted doesn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<VipPolicy>,
    /// Why it has no address of IPv6; none: it has one, or an older viprouted doesn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_ipv6: Option<Refusal>,
}

impl Grant {
    /// All of the VIP's addresses.
    pub fn addresses(&self) -> Addresses {
        let all: Vec<IpAddr> = std::iter::once(self.address).chain(self.others.iter().copied()).collect();
        Addresses::try_from(all).unwrap_or_else(|_| self.address.into())
    }
}

/// The answer to a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// The VIP, as it was named.
    pub released: String,
}

/// The answer to `leases`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// In order of their VIPs.
    pub leases: Vec<LeaseEntry>,
}

/// One lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseEntry {
    /// `<namespace>/<name>`.
    pub vip: String,
    /// Its address.
    pub address: IpAddr,
    /// The DHCP server that granted it; none from a pool or a pin.
    pub server: Option<IpAddr>,
    /// Unix seconds.
    pub granted: u64,
    /// Unix seconds; none: never.
    pub expires: Option<u64>,
    /// Unix seconds at which the last replica left; none while there is one.
    pub left: Option<u64>,
    /// The name of the node that renews it for all; none: each node does for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewer: Option<String>,
}

/// The answer to `events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// The oldest first.
    pub events: Vec<EventEntry>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventEntry {
    /// Higher than that of any event before, also of those before a restart.
    pub number: u64,
    /// Unix milliseconds.
    pub at: u64,
    /// `lease`, `replica`, `repair`, `call` or `trouble`.
    pub kind: String,
    /// `<namespace>/<name>` of the VIP it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip: Option<String>,
    /// One sentence.
    pub text: String,
}

/// A refusal by the allocator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}")]
pub struct Refusal {
    /// A CNI error code, see [`code`].
    pub code: u32,
    /// One sentence.
    pub msg: String,
}

/// The JSON object around a refusal.
#[derive(Serialize, Deserialize)]
struct Failure {
    error: Refusal,
}

/// Reads a request line.
///
/// Any bytes are fine as input; the refusal says what is wrong with them.
pub fn decode_request(line: &[u8]) -> Result<Request, Refusal> {
    serde_json::from_slice(line).map_err(|e| Refusal { code: code::UNDECODABLE, msg: format!("not a request: {e}") })
}

/// One line, newline included, for a request or a reply.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// One line that carries a refusal.
pub fn encode_refusal(refusal: &Refusal) -> Result<Vec<u8>, serde_json::Error> {
    encode(&Failure { error: refusal.clone() })
}

/// Reads a reply line: what was asked for, or the refusal.
pub fn decode_reply<T: DeserializeOwned>(line: &[u8]) -> Result<Result<T, Refusal>, serde_json::Error> {
    let value: serde_json::Value = serde_json::from_slice(line)?;
    if value.get("error").is_some_and(serde_json::Value::is_object) {
        return serde_json::from_value::<Failure>(value).map(|failure| Err(failure.error));
    }
    serde_json::from_value(value).map(Ok)
}
