//! What keeps other nodes' packets from this one: a chain of INPUT that drops the tunnel or the gossip.
//!
//! What is said to be dropped comes from a node that is known, or from a seed; where there is none, from anywhere.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::dataplane::ids::TUNNEL_PORT;
use crate::model::Family;
use crate::model::node::ClusterNode;
use crate::net::{link, route};

use super::super::scene::Scene;
use super::super::{Cure, Finding, command};
use super::ruleset::{Chain, Fate, Hook, Packet, Place, Table};
use super::{has_ours, iptables, is_ours, tunnel_family};

/// What other nodes send here.
struct Service {
    name: &'static str,
    family: Family,
    port: u16,
    /// This node's address for it, where that is known.
    own: Option<IpAddr>,
    /// Where it comes from, and the device that leads there.
    from: Vec<(IpAddr, Option<String>)>,
    /// What conntrack says of a flow's first packet.
    state: &'static str,
    why: &'static str,
}

pub fn look(scene: &Scene<'_>, tables: &[Table]) -> Vec<Finding> {
    // Whether the tunnel is kept out of connection tracking.
    let services = services(scene, has_ours(tables, tunnel_family(scene)));
    let others = tables.iter().filter(|table| !is_ours(&table.place));
    let chains = others.flat_map(|table| table.chains.iter().map(move |(name, chain)| (table, name.as_str(), chain)));
    let of_input = chains.filter(|(_, _, chain)| chain.hook == Some(Hook::Input));
    of_input.flat_map(|place| services.iter().filter_map(move |service| dropped(service, place))).collect()
}

fn services(scene: &Scene<'_>, untracked: bool) -> Vec<Service> {
    let membership = scene.good_config().and_then(|config| config.membership.as_ref());
    let cluster = scene.cluster.as_ref();
    let known = || cluster.into_iter().flat_map(|cluster| &cluster.nodes);
    let mut services = Vec::new();
    if membership.is_some() || scene.has_other_nodes() {
        services.push(Service {
            name: "the tunnel",
            family: tunnel_family(scene),
            port: TUNNEL_PORT,
            own: cluster.map(|cluster| cluster.own.tunnel),
            from: ways(scene, known().map(|node| node.tunnel).collect()),
            state: if untracked { "untracked" } else { "new" },
            why: "What other nodes hand over to this one is lost: new connections fail, live ones break.",
        });
    }
    if let Some(membership) = membership {
        let own = cluster.map(|cluster| cluster.own.heard_at()).or(membership.listen);
        let seeds = membership.seed_addresses().filter(|seed| Some(*seed) != own);
        services.push(Service {
            name: "the gossip",
            family: own.map(Family::of).or(membership.family()).unwrap_or_default(),
            port: membership.port,
            own,
            from: ways(scene, known().map(ClusterNode::heard_at).chain(seeds).collect()),
            state: "new",
            why: "A node that comes to know of this one is not heard: neither one that is new, nor any after a partition.",
        });
    }
    services
}

fn ways(scene: &Scene<'_>, addresses: BTreeSet<IpAddr>) -> Vec<(IpAddr, Option<String>)> {
    let device = |address: IpAddr| {
        let way = route::lookup(&scene.net, route::Packet::to(address)).ok()??;
        Some(link::by_index(&scene.net, way.hop.index?).ok()??.name)
    };
    addresses.into_iter().map(|address| (address, device(address))).collect()
}

fn dropped(service: &Service, (table, name, chain): (&Table, &str, &Chain)) -> Option<Finding> {
    let Service { family, port, own, state, .. } = service;
    let (family, port, address_type, destination) = (*family, Some(*port), Some("local"), *own);
    let packet = Packet { family, port, address_type, destination, ..Packet::of("udp", state) };
    let of = |(source, device): &(IpAddr, Option<String>)| {
        let packet = Packet { source: Some(*source), input: device.as_deref(), ..packet.clone() };
        let (fate, rule) = table.end(name, &packet);
        (fate == Fate::Dropped).then(|| (format!("from {source}"), rule))
    };
    let from_anywhere = || {
        let (fate, rule) = table.end(name, &packet);
        (fate == Fate::Dropped && service.from.is_empty()).then(|| ("from other nodes".to_owned(), rule))
    };
    let (whence, rule) = service.from.iter().find_map(of).or_else(from_anywhere)?;
    let by = match (rule, &table.place) {
        (Some(rule), Place::Nft { .. }) => format!(" (by the rule with {rule})"),
        (Some(rule), Place::Iptables { .. }) => format!(" (by `{rule}`)"),
        (None, _) if chain.drops => " (its policy is drop)".to_owned(),
        (None, _) => String::new(),
    };
    let what =
        format!("{}, chain {name} drops UDP {} ({}) {whence}{by}", table.place.shown(), service.port, service.name);
    Some(Finding::error(what, service.why, admit(&table.place, name, service.port)))
}

/// From anywhere: the tunnel's port is guarded by viproute's own table, the gossip's by its key.
fn admit(place: &Place, chain: &str, port: u16) -> Cure {
    command(match place {
        Place::Nft { family, name } => format!("nft insert rule {family} {name} {chain} udp dport {port} accept"),
        Place::Iptables { family, name } => {
            format!("{} -t {name} -I {chain} -p udp --dport {port} -j ACCEPT", iptables(*family))
        }
    })
}
