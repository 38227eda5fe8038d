//! Findings about the nodes that serve the same VIPs.

use crate::api::client;
use crate::api::protocol::{NodeFinding, NodeFindingKind};
use crate::ctl::ANSWER;
use crate::node::config::Membership;
use crate::node::peers::key::{Error, Keys};
use crate::with_causes;

use super::scene::Scene;
use super::{Cure, Finding, advice, command, quoted};

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let Some(membership) = scene.good_config().and_then(|config| config.membership.as_ref()) else {
        return Vec::new();
    };
    let mut findings: Vec<Finding> = key(membership).into_iter().collect();
    // Where it can't be reached, that is found elsewhere.
    let nodes = client::nodes(&scene.places.allocator, ANSWER).unwrap_or_default();
    findings.extend(nodes.findings.iter().map(|finding| of_nodes(finding, scene, membership)));
    findings
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
        NodeFindingKind::Address | NodeFindingKind::Other => (
            "Connections that reach this node don't reach the replicas there.",
            advice(format!(
                "Give the VIP one address on all nodes: the same `cluster`, or a [[pin]] in {config}; and see `allow`."
            )),
        ),
    };
    Finding::warning(finding.text.clone(), why, cure)
}
