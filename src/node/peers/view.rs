//! What this node holds of the others: a state machine without socket, disk or clock.
//!
//! A node lives while its *kernel* answers, by an echo or by a datagram of its viprouted: one that is upgraded is silent for
//! longer than a second, and its pods serve on.
//!
//! ```text
//!        1 s without an answer            10 s
//! live ────────────────────────▶ suspect ──────▶ forgotten
//!   ▲ ◀──────── an answer ─────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::protocol::LIVE;
use crate::model::VipKey;
use crate::model::node::{ClusterNode, NUMBERS, NodeId, NodeState};

use super::holding::{Holding, LeaseKey};
use super::word::{Phase, Share, Word};

/// Silent for so long, a node is suspected to be dead.
const SUSPECT: Duration = Duration::from_secs(1);
/// And for so long it is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// What a viprouted has said holds for so long while the kernel answers.
const WORD_HOLDS: Duration = Duration::from_secs(60);
/// And then the node is suspect, for so long.
const AWAY: Duration = Duration::from_secs(600);
/// A step of time is no longer: a node that was stopped itself must not take all others for silent.
const LONGEST_STEP: Duration = Duration::from_millis(400);
/// Two processes of one node are both taken for alive for a moment after a restart.
const TWINS: Duration = Duration::from_secs(5);
/// Nodes that are known at a time.
pub const MAX_NODES: usize = 1024;

/// A node's VIPs, which are looked at more often than they change.
pub type Vips = Arc<BTreeMap<VipKey, Share>>;

/// What it says of its leases.
pub type Holdings = Arc<BTreeMap<LeaseKey, Holding>>;

/// What the gossip has of a process of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// The node.
    pub id: NodeId,
    /// Where it is heard.
    pub at: IpAddr,
    /// Grows with each start of its viprouted, unless its clock was set back.
    pub generation: u64,
    /// The gossip takes it for alive.
    pub live: bool,
    /// What it says of itself.
    pub word: Word,
    /// Its VIPs.
    pub vips: Vips,
    /// Their leases.
    pub leases: Holdings,
}

/// Who has answered since the step before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// By an echo.
    pub echoed: BTreeSet<NodeId>,
    /// By a datagram of its own.
    pub heard: BTreeSet<NodeId>,
}

/// Another node.
#[derive(Clone, Debug)]
pub struct Node {
    /// This node's number of it.
    pub number: u32,
    /// Where it is heard.
    pub at: IpAddr,
    /// What it says of itself.
    pub word: Word,
    /// Its VIPs, as last said.
    pub vips: Vips,
    /// Their leases, likewise.
    pub leases: Holdings,
    /// Whether it is silent.
    pub state: NodeState,
    /// Since the start its viprouted was heard of.
    pub settled: bool,
    generation: u64,
    answered: Duration,
    said: Duration,
    /// It has answered an echo: no firewall is in between.
    echoes: bool,
}

impl Node {
    /// One that the run before knew. Its word holds until it is heard.
    pub fn remembered(node: &ClusterNode, vips: BTreeMap<VipKey, Share>) -> Self {
        let cluster = "-".to_owned();
        let word = Word {
            name: node.name.clone(),
            tunnel: node.tunnel,
            phase: Phase::Up,
            cluster,
            version: "-".to_owned(),
            mac6: node.mac6,
        };
        let (answered, said) = (Duration::ZERO, Duration::ZERO);
        Self {
            number: node.number,
            at: node.heard_at(),
            word,
            vips: Arc::new(vips),
            leases: Holdings::default(),
            state: node.state,
            settled: false,
            generation: 0,
            answered,
            said,
            echoes: false,
        }
    }

    fn new((number, at): (u32, IpAddr), word: Word, now: Duration) -> Self {
        Self {
            number,
            at,
            word,
            vips: Vips::default(),
            leases: Holdings::default(),
            state: NodeState::Live,
            settled: true,
            generation: 0,
            answered: now,
            said: now,
            echoes: false,
        }
    }

    /// The process that it is heard by: another number for each start of its viprouted.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// `None`: it is to be forgotten.
    fn state_at(&self, now: Duration) -> Option<NodeState> {
        let (silent, away) = (now.saturating_sub(self.answered), now.saturating_sub(self.said));
        let is_dead = silent > FORGOTTEN || away > AWAY;
        let is_silent = silent > SUSPECT || away > WORD_HOLDS;
        (!is_dead).then_some(if is_silent { NodeState::Suspect } else { NodeState::Live })
    }
}

/// This node's view of the others.
#[derive(Debug)]
pub struct View {
    own: NodeId,
    nodes: BTreeMap<NodeId, Node>,
    last_number: u32,
    /// The time that this node has lived through.
    now: Duration,
    stepped: Instant,
    /// Nodes of which several processes live, and since when.
    twins: BTreeMap<NodeId, Duration>,
    /// Grows with each change that legs may follow from.
    changes: u64,
    /// And with each one of what nodes say of leases.
    lease_changes: u64,
}

impl View {
    /// With the nodes that the run before knew.
    pub fn new(own: NodeId, remembered: BTreeMap<NodeId, Node>, now: Instant) -> Self {
        let last_number = remembered.values().map(|node| node.number).max().unwrap_or(0);
        Self {
            own,
            nodes: remembered,
            last_number,
            now: Duration::ZERO,
            stepped: now,
            twins: BTreeMap::new(),
            changes: 1,
            lease_changes: 1,
        }
    }

