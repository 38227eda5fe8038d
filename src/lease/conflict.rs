//! Address conflict search: before an address is used, the routes of the gateways are searched for one to it, and the link for
//! a host that has it. [`super::search`] reads the facts; this module decides.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::{Family, Mac};
use crate::net::PROTOCOL;
use crate::net::route::{self, Hop, Kind, LOCAL, MAIN, Route};

use super::allow::Allow;
use super::gateway::Heard;
use super::state::Findings;

/// `RTPROT_KERNEL` of linux/rtnetlink.h: routes that come with an address of the node's own.
const KERNEL: u8 = 2;

/// The facts that decide whether an address is in conflict.
#[derive(Debug, Default)]
pub struct Evidence {
    /// All routes whose prefix holds the address, of all tables.
    pub routes: Vec<Route>,
    /// What the gateways announce that holds the address.
    pub heard: Vec<Heard>,
    /// Other nodes of the cluster have replicas of the VIP at this address.
    pub served_elsewhere: bool,
    /// The index of the link to the gateways, if there is one.
    pub link: Option<u32>,
    /// This node's addresses on it.
    pub own: Vec<IpAddr>,
    /// Who answered a probe for the address there, by ARP or neighbour discovery.
    pub answers: BTreeSet<Mac>,
    /// The cluster's nodes.
    pub peers: Vec<IpAddr>,
    /// Their Ethernet addresses, as far as they are on the link.
    pub peer_macs: BTreeSet<Mac>,
    /// Addresses of `own` with the lengths of their prefixes, and those of other links with these links' names.
    pub connected: Vec<Connected>,
    /// Gateways of this node's routes.
    pub gateways: BTreeSet<IpAddr>,
    /// Its name servers.
    pub name_servers: BTreeSet<IpAddr>,
}

/// A prefix that is on a link of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// The prefix.
    pub prefix: IpNetwork,
    /// The link's index.
    pub index: u32,
    /// The link's name.
    pub link: String,
}

/// Whether `candidate` can be a VIP's.
pub fn judge(candidate: IpAddr, allow: &Allow, evidence: &Evidence) -> Findings {
    let mut findings = Findings::default();
    for route in &evidence.routes {
        match meaning(route, candidate, allow, evidence) {
            Meaning::Nothing => {}
            Meaning::Peer => findings.at_peer = true,
            Meaning::Conflict(what) => findings.conflicts.push(what),
        }
    }
    for heard in &evidence.heard {
        match announced(heard, candidate, allow, evidence) {
            Meaning::Nothing => {}
            Meaning::Peer => findings.at_peer = true,
            Meaning::Conflict(what) => findings.conflicts.push(what),
        }
    }
    findings.conflicts.extend(connected_elsewhere(candidate, evidence));
    if evidence.gateways.contains(&candidate) {
        findings.conflicts.push("it is a gateway of this node's routes".into());
    }
    if evidence.name_servers.contains(&candidate) {
        findings.conflicts.push("it is a name server of this node".into());
    }
    for mac in evidence.answers.difference(&evidence.peer_macs) {
        findings.conflicts.push(format!("{mac} answers {} for it", Family::of(candidate).resolution()));
        findings.answered_by.insert(*mac);
    }
    findings
}

/// A prefix of another link holds the address: that link's hosts (pods on a bridge, say) have it, or look for it there. The
/// longest prefix counts, as it does for the kernel.
fn connected_elsewhere(candidate: IpAddr, evidence: &Evidence) -> Option<String> {
    let holding = evidence.connected.iter().filter(|connected| connected.prefix.contains(candidate));
    let longest =
        holding.max_by_key(|connected| (connected.prefix.prefix(), Some(connected.index) == evidence.link))?;
    let elsewhere = Some(longest.index) != evidence.link && longest.prefix.prefix() < Family::of(candidate).bits();
    let network = longest.prefix.network();
    elsewhere.then(|| format!("{network}/{} is connected on {}", longest.prefix.prefix(), longest.link))
}

enum Meaning {
    Nothing,
    Peer,
    Conflict(String),
}

fn meaning(route: &Route, candidate: IpAddr, allow: &Allow, evidence: &Evidence) -> Meaning {
    if !route.prefix.contains(candidate) || route.protocol == PROTOCOL {
        return Meaning::Nothing;
    }
    if route.table == LOCAL {
        // The kernel's own: an address of this node, or the broadcast address of one of its links.
        let own = route::is_host(route.prefix);
        return if own { Meaning::Conflict("it is an address of this node".into()) } else { Meaning::Nothing };
    }
    if route.protocol == KERNEL || route.prefix.prefix() <= allow.prefix_of(candidate) {
        return Meaning::Nothing;
    }
    let hops = match &route.kind {
        Kind::Via(hops) => hops.as_slice(),
        Kind::Nexthop { .. } | Kind::Unreachable | Kind::Throw | Kind::Local(_) | Kind::Other => &[],
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

/// What a gateway's route says: as one of the kernel's, that leads to whom the gateway names. A gateway that puts itself in
/// that place announces another node's VIP only where that node is known to have it.
fn announced(heard: &Heard, candidate: IpAddr, allow: &Allow, evidence: &Evidence) -> Meaning {
    if !heard.prefix.contains(candidate) || heard.prefix.prefix() <= allow.prefix_of(candidate) {
        return Meaning::Nothing;
    }
    // The link's own prefix, or one that holds it. Who has the address there, ARP tells.
    if evidence.own.iter().any(|own| heard.prefix.contains(*own)) {
        return Meaning::Nothing;
    }
    let is_own = |hop: &IpAddr| evidence.connected.iter().any(|connected| connected.prefix.ip() == *hop);
    if route::is_host(heard.prefix) {
        match heard.next_hop {
            // What this node has announced a moment ago.
            Some(hop) if is_own(&hop) => return Meaning::Nothing,
            Some(hop) if evidence.peers.contains(&hop) => return Meaning::Peer,
            _ if evidence.served_elsewhere => return Meaning::Peer,
            _ => {}
        }
    }
    let via = heard.next_hop.map(|hop| format!(" via {hop}")).unwrap_or_default();
    Meaning::Conflict(format!("{} has a route {}{via}", heard.by, heard.prefix))
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

#[cfg(test)]
mod tests;
