//! DHCP messages for IPv4: what this client sends, and what it reads out of the answers.

use std::net::{IpAddr, Ipv4Addr};

use dhcproto::v4::relay::{RelayAgentInformation, RelayInfo};
use dhcproto::v4::{self, DhcpOption, Encodable, Encoder, Flags, MessageType, OptionCode, borrowed};

use crate::model::address::ipv4;

use super::Server;
use super::identity::{Client, Identity};
use super::message::{Answer, Flaw, Grant, Kind, Message, RelayAgent, Reply, WireError};

/// The largest message that servers may send (option 57): the least any client must take, and never a
/// fragment. It counts the IP and UDP headers (RFC 2132 section 9.10).
const MAX_MESSAGE: u16 = 576;

/// BOOTP's message size without IP and UDP headers; some relays drop what is shorter (RFC 1542 section 2.1).
const MIN_MESSAGE: usize = 300;

/// The length of `chaddr` on Ethernet.
const MAC: u8 = 6;

/// The bytes of a message, without IP and UDP headers.
pub fn encode(message: &Message, identity: &Identity, relay: Option<&RelayAgent>) -> Result<Vec<u8>, WireError> {
    let mut head = v4::Message::default();
    head.set_xid(message.xid).set_secs(message.secs).set_chaddr(&identity.chaddr);
    // For DECLINE as for the rest: servers answer nothing to it, and relays pass it either way.
    head.set_flags(Flags::default().set_broadcast());
    if let Kind::Rebind { address } | Kind::Release { address, .. } = message.kind {
        head.set_ciaddr(v4_of(address)?);
    }
    if let Some(relay) = relay {
        head.set_giaddr(v4_of(relay.giaddr)?).set_hops(1);
    }
    // Sorted by number, but option 82 last, as RFC 3046 section 2.1 wants it: dhcproto sees to that.
    *head.opts_mut() = options(message.kind, identity, relay)?.into_iter().collect();
    let mut bytes = Vec::with_capacity(MIN_MESSAGE);
    head.encode(&mut Encoder::new(&mut bytes)).map_err(WireError::Encode)?;
    bytes.resize(bytes.len().max(MIN_MESSAGE), 0);
    Ok(bytes)
}

/// The options of a message (RFC 2131 table 5).
fn options(kind: Kind, identity: &Identity, relay: Option<&RelayAgent>) -> Result<Vec<DhcpOption>, WireError> {
    let (name, address, server) = match kind {
        Kind::Discover { wish } => (MessageType::Discover, wish, None),
        Kind::Select { address, server } => (MessageType::Request, Some(address), Some(server)),
        Kind::Reboot { address } => (MessageType::Request, Some(address), None),
        Kind::Rebind { .. } => (MessageType::Request, None, None),
        Kind::Release { server, .. } => (MessageType::Release, None, Some(server)),
        Kind::Decline { address, server } => (MessageType::Decline, Some(address), Some(server)),
    };
    let mut options = vec![DhcpOption::MessageType(name)];
    options.extend(address.map(v4_of).transpose()?.map(DhcpOption::RequestedIpAddress));
    let server = server.map(|server| v4_of(server.address())).transpose()?;
    options.extend(server.map(DhcpOption::ServerIdentifier));
    options.push(DhcpOption::ClientIdentifier(identity.client_id.clone()));
    match kind {
        Kind::Decline { .. } => options.push(DhcpOption::Message("address in use".to_owned())),
        Kind::Release { .. } => {}
        _ => options.extend(wishes(identity)),
    }
    if let Some(relay) = relay {
        let mut agent = RelayAgentInformation::default();
        let subnet = v4_of(relay.subnet)?;
        agent.insert(RelayInfo::LinkSelection(subnet));
        options.push(DhcpOption::SubnetSelection(subnet));
        options.push(DhcpOption::RelayAgentInformation(agent));
    }
    Ok(options)
}

/// What a message of IPv4's has room for.
fn v4_of(address: IpAddr) -> Result<Ipv4Addr, WireError> {
    ipv4(address).ok_or(WireError::Not("an IPv4 address"))
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
    infrastructure: Vec<IpAddr>,
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
                OptionCode::Router | OptionCode::DomainNameServer => {
                    raw.infrastructure.extend(addresses(data).map(IpAddr::V4));
                }
                OptionCode::Message => raw.why = String::from_utf8_lossy(data).into_owned(),
                _ => {}
            }
        }
        raw
    }

    fn answer(self, yiaddr: Ipv4Addr) -> Result<Answer, WireError> {
        let kind = self.kind.ok_or(WireError::Not("a DHCP message"))?;
        let server = self.server.map(|server| Server::at(server.into()));
        let read = match kind {
            _ if kind == u8::from(MessageType::Nak) => self.nak(),
            _ if kind == u8::from(MessageType::Offer) => self.offer(yiaddr),
            _ if kind == u8::from(MessageType::Ack) => self.ack(yiaddr),
            _ => return Err(WireError::Not("an OFFER, ACK or NAK")),
        };
        Ok(read.unwrap_or_else(|flaw| Answer::Unfit { server, flaw }))
    }

    fn server(&self) -> Result<Server, Flaw> {
        self.server.map(|server| Server::at(server.into())).ok_or(Flaw::Option { code: 54, name: "server identifier" })
    }

    fn nak(self) -> Result<Answer, Flaw> {
        Ok(Answer::Nak { server: self.server()?, why: self.why })
    }

    fn offer(self, yiaddr: Ipv4Addr) -> Result<Answer, Flaw> {
        Ok(Answer::Offer { address: host(yiaddr)?, server: self.server()?, prefix: None })
    }

    fn ack(self, yiaddr: Ipv4Addr) -> Result<Answer, Flaw> {
        let server = self.server()?;
        let lease = self.lease.filter(|&seconds| seconds > 0);
        let lease = lease.ok_or(Flaw::Option { code: 51, name: "lease time" })?;
        let Self { t1, t2, infrastructure, .. } = self;
        Ok(Answer::Ack(Grant { address: host(yiaddr)?, server, lease, t1, t2, infrastructure, prefix: None }))
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
    let (client, client_id) = (Client::Mac(chaddr), raw.client_id.take());
    Ok(Reply { xid: message.xid(), client, client_id, answer: raw.answer(message.yiaddr())? })
}

/// `address`, unless no single host can have it.
fn host(address: Ipv4Addr) -> Result<IpAddr, Flaw> {
    let [first, ..] = address.octets();
    if first == 0 || first == 127 || first >= 224 {
        return Err(Flaw::Address(address.into()));
    }
    Ok(address.into())
}

#[cfg(test)]
mod tests;
