//! Routing rules (`ip rule`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::IpProtocol;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};

use crate::model::Family;

use super::{PROTOCOL, Request, Result, Socket, address_family};

/// `iif` of what a namespace sends itself.
const LOOPBACK: &str = "lo";

/// A rule of ours: `SELECTOR lookup TABLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Which packets it speaks of.
    pub selector: Selector,
    /// `lookup TABLE`.
    pub table: u32,
    /// `pref PRIORITY`: lower ones are asked first.
    pub priority: u32,
}

/// Which packets a rule of ours speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// `from SOURCE`, that address alone.
    Source(IpAddr),
    /// `iif lo from 0.0.0.0/32 ipproto udp sport PORT`: what a local UDP socket on that port sends while its source isn't
    /// chosen yet. The route found becomes the one to choose it (`src`). Of IPv6 without the source, which a rule can't name
    /// (`::/128` matches nothing there): what has one is for a rule of a lower priority.
    UnboundUdp(Family, u16),
    /// `iif DEVICE`: what comes in by it.
    Device(Family, Name),
}

/// A device's name, as the kernel has it: with zeros behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name([u8; 16]);

impl Name {
    /// Names are shorter than 16 bytes; what is longer is cut off.
    pub const fn new(name: &str) -> Self {
        let (mut bytes, mut place) = ([0; 16], 0);
        while place < name.len() && place < bytes.len() - 1 {
            bytes[place] = name.as_bytes()[place];
            place += 1;
        }
        Self(bytes)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(String::from_utf8_lossy(&self.0).trim_end_matches('\0'))
    }
}

impl Selector {
    /// The family of the packets it speaks of.
    fn family(self) -> Family {
        match self {
            Self::Source(source) => Family::of(source),
            Self::UnboundUdp(family, _) | Self::Device(family, _) => family,
        }
    }

    /// How much of the source it speaks of.
    fn source_bits(self) -> u8 {
        match self {
            Self::Source(_) | Self::UnboundUdp(Family::V4, _) => self.family().bits(),
            Self::UnboundUdp(Family::V6, _) | Self::Device(..) => 0,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.selector {
            Selector::Source(source) => write!(f, "from {source}")?,
            Selector::UnboundUdp(Family::V4, port) => {
                write!(f, "iif {LOOPBACK} from 0.0.0.0/32 ipproto udp sport {port}")?;
            }
            Selector::UnboundUdp(Family::V6, port) => write!(f, "iif {LOOPBACK} ipproto udp sport {port}")?,
            Selector::Device(_, name) => write!(f, "iif {name}")?,
        }
        write!(f, " lookup {}", self.table)
    }
}

/// `ip rule add SELECTOR lookup TABLE pref PRIORITY protocol 118`.
pub fn add(rule: Rule) -> Request {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Request::new("add rule", rule.to_string(), flags, &Message::NewRule(message(rule)))
}

/// `ip rule del …`, as [`add`].
pub fn del(rule: Rule) -> Request {
    Request::new("delete rule", rule.to_string(), 0, &Message::DelRule(message(rule))).absent_is_ok()
}

/// The namespace's rules of a family and protocol 118.
pub fn list(socket: &Socket, family: Family) -> Result<Vec<Rule>> {
    let mut query = RuleMessage::default();
    query.header.family = address_family(family);
    // The kernel has no filter for rules.
    socket.dump(("list", "rules"), &Message::GetRule(query), |_, payload| {
        decode(payload).filter(|rule| rule.selector.family() == family)
    })
}

/// A rule of the namespace, of any origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnyRule {
    /// `pref PRIORITY`.
    pub priority: u32,
    /// `lookup TABLE`; none: it does something else (`prohibit`, say).
    pub table: Option<u32>,
}

