//! Routing rules (`ip rule`).

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{PROTOCOL, Request, Result, Socket};

/// A rule of ours: `from SOURCE lookup TABLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// `from SOURCE/32`.
    pub source: Ipv4Addr,
    /// `lookup TABLE`.
    pub table: u32,
    /// `pref PRIORITY`: lower ones are asked first.
    pub priority: u32,
}

/// `ip rule add from SOURCE lookup TABLE pref PRIORITY protocol 118`.
pub fn add(rule: Rule) -> Request {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Request::new("add rule", shown(rule), flags, &Message::NewRule(message(rule)))
}

/// `ip rule del …`, as [`add`].
pub fn del(rule: Rule) -> Request {
    Request::new("delete rule", shown(rule), 0, &Message::DelRule(message(rule))).absent_is_ok()
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

fn shown(rule: Rule) -> String {
    format!("from {} lookup {}", rule.source, rule.table)
}

fn message(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.src_len = 32;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(IpAddr::V4(rule.source)),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    message
}

fn read(message: &RuleMessage) -> Option<Rule> {
    let mut rule = Rule { source: Ipv4Addr::UNSPECIFIED, table: u32::from(message.header.table), priority: 0 };
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(IpAddr::V4(source)) => rule.source = *source,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            _ => {}
        }
    }
    (ours && message.header.src_len == 32).then_some(rule)
}
