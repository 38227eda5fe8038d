//! A `DHCPv4` client (RFC 2131) for addresses that are not an interface's own: many identities over one socket,
//! each with its own state machine. Knows nothing of VIPs.
//!
//! [`Engine::start`] opens the socket and runs a task; a [`Handle`] tells it which identities to acquire an
//! address for, and [`Notice`]s tell the owner what became of them. An address is asked for by DISCOVER once; from
//! then on every renewal and every restart is an INIT-REBOOT (REQUEST with option 50, without option 54, `ciaddr`
//! zero): the only form that all servers answer by broadcast and none checks by a ping first.
//!
//! ```text
//! engine   the task: socket, clock, commands
//!   fleet      all machines: who is due, whose reply is this
//!     machine      one identity: time and packets in, actions out
//!   transport  link (AF_PACKET) or relay (UDP)
//!     wire, frame  bytes
//! ```

mod engine;
mod fleet;
mod frame;
mod link;
mod machine;
mod pace;
mod relay;
mod socket;
mod timing;
mod transport;
mod wire;

use std::net::Ipv4Addr;
use std::time::SystemTime;

use nix::errno::Errno;

pub use engine::{Engine, Handle};

/// Reads bytes as a server's frame, and as its message to a relay; whether either makes sense. For property tests and
/// fuzzing: must never panic.
pub fn read_anything(bytes: &[u8]) -> bool {
    frame::parse_frame(bytes).is_ok() | wire::parse(bytes).is_ok()
}

/// Who asks: one identity is one DHCP client, wherever it asks from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Option 61, the whole value with its type octet (RFC 4361: 255, IAID, DUID); 2 to 255 octets.
    pub client_id: Vec<u8>,
    /// `chaddr`: a locally administered unicast MAC address, unique among the identities of one engine.
    pub chaddr: [u8; 6],
    /// Option 12; 1 to 63 letters, digits and hyphens. Left out of the messages when empty.
    pub hostname: String,
}

/// An address lent to an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The server that granted it (option 54).
    pub server: Ipv4Addr,
    /// When it was granted: the instant the REQUEST was first sent (RFC 2131 section 4.4.1).
    pub granted: SystemTime,
    /// T1, the instant renewal begins; `None` for an infinite lease.
    pub renew: Option<SystemTime>,
    /// T2, after which renewal is more urgent; `None` for an infinite lease.
    pub rebind: Option<SystemTime>,
    /// When the address must no longer be used; `None` for an infinite lease.
    pub expires: Option<SystemTime>,
}

/// How the servers are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransportConfig {
    /// Broadcast on a link, through a packet socket: needs no address on the interface, leaves port 68 alone.
    Link {
        /// The interface's name.
        interface: String,
    },
    /// Unicast to one server in the form a relay agent uses (RFC 2131 section 4.1, RFC 3527, RFC 3011).
    Relay {
        /// The server.
        server: Ipv4Addr,
        /// An address of this machine that the server can reach: answers come to its port 67.
        giaddr: Ipv4Addr,
        /// The subnet the addresses are to come from.
        subnet: Ipv4Addr,
    },
}

/// What became of one identity's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An address not held before. The owner checks it before use, and answers with [`Handle::decline`] or
    /// [`Handle::restart`] if it can't be used.
    Bound(Lease),
    /// The address held (or remembered and unexpired) was granted for longer.
    Renewed(Lease),
    /// The address must not be used any more. A new one is being asked for; `Bound` follows when there is one.
    Lost {
        /// The lease as it was.
        lease: Lease,
        /// Why.
        reason: Reason,
    },
    /// No address, and none obtained after so many tries. The engine goes on trying, and says this again with
    /// every further try.
    Failed {
        /// Messages sent without success since the last address, of the kind `why` names.
        tries: u32,
        /// One sentence.
        why: String,
    },
}

/// Why an address was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A server said the address is not (or no longer) this identity's.
    Nak,
    /// The lease ran out, nobody having renewed it.
    Expired,
    /// A server granted another address than the one asked for; a `Bound` with that one follows.
    Moved,
}

/// A [`Change`] and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The key given to [`Handle::acquire`].
    pub key: String,
    /// What happened.
    pub change: Change,
}

/// Messages sent and received since the engine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// DISCOVERs sent.
    pub discover: u64,
    /// REQUESTs sent that accept an offer.
    pub request: u64,
    /// REQUESTs sent to renew or take up an address again (INIT-REBOOT).
    pub reboot: u64,
    /// DECLINEs sent.
    pub decline: u64,
    /// Messages the kernel would not send; they count as lost packets.
    pub unsent: u64,
    /// OFFERs received for one of the identities, in time or late.
    pub offer: u64,
    /// ACKs received, likewise.
    pub ack: u64,
    /// NAKs received, likewise.
    pub nak: u64,
    /// Replies to nobody here (another client's broadcast).
    pub foreign: u64,
    /// Packets that are no DHCP reply.
    pub malformed: u64,
}

/// What can go wrong in starting an engine. Once it runs, trouble is a lost packet and shows in [`Counters`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interface isn't there.
    #[error("no interface {0:?}")]
    NoInterface(String),
    /// The interface has no 6-octet hardware address (a tunnel, say): nothing to send Ethernet frames from.
    #[error("interface {0:?} has no Ethernet address")]
    NotEthernet(String),
    /// A call on the socket failed.
    #[error("{op} for DHCP on {on}")]
    Socket {
        /// The call.
        op: &'static str,
        /// The interface or address.
        on: String,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// Started outside a tokio runtime with I/O and time enabled.
    #[error("a DHCP engine needs a tokio runtime")]
    NoRuntime,
}
