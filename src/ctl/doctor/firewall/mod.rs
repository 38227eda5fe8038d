//! Findings about packet filters: what drops packets of VIPs, or of other nodes, and what rewrites the source of a pod that calls a VIP.
//!
//! Each chain is asked what becomes of a packet to a VIP and of one from it. Where that depends on more than is known
//! (sets, ports, other machines' addresses), nothing is said.

mod iptables;
mod nft;
mod nodes;
mod pods;
mod read;
mod ruleset;

use std::net::IpAddr;

use crate::lease::settings::has_several;
use crate::model::Family;
use crate::model::address::ipv4;
use crate::net::conntrack;
use crate::node::config::Config;

use super::scene::Scene;
use super::{Cure, Finding, command, set};
pub use read::{listed, saved};
use read::{program, tables};
use ruleset::{Chain, Fate, Hook, Packet, Place, Table};

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let tables = tables(&mut findings);
    // Ours keeps conntrack, and with it all translation, away from VIPs.
    let untracked = has_ours(&tables, Family::V4);
    let ends = Ends::of(scene, untracked);
    for table in &tables {
        for (name, chain) in &table.chains {
            match chain.hook {
                Some(Hook::Forward) => findings.extend(forwarding(scene, &ends, (table, name, chain))),
                Some(Hook::SourceNat) if !untracked => findings.extend(masquerade(scene, &ends, (table, name))),
                _ => {}
            }
        }
    }
    findings.extend(nodes::look(scene, &tables));
    findings.extend(pods::look(scene));
    if scene.has_other_nodes() && !has_ours(&tables, tunnel_family(scene)) {
        findings.extend(tracked_between_nodes(scene));
    } else if !untracked && !scene.vips.is_empty() {
        findings.extend(tracked(&tables));
    }
    findings
}

fn is_ours(place: &Place) -> bool {
    matches!(place, Place::Nft { family, name } if family != "inet" && name == "viproute")
}

/// viprouted's table of that family is there.
fn has_ours(tables: &[Table], family: Family) -> bool {
    tables.iter().any(|table| is_ours(&table.place) && table.place.meets(family))
}

/// The family of the tunnel's own packets.
fn tunnel_family(scene: &Scene<'_>) -> Family {
    scene.cluster.as_ref().map_or(Family::V4, |cluster| Family::of(cluster.own.tunnel))
}

/// Both ends of a packet's way through the node.
struct Ends<'a> {
    uplink: Option<&'a str>,
    host_veth: &'a str,
    vip: Option<IpAddr>,
    untracked: bool,
}

impl<'a> Ends<'a> {
    /// Of the first VIP; where there is none yet, of one as it would be.
    fn of(scene: &'a Scene<'_>, untracked: bool) -> Self {
        let vip = scene.vips.iter().find(|vip| !vip.endpoints.is_empty());
        let host_veth = vip.and_then(|vip| vip.endpoints.first()).map(|(_, endpoint)| endpoint.device.as_str());
        Self {
            uplink: scene.uplink.as_deref(),
            host_veth: host_veth.unwrap_or("vip00000000000"),
            vip: vip.and_then(|vip| ipv4(vip.record.address())).map(IpAddr::V4),
            untracked,
        }
    }

