//! `DHCPv6` messages (RFC 8415): what this client sends, and what it reads out of the answers.

use std::net::{IpAddr, Ipv6Addr};

use dhcproto::v6::{
    self, DhcpOption, Encodable, Encoder, IAAddr, IANA, IAPD, IAPrefix, MessageType, ORO, OptionCode, UnknownOption,
};

use crate::model::address::is_unicast;

use super::Server;
use super::identity::{Client, Identity};
use super::message::{Answer, Flaw, Grant, Kind, Message, PREFIXES, RelayAgent, Reply, WireError, XID6};

/// Options that are read, or written by hand.
const CLIENT: u16 = 1;
const SERVER: u16 = 2;
const IA_NA: u16 = 3;
const IAADDR: u16 = 5;
const RELAYED: u16 = 9;
const STATUS: u16 = 13;
const NAME_SERVERS: u16 = 23;
const IA_PD: u16 = 25;
const IAPREFIX: u16 = 26;
/// RFC 4704.
const FQDN: u16 = 39;

/// Messages.
const ADVERTISE: u8 = 2;
const REPLY: u8 = 7;
const RELAY_FORW: u8 = 12;
const RELAY_REPL: u8 = 13;
/// Bytes of a relay's message up to its options.
const RELAY_HEADER: usize = 34;

/// Status `NoAddrsAvail`.
const NO_ADDRESS: u16 = 2;
/// `NoBinding`.
const NO_BINDING: u16 = 3;
/// `NotOnLink`.
const NOT_ON_LINK: u16 = 4;
/// `NoPrefixAvail`.
const NO_PREFIX: u16 = 6;
/// What says that the address asked for can't be had. Another status says nothing of it: the server couldn't answer, or not so (RFC 8415
/// section 18.2.10).
const REFUSALS: [u16; 4] = [NO_ADDRESS, NO_BINDING, NOT_ON_LINK, NO_PREFIX];

/// The bytes of a message, without IP and UDP headers.
pub fn encode(message: &Message, identity: &Identity, relay: Option<&RelayAgent>) -> Result<Vec<u8>, WireError> {
    let (iaid, duid) = identity.in_dhcpv6().ok_or(WireError::Not("an identity with an IAID and a DUID"))?;
    let (kind, address, server) = match message.kind {
        Kind::Discover { wish } => (MessageType::Solicit, wish, None),
        Kind::Select { address, server } => (MessageType::Request, Some(address), Some(server)),
        Kind::Reboot { address } | Kind::Rebind { address } => (MessageType::Rebind, Some(address), None),
        Kind::Release { address, server } => (MessageType::Release, Some(address), Some(server)),
        Kind::Decline { address, server } => (MessageType::Decline, Some(address), Some(server)),
    };
    let mut head = v6::Message::new(kind);
    head.set_xid_num(message.xid & XID6);
    let mut options = vec![
        DhcpOption::ClientId(duid.to_vec()),
        // Hundredths of seconds.
        DhcpOption::ElapsedTime(message.secs.saturating_mul(100)),
        association(iaid, message.prefix, address)?,
    ];
    if let Some(server) = server {
        // One that is remembered by its address alone runs out by itself.
        let name = Some(server.duid()).filter(|name| !name.is_empty());
        options.push(DhcpOption::ServerId(name.ok_or(WireError::Not("to a server whose name is known"))?.to_vec()));
    }
    if !matches!(message.kind, Kind::Release { .. } | Kind::Decline { .. }) {
        options.push(DhcpOption::ORO(ORO { opts: vec![OptionCode::DomainNameServers] }));
        options.extend(name(&identity.hostname));
    }
    *head.opts_mut() = options.into_iter().collect();
    let mut bytes = Vec::new();
    head.encode(&mut Encoder::new(&mut bytes)).map_err(WireError::Encode)?;
    relay.map_or(Ok(bytes.clone()), |relay| relayed(relay, &bytes))
}

/// An IA, and the address in it that is asked for, or the prefix of so many bits; its lifetimes are the server's to say. Without a prefix the
/// number of bits is a hint (RFC 8415 section 18.2.4).
fn association(id: u32, prefix: Option<u8>, address: Option<IpAddr>) -> Result<DhcpOption, WireError> {
    let wanted = address.map(v6_of).transpose()?;
    let nothing = || std::iter::empty().collect();
    Ok(match prefix {
        None => {
            let option = |addr| IAAddr { addr, preferred_life: 0, valid_life: 0, opts: nothing() };
            let opts = wanted.map(option).map(DhcpOption::IAAddr).into_iter().collect();
            DhcpOption::IANA(IANA { id, t1: 0, t2: 0, opts })
        }
        Some(prefix_len) => {
            let prefix_ip = wanted.unwrap_or(Ipv6Addr::UNSPECIFIED);
            let option = IAPrefix { preferred_lifetime: 0, valid_lifetime: 0, prefix_len, prefix_ip, opts: nothing() };
            let opts = std::iter::once(DhcpOption::IAPrefix(option)).collect();
            DhcpOption::IAPD(IAPD { id, t1: 0, t2: 0, opts })
        }
    })
}

