//! A client of DHCP (RFC 2131) and `DHCPv6` (RFC 8415) for addresses that are not an interface's own: many identities over one socket,
//! each with its own state machine. Knows nothing of VIPs.
//!
//! [`Engine::start`] opens the socket and runs a task; a [`Handle`] commands it to acquire addresses for
//! identities, and [`Notice`]s report the results to the owner. An address is asked for by DISCOVER once; from
//! then on every renewal and every restart is an INIT-REBOOT (REQUEST with option 50, without option 54, `ciaddr`
//! zero): the only form that all servers answer by broadcast and none checks by a ping first. In `DHCPv6` that is a REBIND ([`message`]).
//!
//! All times are read off the clock that the owner gives ([`Clock`]).
//!
//! ```text
//! engine   the task: socket, clock, commands
//!   fleet      all machines: who is due, whose reply is this
//!     machine      one identity: time and packets in, actions out
//!   transport  link (AF_PACKET) or relay (UDP)
//!     message      what is said
//!     wire, frame  bytes; wire6, frame6 those of `DHCPv6`
//! ```

mod engine;
mod fleet;
mod frame;
mod frame6;
mod identity;
mod link;
mod machine;
mod message;
mod pace;
mod relay;
mod server;
mod socket;
mod timing;
mod transport;
mod wire;
mod wire6;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::SystemTime;

use nix::errno::Errno;

use crate::model::Family;

pub use engine::{Engine, Handle};
pub use identity::Identity;
pub use message::Flaw;
pub use server::Server;

/// Reads bytes as a server's frame, and as its message to a relay; whether either makes sense. For property tests and
/// fuzzing: must never panic.
pub fn read_anything(bytes: &[u8]) -> bool {
    frame::parse_frame(bytes).is_ok()
        | wire::parse(bytes).is_ok()
        | frame6::parse_frame(bytes).is_ok()
        | wire6::parse_relayed(bytes, Ipv6Addr::LOCALHOST.into()).is_ok()
}

/// An address lent to an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// The server that granted it; none: only the address is known.
    pub server: Option<Server>,
    /// When it was granted: the instant the REQUEST was first sent (RFC 2131 section 4.4.1).
    pub granted: SystemTime,
    /// T1, the instant renewal begins; `None` for an infinite lease.
    pub renew: Option<SystemTime>,
    /// T2, after which renewal is more urgent; `None` for an infinite lease.
    pub rebind: Option<SystemTime>,
    /// When the address must no longer be used; `None` for an infinite lease.
    pub expires: Option<SystemTime>,
    /// The link's routers and name servers, as the server has them.
    pub infrastructure: Vec<IpAddr>,
    /// Another client of the identity was granted it, and has told of it ([`Handle::learn`]).
    pub told: bool,
    /// The bits of a prefix that is delegated, whose network `address` is; none: an address is lent.
    pub prefix: Option<u8>,
}

/// Which of the clients that share an identity renews its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// This one.
    Own,
    /// Another one, which tells of what it is granted. Where it doesn't, this one asks all the same: in the middle between T1 and
    /// T2, and for a first address after some seconds.
    Others,
}

/// What an identity is to have.
#[derive(Clone, Debug)]
pub struct Acquisition {
    /// Who asks.
    pub identity: Identity,
    /// The address it had, which is asked for first.
    pub remembered: Option<Lease>,
    /// Without one: the only address that will do; none: any.
    pub wish: Option<IpAddr>,
    /// Who of those that share the identity asks first.
    pub turn: Turn,
    /// A prefix is asked for (RFC 8415 section 6.3), of so many bits if the server heeds that; none: an address.
    pub prefix: Option<u8>,
}

/// Reads the time. One that is never set: a lease must not end, or last longer, because the wall clock was.
pub type Clock = fn() -> SystemTime;

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How the servers are reached.
    pub transport: TransportConfig,
    /// Servers that count; answers of others are ignored. Empty: all do.
    pub servers: Vec<IpAddr>,
    /// The time.
    pub clock: Clock,
}

/// How the servers are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransportConfig {
    /// Broadcast on a link, through a packet socket: needs no address on the interface, leaves port 68 alone. `DHCPv6` by multicast from the
    /// interface's link-local address, and leaves port 546 alone.
    Link {
        /// For addresses of which family.
        family: Family,
        /// The interface's name.
        interface: String,
    },
    /// Unicast to one server in the form a relay agent uses (RFC 2131 section 4.1, RFC 3527, RFC 3011; RFC 8415 section 19).
    /// Answers come to port 67 of this machine's address on the way there, or to port 547.
    Relay {
        /// The server.
        server: IpAddr,
        /// The subnet the addresses are to come from.
        subnet: IpAddr,
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
    /// A server other than the one that lent the address refuses it (NAK), which changes nothing.
    Refused {
        /// That server.
        server: IpAddr,
        /// What it says (option 56).
        why: String,
    },
    /// No address, or none for longer, after so many tries. The engine goes on trying, and says this again with every
    /// further try.
    Failed {
        /// Messages sent without success since the last address, of the kind `why` names.
        tries: u32,
        /// The cause.
        why: Trouble,
    },
}

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No server answers.
    Silence,
    /// Servers answer others, and not this one: there is nothing left to offer, most likely.
    NothingOffered {
        /// A server that answered another client lately.
        server: IpAddr,
    },
    /// The messages don't leave.
    Unsent {
        /// What the kernel says.
        why: String,
    },
    /// What answers there are can't be used.
    Unfit {
        /// Whose, where they say so.
        server: Option<IpAddr>,
        /// What is wrong with them.
        flaw: Flaw,
    },
    /// Not the address that is wished for.
    Another {
        /// Whose offer.
        server: IpAddr,
        /// Of which.
        address: IpAddr,
    },
    /// An offer that isn't kept.
    Withdrawn {
        /// Whose.
        server: IpAddr,
        /// Which.
        address: IpAddr,
    },
    /// The server refuses again and again what it has given.
    Refused {
        /// The server.
        server: IpAddr,
        /// What it says (option 56).
        why: String,
    },
    /// Another identity has the same hardware address.
    SameAddress {
        /// Its key.
        other: String,
    },
}

