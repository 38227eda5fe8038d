//! What is said over the unix socket: one JSON object a line, one reply object a line.
//!
//! ```text
//! {"acquire": {"vip": "shop/web", "pod": "10.1.0.5", "node": "192.0.2.1", "gateway": "192.0.2.254"}}
//! {"address": "10.118.0.7", "expires": 1790000000}
//! {"release": {"vip": "shop/web"}}            {"released": "shop/web"}
//! {"leases": {}}                              {"leases": [{"vip": …}]}
//! {"status": {}}                              {"backend": "dhcp", "vips": [{"vip": …}], "problems": []}
//! {"events": {"after": 0}}                    {"events": [{"number": 17, "at": 1790000000123, "kind": "lease", …}]}
//! {"called": {"verb": "ADD", "code": 0, …}}   no reply: the connection is closed
//! anything else                               {"error": {"code": 6, "msg": "…"}}
//! ```
//!
//! Keys we don't know are passed over, so either side may be the newer one.

use std::net::Ipv4Addr;

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
    /// What has happened lately.
    Events(EventsRequest),
    /// The plugin was called, and has answered. Nobody waits for an answer to this.
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
    /// How long each sync of a VIP took, microseconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub syncs: Vec<u64>,
}

/// Claim 3's base information and the VIP the replica joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcquireRequest {
    /// `<namespace>/<name>`.
    pub vip: String,
    /// The replica's own address.
    pub pod: Ipv4Addr,
    /// Its node's address.
    pub node: Ipv4Addr,
    /// Its node's gateway; none on a node without a default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
}

/// See [`Request::Release`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRequest {
    /// `<namespace>/<name>`.
    pub vip: String,
}

/// The answer to an acquire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The VIP's address.
    pub address: Ipv4Addr,
    /// Unix seconds; none: it never expires.
    pub expires: Option<u64>,
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
    pub address: Ipv4Addr,
    /// The DHCP server that granted it; none from a pool or a pin.
    pub server: Option<Ipv4Addr>,
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
    /// What stands in the way beyond single VIPs, one sentence each: unreadable lease files, say.
    pub problems: Vec<String>,
}

/// How one VIP stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipStatus {
    /// `<namespace>/<name>`.
    pub vip: String,
    /// Its address, if it has one.
    pub address: Option<Ipv4Addr>,
    /// See [`LeaseState`].
    pub state: LeaseState,
    /// Unix seconds; none: never, or no address.
    pub expires: Option<u64>,
    /// The last thing that went wrong, until it goes right again.
    pub error: Option<String>,
}

/// The stations of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// An address is being asked for.
    Asking,
    /// An address was offered and is being checked for conflicts.
    Checking,
    /// In order.
    Held,
    /// Taken away by the server or expired; another is being asked for.
    Lost,
    /// Nothing usable was to be had; tried again from time to time.
    Refused,
}

impl LeaseState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Asking, Self::Checking, Self::Held, Self::Lost, Self::Refused];

    /// As JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Asking => "asking",
            Self::Checking => "checking",
            Self::Held => "held",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

/// Why the allocator said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}")]
pub struct Refusal {
    /// A CNI error code, see [`code`].
    pub code: u32,
    /// One sentence.
    pub msg: String,
}

/// The wrapper a refusal travels in.
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
            pod: Ipv4Addr::new(10, 1, 0, 5),
            node: Ipv4Addr::new(192, 0, 2, 1),
            gateway: Some(Ipv4Addr::new(192, 0, 2, 254)),
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
        let grant = Grant { address: Ipv4Addr::new(10, 118, 0, 7), expires: None };
        let line = encode(&grant).unwrap();
        assert_eq!(line, b"{\"address\":\"10.118.0.7\",\"expires\":null}\n");
        assert_eq!(decode_reply::<Grant>(&line).unwrap(), Ok(grant));
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
                state: LeaseState::Asking,
                expires: None,
                error: Some("nobody answers".into()),
            }],
            problems: vec![],
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
            verb in "(acquire|release|leases|status|events|called|\\PC{0,8})",
            body in "(\\{\\}|null|\\[\\]|\"x\"|\\{\"vip\":\"\\PC{0,6}\"\\}|\\PC{0,20})",
        ) {
            let _ = decode_request(format!("{{\"{verb}\": {body}}}").as_bytes());
        }

        #[test]
        fn requests_survive_the_wire(vip in "\\PC{0,40}", pod: u32, node: u32, gateway: Option<u32>) {
            let request = Request::Acquire(AcquireRequest {
                vip,
                pod: pod.into(),
                node: node.into(),
                gateway: gateway.map(Into::into),
            });
            let line = encode(&request).unwrap();
            prop_assert_eq!(line.split(|b| *b == b'\n').count(), 2);
            prop_assert_eq!(decode_request(&line), Ok(request));
        }
    }
}