    fn request(&self, state: &'static str) -> Packet<'_> {
        let (input, output) = (self.uplink, Some(self.host_veth));
        Packet { input, output, destination: self.vip, ..Packet::of("tcp", self.state(state)) }
    }

    fn reply(&self, state: &'static str) -> Packet<'_> {
        let (input, output) = (Some(self.host_veth), self.uplink);
        Packet { input, output, source: self.vip, ..Packet::of("tcp", self.state(state)) }
    }

    fn state(&self, tracked: &'static str) -> &'static str {
        if self.untracked { "untracked" } else { tracked }
    }
}

fn forwarding(scene: &Scene<'_>, ends: &Ends<'_>, (table, name, chain): (&Table, &str, &Chain)) -> Option<Finding> {
    let drops = |packet: Packet<'_>| table.fate(name, &packet) == Fate::Dropped;
    let cure = table.place.exempt(name, &["iifname", "oifname"]);
    let place = format!("{}, chain {name}", table.place.shown());
    let policy = if chain.drops { " (its policy is drop)" } else { "" };
    let direction = match (drops(ends.request("new")), drops(ends.reply("established"))) {
        (true, true) => "to and from VIPs",
        (true, false) => "to VIPs",
        (false, true) => "from VIPs",
        (false, false) => return invalid(scene, &place, drops(ends.request("invalid")), cure),
    };
    let what = format!("{place} drops packets {direction}{policy}");
    Some(Finding::error(what, "Connections to VIPs from other machines never come about.", cure))
}

/// Between nodes a connection's packets may go one way only, which conntrack takes to be wrong.
fn invalid(scene: &Scene<'_>, place: &str, drops: bool, cure: Cure) -> Option<Finding> {
    if !drops {
        return None;
    }
    let what = format!("{place} drops packets to VIPs that conntrack calls invalid");
    let why = "When a router sends a live connection's packets by another node, this one drops them.";
    let several = scene.good_config().is_some_and(|config: &Config| has_several(&config.lease.peers));
    Some(if several { Finding::warning(what, why, cure) } else { Finding::hint(what, why, cure) })
}

fn masquerade(scene: &Scene<'_>, ends: &Ends<'_>, (table, name): (&Table, &str)) -> Option<Finding> {
    let rewritten = scene.endpoints().find(|(_, endpoint)| {
        let (output, source) = (Some(ends.host_veth), ipv4(endpoint.address()).map(IpAddr::V4));
        // What isn't a service's of kube-proxy has no mark.
        let (destination, mark) = (ends.vip, Some(0));
        let packet = Packet { output, source, destination, mark, ..Packet::of("tcp", "new") };
        table.fate(name, &packet) == Fate::Rewritten
    });
    let (_, endpoint) = rewritten?;
    let what = format!(
        "{}, chain {name}, rewrites the source of a pod ({}) that calls a VIP",
        table.place.shown(),
        endpoint.address()
    );
    let why = "The replica sees the node's address in place of the pod's, and each call takes a conntrack entry.";
    Some(Finding::warning(what, why, table.place.exempt(name, &["oifname"])))
}

/// Something on the node makes conntrack track every packet.
fn tracked(tables: &[Table]) -> Option<Finding> {
    let uses = |table: &&Table| table.place.meets(Family::V4) && table.chains.values().any(Chain::needs_conntrack);
    let table = tables.iter().find(uses)?;
    let what = format!("conntrack follows the connections to VIPs ({} needs it)", table.place.shown());
    let why = "Each takes an entry of a limited table and costs time. viprouted exempts them, by the nftables table viproute.";
    Some(Finding::hint(what, why, exemption()))
}

/// What has viprouted make its table.
fn exemption() -> Cure {
    if program("nft").is_some() {
        super::restart()
    } else {
        command("apt-get install nftables && systemctl restart viprouted")
    }
}

/// Where nodes serve VIPs together, connections must not be tracked.
fn tracked_between_nodes(scene: &Scene<'_>) -> Option<Finding> {
    if !conntrack::is_tracking() {
        return None;
    }
    let is_off = scene.good_config().is_some_and(|config| !config.notrack);
    let why = "This node sees one direction alone of a connection that another node's replica answers: to conntrack its packets \
               are invalid, and firewalls drop such.";
    Some(if is_off {
        let what = "notrack is off, on a node that tracks connections and serves VIPs together with other nodes";
        Finding::error(what, why, set(scene, "notrack", "true"))
    } else {
        let table = match tunnel_family(scene) {
            Family::V4 => "ip viproute",
            Family::V6 => "ip6 viproute",
        };
        let what = format!(
            "the nftables table {table} is missing, on a node that tracks connections and serves VIPs together with other nodes"
        );
        Finding::error(what, why, exemption())
    })
}

/// The program of a family's tables.
fn iptables(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables-nft",
        Family::V6 => "ip6tables-nft",
    }
}

impl Place {
    /// As people know it.
    fn shown(&self) -> String {
        match self {
            Self::Nft { family, name } => format!("nftables' table {family} {name}"),
            Self::Iptables { family, name } => format!("{}'s table {name}", iptables(*family)),
        }
    }

    /// Accepts what comes from or goes to host veths before anything else is asked. No address is named, so that it is as
    /// good for the next VIP.
    fn exempt(&self, chain: &str, directions: &[&str]) -> Cure {
        let one = |direction: &&str| match self {
            Self::Nft { family, name } => {
                format!("nft insert rule {family} {name} {chain} {direction} '\"vip*\"' accept")
            }
            Self::Iptables { family, name } => {
                let option = if *direction == "iifname" { "-i" } else { "-o" };
                format!("{} -t {name} -I {chain} {option} vip+ -j ACCEPT", iptables(*family))
            }
        };
        command(directions.iter().map(one).collect::<Vec<_>>().join(" && "))
    }
}

#[cfg(test)]
mod tests;
