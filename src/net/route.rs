//! IPv4 routes (`ip route`).

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlaBuffer, NlasIterator, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

use super::{PROTOCOL, Request, Result, Socket};

/// Table `main`.
pub const MAIN: u32 = 254;
/// Table `local`, the kernel's own.
pub const LOCAL: u32 = 255;

/// What a route does with a packet, as far as this project tells routes apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Over a nexthop object (`nhid`). `cwnd`: the metric of that name.
    Nexthop {
        /// The nexthop's or group's id.
        id: u32,
        /// `src`.
        source: Option<Ipv4Addr>,
        /// `cwnd`; routing daemons read it as a weight.
        cwnd: Option<u32>,
    },
    /// Over gateways and devices of its own.
    Via(Vec<Hop>),
    /// Refused with an ICMP error (`unreachable`).
    Unreachable,
    /// The table is left, and the next rule asked (`throw`).
    Throw,
    /// Anything else (`blackhole`, `prohibit`, `local`, …).
    Other,
}

/// A way out: a gateway, a device, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// `via`.
    pub gateway: Option<Ipv4Addr>,
    /// `dev`, as an index.
    pub index: Option<u32>,
}

/// A route as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its destination.
    pub prefix: Ipv4Network,
    /// Its table.
    pub table: u32,
    /// Who made it (`proto`).
    pub protocol: u8,
    /// `metric`; 0 where none is shown.
    pub metric: u32,
    /// `src`.
    pub source: Option<Ipv4Addr>,
    /// What it does.
    pub kind: Kind,
}

/// A route over a nexthop object: `ADDRESS/32 nhid NEXTHOP src SOURCE proto 118 cwnd CWND` in table main.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NexthopRoute {
    /// Its destination.
    pub address: Ipv4Addr,
    /// `nhid`.
    pub nexthop: u32,
    /// `src`.
    pub source: Ipv4Addr,
    /// `cwnd`.
    pub cwnd: Option<u32>,
}

/// `ip route add …`. Fails where there is a route of metric 0 to the address, whosever it is.
pub fn add_nexthop(route: NexthopRoute) -> Request {
    let object = format!("{}/32 nhid {}", route.address, route.nexthop);
    Request::new("add route", object, NLM_F_CREATE | NLM_F_EXCL, &Message::NewRoute(nexthop_message(route)))
}

/// `ip route replace …`. Takes the place of the first route of metric 0 to the address, whosever it is: for a route that
/// is there.
pub fn replace_nexthop(route: NexthopRoute) -> Request {
    let object = format!("{}/32 nhid {}", route.address, route.nexthop);
    Request::new("replace route", object, NLM_F_CREATE | NLM_F_REPLACE, &Message::NewRoute(nexthop_message(route)))
}

fn nexthop_message(route: NexthopRoute) -> RouteMessage {
    let mut builder = ours(route.address).nhid(route.nexthop).pref_source(route.source);
    // 0 is as good as none. Where no metrics are sent at all, the kernel takes those of any other route that is like this
    // one (fib_find_info_nh).
    let metrics = RouteAttribute::Metrics(vec![RouteMetric::Cwnd(route.cwnd.unwrap_or(0))]);
    builder.get_mut().attributes.push(metrics);
    builder.build()
}

/// `ip route del PREFIX proto 118 metric 0`, type unicast, in table main.
pub fn del_nexthop(address: Ipv4Addr) -> Request {
    let mut message = ours(address).build();
    message.header.scope = RouteScope::NoWhere; // whatever scope it has
    let object = format!("{address}/32");
    Request::new("delete route", object, 0, &Message::DelRoute(message)).absent_is_ok()
}

/// `ip route add unreachable PREFIX proto 118 metric METRIC` in table main.
pub fn add_unreachable(address: Ipv4Addr, metric: u32) -> Request {
    let message = ours(address).kind(RouteType::Unreachable).priority(metric).build();
    let object = format!("unreachable {address}/32 metric {metric}");
    Request::new("add route", object, NLM_F_CREATE | NLM_F_EXCL, &Message::NewRoute(message))
}

