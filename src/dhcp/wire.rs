//! DHCP messages: what this client sends, and what it reads out of the answers.

use std::fmt;
use std::net::Ipv4Addr;

use dhcproto::v4::relay::{RelayAgentInformation, RelayInfo};
use dhcproto::v4::{self, DhcpOption, Encodable, Encoder, Flags, MessageType, OptionCode, borrowed};

use super::Identity;

/// The largest message that servers may send (option 57): the least any client must take, and never a
/// fragment. It counts the IP and UDP headers (RFC 2132 section 9.10).
const MAX_MESSAGE: u16 = 576;

/// BOOTP's message size without IP and UDP headers; some relays drop what is shorter (RFC 1542 section 2.1).
const MIN_MESSAGE: usize = 300;

/// The length of `chaddr` on Ethernet.
const MAC: u8 = 6;

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
    Encode(#[source] v4::EncodeError),
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
}

/// What a message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any address, or a certain one. No option 50 where none is wished for: servers honour that above the lease the identity has.
    Discover {
        /// Option 50.
        wish: Option<Ipv4Addr>,
    },
    /// REQUEST in the SELECTING state: the address a server offered.
    Select {
        /// Option 50.
        address: Ipv4Addr,
        /// Option 54.
        server: Ipv4Addr,
    },
    /// REQUEST in the INIT-REBOOT form: this address again, from whichever server.
    Reboot {
        /// Option 50.
        address: Ipv4Addr,
    },
    /// REQUEST in the REBINDING form: this address for longer, from whichever server. Kea grants it after it has lost its
    /// leases, where it refuses an INIT-REBOOT.
    Rebind {
        /// `ciaddr`.
        address: Ipv4Addr,
    },
    /// The address is no longer used.
    Release {
        /// `ciaddr`.
        address: Ipv4Addr,
        /// Option 54.
        server: Ipv4Addr,
    },
    /// Another host has the address granted.
    Decline {
        /// Option 50.
        address: Ipv4Addr,
        /// Option 54.
        server: Ipv4Addr,
    },
}

/// The relay agent that this client acts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayAgent {
    /// Where answers go.
    pub giaddr: Ipv4Addr,
    /// The subnet to choose addresses from (RFC 3527 and RFC 3011 both: servers differ in what they read).
    pub subnet: Ipv4Addr,
}

/// An answer of a server, with all that its type requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The transaction it answers.
    pub xid: u32,
    /// The hardware address it answers.
    pub chaddr: [u8; 6],
    /// Option 61 where the server echoes it (RFC 6842).
    pub client_id: Option<Vec<u8>>,
    /// What it says.
    pub answer: Answer,
}

impl Reply {
    /// The server that says it (option 54), where it says who it is.
    pub fn server(&self) -> Option<Ipv4Addr> {
        match &self.answer {
            Answer::Offer { server, .. } | Answer::Nak { server, .. } => Some(*server),
            Answer::Ack(grant) => Some(grant.server),
            Answer::Unfit { server, .. } => *server,
        }
    }
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This address could be had.
    Offer {
        /// `yiaddr`.
        address: Ipv4Addr,
        /// Option 54.
        server: Ipv4Addr,
    },
    /// This address is lent.
    Ack(Grant),
    /// The address asked for is not to be used.
    Nak {
        /// Option 54.
        server: Ipv4Addr,
        /// Option 56, or empty.
        why: String,
    },
    /// Something of its type's that this client can't use.
    Unfit {
        /// Option 54, where it has one.
        server: Option<Ipv4Addr>,
        /// What is wrong with it.
        flaw: Flaw,
    },
}

/// What makes an answer unfit for use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// An option that RFC 2131 table 3 requires is absent or has the wrong length.
    Option {
        /// Its number.
        code: u8,
        /// Its name in RFC 2132.
        name: &'static str,
    },
    /// An address no host can have was offered or granted.
    Address(Ipv4Addr),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option { code, name } => write!(f, "option {code} ({name}) is absent or malformed"),
            Self::Address(address) => write!(f, "{address} is no host's address"),
        }
    }
}

