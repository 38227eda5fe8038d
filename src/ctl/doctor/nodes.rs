//! Findings about the nodes that serve the same VIPs.

use std::net::IpAddr;

use crate::api::client;
use crate::api::protocol::{NodeFinding, NodeFindingKind, Nodes};
use crate::ctl::ANSWER;
use crate::dataplane::ids::TUNNEL_DEVICE;
use crate::dataplane::node::tunnel::Underlay;
use crate::ebpf::tunnel_source;
use crate::lease::settings::Backend;
use crate::model::node::{ClusterNode, NodeId};
use crate::net;
use crate::net::link::{self, Link};
use crate::net::route::{self, Way};
use crate::node::config::Membership;
use crate::node::peers::key::{Error, Keys};
use crate::with_causes;

use super::scene::Scene;
use super::{Cure, Finding, advice, command, quoted};

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let mut findings = underlay(scene).unwrap_or_default();
    let Some(membership) = scene.good_config().and_then(|config| config.membership.as_ref()) else { return findings };
    findings.extend(key(membership));
    // Where it can't be reached, that is found elsewhere.
    let nodes = client::nodes(&scene.places.allocator, ANSWER).unwrap_or_default();
    // What the kernel chooses as a source is asked here too, and has its cure.
    let others = nodes.findings.iter().filter(|finding| finding.kind != NodeFindingKind::Tunnel);
    findings.extend(others.map(|finding| of_nodes(finding, scene, membership)));
    findings.extend(decider(scene, membership, &nodes));
    findings
}

/// The way of the tunnel's own packets.
fn underlay(scene: &Scene<'_>) -> net::Result<Vec<Finding>> {
    let Some(cluster) = &scene.cluster else { return Ok(Vec::new()) };
    let (Some(tunnel), Some(underlay)) =
        (link::by_name(&scene.net, TUNNEL_DEVICE)?, Underlay::of(&scene.net, &scene.places.registry)?)
    else {
        return Ok(Vec::new());
    };
    let mut findings: Vec<Finding> = mtu(&tunnel, underlay).into_iter().collect();
    findings.extend(ipv6(scene, underlay)?);
    let told = scene.bpf_dir().and_then(|dir| tunnel_source(&dir).ok().flatten());
    for node in &cluster.nodes {
        let Some(way) = route::lookup(&scene.net, route::Packet::to(node.tunnel))? else { continue };
        findings.extend(source(node, &way, cluster.own.tunnel).filter(|_| told != Some(cluster.own.tunnel)));
        let device = way.hop.index.map_or(Ok(None), |index| link::by_index(&scene.net, index))?;
        findings.extend(device.and_then(|device| narrow(node, &device, (underlay.mtu, cluster.own.tunnel))));
    }
    Ok(findings)
}

fn mtu(tunnel: &Link, underlay: Underlay) -> Option<Finding> {
    let wanted = underlay.device_mtu();
    if tunnel.mtu == wanted {
        return None;
    }
    let left = if wanted == underlay.mtu { String::new() } else { format!(", which leaves {wanted}") };
    let what = format!("{TUNNEL_DEVICE} has MTU {}, the network under it {}{left}", tunnel.mtu, underlay.mtu);
    let why = "Large packets that are for a replica on another node are lost, or go in fragments that not all reach one replica.";
    Some(Finding::warning(what, why, command(format!("ip link set {TUNNEL_DEVICE} mtu {wanted}"))))
}

/// VIPs' packets of IPv6 need more room than those of IPv4.
fn ipv6(scene: &Scene<'_>, underlay: Underlay) -> net::Result<Option<Finding>> {
    let has_ipv6 = scene.vips.iter().any(|vip| vip.record.addresses.ipv6().is_some());
    let Some(least) = underlay.lacks_for_ipv6().filter(|_| has_ipv6) else { return Ok(None) };
    let Some(device) = link::by_index(&scene.net, underlay.index)? else { return Ok(None) };
    let what = format!(
        "{} has MTU {}, and {TUNNEL_DEVICE} carries packets of VIPs' IPv6 over {least} and more alone",
        device.name, device.mtu
    );
    let why = "By IPv6 clients don't reach replicas on other nodes. (The network must carry that much, on all nodes, or \
               membership.tunnel be an address on another one.)";
    Ok(Some(Finding::error(what, why, command(format!("ip link set {} mtu {least}", device.name)))))
}

/// Others know this node by the address of its end of the tunnel, and take what comes from another for a stranger's: where the programs
/// don't say which it is, the kernel chooses.
fn source(node: &ClusterNode, way: &Way, own: IpAddr) -> Option<Finding> {
    let source = way.source.filter(|source| *source != own)?;
    let what = format!(
        "what goes by the tunnel to node {} ({}) has {source} as its source, and this node's end of it is {own}",
        node.name, node.tunnel
    );
    let why = "That node drops it: its replicas get nothing by way of this one.";
    let cure = if source.is_ipv6() {
        format!(
            "Let the kernel call from {own}: no temporary addresses (net.ipv6.conf.….use_tempaddr = 0), or a route there with \
             `src {own}`; or set membership.tunnel to {source}, if that lasts."
        )
    } else {
        format!("Set membership.tunnel to {source}, or give the route there `src {own}`.")
    };
    Some(Finding::error(what, why, advice(cure)))
}

