//! What the kernel does with a packet (`ip route get`).

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::Parseable;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteType};
use nix::errno::Errno;

use crate::model::Family;
use crate::net::{Result, Socket, address_family};

use super::decode::{decode, read, read_hops};
use super::{DEFAULT, DEFAULT6, Filter, Hop, Kind, MAIN, Route, host, list};

/// The way a packet takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// `via` and `dev`.
    pub hop: Hop,
    /// `src`.
    pub source: Option<IpAddr>,
}

/// The default route of IPv4 in table main with the lowest metric among those that lead somewhere; its first hop.
pub fn default_way(socket: &Socket) -> Result<Option<Way>> {
    default_way_of(socket, Family::V4)
}

/// The same of a family.
pub fn default_way_of(socket: &Socket, family: Family) -> Result<Option<Way>> {
    let prefix = match family {
        Family::V4 => DEFAULT,
        Family::V6 => DEFAULT6,
    };
    let filter = Filter { family, table: Some(MAIN), prefix: Some(prefix), ..Filter::default() };
    Ok(best_way(&list(socket, filter)?))
}

/// The default route of IPv4; where there is none, that of IPv6.
pub fn first_default_way(socket: &Socket) -> Result<Option<Way>> {
    for family in Family::ALL {
        if let Some(way) = default_way_of(socket, family)? {
            return Ok(Some(way));
        }
    }
    Ok(None)
}

/// That of IPv4, asked for by a packet that no other route is likely to be for: the dump of a table has each of a VIP's thousand next
/// hops in it. Where another route is for it, or another table, the table is dumped.
pub fn default_way_by_packet(socket: &Socket) -> Result<Option<Way>> {
    let mut query = query(Packet::to(RESERVED));
    query.header.flags = RouteFlags::FibMatch;
    let found = socket.get(("get route", RESERVED), &Message::GetRoute(query), |_, payload| decode(payload));
    let is_default = |route: &Route| route.table == MAIN && route.prefix == DEFAULT;
    match found.ok().flatten().filter(is_default).and_then(|route| best_way(&[route])) {
        Some(way) => Ok(Some(way)),
        None => default_way(socket),
    }
}

/// Of the block 240.0.0.0/4, which is in no use (RFC 1112).
const RESERVED: IpAddr = IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1));

/// A packet whose way is to be found.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Its destination.
    pub to: IpAddr,
    /// Its source, where it is chosen already.
    pub from: Option<IpAddr>,
    /// The device it comes in by; `None`: it is made here.
    pub input: Option<u32>,
    /// IP protocol, source port, destination port.
    pub ports: Option<(u8, u16, u16)>,
}

impl Packet {
    /// A first packet from here to there.
    pub fn to(to: IpAddr) -> Self {
        Self { to, from: None, input: None, ports: None }
    }
}

fn query(packet: Packet) -> RouteMessage {
    let mut query = RouteMessage::default();
    let family = Family::of(packet.to);
    query.header.address_family = address_family(family);
    query.header.destination_prefix_length = family.bits();
    query.attributes.push(RouteAttribute::Destination(packet.to.into()));
    if let Some(from) = packet.from {
        query.header.source_prefix_length = family.bits();
        query.attributes.push(RouteAttribute::Source(from.into()));
    }
    query.attributes.extend(packet.input.map(RouteAttribute::Iif));
    if let Some((protocol, source, destination)) = packet.ports {
        let ports = [RouteAttribute::Sport(source), RouteAttribute::Dport(destination)];
        query.attributes.push(RouteAttribute::IpProto(protocol));
        query.attributes.extend(ports);
    }
    query
}

/// How the kernel says that it would refuse a packet.
const REFUSALS: &[Errno] = &[Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EXDEV];

/// `ip route get TO from … iif … ipproto … sport … dport …`: what the kernel would do with the packet, down to the one
/// next hop of several. `None`: it would refuse it.
pub fn lookup(socket: &Socket, packet: Packet) -> Result<Option<Way>> {
    let query = query(packet);
    let object = host(packet.to).to_string();
    let found = socket.get(("get route", &object), &Message::GetRoute(query), |_, payload| {
        let message = RouteMessage::parse(payload).ok()?;
        if is_refusal(message.header.kind) {
            return None;
        }
        let hop = read_hops(&message).into_iter().next()?;
        Some(Way { hop, source: read(&message)?.source })
    });
    match found {
        // What the route itself says (unreachable, prohibit), or the reverse-path check.
        Err(e) if REFUSALS.contains(&e.errno) => Ok(None),
        other => other,
    }
}

/// Of IPv6 a route that refuses is no error, but an answer like any other.
fn is_refusal(kind: RouteType) -> bool {
    matches!(kind, RouteType::Unreachable | RouteType::Prohibit | RouteType::BlackHole)
}

/// What the kernel does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Sends it out by that device, as a route of that table has it.
    Out {
        /// The device's index.
        index: u32,
        /// The table; some rule before the one of table main may have asked another.
        table: u32,
    },
    /// Takes it as its own.
    Local,
    /// Refuses it.
    Refused(Errno),
}

/// As [`lookup`], with the table in which the way was found.
pub fn ask(socket: &Socket, packet: Packet) -> Result<Answer> {
    let mut query = query(packet);
    query.header.flags = RouteFlags::LookupTable;
    let object = host(packet.to).to_string();
    let found = socket.get(("get route", &object), &Message::GetRoute(query), |_, payload| {
        let message = RouteMessage::parse(payload).ok()?;
        if message.header.kind == RouteType::Local {
            return Some(Answer::Local);
        }
        if is_refusal(message.header.kind) {
            return Some(Answer::Refused(Errno::EHOSTUNREACH));
        }
        let index = read_hops(&message).first()?.index?;
        Some(Answer::Out { index, table: read(&message)?.table })
    });
    match found {
        Ok(found) => Ok(found.unwrap_or(Answer::Refused(Errno::ENETUNREACH))),
        Err(e) if REFUSALS.contains(&e.errno) || e.errno == Errno::EINVAL => Ok(Answer::Refused(e.errno)),
        Err(e) => Err(e),
    }
}

/// Whether packets to that address are for this node itself: what the kernel takes as a route's `src` (`fib_valid_prefsrc`).
pub fn is_local(socket: &Socket, address: IpAddr) -> Result<bool> {
    let query = query(Packet::to(address));
    let object = host(address).to_string();
    let found = socket.get(("get route", &object), &Message::GetRoute(query), |_, payload| {
        Some(RouteMessage::parse(payload).ok()?.header.kind == RouteType::Local)
    });
    match found {
        Err(e) if REFUSALS.contains(&e.errno) => Ok(false),
        other => Ok(other? == Some(true)),
    }
}

pub(super) fn best_way(routes: &[Route]) -> Option<Way> {
    let ways = routes.iter().filter_map(|route| match &route.kind {
        Kind::Via(hops) => Some((route.metric, hops.first().filter(|hop| hop.index.is_some())?, route.source)),
        _ => None,
    });
    ways.min_by_key(|(metric, ..)| *metric).map(|(_, hop, source)| Way { hop: hop.clone(), source })
}