/// A name that the server may enter in its list of leases, without its domain (RFC 4704 section 4.2).
fn name(label: &str) -> Option<DhcpOption> {
    let length = u8::try_from(label.len()).ok().filter(|length| *length > 0)?;
    let data = [&[0, length], label.as_bytes()].concat();
    Some(DhcpOption::Unknown(UnknownOption::new(OptionCode::from(FQDN), data)))
}

/// In a relay agent's message (RFC 8415 section 19.1.1), whose peer is the agent itself.
fn relayed(relay: &RelayAgent, message: &[u8]) -> Result<Vec<u8>, WireError> {
    let length = u16::try_from(message.len()).map_err(|_| WireError::Not("a message that fits an option"))?;
    let mut bytes = vec![RELAY_FORW, 0];
    bytes.extend(v6_of(relay.subnet)?.octets());
    bytes.extend(v6_of(relay.giaddr)?.octets());
    bytes.extend(RELAYED.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(message);
    Ok(bytes)
}

/// What a message of IPv6's has room for.
fn v6_of(address: IpAddr) -> Result<Ipv6Addr, WireError> {
    match address {
        IpAddr::V6(address) => Ok(address),
        IpAddr::V4(_) => Err(WireError::Not("an IPv6 address")),
    }
}

/// The options of a message, or of an option, one after the other. One that is cut short is an error: what is behind it isn't known.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Result<(u16, &'a [u8]), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let read = || {
            let (head, rest) = bytes.split_first_chunk::<4>()?;
            let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([head[2], head[3]])))?;
            Some((u16::from_be_bytes([head[0], head[1]]), value, rest))
        };
        let Some((code, value, rest)) = read() else { return Some(Err(WireError::Short("options"))) };
        self.0 = rest;
        Some(Ok((code, value)))
    }
}

/// An address, or the network of a prefix, and how many seconds it may be used.
#[derive(Clone, Copy)]
struct Lent {
    address: Ipv6Addr,
    /// The bits of a prefix.
    prefix: Option<u8>,
    valid: u32,
}

impl Lent {
    /// Its address, or network, unless it is of no use.
    fn usable(self) -> Result<IpAddr, Flaw> {
        let address = host(self.address)?;
        match self.prefix {
            Some(bits) if !PREFIXES.contains(&bits) => Err(Flaw::Prefix(bits)),
            Some(bits) if !is_network(self.address, bits) => Err(Flaw::Address(address)),
            _ => Ok(address),
        }
    }
}

/// Whether an address is that of a network of so many bits.
fn is_network(address: Ipv6Addr, bits: u8) -> bool {
    address.to_bits().checked_shl(bits.into()).is_none_or(|host| host == 0)
}

/// An `IA_NA` or `IA_PD` of an answer.
#[derive(Default)]
struct Association {
    t1: u32,
    t2: u32,
    addresses: Vec<Lent>,
    status: Option<(u16, String)>,
}

impl Association {
    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let (head, rest) = bytes.split_first_chunk::<12>().ok_or(WireError::Short("IA_NA or IA_PD"))?;
        let mut read = Self { t1: number(&head[4..8]), t2: number(&head[8..12]), ..Self::default() };
        for option in Options(rest) {
            match option? {
                (IAADDR, value) => {
                    let (head, _) = value.split_first_chunk::<24>().ok_or(WireError::Short("IAADDR"))?;
                    let (address, _) = head.split_first_chunk::<16>().ok_or(WireError::Short("IAADDR"))?;
                    let valid = number(&head[20..24]);
                    read.addresses.push(Lent { address: (*address).into(), prefix: None, valid });
                }
                (IAPREFIX, value) => {
                    let (head, _) = value.split_first_chunk::<25>().ok_or(WireError::Short("IAPREFIX"))?;
                    let (_, address) = head.split_last_chunk::<16>().ok_or(WireError::Short("IAPREFIX"))?;
                    let (prefix, valid) = (Some(head[8]), number(&head[4..8]));
                    read.addresses.push(Lent { address: (*address).into(), prefix, valid });
                }
                (STATUS, value) => read.status = Some(status(value)?),
                _ => {}
            }
        }
        Ok(read)
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn status(value: &[u8]) -> Result<(u16, String), WireError> {
    let (code, text) = value.split_first_chunk::<2>().ok_or(WireError::Short("status code"))?;
    Ok((u16::from_be_bytes(*code), String::from_utf8_lossy(text).into_owned()))
}

/// What a reply is read for.
#[derive(Default)]
struct Raw {
    client: Option<Vec<u8>>,
    server: Option<Server>,
    association: Option<Association>,
    status: Option<(u16, String)>,
    infrastructure: Vec<IpAddr>,
}

impl Raw {
    fn read(options: &[u8], from: IpAddr) -> Result<Self, WireError> {
        let mut raw = Self::default();
        for option in Options(options) {
            match option? {
                (CLIENT, value) => raw.client = Some(value.to_vec()),
                (SERVER, value) => raw.server = Server::called(value, from),
                (IA_NA | IA_PD, value) => raw.association = Some(Association::read(value)?),
                (STATUS, value) => raw.status = Some(status(value)?),
                (NAME_SERVERS, value) => {
                    let all = value.as_chunks::<16>().0.iter();
                    raw.infrastructure.extend(all.map(|bytes| IpAddr::V6((*bytes).into())));
                }
                _ => {}
            }
        }
        Ok(raw)
    }