/// All IPv4 rules.
pub fn list_all(socket: &Socket) -> Result<Vec<AnyRule>> {
    let mut query = RuleMessage::default();
    query.header.family = address_family(Family::V4);
    socket.dump(("list", "rules"), &Message::GetRule(query), |_, payload| {
        let message = RuleMessage::parse(payload).ok()?;
        let mut rule = AnyRule { priority: 0, table: Some(message.header.table.into()) };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Table(table) => rule.table = Some(*table),
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                _ => {}
            }
        }
        rule.table = rule.table.filter(|_| message.header.action == RuleAction::ToTable);
        Some(rule)
    })
}

pub(super) fn decode(payload: &[u8]) -> Option<Rule> {
    read(&RuleMessage::parse(payload).ok()?)
}

fn message(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let family = rule.selector.family();
    message.header.family = address_family(family);
    message.header.src_len = rule.selector.source_bits();
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Table(rule.table),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    message.attributes.extend(match rule.selector {
        Selector::Source(source) => vec![RuleAttribute::Source(source)],
        Selector::UnboundUdp(_, port) => {
            let unspecified = RuleAttribute::Source(Ipv4Addr::UNSPECIFIED.into());
            let others = [
                RuleAttribute::Iifname(LOOPBACK.to_owned()),
                RuleAttribute::IpProtocol(IpProtocol::Udp),
                RuleAttribute::SourcePortRange(RulePortRange { start: port, end: port }),
            ];
            Some(unspecified).filter(|_| family == Family::V4).into_iter().chain(others).collect()
        }
        Selector::Device(_, name) => vec![RuleAttribute::Iifname(name.to_string())],
    });
    message
}

/// `None`: not a rule we would make.
fn read(message: &RuleMessage) -> Option<Rule> {
    let (mut table, mut priority, mut ours) = (u32::from(message.header.table), 0, false);
    let (mut source, mut device, mut udp, mut port) = (None, None, false, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(address) => source = Some(*address),
            RuleAttribute::Iifname(name) => device = Some(name.as_str()),
            RuleAttribute::IpProtocol(protocol) => udp = *protocol == IpProtocol::Udp,
            RuleAttribute::SourcePortRange(range) => port = (range.start == range.end).then_some(range.start),
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            _ => {}
        }
    }
    let is_ipv6 = message.header.family == address_family(Family::V6);
    let family = if is_ipv6 { Family::V6 } else { Family::V4 };
    let selector = match (source, device, udp, port) {
        (Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), Some(LOOPBACK), true, Some(port)) => {
            Selector::UnboundUdp(family, port)
        }
        (None, Some(LOOPBACK), true, Some(port)) if is_ipv6 => Selector::UnboundUdp(family, port),
        (Some(source), ..) if source.is_unspecified() => return None,
        (Some(source), ..) => Selector::Source(source),
        (None, Some(device), false, None) => Selector::Device(family, Name::new(device)),
        (None, ..) => return None,
    };
    (ours && message.header.src_len == selector.source_bits()).then_some(Rule { selector, table, priority })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        for selector in [
            Selector::Source([10, 118, 0, 7].into()),
            Selector::Source("2001:db8::7".parse().unwrap()),
            Selector::UnboundUdp(Family::V4, 53),
            Selector::UnboundUdp(Family::V6, 53),
            Selector::Device(Family::V4, Name::new("tunnel0")),
            Selector::Device(Family::V6, Name::new("vip0")),
        ] {
            let rule = Rule { selector, table: 1180, priority: 118 };
            assert_eq!(read(&message(rule)), Some(rule));
        }
    }

    #[test]
    fn what_we_would_not_make_is_not_ours() {
        let rule = Rule { selector: Selector::UnboundUdp(Family::V4, 53), table: 1180, priority: 118 };
        for missing in [
            |a: &RuleAttribute| matches!(a, RuleAttribute::Iifname(_)),
            |a: &RuleAttribute| matches!(a, RuleAttribute::IpProtocol(_)),
            |a: &RuleAttribute| matches!(a, RuleAttribute::SourcePortRange(_)),
            |a: &RuleAttribute| matches!(a, RuleAttribute::Protocol(_)),
        ] {
            let mut other = message(rule);
            other.attributes.retain(|attribute| !missing(attribute));
            assert_eq!(read(&other), None, "{other:?}");
        }
    }
}
