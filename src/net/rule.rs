//! Routing rules (`ip rule`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::IpProtocol;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};

use super::{PROTOCOL, Request, Result, Socket};

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
    /// `from SOURCE/32`.
    Source(Ipv4Addr),
    /// `iif lo from 0.0.0.0/32 ipproto udp sport PORT`: what a local UDP socket on that port sends while its source isn't
    /// chosen yet. The route found becomes the one to choose it (`src`).
    UnboundUdp(u16),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.selector {
            Selector::Source(source) => write!(f, "from {source}")?,
            Selector::UnboundUdp(port) => write!(f, "iif {LOOPBACK} from 0.0.0.0/32 ipproto udp sport {port}")?,
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

/// The namespace's IPv4 rules of protocol 118.
pub fn list(socket: &Socket) -> Result<Vec<Rule>> {
    let mut query = RuleMessage::default();
    query.header.family = AddressFamily::Inet;
    // The kernel has no filter for rules.
    socket.dump(("list", "rules"), &Message::GetRule(query), |_, payload| decode(payload))
}

pub(super) fn decode(payload: &[u8]) -> Option<Rule> {
    read(&RuleMessage::parse(payload).ok()?)
}

fn message(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.src_len = 32;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Table(rule.table),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    message.attributes.extend(match rule.selector {
        Selector::Source(source) => vec![RuleAttribute::Source(source.into())],
        Selector::UnboundUdp(port) => vec![
            RuleAttribute::Source(Ipv4Addr::UNSPECIFIED.into()),
            RuleAttribute::Iifname(LOOPBACK.to_owned()),
            RuleAttribute::IpProtocol(IpProtocol::Udp),
            RuleAttribute::SourcePortRange(RulePortRange { start: port, end: port }),
        ],
    });
    message
}

/// `None`: not a rule we would make.
fn read(message: &RuleMessage) -> Option<Rule> {
    let (mut table, mut priority, mut ours) = (u32::from(message.header.table), 0, false);
    let (mut source, mut from_here, mut udp, mut port) = (None, false, false, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(IpAddr::V4(address)) => source = Some(*address),
            RuleAttribute::Iifname(name) => from_here = name == LOOPBACK,
            RuleAttribute::IpProtocol(protocol) => udp = *protocol == IpProtocol::Udp,
            RuleAttribute::SourcePortRange(range) => port = (range.start == range.end).then_some(range.start),
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            _ => {}
        }
    }
    let selector = match (source?, from_here, udp, port) {
        (Ipv4Addr::UNSPECIFIED, true, true, Some(port)) => Selector::UnboundUdp(port),
        (Ipv4Addr::UNSPECIFIED, ..) => return None,
        (source, ..) => Selector::Source(source),
    };
    (ours && message.header.src_len == 32).then_some(Rule { selector, table, priority })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        for selector in [Selector::Source([10, 118, 0, 7].into()), Selector::UnboundUdp(53)] {
            let rule = Rule { selector, table: 1180, priority: 118 };
            assert_eq!(read(&message(rule)), Some(rule));
        }
    }

    #[test]
    fn what_we_would_not_make_is_not_ours() {
        let rule = Rule { selector: Selector::UnboundUdp(53), table: 1180, priority: 118 };
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