impl Trouble {
    /// In a sentence, as the servers of that family's addresses are called.
    pub fn said(&self, family: Family) -> String {
        let dhcp = protocol(family);
        match self {
            Self::Silence => format!("no {dhcp} server answers"),
            Self::NothingOffered { server } => format!(
                "the {dhcp} server {server} answers others and offers nothing here: its pool is empty, or not for us"
            ),
            Self::Unsent { why } => format!("{dhcp} messages don't leave: {why}"),
            Self::Unfit { server: Some(server), flaw } => {
                format!("answers of the {dhcp} server {server} are unfit: {flaw}")
            }
            Self::Unfit { server: None, flaw } => format!("answers of a {dhcp} server are unfit: {flaw}"),
            Self::Another { server, address } => {
                format!("the {dhcp} server {server} offers {address}, and not the address that is asked for")
            }
            Self::Withdrawn { server, address } => {
                format!("the {dhcp} server {server} offers {address} and doesn't answer the REQUEST for it")
            }
            Self::Refused { server, why } => refused_by(*server, why),
            Self::SameAddress { other } => format!("{other:?} has the same hardware address"),
        }
    }
}

/// What is spoken for addresses of a family.
pub const fn protocol(family: Family) -> &'static str {
    match family {
        Family::V4 => "DHCP",
        Family::V6 => "DHCPv6",
    }
}

/// That a server has said so of an address of its family: by a NAK, which `DHCPv6` has none of.
fn refused_by(server: IpAddr, why: &str) -> String {
    match Family::of(server) {
        Family::V4 => format!("refused by the DHCP server {server} (NAK {why:?})"),
        Family::V6 => format!("refused by the DHCPv6 server {server} ({why})"),
    }
}

/// Why an address was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The server said the address is not (or no longer) this identity's.
    Nak {
        /// The server.
        server: IpAddr,
        /// What it says (option 56).
        why: String,
    },
    /// The lease ran out before it was renewed.
    Expired,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nak { server, why } => f.write_str(&refused_by(*server, why)),
            Self::Expired => f.write_str("it ran out and was not renewed"),
        }
    }
}

/// A [`Change`] and the key of its identity.
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
    /// REQUESTs sent to any server after its own has refused the address (REBINDING).
    pub rebind: u64,
    /// DECLINEs sent.
    pub decline: u64,
    /// RELEASEs sent.
    pub release: u64,
    /// Messages the kernel would not send; they count as lost packets.
    pub unsent: u64,
    /// OFFERs received for one of the identities, in time or late.
    pub offer: u64,
    /// ACKs received, likewise.
    pub ack: u64,
    /// NAKs received, likewise.
    pub nak: u64,
    /// Replies to another client (by broadcast), or of a server that doesn't count.
    pub foreign: u64,
    /// Replies that lack what they must have.
    pub unfit: u64,
    /// Packets that are no DHCP reply.
    pub malformed: u64,
}

impl Counters {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            discover: self.discover + other.discover,
            request: self.request + other.request,
            reboot: self.reboot + other.reboot,
            rebind: self.rebind + other.rebind,
            decline: self.decline + other.decline,
            release: self.release + other.release,
            unsent: self.unsent + other.unsent,
            offer: self.offer + other.offer,
            ack: self.ack + other.ack,
            nak: self.nak + other.nak,
            foreign: self.foreign + other.foreign,
            unfit: self.unfit + other.unfit,
            malformed: self.malformed + other.malformed,
        }
    }
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
    /// The kernel can't be asked for the link's addresses.
    #[error("addresses of {on} for DHCPv6")]
    Addresses {
        /// The interface.
        on: String,
        /// What the kernel said.
        source: crate::net::Error,
    },
    /// There is no way to the server.
    #[error("no route to the DHCP server {server} (dhcp.relay.server or dhcp6.relay.server)")]
    NoRoute {
        /// The server.
        server: IpAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Started outside a tokio runtime with I/O and time enabled.
    #[error("a DHCP engine needs a tokio runtime")]
    NoRuntime,
}
