//! What is said of leases, and asked.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::lease::{clock, decider};
use crate::model::node::{NodeId, NodeState};
use crate::node::peers::holding::LeaseKey;
use crate::node::peers::leases::{Members, Own};
use crate::node::peers::note::Note;
use crate::node::peers::state::State;
use crate::node::peers::view::Node;
use crate::node::peers::word::Phase;

use super::{Engine, Order};

/// Nodes that are there have been heard by then.
const SETTLED: Duration = Duration::from_millis(1500);
/// So many nodes are told at once of a lease that they may wait for; the others hear of it by the usual rounds.
const MAX_TOLD: usize = 32;

impl Engine {
    /// Where a node's gossip is heard: all have one port.
    pub(super) fn heard_at(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, self.socket.port())
    }

    /// A note to a node that isn't known here any more is lost, as a wire may lose it.
    pub(super) fn send_note(&self, to: NodeId, note: &str) {
        if let Some(node) = self.view.nodes().get(&to) {
            self.keyed.send_note(self.heard_at(node.at), note);
        }
    }

    pub(super) async fn tell_lease(&mut self, state: &mut State, key: &LeaseKey, own: Option<Own>) {
        let is_urgent = state.leases.set(key, own, Instant::now());
        let (name, said) = (key.to_string(), state.leases.holding(key));
        self.chitchat
            .with_chitchat(|chitchat| {
                let node = chitchat.self_node_state();
                match said {
                    Some(said) => node.set(&name, said),
                    None if node.contains_key(&name) => node.delete(&name),
                    None => {}
                }
            })
            .await;
        if is_urgent {
            for node in self.view.nodes().values().take(MAX_TOLD) {
                let _ = self.chitchat.gossip(self.heard_at(node.at));
            }
            self.look_at_leases(state);
        }
    }

    /// Works out who renews, and asks those that were granted leases.
    pub(super) fn look_at_leases(&mut self, state: &mut State) {
        let changes = self.view.lease_changes();
        if std::mem::replace(&mut self.seen_leases, changes) != changes {
            state.leases.on_change();
        }
        let cluster = state.word(self.own.tunnel).cluster;
        let members = Members {
            own: self.own.id,
            name: &self.own.name,
            others: Members::of(self.view.nodes(), &cluster),
            settled: self.begun.elapsed() >= SETTLED,
        };
        if members.settled {
            let is_live = |node: &Node| node.state == NodeState::Live && node.settled;
            let others = self.view.nodes().iter().filter(|(_, node)| is_live(node)).map(|(id, _)| *id).collect();
            state.leases.on_members(decider::Members { own: Some(self.own.id), others });
        }
        for (id, note) in state.leases.look(&members, Instant::now(), clock::now()) {
            self.send_note(id, &note.to_string());
        }
    }

    /// A note counts if it is a node's that is known here; about leases, one's that shares them. What can't be read is a later
    /// version's, or nobody's.
    pub(super) fn read_note(&mut self, state: &mut State, from: SocketAddr, note: &[u8]) {
        let id = NodeId::of(from.ip());
        let Some(note) = std::str::from_utf8(note).ok().and_then(|text| text.parse::<Note>().ok()) else { return };
        let cluster = state.word(self.own.tunnel).cluster;
        let shares = Members::of(self.view.nodes(), &cluster).contains_key(&id);
        let is_known = self.view.nodes().get(&id).is_some_and(|node| self.heard_at(node.at) == from);
        if !is_known || !(shares || matches!(note, Note::Pool(_))) {
            return;
        }
        if let Some(answer) = state.leases.on_note(id, note, clock::now()) {
            self.keyed.send_note(from, &answer.to_string());
        }
    }
}

/// While nothing can be said to others, what is to be said is kept.
pub(super) fn obey_unheard(state: &mut State, order: Order) {
    match order {
        Order::Lease(key, own) => drop(state.leases.set(&key, own, Instant::now())),
        Order::Restart(told) => drop(told.send(())),
        // It is asked again.
        Order::Pool(..) => {}
        Order::Leave => state.phase = Phase::Left,
        Order::Stay => state.phase = Phase::Up,
    }
}