/// `ip route del unreachable PREFIX proto 118 metric METRIC` in table main.
pub fn del_unreachable(address: Ipv4Addr, metric: u32) -> Request {
    let mut message = ours(address).kind(RouteType::Unreachable).priority(metric).build();
    message.header.scope = RouteScope::NoWhere;
    let object = format!("unreachable {address}/32 metric {metric}");
    Request::new("delete route", object, 0, &Message::DelRoute(message)).absent_is_ok()
}

/// A route of ours in a table of ours: `PREFIX ACTION table TABLE proto 118`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableRoute {
    /// Its table.
    pub table: u32,
    /// Its destination.
    pub prefix: Ipv4Network,
    /// What it does.
    pub action: Action,
}

/// What a route in a table of ours does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// `via GATEWAY dev INDEX onlink src SOURCE`.
    Via {
        /// `via`.
        gateway: Ipv4Addr,
        /// `dev`, as an index.
        index: u32,
        /// `src`.
        source: Option<Ipv4Addr>,
    },
    /// `throw`: as if the table had no route; the next rule is asked.
    Throw,
}

impl fmt::Display for TableRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.action == Action::Throw {
            f.write_str("throw ")?;
        }
        match self.prefix {
            DEFAULT => f.write_str("default")?,
            prefix => write!(f, "{prefix}")?,
        }
        if let Action::Via { gateway, source, .. } = self.action {
            write!(f, " via {gateway}")?;
            source.map_or(Ok(()), |source| write!(f, " src {source}"))?;
        }
        write!(f, " table {}", self.table)
    }
}

/// `ip route add PREFIX ACTION table TABLE proto 118`. Fails where the table has a route to the prefix.
pub fn add(route: TableRoute) -> Request {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Request::new("add route", route.to_string(), flags, &Message::NewRoute(table_message(route)))
}

/// `ip route del …`, as [`add`].
pub fn del(route: TableRoute) -> Request {
    let mut message = table_message(route);
    message.header.scope = RouteScope::NoWhere; // whatever scope it has
    Request::new("delete route", route.to_string(), 0, &Message::DelRoute(message)).absent_is_ok()
}

fn table_message(route: TableRoute) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.prefix.network(), route.prefix.prefix())
        .table_id(route.table)
        .protocol(RouteProtocol::Other(PROTOCOL));
    builder = match route.action {
        Action::Via { gateway, index, source } => {
            let via = builder.gateway(gateway).output_interface(index).onlink();
            source.into_iter().fold(via, RouteMessageBuilder::<Ipv4Addr>::pref_source)
        }
        Action::Throw => builder.kind(RouteType::Throw),
    };
    builder.build()
}

impl Route {
    /// As [`add`] could have made it.
    pub fn of_ours(&self) -> Option<TableRoute> {
        let action = match &self.kind {
            Kind::Throw => Action::Throw,
            Kind::Via(hops) => match hops.as_slice() {
                [Hop { gateway: Some(gateway), index: Some(index) }] => {
                    Action::Via { gateway: *gateway, index: *index, source: self.source }
                }
                _ => return None,
            },
            _ => return None,
        };
        let Self { table, prefix, protocol, metric, .. } = *self;
        (protocol == PROTOCOL && metric == 0).then_some(TableRoute { table, prefix, action })
    }
}

/// `ADDRESS/32`.
pub fn host(address: Ipv4Addr) -> Ipv4Network {
    Ipv4Network::from(address)
}

fn ours(address: Ipv4Addr) -> RouteMessageBuilder<Ipv4Addr> {
    RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).protocol(RouteProtocol::Other(PROTOCOL))
}

/// What a listing of routes is limited to; the kernel filters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// This table only.
    pub table: Option<u32>,
    /// Routes of this protocol only.
    pub protocol: Option<u8>,
    /// Routes to exactly this prefix only.
    pub prefix: Option<Ipv4Network>,
}

/// The routes that pass the filter.
pub fn list(socket: &Socket, filter: Filter) -> Result<Vec<Route>> {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet;
    query.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
    if let Some(table) = filter.table {
        query.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        query.attributes.push(RouteAttribute::Table(table));
    }
    // The kernel can't filter by prefix: the wanted ones are picked before they are decoded.
    socket.dump(("list", "routes"), &Message::GetRoute(query), |_, payload| {
        let wanted = filter.prefix.is_none_or(|prefix| is_route_to(payload, prefix));
        wanted.then(|| decode(payload)).flatten()
    })
}

