//! Claim 3: before an address is used, what the gateways announced is searched for a route to it, and the link for a
//! host that has it. Everything is read before ([`super::search`]); this decides.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::Ipv4Addr;

use super::allow::Allow;
use super::state::Findings;
use crate::net::PROTOCOL;
use crate::net::link::Mac;
use crate::net::route::{Hop, Kind, LOCAL, MAIN, Route};

/// `RTPROT_KERNEL` of linux/rtnetlink.h: routes that come with an address of the node's own.
const KERNEL: u8 = 2;

/// What is known when an address is judged.
#[derive(Debug, Default)]
pub struct Evidence {
    /// All routes whose prefix holds the address, of all tables.
    pub routes: Vec<Route>,
    /// The index of the link to the gateways, if there is one.
    pub link: Option<u32>,
    /// This node's addresses on it.
    pub own: Vec<Ipv4Addr>,
    /// Who answered an ARP probe for the address there.
    pub answers: BTreeSet<Mac>,
    /// The cluster's nodes.
    pub peers: Vec<Ipv4Addr>,
    /// Their Ethernet addresses, as far as they are on the link.
    pub peer_macs: BTreeSet<Mac>,
}

/// Whether `candidate` can be a VIP's.
pub fn judge(candidate: Ipv4Addr, allow: &Allow, evidence: &Evidence) -> Findings {
    let mut findings = Findings::default();
    for route in &evidence.routes {
        match meaning(route, candidate, allow, evidence) {
            Meaning::Nothing => {}
            Meaning::Peer => findings.at_peer = true,
            Meaning::Conflict(what) => findings.conflicts.push(what),
        }
    }
    for mac in evidence.answers.difference(&evidence.peer_macs) {
        findings.conflicts.push(format!("{} answers ARP for it", show(*mac)));
    }
    findings
}

enum Meaning {
    Nothing,
    Peer,
    Conflict(String),
}

fn meaning(route: &Route, candidate: Ipv4Addr, allow: &Allow, evidence: &Evidence) -> Meaning {
    if !route.prefix.contains(candidate) {
        return Meaning::Nothing;
    }
    if route.table == LOCAL {
        // The kernel's own: an address of this node, or the broadcast address of one of its links.
        let own = route.prefix.prefix() == 32;
        return if own { Meaning::Conflict("it is an address of this node".into()) } else { Meaning::Nothing };
    }
    if matches!(route.protocol, PROTOCOL | KERNEL) || route.prefix.prefix() <= allow.prefix_of(candidate) {
        return Meaning::Nothing;
    }
    let hops = match &route.kind {
        Kind::Via(hops) => hops.as_slice(),
        Kind::Nexthop { .. } | Kind::Unreachable | Kind::Throw | Kind::Other => &[],
    };
    let is_peer = |hop: &Hop| hop.gateway.is_some_and(|gateway| evidence.peers.contains(&gateway));
    if !hops.is_empty() && hops.iter().all(is_peer) {
        return Meaning::Peer;
    }
    if is_link_itself(route, hops, evidence) {
        return Meaning::Nothing;
    }
    Meaning::Conflict(describe(route, hops))
}

/// Some DHCP clients (dhcpcd) put the link's own prefix in by themselves, under their own protocol; it says as little as
/// the kernel's. Who has the address on the link, ARP tells.
fn is_link_itself(route: &Route, hops: &[Hop], evidence: &Evidence) -> bool {
    let on_link = |hop: &Hop| hop.gateway.is_none() && hop.index.is_some() && hop.index == evidence.link;
    !hops.is_empty() && hops.iter().all(on_link) && evidence.own.iter().any(|own| route.prefix.contains(*own))
}

/// `bgp route 10.118.0.0/24 via 192.0.2.1, 192.0.2.2 (table 100)`
fn describe(route: &Route, hops: &[Hop]) -> String {
    let mut text = format!("{} route {}", protocol(route.protocol), route.prefix);
    let gateways: Vec<_> = hops.iter().filter_map(|hop| hop.gateway).map(|gateway| gateway.to_string()).collect();
    if !gateways.is_empty() {
        let _ = write!(text, " via {}", gateways.join(", "));
    }
    if route.table != MAIN {
        let _ = write!(text, " (table {})", route.table);
    }
    text
}

/// Names of iproute2's `rt_protos`.
fn protocol(number: u8) -> String {
    let name = match number {
        1 => "redirect",
        3 => "boot",
        4 => "static",
        11 => "zebra",
        12 => "bird",
        14 => "dnrouted",
        16 => "dhcp",
        17 => "mrouted",
        18 => "keepalived",
        42 => "babel",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        other => return format!("protocol {other}"),
    };
    name.into()
}

