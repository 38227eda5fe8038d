//! What is shown of the nodes, and what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::api::protocol::{LIVE, NodeEntry, NodeFinding, NodeFindingKind, Nodes};
use crate::dataplane::node::tunnel::Underlay;
use crate::ebpf::tunnel_source;
use crate::membership::peer;
use crate::model::Family;
use crate::model::node::{NodeId, NodeState, OwnNode};
use crate::net::NodeNet;
use crate::net::route::{self, Packet};

use super::key::hexadecimal;
use super::sessions::Sessions;
use super::state::{Setup, State};
use super::view::{Node, View, name_of};
use super::word::{Phase, Word};

/// Nodes see each other within two seconds.
const ANSWERS: Duration = Duration::from_secs(5);
/// So many nodes of another version are named.
const SHOWN: usize = 3;

/// What the findings about seeds are made of.
pub struct Gossip<'a> {
    pub net: &'a NodeNet,
    pub sessions: &'a Sessions,
    pub seeds: &'a BTreeSet<SocketAddr>,
    pub since: Instant,
}

/// Enough of a long name to tell it from another.
pub fn short(cluster: &str) -> String {
    use sha2::{Digest, Sha256};
    hexadecimal(&Sha256::digest(cluster)[..4])
}

pub fn status(own: &OwnNode, state: &State, view: &View, findings: &BTreeSet<NodeFinding>) -> Nodes {
    let local = || state.own.values().map(|own| &own.share).filter(|share| share.replicas > 0);
    let own = NodeEntry {
        name: own.name.clone(),
        id: own.id.0,
        tunnel: own.tunnel,
        state: if state.phase == Phase::Up { LIVE } else { state.phase.name() }.to_owned(),
        silent_ms: 0,
        vips: local().count(),
        ready: local().map(|share| u64::from(share.ready)).sum(),
        version: crate::RELEASE.to_owned(),
    };
    let entry = |(id, node): (&NodeId, &Node)| NodeEntry {
        name: node.word.name.clone(),
        id: id.0,
        tunnel: node.word.tunnel,
        state: shown(node).to_owned(),
        silent_ms: u64::try_from(view.silences(node).1.as_millis()).unwrap_or(u64::MAX),
        vips: node.vips.len(),
        ready: node.vips.values().map(|share| u64::from(share.ready)).sum(),
        version: node.word.version.clone(),
    };
    Nodes {
        own: Some(own),
        nodes: view.nodes().iter().map(entry).collect(),
        findings: findings.iter().cloned().collect(),
    }
}

fn shown(node: &Node) -> &'static str {
    match (node.state, node.word.phase) {
        (NodeState::Live, phase @ (Phase::Restarting | Phase::Left)) => phase.name(),
        (state, _) => name_of(state),
    }
}

pub fn findings(own: &OwnNode, word: &Word, view: &View, gossip: &Gossip<'_>) -> BTreeSet<NodeFinding> {
    let mut findings = of_seeds(gossip);
    let mut add = |kind, text| {
        findings.insert(NodeFinding { kind, text });
    };
    for id in view.twins() {
        add(NodeFindingKind::Id, of_twins(id));
    }
    let mut names = BTreeMap::from([(own.name.as_str(), own.id)]);
    for (id, node) in view.nodes() {
        let name = node.word.name.as_str();
        if let Some(other) = names.insert(name, *id) {
            add(NodeFindingKind::Name, format!("two nodes, {other} and {id}, have the name {name}"));
        }
        let unlike =
            node.settled && word.cluster != "-" && node.word.cluster != "-" && node.word.cluster != word.cluster;
        if unlike {
            let text = format!("node {name} ({id}) has another `cluster` than this one: its VIPs get other addresses");
            add(NodeFindingKind::Cluster, text);
        }
    }
    findings.extend(of_versions(&word.version, view.nodes().values()));
    findings
}

/// All nodes speak by one family, and a seed by name may have addresses of the other one alone.
pub fn of_families(seeds: &BTreeMap<String, IpAddr>, own: IpAddr) -> Vec<NodeFinding> {
    let name = |address: IpAddr| Family::of(address).name();
    let finding = |(seed, other): (&String, &IpAddr)| {
        let text = format!(
            "seed {seed} has addresses of {} alone ({other}), and this node speaks by {} ({own}): all nodes speak by one family",
            name(*other),
            name(own)
        );
        NodeFinding { kind: NodeFindingKind::Family, text }
    };
    seeds.iter().map(finding).collect()
}

