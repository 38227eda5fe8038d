//! Routes (`ip route`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlaBuffer, NlasIterator, Parseable};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use nix::errno::Errno;

use crate::model::Family;

use super::{PROTOCOL, Request, Result, Socket, address_family, family_of};

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
        source: Option<IpAddr>,
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
    pub gateway: Option<IpAddr>,
    /// `dev`, as an index.
    pub index: Option<u32>,
}

/// A route as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its destination.
    pub prefix: IpNetwork,
    /// Its table.
    pub table: u32,
    /// Who made it (`proto`).
    pub protocol: u8,
    /// `metric`; 0 where none is shown.
    pub metric: u32,
    /// `src`.
    pub source: Option<IpAddr>,
    /// `advmss`.
    pub advmss: Option<u32>,
    /// What it does.
    pub kind: Kind,
}

/// A route over a nexthop object: `ADDRESS nhid NEXTHOP src SOURCE proto 118 cwnd CWND` in table main.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NexthopRoute {
    /// Its destination.
    pub address: IpAddr,
    /// `nhid`.
    pub nexthop: u32,
    /// `src`.
    pub source: IpAddr,
    /// `cwnd`.
    pub cwnd: Option<u32>,
}

/// `ip route add …`. Fails where there is a route of metric 0 to the address, whosever it is.
pub fn add_nexthop(route: NexthopRoute) -> Request {
    let object = format!("{} nhid {}", host(route.address), route.nexthop);
    Request::new("add route", object, NLM_F_CREATE | NLM_F_EXCL, &Message::NewRoute(nexthop_message(route)))
}

/// `ip route replace …`. Takes the place of the first route of metric 0 to the address, whosever it is: for a route that
/// is there.
pub fn replace_nexthop(route: NexthopRoute) -> Request {
    let object = format!("{} nhid {}", host(route.address), route.nexthop);
    Request::new("replace route", object, NLM_F_CREATE | NLM_F_REPLACE, &Message::NewRoute(nexthop_message(route)))
}

fn nexthop_message(route: NexthopRoute) -> RouteMessage {
    let mut message = ours(host(route.address), MAIN);
    message.attributes.extend([RouteAttribute::NhId(route.nexthop), RouteAttribute::PrefSource(route.source.into())]);
    // 0 is as good as none. Where no metrics are sent at all, the kernel takes those of any other route that is like this
    // one (fib_find_info_nh).
    message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Cwnd(route.cwnd.unwrap_or(0))]));
    message
}

/// `ip route del PREFIX proto 118 metric 0`, type unicast, in table main.
pub fn del_nexthop(address: IpAddr) -> Request {
    let mut message = ours(host(address), MAIN);
    message.header.scope = RouteScope::NoWhere; // whatever scope it has
    let object = host(address).to_string();
    Request::new("delete route", object, 0, &Message::DelRoute(message)).absent_is_ok()
}

/// `ip route add unreachable PREFIX proto 118 metric METRIC` in table main.
pub fn add_unreachable(address: IpAddr, metric: u32) -> Request {
    let message = unreachable(address, metric);
    let object = format!("unreachable {} metric {metric}", host(address));
    Request::new("add route", object, NLM_F_CREATE | NLM_F_EXCL, &Message::NewRoute(message))
}

/// `ip route del unreachable PREFIX proto 118 metric METRIC` in table main.
pub fn del_unreachable(address: IpAddr, metric: u32) -> Request {
    let mut message = unreachable(address, metric);
    message.header.scope = RouteScope::NoWhere;
    let object = format!("unreachable {} metric {metric}", host(address));
    Request::new("delete route", object, 0, &Message::DelRoute(message)).absent_is_ok()
}

fn unreachable(address: IpAddr, metric: u32) -> RouteMessage {
    let mut message = ours(host(address), MAIN);
    message.header.kind = RouteType::Unreachable;
    message.attributes.push(RouteAttribute::Priority(metric));
    message
}

/// A route of ours in a table of ours: `PREFIX ACTION table TABLE proto 118`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableRoute {
    /// Its table.
    pub table: u32,
    /// Its destination.
    pub prefix: IpNetwork,
    /// What it does.
    pub action: Action,
}