fn show(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATIC: u8 = 4;
    const BGP: u8 = 186;

    fn candidate() -> Ipv4Addr {
        Ipv4Addr::new(10, 118, 0, 7)
    }

    fn hop(gateway: &str, index: u32) -> Hop {
        Hop { gateway: gateway.parse().ok(), index: Some(index) }
    }

    fn route(prefix: &str, protocol: u8, hops: &[Hop]) -> Route {
        Route {
            prefix: prefix.parse().unwrap(),
            table: MAIN,
            protocol,
            metric: 0,
            source: None,
            kind: Kind::Via(hops.to_vec()),
        }
    }

    fn evidence(routes: &[Route]) -> Evidence {
        Evidence {
            routes: routes.to_vec(),
            link: Some(2),
            own: vec![[192, 0, 2, 11].into()],
            peers: vec![[192, 0, 2, 11].into(), [192, 0, 2, 12].into()],
            ..Evidence::default()
        }
    }

    fn judged(allow: &[&str], routes: &[Route]) -> Findings {
        let allow = Allow::new(allow.iter().map(|n| n.parse().unwrap()).collect());
        judge(candidate(), &allow, &evidence(routes))
    }

    fn is_free(allow: &[&str], routes: &[Route]) -> bool {
        judged(allow, routes) == Findings::default()
    }

    #[test]
    fn a_foreign_route_to_the_address_is_a_conflict() {
        let gateway = [hop("192.0.2.1", 2)];
        for prefix in ["10.118.0.7/32", "10.118.0.0/28", "10.118.0.0/17"] {
            for protocol in [STATIC, BGP, 3, 12, 16, 99] {
                let found = judged(&["10.118.0.0/16"], &[route(prefix, protocol, &gateway)]);
                assert_eq!(found.conflicts.len(), 1, "{prefix} {protocol}");
            }
        }
        let found = judged(&[], &[route("10.118.0.0/24", BGP, &[hop("192.0.2.1", 2), hop("192.0.2.2", 2)])]);
        assert_eq!(found.conflicts, ["bgp route 10.118.0.0/24 via 192.0.2.1, 192.0.2.2"]);
    }

    #[test]
    fn a_route_as_wide_as_the_allow_entry_or_wider_says_nothing() {
        let gateway = [hop("192.0.2.1", 2)];
        for prefix in ["10.118.0.0/16", "10.0.0.0/8", "0.0.0.0/0"] {
            assert!(is_free(&["10.118.0.0/16"], &[route(prefix, BGP, &gateway)]), "{prefix}");
        }
        assert!(!is_free(&["10.118.0.0/15"], &[route("10.118.0.0/16", BGP, &gateway)]));
    }

    #[test]
    fn without_an_allow_list_only_the_default_route_says_nothing() {
        let gateway = [hop("192.0.2.1", 2)];
        assert!(is_free(&[], &[route("0.0.0.0/0", STATIC, &gateway)]));
        assert!(!is_free(&[], &[route("0.0.0.0/1", STATIC, &gateway)]));
    }

    #[test]
    fn routes_elsewhere_of_the_kernel_and_of_ours_say_nothing() {
        assert!(is_free(&[], &[route("10.119.0.0/16", BGP, &[hop("192.0.2.1", 2)])]));
        assert!(is_free(&[], &[route("10.118.0.0/24", KERNEL, &[hop("", 2)])]));
        assert!(is_free(&[], &[route("10.118.0.7/32", PROTOCOL, &[hop("", 9)])]));
    }

    #[test]
    fn a_route_without_a_way_out_is_a_conflict() {
        for kind in [Kind::Unreachable, Kind::Other] {
            let blackhole = Route { kind, ..route("10.118.0.0/28", STATIC, &[]) };
            assert_eq!(judged(&[], &[blackhole]).conflicts, ["static route 10.118.0.0/28"]);
        }
    }

    #[test]
    fn every_table_counts() {
        let other = Route { table: 100, ..route("10.118.0.0/24", STATIC, &[hop("192.0.2.1", 2)]) };
        assert_eq!(judged(&[], &[other]).conflicts, ["static route 10.118.0.0/24 via 192.0.2.1 (table 100)"]);
    }

    #[test]
    fn an_address_of_the_node_is_a_conflict() {
        let local = |prefix| Route { table: LOCAL, kind: Kind::Other, ..route(prefix, KERNEL, &[]) };
        assert_eq!(judged(&[], &[local("10.118.0.7/32")]).conflicts, ["it is an address of this node"]);
        assert!(is_free(&[], &[local("10.0.0.0/8")]));
    }

    #[test]
    fn a_route_to_peers_alone_is_the_same_vip_on_another_node() {
        let to_peer = route("10.118.0.7/32", BGP, &[hop("192.0.2.12", 2)]);
        assert_eq!(judged(&[], std::slice::from_ref(&to_peer)), Findings { at_peer: true, conflicts: vec![] });
        let mixed = route("10.118.0.7/32", BGP, &[hop("192.0.2.12", 2), hop("192.0.2.99", 2)]);
        assert!(!judged(&[], &[mixed]).conflicts.is_empty());
        let both = judged(&[], &[to_peer, route("10.118.0.0/28", STATIC, &[hop("192.0.2.1", 2)])]);
        assert!(both.at_peer && both.conflicts.len() == 1);
    }

    #[test]
    fn the_links_own_prefix_under_another_protocol_says_nothing() {
        let allow = Allow::default();
        let on_link = route("192.0.2.0/24", 16, &[hop("", 2)]);
        let candidate = [192, 0, 2, 50].into();
        assert!(judge(candidate, &allow, &evidence(&[on_link])).conflicts.is_empty());
        for other in [hop("192.0.2.1", 2), hop("", 3)] {
            let elsewhere = route("192.0.2.0/24", 16, &[other]);
            assert_eq!(judge(candidate, &allow, &evidence(&[elsewhere])).conflicts.len(), 1);
        }
        let part = route("192.0.2.48/29", 16, &[hop("", 2)]);
        assert_eq!(judge(candidate, &allow, &evidence(&[part])).conflicts.len(), 1);
    }

    #[test]
    fn an_arp_answer_is_a_conflict_unless_a_peers() {
        let (stranger, peer) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let mut evidence = Evidence { answers: BTreeSet::from([stranger, peer]), ..Evidence::default() };
        assert_eq!(judge(candidate(), &Allow::default(), &evidence).conflicts.len(), 2);
        evidence.peer_macs.insert(peer);
        let conflicts = judge(candidate(), &Allow::default(), &evidence).conflicts;
        assert_eq!(conflicts, ["02:00:00:00:00:01 answers ARP for it"]);
    }
}