/// The others know this node by the address of its end of the tunnel, and drop what has another source, as the kernel may choose one
/// where the programs don't say which.
pub fn of_sources(Setup { net, context, .. }: &Setup, own: &OwnNode, view: &View) -> Vec<NodeFinding> {
    let source = |node: &Node| route::lookup(net, Packet::to(node.word.tunnel)).ok().flatten()?.source;
    let finding = |(id, node): (&NodeId, &Node)| {
        let source = source(node).filter(|source| *source != own.tunnel)?;
        let text = format!(
            "what goes by the tunnel to node {} ({id}) has {source} as its source, and this node's end of it is {}: it is dropped there",
            node.word.name, own.tunnel
        );
        Some(NodeFinding { kind: NodeFindingKind::Tunnel, text })
    };
    let found: Vec<_> = view.nodes().iter().filter_map(finding).collect();
    let dir = || peer::flow_owner(&context.registry).ok().flatten();
    let is_said = || dir().and_then(|dir| tunnel_source(&dir).ok().flatten()) == Some(own.tunnel);
    if found.is_empty() || is_said() { Vec::new() } else { found }
}

/// What the tunnel needs for VIPs' IPv6, where the network under it has less.
pub fn of_underlay(state: &State, own: &OwnNode, view: &View) -> Option<NodeFinding> {
    let has_ipv6 = state.own.values().any(|own| own.share.address6.is_some());
    if !has_ipv6 || view.nodes().is_empty() {
        return None;
    }
    let underlay = Underlay::read(&state.setup.net, own.tunnel).ok().flatten()?;
    let least = underlay.lacks_for_ipv6()?;
    let text = format!(
        "the tunnel carries no packets of VIPs' IPv6: the network of {} has MTU {}, and they need {least}",
        own.tunnel, underlay.mtu
    );
    Some(NodeFinding { kind: NodeFindingKind::Tunnel, text })
}

/// Of IPv6 addresses that differ may make one id, if very seldom.
fn of_twins(id: NodeId) -> String {
    format!("two nodes say that they are {id}: their addresses are the same, or make the same id")
}

/// A finding per version that isn't this node's, with some of the nodes that have it.
fn of_versions<'a>(own: &str, nodes: impl Iterator<Item = &'a Node>) -> Vec<NodeFinding> {
    let mut others: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    // What the run before knew tells no version.
    for node in nodes.filter(|node| node.settled && node.word.version != own) {
        others.entry(&node.word.version).or_default().push(&node.word.name);
    }
    let finding = |(version, names): (&str, Vec<&str>)| {
        let (shown, more) = names.split_at(names.len().min(SHOWN));
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        let text = format!("viprouted is {version} on {}{more}, and {own} on this node", shown.join(", "));
        NodeFinding { kind: NodeFindingKind::Version, text }
    };
    others.into_iter().map(finding).collect()
}

fn of_seeds(gossip: &Gossip<'_>) -> BTreeSet<NodeFinding> {
    let now = Instant::now();
    let strangers: BTreeSet<_> = gossip.sessions.strangers(now).collect();
    if now.duration_since(gossip.since) < ANSWERS {
        return BTreeSet::new();
    }
    let silent = gossip.seeds.iter().filter(|seed| gossip.sessions.heard(**seed).is_none());
    let finding = |seed: &SocketAddr| {
        if strangers.contains(&seed.ip()) {
            let text = format!("seed {seed} has another key: what it says is dropped");
            return NodeFinding { kind: NodeFindingKind::Key, text };
        }
        // A pod's gateway may be all that the node has of the seeds' family.
        let has_way = !matches!(route::lookup(gossip.net, Packet::to(seed.ip())), Ok(None));
        let why = if has_way { String::new() } else { no_way(seed.ip()) };
        let text = format!("seed {seed} has not answered since viprouted started{why}");
        NodeFinding { kind: NodeFindingKind::Seed, text }
    };
    silent.map(finding).collect()
}

fn no_way(seed: IpAddr) -> String {
    format!(
        ": this node has no route there by {}, and all nodes speak by the family of membership.seeds",
        Family::of(seed).name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::ClusterNode;

    fn node(last: u8, version: &str) -> Node {
        let mut node = Node::remembered(&ClusterNode::at(last), BTreeMap::new());
        (node.settled, node.word.version) = (version != "-", version.to_owned());
        node
    }

    #[test]
    fn each_other_version_is_named_once() {
        let nodes = ["2", "1", "-", "2", "2", "3", "2", "2"];
        let nodes: Vec<Node> = (2..).zip(nodes).map(|(last, version)| node(last, version)).collect();
        let texts: Vec<String> = of_versions("1", nodes.iter()).into_iter().map(|finding| finding.text).collect();
        assert_eq!(
            texts,
            ["viprouted is 2 on n2, n5, n6 and 2 more, and 1 on this node", "viprouted is 3 on n7, and 1 on this node"]
        );
    }
}
