//! Routes (`ip route`).

mod decode;
mod dump;
mod local;
mod lookup;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};

use crate::model::Family;

use super::{PROTOCOL, Request, address_family};

pub(super) use decode::decode;
pub use dump::{Filter, Reach, covering, devices, list};
pub use local::{add_local, del_local, locals};
pub use lookup::{
    Answer, Packet, Way, ask, default_way, default_way_by_packet, default_way_of, first_default_way, is_local, lookup,
};

/// Table `main`.
pub const MAIN: u32 = 254;
/// Table `local`, the kernel's own, which its rules ask before any other.
pub const LOCAL: u32 = 255;

/// `0.0.0.0/0`.
pub const DEFAULT: IpNetwork = match Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0) {
    Some(network) => IpNetwork::V4(network),
    None => unreachable!(),
};

/// `::/0`.
pub const DEFAULT6: IpNetwork = match Ipv6Network::new_checked(Ipv6Addr::UNSPECIFIED, 0) {
    Some(network) => IpNetwork::V6(network),
    None => unreachable!(),
};

/// The metric of the route that carries a VIP's packets: the lowest. IPv6 takes 0 for 1024 (`IP6_RT_PRIO_USER`).
pub const fn lowest_metric(family: Family) -> u32 {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// The metric that the kernel shows of a route that was made without one.
const fn metric_of_none(family: Family) -> u32 {
    match family {
        Family::V4 => 0,
        Family::V6 => 1024,
    }
}

/// `224.0.0.0/4`.
pub const MULTICAST: IpNetwork = match Ipv4Network::new_checked(Ipv4Addr::new(224, 0, 0, 0), 4) {
    Some(network) => IpNetwork::V4(network),
    None => unreachable!(),
};

/// `ff00::/8`.
pub const MULTICAST6: IpNetwork = match Ipv6Network::new_checked(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8) {
    Some(network) => IpNetwork::V6(network),
    None => unreachable!(),
};

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
        /// `mtu`.
        mtu: Option<u32>,
    },
    /// Over gateways and devices of its own.
    Via(Vec<Hop>),
    /// Refused with an ICMP error (`unreachable`).
    Unreachable,
    /// The table is left, and the next rule asked (`throw`).
    Throw,
    /// The namespace's own (`local`), by way of this device.
    Local(Option<u32>),
    /// Anything else (`blackhole`, `prohibit`, …).
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
    /// `tos`: for packets with this one alone; 0: for all that no other route to the prefix is for.
    pub tos: u8,
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
    /// The node's address.
    pub source: IpAddr,
    /// `cwnd`.
    pub cwnd: Option<u32>,
    /// `mtu`, bytes; none: the device's.
    pub mtu: Option<u32>,
}

impl NexthopRoute {
    /// `src`, where its source is of the route's family. Otherwise the kernel chooses among the node's addresses, and follows them.
    pub fn preferred(&self) -> Option<IpAddr> {
        Some(self.source).filter(|source| source.is_ipv4() == self.address.is_ipv4())
    }
}

/// `ip route add …`, with the lowest metric. Fails where there is a route of it to the address, whosever it is.
pub fn add_nexthop(route: NexthopRoute) -> Request {
    let object = format!("{} nhid {}", host(route.address), route.nexthop);
    Request::new("add route", object, NLM_F_CREATE | NLM_F_EXCL, &Message::NewRoute(nexthop_message(route)))
}

/// `ip route replace …`. Takes the place of the first route of the lowest metric to the address, whosever it is: for a route that
/// is there.
pub fn replace_nexthop(route: NexthopRoute) -> Request {
    let object = format!("{} nhid {}", host(route.address), route.nexthop);
    Request::new("replace route", object, NLM_F_CREATE | NLM_F_REPLACE, &Message::NewRoute(nexthop_message(route)))
}

fn nexthop_message(route: NexthopRoute) -> RouteMessage {
    let mut message = ours(host(route.address), MAIN);
    message.attributes.extend(lowest(route.address));
    message.attributes.push(RouteAttribute::NhId(route.nexthop));
    message.attributes.extend(route.preferred().map(|source| RouteAttribute::PrefSource(source.into())));
    // 0 is as good as none. Where no metrics are sent at all, the kernel takes those of any other route that is like this
    // one (fib_find_info_nh).
    let metrics = [Some(RouteMetric::Cwnd(route.cwnd.unwrap_or(0))), route.mtu.map(RouteMetric::Mtu)];
    message.attributes.push(RouteAttribute::Metrics(metrics.into_iter().flatten().collect()));
    message
}