/// What a route in a table of ours does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// `via GATEWAY dev INDEX onlink src SOURCE`.
    Via {
        /// `via`.
        gateway: IpAddr,
        /// `dev`, as an index.
        index: u32,
        /// `src`.
        source: Option<IpAddr>,
        /// `advmss`: the longest segment that connections offer to receive.
        advmss: Option<u32>,
    },
    /// `nhid NEXTHOP src SOURCE`.
    Nexthop {
        /// `nhid`.
        id: u32,
        /// `src`.
        source: IpAddr,
    },
    /// `unreachable`.
    Unreachable,
    /// `throw`: as if the table had no route; the next rule is asked.
    Throw,
}

impl fmt::Display for TableRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.action {
            Action::Throw => f.write_str("throw ")?,
            Action::Unreachable => f.write_str("unreachable ")?,
            Action::Via { .. } | Action::Nexthop { .. } => {}
        }
        match self.prefix.prefix() {
            0 => f.write_str("default")?,
            _ => write!(f, "{}", self.prefix)?,
        }
        if let Action::Via { gateway, source, .. } = self.action {
            write!(f, " via {gateway}")?;
            source.map_or(Ok(()), |source| write!(f, " src {source}"))?;
        }
        if let Action::Nexthop { id, source } = self.action {
            write!(f, " nhid {id} src {source}")?;
        }
        write!(f, " table {}", self.table)?;
        match self.action {
            Action::Via { advmss: Some(advmss), .. } => write!(f, " advmss {advmss}"),
            _ => Ok(()),
        }
    }
}

/// `ip route add PREFIX ACTION table TABLE proto 118`. Fails where the table has a route to the prefix.
pub fn add(route: TableRoute) -> Request {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Request::new("add route", route.to_string(), flags, &Message::NewRoute(table_message(route)))
}

/// `ip route replace PREFIX ACTION table TABLE proto 118`: in the place of the first route to the prefix, whosever it is: for a table of
/// ours.
pub fn replace(route: TableRoute) -> Request {
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    Request::new("replace route", route.to_string(), flags, &Message::NewRoute(table_message(route)))
}

/// `ip route del …`, as [`add`].
pub fn del(route: TableRoute) -> Request {
    let mut message = table_message(route);
    message.header.scope = RouteScope::NoWhere; // whatever scope it has
    Request::new("delete route", route.to_string(), 0, &Message::DelRoute(message)).absent_is_ok()
}

fn table_message(route: TableRoute) -> RouteMessage {
    let mut message = ours(route.prefix, route.table);
    match route.action {
        Action::Via { gateway, index, source, advmss } => {
            message.header.flags = RouteFlags::Onlink;
            message.attributes.extend([RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)]);
            message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
            let metrics = advmss.map(|advmss| RouteAttribute::Metrics(vec![RouteMetric::Advmss(advmss)]));
            message.attributes.extend(metrics);
        }
        Action::Nexthop { id, source } => {
            message.attributes.extend([RouteAttribute::NhId(id), RouteAttribute::PrefSource(source.into())]);
            // As `nexthop_message`.
            message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Cwnd(0)]));
        }
        Action::Unreachable => message.header.kind = RouteType::Unreachable,
        Action::Throw => message.header.kind = RouteType::Throw,
    }
    message
}

impl Route {
    /// As [`add`] could have made it.
    pub fn of_ours(&self) -> Option<TableRoute> {
        let action = match &self.kind {
            Kind::Throw => Action::Throw,
            Kind::Unreachable => Action::Unreachable,
            Kind::Nexthop { id, source: Some(source), .. } => Action::Nexthop { id: *id, source: *source },
            Kind::Via(hops) => match hops.as_slice() {
                [Hop { gateway: Some(gateway), index: Some(index) }] => {
                    let (source, advmss) = (self.source, self.advmss);
                    Action::Via { gateway: *gateway, index: *index, source, advmss }
                }
                _ => return None,
            },
            _ => return None,
        };
        let Self { table, prefix, protocol, metric, .. } = *self;
        (protocol == PROTOCOL && metric == 0).then_some(TableRoute { table, prefix, action })
    }
}

