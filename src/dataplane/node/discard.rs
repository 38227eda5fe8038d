//! Discard routes: what comes for an address of a pool that no VIP has here, or not yet, is refused by this node.
//!
//! By the default route it would go on to the gateway. Where that is on the link that the packet came by, the kernel has the sender ask the gateway
//! itself (ICMP redirect, `ip_rt_send_redirect`), which the sender then does for minutes, also when the VIP is served here long since; and a
//! gateway whose route to the pool is this node sends the packet back until its TTL is used up.
//!
//! A network on a link of the node's has none: other hosts are there, and a redirect names the VIP's own address, for which who serves it answers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::Family;
use crate::net::route::{self, Filter, Kind, Route};
use crate::net::{NodeNet, PROTOCOL, Request, Result};

/// The metric: any other route to the network is better. Not that of [`NOBODY_READY`](crate::dataplane::plan::NOBODY_READY), which VIPs' routes
/// have, but with the same lower 24 bits: by these FRR knows what isn't to be advertised. To BIRD it is nothing, as it has no `cwnd`.
const METRIC: u32 = 0xfeff_ffff;

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// The networks that have a discard route.
    pub discarded: BTreeSet<IpNetwork>,
    /// Those of the networks asked about that are on a link.
    pub on_link: BTreeSet<IpNetwork>,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A route that must be.
    Add(IpNetwork),
    /// A route that must not be.
    Del(IpNetwork),
}

/// Whether a route is one of these.
pub fn is_one(route: &Route) -> bool {
    (route.protocol, route.metric, &route.kind) == (PROTOCOL, METRIC, &Kind::Unreachable)
}

/// Reads the routes, and which of these networks are on a link.
pub fn read(node: &NodeNet, networks: &BTreeSet<IpNetwork>) -> Result<Have> {
    let mut have = Have::default();
    for family in Family::ALL {
        let filter = Filter { family, table: Some(route::MAIN), protocol: Some(PROTOCOL), prefix: None };
        have.discarded
            .extend(route::list(node, filter)?.iter().filter(|route| is_one(route)).map(|route| route.prefix));
    }
    let begins: Vec<IpAddr> = networks.iter().map(IpNetwork::network).collect();
    let (routes, _) = route::covering(node, &begins)?;
    let connected: Vec<IpNetwork> =
        routes.iter().filter(|route| is_connected(route)).map(|route| route.prefix).collect();
    let holds = |of: &IpNetwork, network: &IpNetwork| of.prefix() <= network.prefix() && of.contains(network.network());
    have.on_link = networks.iter().filter(|network| connected.iter().any(|of| holds(of, network))).copied().collect();
    Ok(have)
}

/// Its destinations are hosts on a link: it names no gateway.
fn is_connected(route: &Route) -> bool {
    let is_link = matches!(&route.kind, Kind::Via(hops) if hops.iter().any(|hop| hop.gateway.is_none()));
    route.table == route::MAIN && route.protocol != PROTOCOL && route.prefix.prefix() > 0 && is_link
}

/// The steps from what is to what must be for these networks.
pub fn difference(have: &Have, networks: &BTreeSet<IpNetwork>) -> Vec<Op> {
    let wanted = have.wanted(networks);
    let gone = have.discarded.difference(&wanted).copied().map(Op::Del);
    gone.chain(wanted.difference(&have.discarded).copied().map(Op::Add)).collect()
}

/// Removes all of them; a sentence each.
pub fn remove(node: &NodeNet) -> Result<Vec<String>> {
    let ops = difference(&read(node, &BTreeSet::new())?, &BTreeSet::new());
    node.apply(&ops.iter().map(Op::request).collect::<Vec<_>>())?;
    Ok(ops.iter().map(Op::finding).collect())
}

impl Have {
    /// Those of the networks that must have one.
    pub fn wanted(&self, networks: &BTreeSet<IpNetwork>) -> BTreeSet<IpNetwork> {
        networks.difference(&self.on_link).copied().collect()
    }
}

impl Op {
    /// The request that does it.
    pub fn request(&self) -> Request {
        match self {
            Self::Add(network) => route::add_unreachable(*network, METRIC),
            Self::Del(network) => route::del_unreachable(*network, METRIC),
        }
    }

    /// What is amiss where it is needed.
    pub fn finding(&self) -> String {
        match self {
            Self::Add(network) => format!("route unreachable {network} metric {METRIC} is missing"),
            Self::Del(network) => format!("route unreachable {network} metric {METRIC} is an orphan"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(all: &[&str]) -> BTreeSet<IpNetwork> {
        all.iter().map(|network| network.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_on_a_link_is_left_to_the_hosts_there() {
        let wanted = networks(&["10.118.0.0/24", "192.0.2.128/25", "fd00:118::/96"]);
        let have =
            Have { discarded: networks(&["10.9.0.0/24", "192.0.2.128/25"]), on_link: networks(&["192.0.2.128/25"]) };
        let [old, on_link, new, new6] =
            ["10.9.0.0/24", "192.0.2.128/25", "10.118.0.0/24", "fd00:118::/96"].map(|network| network.parse().unwrap());
        assert_eq!(difference(&have, &wanted), [Op::Del(old), Op::Del(on_link), Op::Add(new), Op::Add(new6)]);
        let have = Have { discarded: networks(&["10.118.0.0/24", "fd00:118::/96"]), ..have };
        assert_eq!(difference(&have, &wanted), []);
    }

    #[test]
    fn a_discard_route_is_told_from_a_vips() {
        let route = |metric, kind| Route {
            prefix: "10.118.0.7/32".parse().unwrap(),
            table: route::MAIN,
            protocol: PROTOCOL,
            tos: 0,
            metric,
            source: None,
            advmss: None,
            kind,
        };
        assert!(is_one(&route(METRIC, Kind::Unreachable)));
        assert!(!is_one(&route(u32::MAX, Kind::Unreachable)) && !is_one(&route(METRIC, Kind::Other)));
    }
}