/// The lowest metric, where a message doesn't mean it without a word.
fn lowest(address: IpAddr) -> Option<RouteAttribute> {
    Some(lowest_metric(Family::of(address))).filter(|metric| *metric > 0).map(RouteAttribute::Priority)
}

/// `ip route del PREFIX proto 118`, the lowest metric, type unicast, in table main.
pub fn del_nexthop(address: IpAddr) -> Request {
    let mut message = ours(host(address), MAIN);
    message.attributes.extend(lowest(address));
    message.header.scope = RouteScope::NoWhere; // whatever scope it has
    let object = host(address).to_string();
    Request::new("delete route", object, 0, &Message::DelRoute(message)).absent_is_ok()
}

/// `ip route add unreachable PREFIX proto 118 metric METRIC` in table main.
pub fn add_unreachable(prefix: IpNetwork, metric: u32) -> Request {
    let message = unreachable(prefix, metric);
    let object = format!("unreachable {prefix} metric {metric}");
    Request::new("add route", object, NLM_F_CREATE | NLM_F_EXCL, &Message::NewRoute(message))
}

/// `ip route del unreachable PREFIX proto 118 metric METRIC` in table main.
pub fn del_unreachable(prefix: IpNetwork, metric: u32) -> Request {
    let mut message = unreachable(prefix, metric);
    message.header.scope = RouteScope::NoWhere;
    let object = format!("unreachable {prefix} metric {metric}");
    Request::new("delete route", object, 0, &Message::DelRoute(message)).absent_is_ok()
}

fn unreachable(prefix: IpNetwork, metric: u32) -> RouteMessage {
    let mut message = ours(prefix, MAIN);
    message.header.kind = RouteType::Unreachable;
    message.attributes.push(RouteAttribute::Priority(metric));
    message
}

/// A route of ours in another table than main: `PREFIX tos TOS ACTION table TABLE proto 118`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableRoute {
    /// Its table.
    pub table: u32,
    /// Its destination.
    pub prefix: IpNetwork,
    /// The packets' TOS; 0: any.
    pub tos: u8,
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
    /// `local … dev INDEX`: the namespace takes it.
    Local(u32),
}

impl fmt::Display for TableRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.action {
            Action::Throw => f.write_str("throw ")?,
            Action::Unreachable => f.write_str("unreachable ")?,
            Action::Local(_) => f.write_str("local ")?,
            Action::Via { .. } | Action::Nexthop { .. } => {}
        }
        match self.prefix.prefix() {
            0 => f.write_str("default")?,
            _ => write!(f, "{}", self.prefix)?,
        }
        if self.tos != 0 {
            write!(f, " tos {:#04x}", self.tos)?;
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

/// `ip route add PREFIX tos TOS ACTION table TABLE proto 118`. Fails where the table has a route to the prefix for that TOS.
pub fn add(route: TableRoute) -> Request {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Request::new("add route", route.to_string(), flags, &Message::NewRoute(table_message(route)))
}

/// `ip route replace PREFIX tos TOS ACTION table TABLE proto 118`: in the place of the first route to the prefix for that TOS, whosever it
/// is: for a table, or a TOS, of ours.
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
    message.header.tos = route.tos;
    match route.action {
        Action::Via { gateway, index, source, advmss } => {
            // IPv6 takes a link-local gateway as it is, and looks any other one up in table main all the same.
            if gateway.is_ipv4() {
                message.header.flags = RouteFlags::Onlink;
            }
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
        Action::Local(index) => local::fill(&mut message, index),
    }
    message
}

impl Route {
    /// As [`add`] could have made it.
    pub fn of_ours(&self) -> Option<TableRoute> {
        let action = match &self.kind {
            Kind::Throw => Action::Throw,
            Kind::Unreachable => Action::Unreachable,
            Kind::Local(Some(index)) => Action::Local(*index),
            Kind::Nexthop { id, source: Some(source), .. } => Action::Nexthop { id: *id, source: *source },
            Kind::Via(hops) => match hops.as_slice() {
                [Hop { gateway: Some(gateway), index: Some(index) }] if gateway.is_ipv4() == self.prefix.is_ipv4() => {
                    let (source, advmss) = (self.source, self.advmss);
                    Action::Via { gateway: *gateway, index: *index, source, advmss }
                }
                _ => return None,
            },
            _ => return None,
        };
        let Self { table, prefix, tos, protocol, metric, .. } = *self;
        let is_plain = [0, metric_of_none(Family::of(prefix.network()))].contains(&metric);
        (protocol == PROTOCOL && is_plain).then_some(TableRoute { table, prefix, tos, action })
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