    /// The others.
    pub fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.nodes
    }

    /// Grows with each change that legs may follow from.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Grows with each change that may decide who renews a lease.
    pub fn lease_changes(&self) -> u64 {
        self.changes + self.lease_changes
    }

    /// For how long a node's kernel has been silent, and its viprouted.
    pub fn silences(&self, node: &Node) -> (Duration, Duration) {
        (self.now.saturating_sub(node.answered), self.now.saturating_sub(node.said))
    }

    /// Nodes of which two processes have lived side by side for a while, this one included.
    pub fn twins(&self) -> impl Iterator<Item = NodeId> {
        self.twins.iter().filter(|(_, since)| self.now.saturating_sub(**since) > TWINS).map(|(id, _)| *id)
    }

    /// Time has passed; this is what the gossip has and who has answered meanwhile. Returns what has become of nodes, a sentence
    /// each.
    pub fn step(&mut self, now: Instant, incarnations: &[Incarnation], answers: &Answers) -> Vec<String> {
        self.now += now.saturating_duration_since(self.stepped).min(LONGEST_STEP);
        self.stepped = now;
        let mut events = Vec::new();
        self.find_twins(incarnations);
        // Another address that makes the same id is another node's, which has no place.
        let is_of_node = |one: &&Incarnation| self.nodes.get(&one.id).is_none_or(|node| node.at == one.at);
        for (id, incarnation) in best(incarnations.iter().filter(is_of_node)) {
            if id == self.own {
                continue;
            }
            self.see(id, incarnation, answers, &mut events);
        }
        for (id, node) in &mut self.nodes {
            node.echoes |= answers.echoed.contains(id);
            if answers.echoed.contains(id) || answers.heard.contains(id) {
                node.answered = self.now;
            }
            if answers.heard.contains(id) {
                node.said = self.now;
            }
        }
        self.update_states(&mut events);
        self.changes += u64::from(!events.is_empty());
        events
    }

    fn see(&mut self, id: NodeId, incarnation: &Incarnation, answers: &Answers, events: &mut Vec<String>) {
        let Incarnation { at, generation, live, word, vips, leases, .. } = incarnation;
        let is_same_tunnel = |other: &Node| other.word.tunnel == word.tunnel;
        let taken = self.nodes.iter().any(|(other, node)| *other != id && is_same_tunnel(node));
        if !self.nodes.contains_key(&id) {
            // One that is only talked about may be out of reach; one that can't be told from another has no place.
            let is_there = *live && answers.heard.contains(&id) && word.phase == Phase::Up;
            let is_new = is_there && !taken && self.nodes.len() < MAX_NODES;
            let Some(number) = self.next_number().filter(|_| is_new) else { return };
            events.push(format!("node {} ({id}) has joined", word.name));
            self.nodes.insert(id, Node::new((number, *at), word.clone(), self.now));
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        // What a process that has ended has said holds until the next one speaks.
        if !live && *generation != node.generation {
            return;
        }
        node.generation = *generation;
        if *live {
            node.said = self.now;
            // Where no echo comes through, the gossip has to do.
            if !node.echoes || answers.heard.contains(&id) {
                node.answered = self.now;
            }
        }
        if node.word.phase != word.phase {
            events.push(format!("node {} ({id}) is {}", word.name, word.phase.name()));
        }
        node.settled = true;
        if !taken && node.word != *word {
            node.word = word.clone();
            self.changes += 1;
        }
        if !Arc::ptr_eq(&node.vips, vips) && node.vips != *vips {
            self.changes += 1;
        }
        node.vips = Arc::clone(vips);
        if !Arc::ptr_eq(&node.leases, leases) && node.leases != *leases {
            self.lease_changes += 1;
        }
        node.leases = Arc::clone(leases);
    }

    fn update_states(&mut self, events: &mut Vec<String>) {
        let now = self.now;
        self.nodes.retain(|id, node| {
            let name = &node.word.name;
            let Some(state) = node.state_at(now) else {
                events.push(format!("node {name} ({id}) is forgotten"));
                return false;
            };
            if state != node.state {
                events.push(format!("node {name} ({id}) is {} now", name_of(state)));
            }
            node.state = state;
            true
        });
    }

    fn next_number(&mut self) -> Option<u32> {
        let used: BTreeSet<u32> = self.nodes.values().map(|node| node.number).collect();
        // Not one that was in use a moment ago.
        let next = (self.last_number + 1..NUMBERS.end).chain(NUMBERS.start..=self.last_number);
        self.last_number = next.into_iter().find(|number| !used.contains(number))?;
        Some(self.last_number)
    }

    fn find_twins(&mut self, incarnations: &[Incarnation]) {
        let mut living: BTreeMap<NodeId, usize> = BTreeMap::new();
        for incarnation in incarnations.iter().filter(|incarnation| incarnation.live) {
            *living.entry(incarnation.id).or_default() += 1;
        }
        self.twins.retain(|id, _| living.get(id).is_some_and(|processes| *processes > 1));
        for (id, _) in living.into_iter().filter(|(_, processes)| *processes > 1) {
            self.twins.entry(id).or_insert(self.now);
        }
    }
}

/// As it is shown.
pub fn name_of(state: NodeState) -> &'static str {
    match state {
        NodeState::Live => LIVE,
        NodeState::Suspect => "suspect",
    }
}

/// Of each node the process that lives, or the latest.
fn best<'a>(incarnations: impl Iterator<Item = &'a Incarnation>) -> BTreeMap<NodeId, &'a Incarnation> {
    let mut best: BTreeMap<NodeId, &Incarnation> = BTreeMap::new();
    for incarnation in incarnations {
        let place = best.entry(incarnation.id).or_insert(incarnation);
        if (incarnation.live, incarnation.generation) > (place.live, place.generation) {
            *place = incarnation;
        }
    }
    best
}

#[cfg(test)]
mod tests;