pub(super) fn decode(payload: &[u8]) -> Option<Route> {
    read(&RouteMessage::parse(&without_members(payload)).ok()?)
}

/// The routes of all tables whose prefix holds one of the addresses. Others' routes over nexthop objects are shown by
/// their hops, which the kernel lists with them (unless `net.ipv4.nexthop_compat_mode` is 0: then by none).
pub fn covering(socket: &Socket, addresses: &[Ipv4Addr]) -> Result<Vec<Route>> {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet;
    let addresses: Vec<u32> = addresses.iter().map(|a| u32::from(*a)).collect();
    socket.dump(("list", "routes"), &Message::GetRoute(query), |_, payload| {
        // A full table of the internet's is looked at here: nothing is decoded that isn't wanted.
        let (length, network) = destination(payload)?;
        let mask = u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(length))).unwrap_or(0);
        if !addresses.iter().any(|address| address & mask == network & mask) {
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

/// `0.0.0.0/0`.
pub const DEFAULT: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0) {
    Some(network) => network,
    None => unreachable!(),
};

/// `224.0.0.0/4`.
pub const MULTICAST: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::new(224, 0, 0, 0), 4) {
    Some(network) => network,
    None => unreachable!(),
};

/// The way a packet takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// `via` and `dev`.
    pub hop: Hop,
    /// `src`.
    pub source: Option<Ipv4Addr>,
}

/// The default route of table main with the lowest metric among those that lead somewhere; its first hop.
pub fn default_way(socket: &Socket) -> Result<Option<Way>> {
    let filter = Filter { table: Some(MAIN), protocol: None, prefix: Some(DEFAULT) };
    Ok(best_way(&list(socket, filter)?))
}

/// A packet whose way is to be found.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Its destination.
    pub to: Ipv4Addr,
    /// Its source, where it is chosen already.
    pub from: Option<Ipv4Addr>,
    /// The device it comes in by; `None`: it is made here.
    pub input: Option<u32>,
    /// IP protocol, source port, destination port.
    pub ports: Option<(u8, u16, u16)>,
}

impl Packet {
    /// A first packet from here to there.
    pub fn to(to: Ipv4Addr) -> Self {
        Self { to, from: None, input: None, ports: None }
    }
}

/// How the kernel says that it would refuse a packet.
const REFUSALS: &[Errno] = &[Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EXDEV];

/// `ip route get TO from … iif … ipproto … sport … dport …`: what the kernel would do with the packet, down to the one
/// next hop of several. `None`: it would refuse it.
pub fn lookup(socket: &Socket, packet: Packet) -> Result<Option<Way>> {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet;
    query.header.destination_prefix_length = 32;
    query.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(packet.to)));
    if let Some(from) = packet.from {
        query.header.source_prefix_length = 32;
        query.attributes.push(RouteAttribute::Source(RouteAddress::Inet(from)));
    }
    query.attributes.extend(packet.input.map(RouteAttribute::Iif));
    if let Some((protocol, source, destination)) = packet.ports {
        let ports = [RouteAttribute::Sport(source), RouteAttribute::Dport(destination)];
        query.attributes.push(RouteAttribute::IpProto(protocol));
        query.attributes.extend(ports);
    }
    let object = format!("{}/32", packet.to);
    let found = socket.get(("get route", &object), &Message::GetRoute(query), |_, payload| {
        let message = RouteMessage::parse(payload).ok()?;
        let hop = read_hops(&message).into_iter().next()?;
        Some(Way { hop, source: read(&message)?.source })
    });
    match found {
        // What the route itself says (unreachable, prohibit), or the reverse-path check.
        Err(e) if REFUSALS.contains(&e.errno) => Ok(None),
        other => other,
    }
}

fn best_way(routes: &[Route]) -> Option<Way> {
    let ways = routes.iter().filter_map(|route| match &route.kind {
        Kind::Via(hops) => Some((route.metric, hops.first().filter(|hop| hop.index.is_some())?, route.source)),
        _ => None,
    });
    ways.min_by_key(|(metric, ..)| *metric).map(|(_, hop, source)| Way { hop: hop.clone(), source })
}

/// Bytes of `struct rtmsg`.
const HEADER: usize = 12;