/// The prefix of an address alone.
pub fn host(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

/// Whether a prefix is that of a single address.
pub fn is_host(prefix: IpNetwork) -> bool {
    prefix.prefix() == Family::of(prefix.network()).bits()
}

/// A unicast route of protocol 118 to a prefix, so far without a way.
fn ours(prefix: IpNetwork, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(prefix.network()));
    message.header.destination_prefix_length = prefix.prefix();
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.extend((prefix.prefix() > 0).then(|| RouteAttribute::Destination(prefix.network().into())));
    match u8::try_from(table) {
        Ok(table) => message.header.table = table,
        Err(_) => message.attributes.push(RouteAttribute::Table(table)),
    }
    message
}

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

pub(super) fn decode(payload: &[u8]) -> Option<Route> {
    read(&RouteMessage::parse(&without_members(payload)).ok()?)
}

/// How routes lead to a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// By way of a gateway on it.
    pub gateway: bool,
    /// To a network on it, of more than one address.
    pub network: bool,
}

/// The devices that unicast IPv4 routes of any table name, but for routes of protocol 118. A route over a nexthop object is
/// shown by its hops, unless `net.ipv4.nexthop_compat_mode` is 0: then by none, and `nexthop` gives the object's devices.
pub fn devices(
    socket: &Socket,
    nexthop: impl FnOnce() -> Result<BTreeMap<u32, Vec<u32>>>,
) -> Result<BTreeMap<u32, Reach>> {
    let mut query = RouteMessage::default();
    query.header.address_family = address_family(Family::V4);
    let (mut found, mut objects) = (BTreeMap::<u32, Reach>::new(), BTreeSet::new());
    let dumped = socket.dump(("list", "routes"), &Message::GetRoute(query), |_, payload| {
        note_devices(payload, &mut found, &mut objects);
        None::<()>
    });
    match dumped {
        Err(error) if error.errno != Errno::ENOENT => return Err(error),
        _ => {}
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
fn note_devices(payload: &[u8], found: &mut BTreeMap<u32, Reach>, objects: &mut BTreeSet<u32>) {
    const OIF: u16 = 4;
    const GATEWAY: u16 = 5;
    const MULTIPATH: u16 = 9;
    const VIA: u16 = 18;
    const NH_ID: u16 = 30;
    const UNICAST: u8 = 1;
    // struct rtmsg: family, prefix length, …, protocol at 5, type at 7.
    let [family, length, _, _, _, protocol, _, kind, ..] = *payload else { return };
    if family_of(family) != Some(Family::V4) || kind != UNICAST || protocol == PROTOCOL {
        return;
    }
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let (mut index, mut gateway, mut object) = (None, false, None);
    let is_network = length < Family::V4.bits();
    let mut note = |index: u32, gateway: bool| {
        let reach = found.entry(index).or_default();
        reach.gateway |= gateway;
        reach.network |= is_network && !gateway;
    };
    for nla in attributes(payload) {
        match nla.kind() {
            OIF => index = number(nla.value()),
            GATEWAY | VIA => gateway = true,
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
        let of_family: Vec<IpAddr> = addresses.iter().copied().filter(|a| Family::of(*a) == family).collect();
        if !of_family.is_empty() {
            routes.extend(covering_of(socket, family, &of_family, &mut gateways)?);
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

/// `0.0.0.0/0`.
pub const DEFAULT: IpNetwork = match Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0) {
    Some(network) => IpNetwork::V4(network),
    None => unreachable!(),
};

/// `224.0.0.0/4`.
pub const MULTICAST: IpNetwork = match Ipv4Network::new_checked(Ipv4Addr::new(224, 0, 0, 0), 4) {
    Some(network) => IpNetwork::V4(network),
    None => unreachable!(),
};

/// The way a packet takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// `via` and `dev`.
    pub hop: Hop,
    /// `src`.
    pub source: Option<IpAddr>,
}

/// The default route of table main with the lowest metric among those that lead somewhere; its first hop.
pub fn default_way(socket: &Socket) -> Result<Option<Way>> {
    let filter = Filter { table: Some(MAIN), prefix: Some(DEFAULT), ..Filter::default() };
    Ok(best_way(&list(socket, filter)?))
}

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

/// How the kernel says that it would refuse a packet.
const REFUSALS: &[Errno] = &[Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EXDEV];

/// `ip route get TO from … iif … ipproto … sport … dport …`: what the kernel would do with the packet, down to the one
/// next hop of several. `None`: it would refuse it.
pub fn lookup(socket: &Socket, packet: Packet) -> Result<Option<Way>> {
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
    let object = host(packet.to).to_string();
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
    let mut query = RouteMessage::default();
    let family = Family::of(packet.to);
    query.header.address_family = address_family(family);
    query.header.destination_prefix_length = family.bits();
    query.header.flags = RouteFlags::LookupTable;
    query.attributes.push(RouteAttribute::Destination(packet.to.into()));
    if let Some(from) = packet.from {
        query.header.source_prefix_length = family.bits();
        query.attributes.push(RouteAttribute::Source(from.into()));
    }
    query.attributes.extend(packet.input.map(RouteAttribute::Iif));
    let object = host(packet.to).to_string();
    let found = socket.get(("get route", &object), &Message::GetRoute(query), |_, payload| {
        let message = RouteMessage::parse(payload).ok()?;
        if message.header.kind == RouteType::Local {
            return Some(Answer::Local);
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
    let mut query = RouteMessage::default();
    let family = Family::of(address);
    query.header.address_family = address_family(family);
    query.header.destination_prefix_length = family.bits();
    query.attributes.push(RouteAttribute::Destination(address.into()));
    let object = host(address).to_string();
    let found = socket.get(("get route", &object), &Message::GetRoute(query), |_, payload| {
        Some(RouteMessage::parse(payload).ok()?.header.kind == RouteType::Local)
    });
    match found {
        Err(e) if REFUSALS.contains(&e.errno) => Ok(false),
        other => Ok(other? == Some(true)),
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

/// Decodes prefix length and destination alone.
fn is_route_to(payload: &[u8], prefix: IpNetwork) -> bool {
    destination(payload) == Some(prefix)
}

/// `via` of a route with one hop, the rest undecoded.
fn gateway(payload: &[u8]) -> Option<IpAddr> {
    const RTA_GATEWAY: u16 = 5;
    let gateway = attributes(payload).find(|nla| nla.kind() == RTA_GATEWAY)?;
    match family_of(*payload.first()?)? {
        Family::V4 => Some(IpAddr::from(*gateway.value().first_chunk::<4>()?)),
        Family::V6 => Some(IpAddr::from(*gateway.value().first_chunk::<16>()?)),
    }
}

/// A route's prefix, the rest undecoded. The default route has no destination attribute.
fn destination(payload: &[u8]) -> Option<IpNetwork> {
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

fn read(message: &RouteMessage) -> Option<Route> {
    let mut destination = family_of(message.header.address_family.into())?.unspecified();
    let mut route = Route {
        prefix: IpNetwork::new(destination, 0).ok()?,
        table: u32::from(message.header.table),
        protocol: u8::from(message.header.protocol),
        metric: 0,
        source: None,
        advmss: None,
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
            RouteAttribute::Metrics(metrics) => {
                cwnd = metrics.iter().find_map(read_cwnd);
                route.advmss = metrics.iter().find_map(read_advmss);
            }
            _ => {}
        }
    }
    route.prefix = IpNetwork::new(destination, message.header.destination_prefix_length).ok()?;
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

fn read_advmss(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Advmss(advmss) => Some(*advmss),
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
    use netlink_packet_core::Emitable;

    use super::*;

    fn default_route(metric: u32, kind: Kind) -> Route {
        Route { prefix: DEFAULT, table: MAIN, protocol: 4, metric, source: None, advmss: None, kind }
    }

    /// A route's message: its prefix's length, protocol, type, and attributes.
    fn payload(length: u8, (protocol, kind): (u8, u8), attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![2, length, 0, 0, 254, protocol, 0, kind, 0, 0, 0, 0];
        for (kind, value) in attributes {
            bytes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn routes_name_devices_by_gateway_or_network() {
        let (kernel, unicast, local) = (2, 1, 2);
        let index = |index: u32| index.to_ne_bytes();
        let gateway = [192, 0, 2, 254];
        let mut found = BTreeMap::new();
        let mut objects = BTreeSet::new();
        let mut note = |payload: &[u8]| note_devices(payload, &mut found, &mut objects);
        note(&payload(0, (kernel, unicast), &[(5, &gateway), (4, &index(2))]));
        note(&payload(24, (kernel, unicast), &[(4, &index(3))]));
        note(&payload(32, (kernel, unicast), &[(4, &index(4))]));
        note(&payload(32, (kernel, local), &[(4, &index(5))]));
        note(&payload(24, (PROTOCOL, unicast), &[(4, &index(6))]));
        note(&payload(0, (4, unicast), &[(30, &index(77))]));
        // Two hops: a gateway on one device, and another device.
        let mut hops = vec![16, 0, 0, 0];
        hops.extend(index(7));
        hops.extend([8, 0, 5, 0, 192, 0, 2, 254]);
        hops.extend([8, 0, 0, 0]);
        hops.extend(index(8));
        note(&payload(24, (4, unicast), &[(9, &hops)]));
        note(&payload(24, (4, unicast), &[(9, &hops[..20])]));
        note(&[2, 24]);
        let reach = |gateway, network| Reach { gateway, network };
        let expected = [
            (2, reach(true, false)),
            (3, reach(false, true)),
            (4, reach(false, false)),
            (7, reach(true, false)),
            (8, reach(false, true)),
        ];
        assert_eq!(found, expected.into());
        assert_eq!(objects, [77].into());
    }

    #[test]
    fn our_routes_are_read_as_they_are_written() {
        let via_of = |source, advmss| Action::Via { gateway: [169, 254, 118, 1].into(), index: 5, source, advmss };
        let via = |source| via_of(source, None);
        let group = Action::Nexthop { id: 0x7780_0001, source: [192, 0, 2, 1].into() };
        let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
        let via6 = Action::Via { gateway: v6("fe80::1"), index: 5, source: Some(v6("2001:db8::7")), advmss: None };
        for (prefix, action, shown) in [
            ("0.0.0.0/0", via(None), "default via 169.254.118.1 table 1180"),
            ("0.0.0.0/0", via(Some([10, 118, 0, 7].into())), "default via 169.254.118.1 src 10.118.0.7 table 1180"),
            ("0.0.0.0/0", via_of(None, Some(1410)), "default via 169.254.118.1 table 1180 advmss 1410"),
            ("0.0.0.0/0", Action::Unreachable, "unreachable default table 1180"),
            ("10.118.0.7/32", group, "10.118.0.7/32 nhid 2004877313 src 192.0.2.1 table 1180"),
            ("224.0.0.0/4", Action::Throw, "throw 224.0.0.0/4 table 1180"),
            ("::/0", via6, "default via fe80::1 src 2001:db8::7 table 1180"),
            ("ff00::/8", Action::Throw, "throw ff00::/8 table 1180"),
        ] {
            let route = TableRoute { table: 1180, prefix: prefix.parse().unwrap(), action };
            assert_eq!(read(&table_message(route)).and_then(|route| route.of_ours()), Some(route));
            assert_eq!(route.to_string(), shown);
        }
    }

    #[test]
    fn a_prefix_is_read_without_the_rest() {
        for (prefix, inside, outside) in
            [("10.118.0.0/16", "10.118.3.4", "10.119.0.1"), ("2001:db8::/32", "2001:db8::7", "2001:db9::7")]
        {
            let prefix: IpNetwork = prefix.parse().unwrap();
            let message = ours(prefix, MAIN);
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            let found = destination(&bytes).unwrap();
            assert_eq!(found, prefix);
            assert!(found.contains(inside.parse().unwrap()) && !found.contains(outside.parse().unwrap()));
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
