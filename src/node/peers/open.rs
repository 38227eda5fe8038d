//! What the gossip is begun with.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chitchat::{ChitchatConfig, ChitchatId, FailureDetectorConfig};

use crate::membership::peer;
use crate::model::VipKey;
use crate::model::node::{ClusterNode, NodeId, OwnNode};
use crate::node::Context;
use crate::node::config::Membership;
use crate::registry::nodes;
use crate::with_causes;

use super::holding;
use super::state::State;
use super::view::{Holdings, Node, Vips};
use super::word::{self, Share, Word};

const GOSSIP: Duration = Duration::from_millis(200);
const PHI: f64 = 8.0;
/// A process that is silent is forgotten by the gossip, and no longer spoken of after half the time. What it has said is in this
/// node's view for longer. Each message lists all processes, 52 octets each, and holds 1,259: viprouteds that end at each start,
/// once a second, must not fill it.
const DEAD: Duration = Duration::from_secs(120);
/// Keys that were deleted are remembered for so long.
const DELETED: Duration = Duration::from_secs(1200);

/// chitchat's.
pub fn config(socket: SocketAddr, seed_nodes: Vec<String>) -> ChitchatConfig {
    // Two starts within a millisecond are none of ours.
    let generation = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let generation = u64::try_from(generation).unwrap_or(u64::MAX);
    ChitchatConfig {
        chitchat_id: ChitchatId::new(socket.ip().to_string(), generation, socket),
        // Who has another key is told apart before.
        cluster_id: "viproute".to_owned(),
        gossip_interval: GOSSIP,
        listen_addr: socket,
        seed_nodes,
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: PHI,
            initial_interval: GOSSIP,
            max_interval: GOSSIP * 10,
            dead_node_grace_period: DEAD,
            ..FailureDetectorConfig::default()
        },
        marked_for_deletion_grace_period: DELETED,
        catchup_callback: None,
        extra_liveness_predicate: None,
    }
}

/// The node's own word comes last: who has it has all before it.
pub fn words(state: &State, own: &OwnNode) -> Vec<(String, String)> {
    let vips = state.own.keys().filter_map(|key| Some((word::key_of(key), state.share(key)?.to_string())));
    let node = (word::NODE.to_owned(), state.word(own.tunnel).to_string());
    let leases = state.leases.holdings().map(|(key, holding)| (key.to_string(), holding.to_string()));
    vips.take(word::MAX_VIPS).chain(leases.take(holding::MAX_LEASES)).chain([node]).collect()
}

/// What a node says: of itself, its VIPs and their leases.
pub type Words = (Word, Vips, Holdings);

/// `None`: it doesn't say who it is, or that it is another; or it is heard, or its tunnel ends, at an address of another family than this
/// node's.
pub fn read_words(id: &ChitchatId, state: &chitchat::NodeState, own: SocketAddr) -> Option<Words> {
    let at = id.gossip_advertise_addr;
    let is_itself = at.port() == own.port() && id.node_id.parse() == Ok(at.ip());
    let word: Word = state.get(word::NODE)?.parse().ok().filter(|_| is_itself)?;
    if [at.ip(), word.tunnel].iter().any(|address| address.is_ipv4() != own.is_ipv4()) {
        return None;
    }
    let (vips, refused) = word::vips(state.key_values());
    if refused > 0 {
        tracing::debug!(node = word.name, refused, "VIPs that can't be read, or are too many");
    }
    Some((word, Arc::new(vips), Arc::new(holding::holdings(state.key_values()))))
}

/// The nodes of the run before, with what they said then.
pub fn remembered(context: &Context) -> Result<BTreeMap<NodeId, Node>, String> {
    let Some(cluster) = nodes::load(&context.registry).unwrap_or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "the nodes of before aren't known");
        None
    }) else {
        return Ok(BTreeMap::new());
    };
    let mut vips: BTreeMap<u32, BTreeMap<VipKey, Share>> = BTreeMap::new();
    for (key, (addresses, shares)) in peer::shares(&context.registry).map_err(|e| with_causes(&e))? {
        for (number, peer::Known { ready, replicas, udp_sticky, served, serves_ipv6, family }) in shares {
            let address6 = addresses.ipv6().filter(|_| serves_ipv6);
            let share = Share { address: addresses.first(), address6, ready, replicas, udp_sticky, served, family };
            vips.entry(number).or_default().insert(key.clone(), share);
        }
    }
    let remembered =
        |node: &ClusterNode| (node.id, Node::remembered(node, vips.remove(&node.number).unwrap_or_default()));
    Ok(cluster.nodes.iter().map(remembered).collect())
}

/// When the file of the keys was changed last.
pub fn modified(membership: &Membership) -> Option<SystemTime> {
    std::fs::metadata(&membership.key_file).and_then(|found| found.modified()).ok()
}