/// What the tunnel carries goes whole by the devices that lead to the other nodes, or in fragments.
fn narrow(node: &ClusterNode, device: &Link, (mtu, own): (u32, IpAddr)) -> Option<Finding> {
    if device.mtu >= mtu {
        return None;
    }
    let what = format!(
        "node {} ({}) is reached by {}, whose MTU is {}, and {own} has {mtu}",
        node.name, node.tunnel, device.name, device.mtu
    );
    let why = if own.is_ipv6() {
        "Full segments for a replica there are lost."
    } else {
        "Each full segment for a replica there goes in two fragments."
    };
    let cure = format!("Let membership.tunnel be an address of {}, on all nodes of one MTU.", device.name);
    Some(Finding::warning(what, why, advice(cure)))
}

/// Of nodes with a pool one gives out its addresses, always the same.
fn decider(scene: &Scene<'_>, membership: &Membership, nodes: &Nodes) -> Option<Finding> {
    scene.good_config().filter(|config| matches!(config.lease.backend, Backend::Pool(_)))?;
    let own = nodes.own.as_ref()?;
    let path = scene.places.config.display();
    let why = "VIPs that are new on this node get no address.";
    let Some(decides) = membership.seed_addresses().min() else {
        let what = format!("none of membership.seeds in {path} is an address: no node gives out the pool's addresses");
        let cure = format!("Name one node there by its address, the same on all nodes ({path}).");
        return Some(Finding::error(what, why, advice(cure)));
    };
    let id = NodeId::of(decides).0;
    let is_heard = own.id == id || nodes.nodes.iter().any(|node| node.id == id && node.state != "suspect");
    let cure =
        format!("See that viprouted runs on {decides}, and that nothing is between the nodes (viproutectl nodes).");
    let what = format!("{decides} gives out the pool's addresses, as the lowest of membership.seeds, and isn't heard");
    (!is_heard).then(|| Finding::warning(what, why, advice(cure)))
}

/// viprouted doesn't start without a key that it can use.
fn key(membership: &Membership) -> Option<Finding> {
    let error = Keys::read(&membership.key_file).err()?;
    let path = quoted(&membership.key_file);
    let cure = match &error {
        Error::Open { .. } => command(format!("chown root:root {path} && chmod 0600 {path}")),
        Error::Missing(_) => {
            advice(format!("Copy {path} from another node; on the first one `viproutectl key new {path}`."))
        }
        _ => advice(format!("Copy {path} from another node.")),
    };
    Some(Finding::error(with_causes(&error), "viprouted won't start again, and nodes know each other by it.", cure))
}

fn of_nodes(finding: &NodeFinding, scene: &Scene<'_>, membership: &Membership) -> Finding {
    let (config, key_file) = (scene.places.config.display(), membership.key_file.display());
    let (why, cure): (&str, Cure) = match finding.kind {
        NodeFindingKind::Key => (
            "This node doesn't know that one: their replicas don't serve each other's clients.",
            advice(format!("Copy {key_file} from there or to there (membership.key_file in {config}), mode 0600.")),
        ),
        NodeFindingKind::Seed => (
            "While no seed answers, this node finds no others.",
            advice(format!(
                "See that viprouted runs there with [membership] and speaks by the same family (membership.listen), that UDP port {} is \
                 open between the nodes, or take it from membership.seeds in {config}.",
                membership.port
            )),
        ),
        NodeFindingKind::Family => (
            "This node doesn't find the others by that seed.",
            advice(format!(
                "Give that name an address of this node's family, or let this node speak by the seed's: membership.listen in {config} is \
                 an address of this node's, of the family by which all nodes speak."
            )),
        ),
        NodeFindingKind::Id => (
            "What is for one of them reaches the other.",
            advice(format!("Give each node an address of its own (membership.listen in {config}).")),
        ),
        NodeFindingKind::Name => {
            ("People can't tell them apart.", advice(format!("Set membership.name in {config} of one of them.")))
        }
        NodeFindingKind::Cluster => (
            "A DHCP server takes them for different clients, and gives a VIP another address on each.",
            advice(format!("Set `cluster` in {config} to the same on all nodes.")),
        ),
        NodeFindingKind::Version => (
            "Nodes of different versions serve VIPs together, but what only one of them knows is of use to neither.",
            advice("Upgrade the nodes that have the older one, one at a time.".to_owned()),
        ),
        NodeFindingKind::Address | NodeFindingKind::Tunnel | NodeFindingKind::Other => (
            "Connections that reach this node don't reach the replicas there.",
            advice(format!(
                "Give the VIP one address on all nodes: the same `cluster`, or a [[pin]] in {config}; and see `allow`."
            )),
        ),
    };
    Finding::warning(finding.text.clone(), why, cure)
}
