//! What this client says to servers, and what they say: the same of DHCP and `DHCPv6`, whose bytes are in [`super::wire`] and
//! [`super::wire6`]. What is lent is an address, or of `DHCPv6` a prefix ([`Message::prefix`]: `IA_PD` in the place of `IA_NA`).
//!
//! | here | DHCP | `DHCPv6` |
//! |---|---|---|
//! | [`Kind::Discover`], [`Answer::Offer`] | DISCOVER, OFFER | SOLICIT, ADVERTISE |
//! | [`Kind::Select`] | REQUEST (SELECTING) | REQUEST |
//! | [`Kind::Reboot`] | REQUEST (INIT-REBOOT) | REBIND: no server's id, from any node, also after the server has lost its leases |
//! | [`Kind::Rebind`] | REQUEST (REBINDING) | REBIND once more |
//! | [`Answer::Ack`] | ACK | REPLY with the address |
//! | [`Answer::Nak`] | NAK | REPLY without it: lifetime 0, no binding |

use std::fmt;
use std::net::IpAddr;

use super::Server;
use super::identity::Client;

/// The bits of a transaction's id that `DHCPv6` has room for.
pub const XID6: u32 = 0x00ff_ffff;

/// How many bits a delegated prefix may have. One of more has no room for addresses that end in 32 of their own; none is delegated of fewer (a
/// provider itself has 29 or more), and what comes for the rest of a prefix is refused here: that of a rogue server would take the node's IPv6 away.
pub const PREFIXES: std::ops::RangeInclusive<u8> = 32..=96;

/// Why bytes are no reply, or a message has no bytes.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Shorter than its headers, or than a length field says.
    #[error("cut short in the {0}")]
    Short(&'static str),
    /// Another protocol, version or port.
    #[error("not {0}")]
    Not(&'static str),
    /// A part of a datagram. The size in option 57 needs no fragments.
    #[error("a fragment")]
    Fragment,
    /// The IPv4 header's checksum is wrong.
    #[error("bad IP header checksum")]
    Checksum,
    /// The message can't be written.
    #[error("can't encode")]
    Encode(#[source] dhcproto::error::EncodeError),
}

/// A message to the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What is asked.
    pub kind: Kind,
    /// The transaction.
    pub xid: u32,
    /// Seconds since this identity began to ask.
    pub secs: u16,
    /// It is about a prefix of so many bits, which `kind` has the network of (`DHCPv6`'s `IA_PD`); none: about an address.
    pub prefix: Option<u8>,
}

/// What a message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any address, or a certain one. No option 50 where none is wished for: servers honour that above the lease the identity has.
    Discover {
        /// Option 50.
        wish: Option<IpAddr>,
    },
    /// REQUEST in the SELECTING state: the address a server offered.
    Select {
        /// Option 50.
        address: IpAddr,
        /// Option 54.
        server: Server,
    },
    /// REQUEST in the INIT-REBOOT form: this address again, from whichever server.
    Reboot {
        /// Option 50.
        address: IpAddr,
    },
    /// REQUEST in the REBINDING form: this address for longer, from whichever server. Kea grants it after it has lost its
    /// leases, where it refuses an INIT-REBOOT.
    Rebind {
        /// `ciaddr`.
        address: IpAddr,
    },
    /// The address is no longer used.
    Release {
        /// `ciaddr`.
        address: IpAddr,
        /// Option 54.
        server: Server,
    },
    /// Another host has the address granted.
    Decline {
        /// Option 50.
        address: IpAddr,
        /// Option 54.
        server: Server,
    },
}

/// The relay agent that this client acts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayAgent {
    /// Where answers go.
    pub giaddr: IpAddr,
    /// The subnet to choose addresses from (RFC 3527 and RFC 3011 both: servers differ in what they read).
    pub subnet: IpAddr,
}

/// An answer of a server, with all that its type requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The transaction it answers.
    pub xid: u32,
    /// Whom it answers.
    pub client: Client,
    /// Option 61 where the server echoes it (RFC 6842).
    pub client_id: Option<Vec<u8>>,
    /// What it says.
    pub answer: Answer,
}

impl Reply {
    /// Whether it is in that transaction; of `DHCPv6`'s ids 24 bits are sent.
    pub fn answers(&self, xid: u32) -> bool {
        match self.client {
            Client::Mac(_) => self.xid == xid,
            Client::Duid(_) => self.xid == xid & XID6,
        }
    }

    /// The server that says it (option 54), where it says who it is.
    pub fn server(&self) -> Option<Server> {
        match &self.answer {
            Answer::Offer { server, .. } | Answer::Nak { server, .. } => Some(*server),
            Answer::Ack(grant) => Some(grant.server),
            Answer::Unfit { server, .. } | Answer::Noted { server } => *server,
        }
    }
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This address could be had.
    Offer {
        /// `yiaddr`.
        address: IpAddr,
        /// Option 54.
        server: Server,
        /// The bits of a prefix.
        prefix: Option<u8>,
    },
    /// This address is lent.
    Ack(Grant),
    /// The address asked for is not to be used.
    Nak {
        /// Option 54.
        server: Server,
        /// Option 56, or empty.
        why: String,
    },
    /// What was released or declined is noted (`DHCPv6` alone says so).
    Noted {
        /// Option 2, where it has one.
        server: Option<Server>,
    },
    /// Something of its type's that this client can't use.
    Unfit {
        /// Option 54, where it has one.
        server: Option<Server>,
        /// What is wrong with it.
        flaw: Flaw,
    },
}

/// What makes an answer unfit for use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// An option that RFC 2131 table 3 requires is absent or has the wrong length; of `DHCPv6` those that RFC 8415 requires.
    Option {
        /// Its number.
        code: u8,
        /// Its name in RFC 2132, or RFC 8415.
        name: &'static str,
    },
    /// No address, or prefix, of the kind asked for is left (`DHCPv6`'s status `NoAddrsAvail`, `NoPrefixAvail`).
    NoAddress,
    /// A status of `DHCPv6` that says nothing of the address asked for (`UnspecFail`, `UseMulticast`).
    Status {
        /// Its number.
        code: u16,
        /// Its name in RFC 8415 section 21.13.
        name: &'static str,
    },
    /// An address no host can have was offered or granted.
    Address(IpAddr),
    /// A prefix of so many bits, which none has that is delegated to a node.
    Prefix(u8),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option { code, name } => write!(f, "option {code} ({name}) is absent or malformed"),
            Self::NoAddress => f.write_str("no address is left"),
            Self::Status { code, name } => write!(f, "it has status {code} ({name}) and no address"),
            Self::Address(address) => write!(f, "{address} is no host's address"),
            Self::Prefix(bits) => {
                write!(f, "a prefix of {bits} bits is delegated: expected {} to {}", PREFIXES.start(), PREFIXES.end())
            }
        }
    }
}

/// The terms of an ACK; times in seconds from the REQUEST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// `yiaddr`.
    pub address: IpAddr,
    /// Option 54.
    pub server: Server,
    /// Option 51; `u32::MAX` is for ever (RFC 2131 section 3.3).
    pub lease: u32,
    /// Option 58.
    pub t1: Option<u32>,
    /// Option 59.
    pub t2: Option<u32>,
    /// The link's routers and name servers (options 3 and 6).
    pub infrastructure: Vec<IpAddr>,
    /// The bits of a prefix, whose network the address is; none: an address is lent.
    pub prefix: Option<u8>,
}