/// The terms of an ACK; times in seconds from the REQUEST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// `yiaddr`.
    pub address: Ipv4Addr,
    /// Option 54.
    pub server: Ipv4Addr,
    /// Option 51; `u32::MAX` is for ever (RFC 2131 section 3.3).
    pub lease: u32,
    /// Option 58.
    pub t1: Option<u32>,
    /// Option 59.
    pub t2: Option<u32>,
    /// The link's routers and name servers (options 3 and 6).
    pub infrastructure: Vec<Ipv4Addr>,
}

/// The bytes of a message, without IP and UDP headers.
pub fn encode(message: &Message, identity: &Identity, relay: Option<&RelayAgent>) -> Result<Vec<u8>, WireError> {
    let mut head = v4::Message::default();
    head.set_xid(message.xid).set_secs(message.secs).set_chaddr(&identity.chaddr);
    // For DECLINE as for the rest: servers answer nothing to it, and relays pass it either way.
    head.set_flags(Flags::default().set_broadcast());
    if let Kind::Rebind { address } | Kind::Release { address, .. } = message.kind {
        head.set_ciaddr(address);
    }
    if let Some(relay) = relay {
        head.set_giaddr(relay.giaddr).set_hops(1);
    }
    // Sorted by number, but option 82 last, as RFC 3046 section 2.1 wants it: dhcproto sees to that.
    *head.opts_mut() = options(message.kind, identity, relay).into_iter().collect();
    let mut bytes = Vec::with_capacity(MIN_MESSAGE);
    head.encode(&mut Encoder::new(&mut bytes)).map_err(WireError::Encode)?;
    bytes.resize(bytes.len().max(MIN_MESSAGE), 0);
    Ok(bytes)
}

/// The options of a message (RFC 2131 table 5).
fn options(kind: Kind, identity: &Identity, relay: Option<&RelayAgent>) -> Vec<DhcpOption> {
    let (name, address, server) = match kind {
        Kind::Discover { wish } => (MessageType::Discover, wish, None),
        Kind::Select { address, server } => (MessageType::Request, Some(address), Some(server)),
        Kind::Reboot { address } => (MessageType::Request, Some(address), None),
        Kind::Rebind { .. } => (MessageType::Request, None, None),
        Kind::Release { server, .. } => (MessageType::Release, None, Some(server)),
        Kind::Decline { address, server } => (MessageType::Decline, Some(address), Some(server)),
    };
    let mut options = vec![DhcpOption::MessageType(name)];
    options.extend(address.map(DhcpOption::RequestedIpAddress));
    options.extend(server.map(DhcpOption::ServerIdentifier));
    options.push(DhcpOption::ClientIdentifier(identity.client_id.clone()));
    match kind {
        Kind::Decline { .. } => options.push(DhcpOption::Message("address in use".to_owned())),
        Kind::Release { .. } => {}
        _ => options.extend(wishes(identity)),
    }
    if let Some(relay) = relay {
        let mut agent = RelayAgentInformation::default();
        agent.insert(RelayInfo::LinkSelection(relay.subnet));
        options.push(DhcpOption::SubnetSelection(relay.subnet));
        options.push(DhcpOption::RelayAgentInformation(agent));
    }
    options
}

/// The options that DECLINE and RELEASE must not carry and all else does: a server forgets the name of a client whose REQUEST
/// lacks it.
fn wishes(identity: &Identity) -> Vec<DhcpOption> {
    let wanted = vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::DomainNameServer,
        OptionCode::DomainName,
        OptionCode::AddressLeaseTime,
        OptionCode::ServerIdentifier,
        OptionCode::Renewal,
        OptionCode::Rebinding,
    ];
    let mut options = Vec::new();
    if !identity.hostname.is_empty() {
        options.push(DhcpOption::Hostname(identity.hostname.clone()));
    }
    options.push(DhcpOption::ParameterRequestList(wanted));
    options.push(DhcpOption::MaxMessageSize(MAX_MESSAGE));
    options
}

/// The options a reply is read for, as they came.
#[derive(Default)]
struct Raw {
    kind: Option<u8>,
    server: Option<Ipv4Addr>,
    lease: Option<u32>,
    t1: Option<u32>,
    t2: Option<u32>,
    client_id: Option<Vec<u8>>,
    infrastructure: Vec<Ipv4Addr>,
    why: String,
}

