//! Findings about the nodes that serve the same VIPs.

use crate::api::client;
use crate::api::protocol::{NodeFinding, NodeFindingKind, Nodes};
use crate::ctl::ANSWER;
use crate::dataplane::ids::TUNNEL_DEVICE;
use crate::dataplane::node::tunnel;
use crate::lease::settings::Backend;
use crate::net::{self, link, route};
use crate::node::config::Membership;
use crate::node::peers::key::{Error, Keys};
use crate::with_causes;

use super::scene::Scene;
use super::{Cure, Finding, advice, command, quoted};

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let mut findings = mtu(scene).unwrap_or_default();
    let Some(membership) = scene.good_config().and_then(|config| config.membership.as_ref()) else { return findings };
    findings.extend(key(membership));
    // Where it can't be reached, that is found elsewhere.
    let nodes = client::nodes(&scene.places.allocator, ANSWER).unwrap_or_default();
    findings.extend(nodes.findings.iter().map(|finding| of_nodes(finding, scene, membership)));
    findings.extend(decider(scene, membership, &nodes));
    findings
}

/// What the tunnel carries goes whole by the devices that lead to the other nodes, or in fragments.
fn mtu(scene: &Scene<'_>) -> net::Result<Vec<Finding>> {
    let Some(cluster) = &scene.cluster else { return Ok(Vec::new()) };
    let (Some(tunnel), Some(wanted)) =
        (link::by_name(&scene.net, TUNNEL_DEVICE)?, tunnel::underlay_mtu(&scene.net, &scene.places.registry)?)
    else {
        return Ok(Vec::new());
    };
    let mut findings = Vec::new();
    if tunnel.mtu != wanted {
        let what = format!("{TUNNEL_DEVICE} has MTU {}, the network under it {wanted}", tunnel.mtu);
        let why = "Large packets that are for a replica on another node are lost, or go in fragments that not all reach one replica.";
        findings.push(Finding::warning(what, why, command(format!("ip link set {TUNNEL_DEVICE} mtu {wanted}"))));
    }
    for node in &cluster.nodes {
        let way = route::lookup(&scene.net, route::Packet::to(node.tunnel.into()))?;
        let Some(device) =
            way.and_then(|way| way.hop.index).map(|index| link::by_index(&scene.net, index)).transpose()?
        else {
            continue;
        };
        if let Some(device) = device.filter(|device| device.mtu < wanted) {
            let what = format!(
                "node {} ({}) is reached by {}, whose MTU is {}, and {} has {wanted}",
                node.name, node.tunnel, device.name, device.mtu, cluster.own.tunnel
            );
            let why = "Each full segment for a replica there goes in two fragments.";
            let cure = format!("Let membership.tunnel be an address of {}, on all nodes of one MTU.", device.name);
            findings.push(Finding::warning(what, why, advice(cure)));
        }
    }
    Ok(findings)
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
    let is_heard = own.id == decides || nodes.nodes.iter().any(|node| node.id == decides && node.state != "suspect");
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
                "See that viprouted runs there with [membership], that UDP port {} is open between the nodes, or take it from \
                 membership.seeds in {config}.",
                membership.port
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
        NodeFindingKind::Address | NodeFindingKind::Other => (
            "Connections that reach this node don't reach the replicas there.",
            advice(format!(
                "Give the VIP one address on all nodes: the same `cluster`, or a [[pin]] in {config}; and see `allow`."
            )),
        ),
    };
    Finding::warning(finding.text.clone(), why, cure)
}
