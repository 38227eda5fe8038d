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
//! {"depart": {}}                              {"departed": true}
//! {"called": {"verb": "ADD", "code": 0, …}}   no reply: the connection is closed
//! anything else                               {"error": {"code": 6, "msg": "…"}}
//! ```
//!
//! Each side ignores unknown keys, so either may be the newer one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

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
    /// The others are to be told that this node leaves.
    Depart {},
    /// The plugin was called, and has answered. The client waits for no reply to this.
    Called(Called),
}

/// The reply to [`Request::Nodes`].
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
    pub tunnel: Ipv4Addr,
    /// `live`, `suspect`, `restarting` or `left`.
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
    /// Two nodes have one id.
    Id,
    /// Two nodes have one name.
    Name,
    /// Nodes have different names for DHCP.
    Cluster,
    /// A VIP's address.
    Address,
    /// A later version's.
    #[serde(other)]
    Other,
}

/// The reply to [`Request::Depart`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departed {
    /// There are others to be told; false: this node stands alone.
    pub departed: bool,
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

/// A directory, and which one it is: a container may have it at another path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Its path where viprouted runs.
    pub path: PathBuf,
    /// The numbers of its filesystem and inode; none while it doesn't exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<(u64, u64)>,
}

impl Directory {
    /// The directory at a path, as it is now.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path) }
    }

    /// Whether it is the one at this path. Two that don't exist yet are told apart by their paths.
    pub fn is_at(&self, path: &Path) -> bool {
        match (self.identity, identity(path)) {
            (None, None) => self.path == path,
            (theirs, ours) => theirs == ours,
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
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
    /// Unix seconds; none: it never expires.
    pub expires: Option<u64>,
    /// The registry that viprouted keeps; none from an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<Directory>,
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
    /// Obstacles beyond single VIPs, one sentence each: unreadable lease files, say.
    pub problems: Vec<String>,
    /// Why a VIP that is new here would get no address now, one sentence each.
    #[serde(default)]
    pub obstacles: Vec<String>,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn acquire() -> AcquireRequest {
        AcquireRequest {
            vip: "shop/web".into(),
            pod: IpAddr::from([10, 1, 0, 5]),
            node: IpAddr::from([192, 0, 2, 1]),
            gateway: Some(IpAddr::from([192, 0, 2, 254])),
        }
    }

    #[test]
    fn requests_look_as_documented() {
        let line =
            br#"{"acquire": {"vip": "shop/web", "pod": "10.1.0.5", "node": "192.0.2.1", "gateway": "192.0.2.254"}}"#;
        assert_eq!(decode_request(line), Ok(Request::Acquire(acquire())));
        let release = Request::Release(ReleaseRequest { vip: "a/b".into() });
        assert_eq!(encode(&release).unwrap(), b"{\"release\":{\"vip\":\"a/b\"}}\n");
        assert_eq!(decode_request(br#"{"leases": {}}"#), Ok(Request::Leases {}));
        assert_eq!(decode_request(br#"{"status": {}}"#), Ok(Request::Status {}));
        assert_eq!(decode_request(br#"{"events": {}}"#), Ok(Request::Events(EventsRequest { after: 0 })));
        let called = Called { verb: "DEL".into(), code: 107, micros: 5100, ..Called::default() };
        let line = encode(&Request::Called(called)).unwrap();
        assert_eq!(line, b"{\"called\":{\"verb\":\"DEL\",\"code\":107,\"micros\":5100}}\n");
    }

    #[test]
    fn a_node_without_a_gateway_may_leave_it_out() {
        let line = br#"{"acquire":{"vip":"a/b","pod":"10.1.0.5","node":"192.0.2.1"}}"#;
        let Ok(Request::Acquire(request)) = decode_request(line) else {
            panic!("not an acquire");
        };
        assert_eq!(request.gateway, None);
    }

    #[test]
    fn an_infinite_lease_expires_null() {
        let grant = Grant { address: IpAddr::from([10, 118, 0, 7]), expires: None, registry: None };
        let line = encode(&grant).unwrap();
        assert_eq!(line, b"{\"address\":\"10.118.0.7\",\"expires\":null}\n");
        assert_eq!(decode_reply::<Grant>(&line).unwrap(), Ok(grant));
    }

    #[test]
    fn a_directory_is_known_by_what_it_is() {
        let (root, temporary) = (Directory::at(Path::new("/")), std::env::temp_dir());
        assert!(root.is_at(Path::new("/usr/..")) && !root.is_at(&temporary));
        let elsewhere = Directory { path: "/registry".into(), ..root.clone() };
        assert!(elsewhere.is_at(Path::new("/")), "mounted at another path");
        let missing = Directory::at(Path::new("/no-such"));
        assert!(
            missing.is_at(Path::new("/no-such"))
                && !missing.is_at(Path::new("/nor-this"))
                && !root.is_at(&missing.path)
        );
    }

    #[test]
    fn a_refusal_arrives_as_one() {
        let refusal = Refusal { code: code::TRY_AGAIN, msg: "no address to be had".into() };
        let line = encode_refusal(&refusal).unwrap();
        assert_eq!(line, b"{\"error\":{\"code\":11,\"msg\":\"no address to be had\"}}\n");
        assert_eq!(decode_reply::<Grant>(&line).unwrap(), Err(refusal));
    }

    #[test]
    fn a_status_whose_vips_carry_errors_is_no_refusal() {
        let status = Status {
            backend: "dhcp".into(),
            vips: vec![VipStatus {
                vip: "a/b".into(),
                address: None,
                state: LeaseState::Selecting,
                expires: None,
                error: Some("no server answers".into()),
                held_until: None,
                claimed_by: None,
            }],
            registry: Some(Directory::at(Path::new("/"))),
            problems: vec![],
            obstacles: vec![],
            express: None,
            version: None,
        };
        let line = encode(&status).unwrap();
        assert_eq!(decode_reply::<Status>(&line).unwrap(), Ok(status));
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_request(&line);
            let _ = decode_reply::<Grant>(&line);
            let _ = decode_reply::<Status>(&line);
        }

        #[test]
        fn nearly_right_lines_dont_either(
            verb in "(acquire|release|leases|status|identity|events|called|\\PC{0,8})",
            body in "(\\{\\}|null|\\[\\]|\"x\"|\\{\"vip\":\"\\PC{0,6}\"\\}|\\PC{0,20})",
        ) {
            let _ = decode_request(format!("{{\"{verb}\": {body}}}").as_bytes());
        }

        #[test]
        fn requests_survive_the_wire(vip in "\\PC{0,40}", pod: IpAddr, node: IpAddr, gateway: Option<IpAddr>) {
            let request = Request::Acquire(AcquireRequest {
                vip,
                pod,
                node,
                gateway,
            });
            let line = encode(&request).unwrap();
            prop_assert_eq!(line.split(|b| *b == b'\n').count(), 2);
            prop_assert_eq!(decode_request(&line), Ok(request));
        }
    }
}
