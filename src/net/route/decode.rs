//! Routes out of netlink's messages, whole or in part.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NlaBuffer, NlasIterator, Parseable};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia};

use crate::model::Family;
use crate::net::family_of;

use super::{Hop, Kind, Route};

/// What a message says of a route, without the members of its nexthop group.
pub(in crate::net) fn decode(payload: &[u8]) -> Option<Route> {
    read(&RouteMessage::parse(&without_members(payload)).ok()?)
}

/// Bytes of `struct rtmsg`.
const HEADER: usize = 12;

pub(super) fn attributes(payload: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(payload.get(HEADER..).unwrap_or_default()).filter_map(std::result::Result::ok)
}

/// Decodes prefix length and destination alone.
pub(super) fn is_route_to(payload: &[u8], prefix: IpNetwork) -> bool {
    destination(payload) == Some(prefix)
}

/// `via` of a route with one hop, or `via inet6` of one of IPv4; the rest undecoded.
pub(super) fn gateway(payload: &[u8]) -> Option<IpAddr> {
    const RTA_GATEWAY: u16 = 5;
    const RTA_VIA: u16 = 18;
    let of = |family, octets: &[u8]| match family {
        Family::V4 => Some(IpAddr::from(*octets.first_chunk::<4>()?)),
        Family::V6 => Some(IpAddr::from(*octets.first_chunk::<16>()?)),
    };
    attributes(payload).find_map(|nla| match nla.kind() {
        RTA_GATEWAY => of(family_of(*payload.first()?)?, nla.value()),
        // struct rtvia: the family, in the host's order, and the address.
        RTA_VIA => {
            let (family, address) = nla.value().split_first_chunk::<2>()?;
            of(family_of(u8::try_from(u16::from_ne_bytes(*family)).ok()?)?, address)
        }
        _ => None,
    })
}

/// A route's prefix, the rest undecoded. The default route has no destination attribute.
pub(super) fn destination(payload: &[u8]) -> Option<IpNetwork> {
    const RTM_DST_LEN: usize = 1;
    const RTA_DST: u16 = 1;
    let family = family_of(*payload.first()?)?;
    let length = *payload.get(RTM_DST_LEN)?;
    let network = match (attributes(payload).find(|nla| nla.kind() == RTA_DST), family) {
        (None, family) => family.unspecified(),
        (Some(nla), Family::V4) => IpAddr::from(*nla.value().first_chunk::<4>()?),
        (Some(nla), Family::V6) => IpAddr::from(*nla.value().first_chunk::<16>()?),
    };
    IpNetwork::new(network, length).ok()
}

/// A route over a nexthop group repeats the group's members (unless `net.ipv4.nexthop_compat_mode=0`), maybe a thousand.
/// They belong to the group, so they are left out before the rest is decoded.
fn without_members(payload: &[u8]) -> Cow<'_, [u8]> {
    const RTA_MULTIPATH: u16 = 9;
    const RTA_NH_ID: u16 = 30;
    if !attributes(payload).any(|nla| nla.kind() == RTA_NH_ID) {
        return Cow::Borrowed(payload);
    }
    let mut shorter = payload.get(..HEADER).unwrap_or_default().to_vec();
    for nla in attributes(payload).filter(|nla| nla.kind() != RTA_MULTIPATH) {
        shorter.extend(nla.into_inner().get(..usize::from(nla.length())).unwrap_or_default());
        shorter.resize(shorter.len().next_multiple_of(4), 0);
    }
    Cow::Owned(shorter)
}

fn inet(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// `via`, or `via inet6` of a route of IPv4 (`RTA_VIA`); `None`: the attribute says something else.
fn read_gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => inet(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

pub(super) fn read(message: &RouteMessage) -> Option<Route> {
    let mut destination = family_of(message.header.address_family.into())?.unspecified();
    let mut route = Route {
        prefix: IpNetwork::new(destination, 0).ok()?,
        table: u32::from(message.header.table),
        protocol: u8::from(message.header.protocol),
        tos: message.header.tos,
        metric: 0,
        source: None,
        advmss: None,
        kind: Kind::Other,
    };
    let (mut nexthop, mut cwnd, mut mtu) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = inet(address)?,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::PrefSource(address) => route.source = inet(address),
            RouteAttribute::NhId(id) => nexthop = Some(*id),
            RouteAttribute::Metrics(metrics) => {
                cwnd = metrics.iter().find_map(read_cwnd);
                mtu = metrics.iter().find_map(read_mtu);
                route.advmss = metrics.iter().find_map(read_advmss);
            }
            _ => {}
        }
    }
    route.prefix = IpNetwork::new(destination, message.header.destination_prefix_length).ok()?;
    route.kind = match (message.header.kind, nexthop) {
        (RouteType::Unicast, Some(id)) => Kind::Nexthop { id, source: route.source, cwnd, mtu },
        (RouteType::Unicast, None) => Kind::Via(read_hops(message)),
        (RouteType::Unreachable, _) => Kind::Unreachable,
        (RouteType::Throw, _) => Kind::Throw,
        (RouteType::Local, _) => Kind::Local(read_hops(message).first().and_then(|hop| hop.index)),
        _ => Kind::Other,
    };
    Some(route)
}

pub(super) fn read_hops(message: &RouteMessage) -> Vec<Hop> {
    let mut single = Hop { gateway: message.attributes.iter().find_map(read_gateway), index: None };
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => single.index = Some(*index),
            RouteAttribute::MultiPath(paths) => hops.extend(paths.iter().map(read_hop)),
            _ => {}
        }
    }
    if hops.is_empty() {
        hops.push(single);
    }
    hops
}

fn read_cwnd(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Cwnd(cwnd) => Some(*cwnd),
        _ => None,
    }
}

fn read_mtu(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    }
}

fn read_advmss(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Advmss(advmss) => Some(*advmss),
        _ => None,
    }
}

fn read_hop(hop: &netlink_packet_route::route::RouteNextHop) -> Hop {
    Hop { gateway: hop.attributes.iter().find_map(read_gateway), index: Some(hop.interface_index) }
}