fn attributes(payload: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(payload.get(HEADER..).unwrap_or_default()).filter_map(std::result::Result::ok)
}

/// Looks at prefix length and destination alone.
fn is_route_to(payload: &[u8], prefix: Ipv4Network) -> bool {
    destination(payload) == Some((prefix.prefix(), u32::from(prefix.network())))
}

/// Prefix length and network of a route, the rest undecoded. The default route has no destination attribute.
fn destination(payload: &[u8]) -> Option<(u8, u32)> {
    const RTM_DST_LEN: usize = 1;
    const RTA_DST: u16 = 1;
    let length = *payload.get(RTM_DST_LEN)?;
    let network = match attributes(payload).find(|nla| nla.kind() == RTA_DST) {
        Some(nla) => u32::from_be_bytes(nla.value().try_into().ok()?),
        None => 0,
    };
    Some((length, network))
}

/// A route over a nexthop group repeats the group's members (unless `net.ipv4.nexthop_compat_mode=0`), maybe a thousand.
/// They are the group's to tell, so they are left out before the rest is decoded.
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

fn inet(address: &RouteAddress) -> Option<Ipv4Addr> {
    match address {
        RouteAddress::Inet(address) => Some(*address),
        _ => None,
    }
}

fn read(message: &RouteMessage) -> Option<Route> {
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut route = Route {
        prefix: Ipv4Network::new(destination, 0).ok()?,
        table: u32::from(message.header.table),
        protocol: u8::from(message.header.protocol),
        metric: 0,
        source: None,
        kind: Kind::Other,
    };
    let (mut nexthop, mut cwnd) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = inet(address)?,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::PrefSource(address) => route.source = inet(address),
            RouteAttribute::NhId(id) => nexthop = Some(*id),
            RouteAttribute::Metrics(metrics) => cwnd = metrics.iter().find_map(read_cwnd),
            _ => {}
        }
    }
    route.prefix = Ipv4Network::new(destination, message.header.destination_prefix_length).ok()?;
    route.kind = match (message.header.kind, nexthop) {
        (RouteType::Unicast, Some(id)) => Kind::Nexthop { id, source: route.source, cwnd },
        (RouteType::Unicast, None) => Kind::Via(read_hops(message)),
        (RouteType::Unreachable, _) => Kind::Unreachable,
        (RouteType::Throw, _) => Kind::Throw,
        _ => Kind::Other,
    };
    Some(route)
}

fn read_hops(message: &RouteMessage) -> Vec<Hop> {
    let mut single = Hop { gateway: None, index: None };
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => single.gateway = inet(address),
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

fn read_hop(hop: &netlink_packet_route::route::RouteNextHop) -> Hop {
    let gateway = hop.attributes.iter().find_map(|a| match a {
        RouteAttribute::Gateway(address) => inet(address),
        _ => None,
    });
    Hop { gateway, index: Some(hop.interface_index) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default_route(metric: u32, kind: Kind) -> Route {
        Route { prefix: DEFAULT, table: MAIN, protocol: 4, metric, source: None, kind }
    }

    #[test]
    fn our_routes_are_read_as_they_are_written() {
        let via = |source| Action::Via { gateway: [169, 254, 118, 1].into(), index: 5, source };
        for (prefix, action, shown) in [
            ("0.0.0.0/0", via(None), "default via 169.254.118.1 table 1180"),
            ("0.0.0.0/0", via(Some([10, 118, 0, 7].into())), "default via 169.254.118.1 src 10.118.0.7 table 1180"),
            ("224.0.0.0/4", Action::Throw, "throw 224.0.0.0/4 table 1180"),
        ] {
            let route = TableRoute { table: 1180, prefix: prefix.parse().unwrap(), action };
            assert_eq!(read(&table_message(route)).and_then(|route| route.of_ours()), Some(route));
            assert_eq!(route.to_string(), shown);
        }
    }

    #[test]
    fn the_lowest_metric_with_a_device_is_the_way() {
        let via = |index| Kind::Via(vec![Hop { gateway: None, index: Some(index) }]);
        let routes = [default_route(0, Kind::Unreachable), default_route(200, via(3)), default_route(100, via(2))];
        assert_eq!(best_way(&routes).and_then(|way| way.hop.index), Some(2));
        assert_eq!(best_way(&routes[..1]), None);
    }
}
