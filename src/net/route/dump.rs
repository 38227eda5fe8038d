//! Listing routes. The table may hold all routes of the internet: what isn't wanted is not decoded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NlasIterator, Parseable};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol};
use nix::errno::Errno;

use crate::model::Family;
use crate::net::{PROTOCOL, Result, Socket, address_family, family_of};

use super::decode::{attributes, decode, destination, gateway, is_route_to, read, read_hops};
use super::{Kind, Route};

/// What a listing of routes is limited to; the kernel filters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Of this family.
    pub family: Family,
    /// This table only.
    pub table: Option<u32>,
    /// Routes of this protocol only.
    pub protocol: Option<u8>,
    /// Routes to exactly this prefix only.
    pub prefix: Option<IpNetwork>,
}

/// The routes that pass the filter.
pub fn list(socket: &Socket, filter: Filter) -> Result<Vec<Route>> {
    let mut query = RouteMessage::default();
    query.header.address_family = address_family(filter.family);
    query.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
    if let Some(table) = filter.table {
        query.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        query.attributes.push(RouteAttribute::Table(table));
    }
    // The kernel can't filter by prefix: the wanted ones are picked before they are decoded.
    let found = socket.dump(("list", "routes"), &Message::GetRoute(query), |_, payload| {
        // A kernel without that family lists those of all (`rtnetlink_rcv_msg`).
        let is_family = payload.first().copied().and_then(family_of) == Some(filter.family);
        let wanted = is_family && filter.prefix.is_none_or(|prefix| is_route_to(payload, prefix));
        wanted.then(|| decode(payload)).flatten()
    });
    match found {
        // A table comes to be with its first route (`inet_dump_fib`: "FIB table does not exist").
        Err(error) if error.errno == Errno::ENOENT => Ok(Vec::new()),
        other => other,
    }
}

/// How routes lead to a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// By way of a gateway on it.
    pub gateway: bool,
    /// To a network on it, of more than one address.
    pub network: bool,
}

/// The devices that unicast routes of any table name, but for routes of protocol 118 and, of IPv6, those to neighbours that every device has.
/// A route over a nexthop object is shown by its hops, unless `net.ipv4.nexthop_compat_mode` is 0: then by none, and `nexthop` gives the
/// object's devices.
pub fn devices(
    socket: &Socket,
    nexthop: impl FnOnce() -> Result<BTreeMap<u32, Vec<u32>>>,
) -> Result<BTreeMap<u32, Reach>> {
    let (mut found, mut objects) = (BTreeMap::<u32, Reach>::new(), BTreeSet::new());
    for family in Family::ALL {
        let mut query = RouteMessage::default();
        query.header.address_family = address_family(family);
        let dumped = socket.dump(("list", "routes"), &Message::GetRoute(query), |_, payload| {
            note_devices(payload, &mut found, &mut objects);
            None::<()>
        });
        match dumped {
            Err(error) if error.errno != Errno::ENOENT => return Err(error),
            _ => {}
        }
    }
    if !objects.is_empty() {
        let by_object = nexthop()?;
        for index in objects.iter().flat_map(|object| by_object.get(object).into_iter().flatten()) {
            found.entry(*index).or_default().gateway = true;
        }
    }
    Ok(found)
}

/// The table may hold all routes of the internet: by the first bytes and an attribute or two.
pub(super) fn note_devices(payload: &[u8], found: &mut BTreeMap<u32, Reach>, objects: &mut BTreeSet<u32>) {
    const DESTINATION: u16 = 1;
    const OIF: u16 = 4;
    const GATEWAY: u16 = 5;
    const MULTIPATH: u16 = 9;
    const VIA: u16 = 18;
    const NH_ID: u16 = 30;
    const UNICAST: u8 = 1;
    // struct rtmsg: family, prefix length, …, protocol at 5, type at 7.
    let [family, length, _, _, _, protocol, _, kind, ..] = *payload else { return };
    let Some(family) = family_of(family).filter(|_| kind == UNICAST && protocol != PROTOCOL) else { return };
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let (mut index, mut gateway, mut object) = (None, false, None);
    let is_network = length < family.bits();
    let mut note = |index: u32, gateway: bool| {
        let reach = found.entry(index).or_default();
        reach.gateway |= gateway;
        reach.network |= is_network && !gateway;
    };
    for nla in attributes(payload) {
        match nla.kind() {
            OIF => index = number(nla.value()),
            GATEWAY | VIA => gateway = true,
            DESTINATION if family == Family::V6 && is_of_neighbours(nla.value()) => return,
            NH_ID => object = number(nla.value()),
            MULTIPATH => hops(nla.value(), &mut note),
            _ => {}
        }
    }
    match (index, object) {
        (Some(index), _) => note(index, gateway),
        (None, Some(object)) => drop(objects.insert(object)),
        (None, None) => {}
    }
}

/// `fe80::/10` or `ff00::/8` (RFC 4291): there are routes to both by every device.
fn is_of_neighbours(destination: &[u8]) -> bool {
    matches!(*destination, [0xfe, second, ..] if second & 0xc0 == 0x80) || destination.first() == Some(&0xff)
}

/// Of `RTA_MULTIPATH`: each a `struct rtnexthop` (length, flags, weight, device) and attributes behind it.
fn hops(mut hops: &[u8], note: &mut impl FnMut(u32, bool)) {
    const HOP: usize = 8;
    const GATEWAY: u16 = 5;
    const VIA: u16 = 18;
    while let [a, b, _, _, i, j, k, l, ..] = *hops {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(own) = hops.get(HOP..length) else { return };
        let mut nlas = NlasIterator::new(own).map_while(std::result::Result::ok);
        note(u32::from_ne_bytes([i, j, k, l]), nlas.any(|nla| matches!(nla.kind(), GATEWAY | VIA)));
        hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// The routes of all tables whose prefix holds one of the addresses, and which of these are the gateways of any route.
/// Others' routes over nexthop objects are shown by
/// their hops, which the kernel lists with them (unless `net.ipv4.nexthop_compat_mode` is 0: then by none).
pub fn covering(socket: &Socket, addresses: &[IpAddr]) -> Result<(Vec<Route>, BTreeSet<IpAddr>)> {
    let (mut routes, mut gateways) = (Vec::new(), BTreeSet::new());
    for family in Family::ALL {
        // Routes of IPv4 may have gateways of IPv6.
        let concerns = |address: &IpAddr| family == Family::V4 || address.is_ipv6();
        if addresses.iter().any(concerns) {
            routes.extend(covering_of(socket, family, addresses, &mut gateways)?);
        }
    }
    Ok((routes, gateways))
}

fn covering_of(
    socket: &Socket,
    family: Family,
    addresses: &[IpAddr],
    gateways: &mut BTreeSet<IpAddr>,
) -> Result<Vec<Route>> {
    let mut query = RouteMessage::default();
    query.header.address_family = address_family(family);
    socket.dump(("list", "routes"), &Message::GetRoute(query), |_, payload| {
        // The table may hold all routes of the internet: only what is wanted is decoded.
        gateways.extend(gateway(payload).filter(|gateway| addresses.contains(gateway)));
        let prefix = destination(payload)?;
        if !addresses.iter().any(|address| prefix.contains(*address)) {
            return None;
        }
        let message = RouteMessage::parse(payload).ok()?;
        let mut route = read(&message)?;
        if matches!(route.kind, Kind::Nexthop { .. }) && route.protocol != PROTOCOL {
            route.kind = Kind::Via(read_hops(&message));
        }
        Some(route)
    })
}