    /// The status that counts: an IA's own before the message's. Success is none.
    fn failure(&self) -> Option<(u16, String)> {
        let own = self.association.as_ref().and_then(|association| association.status.clone());
        own.or_else(|| self.status.clone()).filter(|(code, _)| *code != 0)
    }

    fn server(&self) -> Result<Server, Flaw> {
        self.server.ok_or(Flaw::Option { code: 2, name: "server identifier" })
    }

    /// The address lent, the first that may be used.
    fn lent(&self) -> Option<Lent> {
        self.association.as_ref()?.addresses.iter().find(|lent| lent.valid > 0).copied()
    }

    fn advertise(&self) -> Result<Answer, Flaw> {
        let server = self.server()?;
        match (self.lent(), self.failure()) {
            (Some(lent), _) => Ok(Answer::Offer { address: lent.usable()?, server, prefix: lent.prefix }),
            (None, Some((NO_ADDRESS | NO_PREFIX, _)) | None) => Err(Flaw::NoAddress),
            (None, Some((code, _))) => Err(Flaw::Status { code, name: status_name(code) }),
        }
    }

    fn reply(&self) -> Result<Answer, Flaw> {
        let server = self.server()?;
        let failure = self.failure();
        match (self.lent(), &self.association) {
            (Some(lent), Some(association)) if failure.is_none() => {
                let time = |seconds: u32| Some(seconds).filter(|seconds| *seconds > 0);
                Ok(Answer::Ack(Grant {
                    address: lent.usable()?,
                    server,
                    lease: lent.valid,
                    t1: time(association.t1),
                    t2: time(association.t2),
                    infrastructure: self.infrastructure.clone(),
                    prefix: lent.prefix,
                }))
            }
            (_, None) if failure.is_none() => Ok(Answer::Noted { server: Some(server) }),
            (..) => match failure {
                None => Ok(Answer::Nak { server, why: "its lifetime is over".to_owned() }),
                Some((code, text)) if REFUSALS.contains(&code) => Ok(Answer::Nak { server, why: said(code, &text) }),
                Some((code, _)) => Err(Flaw::Status { code, name: status_name(code) }),
            },
        }
    }
}

/// A status' name in RFC 8415 section 21.13.
const fn status_name(code: u16) -> &'static str {
    match code {
        1 => "UnspecFail",
        NO_ADDRESS => "NoAddrsAvail",
        NO_BINDING => "NoBinding",
        NOT_ON_LINK => "NotOnLink",
        5 => "UseMulticast",
        NO_PREFIX => "NoPrefixAvail",
        _ => "not known",
    }
}

/// `NoBinding: no addresses`
fn said(code: u16, text: &str) -> String {
    let name = status_name(code);
    if text.is_empty() { name.to_owned() } else { format!("{name}: {text}") }
}

/// Reads a message of the server at `from`, from its first octet on. Never panics.
pub fn parse(bytes: &[u8], from: IpAddr) -> Result<Reply, WireError> {
    let (head, options) = bytes.split_first_chunk::<4>().ok_or(WireError::Short("DHCPv6 header"))?;
    let raw = Raw::read(options, from)?;
    let read = match head[0] {
        ADVERTISE => raw.advertise(),
        REPLY => raw.reply(),
        _ => return Err(WireError::Not("an ADVERTISE or REPLY")),
    };
    let answer = read.unwrap_or_else(|flaw| Answer::Unfit { server: raw.server, flaw });
    let client = Client::Duid(raw.client.ok_or(WireError::Not("for a client that is named"))?);
    Ok(Reply { xid: u32::from_be_bytes([0, head[1], head[2], head[3]]), client, client_id: None, answer })
}

/// The same of a message to the relay agent that this client acts as.
pub fn parse_relayed(bytes: &[u8], from: IpAddr) -> Result<Reply, WireError> {
    let (head, options) = bytes.split_at_checked(RELAY_HEADER).ok_or(WireError::Short("relay header"))?;
    if head[0] != RELAY_REPL {
        return Err(WireError::Not("a RELAY-REPL"));
    }
    for option in Options(options) {
        if let (RELAYED, message) = option? {
            return parse(message, from);
        }
    }
    Err(WireError::Not("a message within a message"))
}

/// `address`, unless no single host can have it.
fn host(address: Ipv6Addr) -> Result<IpAddr, Flaw> {
    let address = IpAddr::V6(address);
    if is_unicast(address) { Ok(address) } else { Err(Flaw::Address(address)) }
}

#[cfg(test)]
mod tests;