impl Raw {
    /// Reads each option on its own, so that a malformed one that doesn't matter costs nothing. Options in `sname`
    /// and `file` (overload, option 52) are not read: nothing asked for needs that room.
    fn read(message: &borrowed::Message<'_>) -> Self {
        let mut raw = Self::default();
        for option in message.opts() {
            let data = option.data();
            let number = || <[u8; 4]>::try_from(data).ok().map(u32::from_be_bytes);
            match option.code() {
                OptionCode::MessageType => raw.kind = data.first().copied(),
                OptionCode::ServerIdentifier => raw.server = number().map(Ipv4Addr::from),
                OptionCode::AddressLeaseTime => raw.lease = number(),
                OptionCode::Renewal => raw.t1 = number(),
                OptionCode::Rebinding => raw.t2 = number(),
                OptionCode::ClientIdentifier => raw.client_id = Some(data.to_vec()),
                OptionCode::Router | OptionCode::DomainNameServer => raw.infrastructure.extend(addresses(data)),
                OptionCode::Message => raw.why = String::from_utf8_lossy(data).into_owned(),
                _ => {}
            }
        }
        raw
    }

    fn answer(self, yiaddr: Ipv4Addr) -> Result<Answer, WireError> {
        let kind = self.kind.ok_or(WireError::Not("a DHCP message"))?;
        let server = self.server;
        let read = match kind {
            _ if kind == u8::from(MessageType::Nak) => self.nak(),
            _ if kind == u8::from(MessageType::Offer) => self.offer(yiaddr),
            _ if kind == u8::from(MessageType::Ack) => self.ack(yiaddr),
            _ => return Err(WireError::Not("an OFFER, ACK or NAK")),
        };
        Ok(read.unwrap_or_else(|flaw| Answer::Unfit { server, flaw }))
    }

    fn server(&self) -> Result<Ipv4Addr, Flaw> {
        self.server.ok_or(Flaw::Option { code: 54, name: "server identifier" })
    }

    fn nak(self) -> Result<Answer, Flaw> {
        Ok(Answer::Nak { server: self.server()?, why: self.why })
    }

    fn offer(self, yiaddr: Ipv4Addr) -> Result<Answer, Flaw> {
        Ok(Answer::Offer { address: host(yiaddr)?, server: self.server()? })
    }

    fn ack(self, yiaddr: Ipv4Addr) -> Result<Answer, Flaw> {
        let server = self.server()?;
        let lease = self.lease.filter(|&seconds| seconds > 0);
        let lease = lease.ok_or(Flaw::Option { code: 51, name: "lease time" })?;
        let Self { t1, t2, infrastructure, .. } = self;
        Ok(Answer::Ack(Grant { address: host(yiaddr)?, server, lease, t1, t2, infrastructure }))
    }
}

/// The addresses an option's value is a list of.
fn addresses(data: &[u8]) -> impl Iterator<Item = Ipv4Addr> {
    data.as_chunks::<4>().0.iter().copied().map(Ipv4Addr::from)
}

/// Reads a server's message, from its first octet on (without IP and UDP headers). Never panics.
pub fn parse(bytes: &[u8]) -> Result<Reply, WireError> {
    let message = borrowed::Message::new(bytes).map_err(|_| WireError::Short("DHCP header"))?;
    if message.opcode() != v4::Opcode::BootReply {
        return Err(WireError::Not("a BOOTREPLY"));
    }
    // Before chaddr(), which trusts the length it is given.
    if message.hlen() != MAC {
        return Err(WireError::Not("for an Ethernet client"));
    }
    let chaddr = message.chaddr().try_into().map_err(|_| WireError::Short("chaddr"))?;
    let mut raw = Raw::read(&message);
    Ok(Reply { xid: message.xid(), chaddr, client_id: raw.client_id.take(), answer: raw.answer(message.yiaddr())? })
}

/// `address`, unless no single host can have it.
fn host(address: Ipv4Addr) -> Result<Ipv4Addr, Flaw> {
    let [first, ..] = address.octets();
    if first == 0 || first == 127 || first >= 224 {
        return Err(Flaw::Address(address));
    }
    Ok(address)
}

#[cfg(test)]
mod tests;
