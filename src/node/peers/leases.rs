//! Leases of VIPs that several nodes have: which node renews which, and what the others learn of it.
//!
//! Each node says by the gossip what it has of a VIP's lease ([`Holding`]). From that all work out the same node, which renews at T1;
//! the others ask it what it was granted ([`Note`]) when its number of the grant is another one. Where they know different things
//! for a moment, two nodes renew, or none until a lease is half way from T1 to T2: then each asks for itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc::UnboundedSender;

use crate::dataplane::node::election;
use crate::lease::decider;
use crate::lease::decider::message::Message;
use crate::lease::grant::Lease;
use crate::model::node::{NodeId, NodeState};

use super::holding::{Holding, LeaseKey};
use super::note::{Note, Told};
use super::view::Node;
use super::word::Phase;

/// Who wants a first address waits so long for what others say: by then each knows of all that want it at the same time.
const GATHER: Duration = Duration::from_millis(300);
/// A question is asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// Questions sent at a time; the rest follow.
const MAX_QUESTIONS: usize = 64;

/// What this node has of a VIP's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// Nothing yet: it wants an address.
    Asks,
    /// An address that another node was granted, or that it remembers.
    Knows(IpAddr),
    /// What its server has granted to it.
    Granted(Lease),
}

/// What comes of it for this node's leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// This node renews the lease, or the one of that name does.
    Renewer {
        /// Which lease.
        key: LeaseKey,
        /// It is this node.
        is_own: bool,
        /// Others than this node have the lease, or want it.
        has_others: bool,
        /// The node's name.
        name: String,
    },
    /// What another node was granted in the VIP's name.
    Lease(LeaseKey, Lease),
    /// This node and the others that live.
    Members(decider::Members),
    /// What another one says about an address of the pool.
    Pool(NodeId, Message),
}

/// This node and those that it shares leases with.
pub struct Members<'a> {
    /// This node.
    pub own: NodeId,
    /// Its name.
    pub name: &'a str,
    /// The others: they live, stay, and ask a DHCP server as the same client.
    pub others: BTreeMap<NodeId, &'a Node>,
    /// Whether others that live have been heard by now.
    pub settled: bool,
}

impl<'a> Members<'a> {
    /// Those of `nodes` that say they are of the same cluster.
    pub fn of(nodes: &'a BTreeMap<NodeId, Node>, cluster: &str) -> BTreeMap<NodeId, &'a Node> {
        let shares = |node: &Node| {
            let is_there = node.state == NodeState::Live && node.settled && node.word.phase == Phase::Up;
            is_there && cluster != "-" && node.word.cluster == cluster
        };
        nodes.iter().filter(|(_, node)| shares(node)).map(|(id, node)| (*id, node)).collect()
    }
}

/// All leases of this node's VIPs.
pub struct Leases {
    own: BTreeMap<LeaseKey, Entry>,
    grants: u64,
    questions: u64,
    heard: Option<UnboundedSender<Heard>>,
    /// Who renews has to be worked out again.
    changed: bool,
    /// What was said last of who lives.
    members: decider::Members,
}

struct Entry {
    own: Own,
    /// The number of the grant.
    grant: u64,
    /// When this node began to have it.
    since: Instant,
    renewer: Option<NodeId>,
    /// Whether other nodes have it, or want it.
    has_others: bool,
    /// The grants that others have told of: by node, the process and the number.
    learned: BTreeMap<NodeId, (u64, u64)>,
    asked: BTreeMap<NodeId, Question>,
}

struct Question {
    number: u64,
    at: Instant,
    /// By the clock of leases.
    time: SystemTime,
    /// The process that was asked, and which grant of it.
    about: (u64, u64),
}

impl Entry {
    fn holding(&self) -> Holding {
        match &self.own {
            Own::Asks => Holding::Asks,
            Own::Knows(address) => Holding::Knows(*address),
            Own::Granted(lease) => Holding::Granted(lease.address, self.grant),
        }
    }
}

impl Leases {
    /// None yet. What is learned goes to `heard`; none: this node shares no leases.
    pub fn new(heard: Option<UnboundedSender<Heard>>) -> Self {
        Self {
            own: BTreeMap::new(),
            grants: 0,
            questions: 0,
            heard,
            changed: true,
            members: decider::Members::default(),
        }
    }

    /// What this node has of a lease from now on; none: nothing, and it wants nothing. Whether others may be waiting to hear of it.
    pub fn set(&mut self, key: &LeaseKey, own: Option<Own>, now: Instant) -> bool {
        self.changed = true;
        let Some(own) = own else {
            self.own.remove(key);
            return false;
        };
        let grants = matches!(own, Own::Granted(_));
        self.grants += u64::from(grants);
        let grant = self.grants;
        let Some(entry) = self.own.get_mut(key) else {
            let (learned, asked) = (BTreeMap::new(), BTreeMap::new());
            self.own.insert(
                key.clone(),
                Entry { own, grant, since: now, renewer: None, has_others: false, learned, asked },
            );
            return true;
        };
        let is_first = grants && !matches!(entry.own, Own::Granted(_));
        if own == Own::Asks {
            // It begins anew: what it had, and has heard, is lost.
            entry.since = now;
            entry.learned.clear();
        }
        (entry.own, entry.grant) = (own, grant);
        is_first
    }

    /// What the others are told of a lease.
    pub fn holding(&self, key: &LeaseKey) -> Option<Holding> {
        self.own.get(key).map(Entry::holding)
    }

    /// The same of all.
    pub fn holdings(&self) -> impl Iterator<Item = (&LeaseKey, Holding)> {
        self.own.iter().map(|(key, entry)| (key, entry.holding()))
    }

    /// The others, or what they say, may have changed.
    pub fn on_change(&mut self) {
        self.changed = true;
    }

    /// Works out who renews what, and returns what is to be asked of whom.
    pub fn look(&mut self, members: &Members<'_>, now: Instant, time: SystemTime) -> Vec<(NodeId, Note)> {
        if !std::mem::take(&mut self.changed) {
            return Vec::new();
        }
        let mut notes = Vec::new();
        for (key, entry) in &mut self.own {
            let said: BTreeMap<NodeId, Holding> =
                members.others.iter().filter_map(|(id, node)| Some((*id, *node.leases.get(key)?))).collect();
            let renewer = renewer(key, entry, members, &said, now);
            // Until that is known, and until each question is answered, this goes on.
            self.changed |= renewer.is_none();
            let has_others = !said.is_empty();
            let is_new = entry.renewer != renewer || entry.has_others != has_others;
            if let (Some(found), Some(heard)) = (renewer.filter(|_| is_new), &self.heard) {
                let name = members.others.get(&found).map_or(members.name, |node| &node.word.name).to_owned();
                // Its reader is gone only while viprouted ends.
                let is_own = found == members.own;
                let _ = heard.send(Heard::Renewer { key: key.clone(), is_own, has_others, name });
                entry.has_others = has_others;
            }
            entry.renewer = renewer.or(entry.renewer);
            entry.learned.retain(|id, _| members.others.contains_key(id));
            entry.asked.retain(|id, _| said.contains_key(id));
            for (id, holding) in said {
                let Holding::Granted(_, grant) = holding else { continue };
                let about = (members.others[&id].generation(), grant);
                if entry.learned.get(&id) == Some(&about) {
                    continue;
                }
                self.changed = true;
                let waits =
                    entry.asked.get(&id).is_some_and(|asked| now < asked.at + ASK_AGAIN && asked.about == about);
                if waits || notes.len() >= MAX_QUESTIONS {
                    continue;
                }
                self.questions += 1;
                let number = self.questions;
                entry.asked.insert(id, Question { number, at: now, time, about });
                notes.push((id, Note::WhichLease { number, key: key.clone() }));
            }
        }
        notes
    }

    /// This node and these others live; none of them is heard: this one has no address by which others would hear it.
    pub fn on_members(&mut self, members: decider::Members) {
        if members != self.members
            && let Some(heard) = &self.heard
        {
            self.members = members.clone();
            // As above.
            let _ = heard.send(Heard::Members(members));
        }
    }

    /// What a note of another node leads to: an answer, perhaps.
    pub fn on_note(&mut self, from: NodeId, note: Note, time: SystemTime) -> Option<Note> {
        match note {
            Note::Pool(message) => {
                if let Some(heard) = &self.heard {
                    // As above.
                    let _ = heard.send(Heard::Pool(from, message));
                }
                None
            }
            Note::WhichLease { number, key } => {
                let entry = self.own.get(&key)?;
                let Own::Granted(lease) = &entry.own else { return None };
                let told = Told::of(lease, entry.grant, time)?;
                Some(Note::Lease { number, key, told })
            }
            Note::Lease { number, key, told } => {
                let entry = self.own.get_mut(&key)?;
                let question = entry.asked.get(&from).filter(|asked| asked.number == number)?;
                let (process, _) = question.about;
                let lease = told.lease(question.time).filter(|lease| lease.is_valid(time));
                entry.learned.insert(from, (process, told.grant));
                entry.asked.remove(&from);
                if let (Some(lease), Some(heard)) = (lease, &self.heard) {
                    // As above.
                    let _ = heard.send(Heard::Lease(key, lease));
                }
                None
            }
        }
    }
}

/// Who renews the lease, or asks for the first; `None`: that isn't known yet.
fn renewer(
    key: &LeaseKey,
    entry: &Entry,
    members: &Members<'_>,
    said: &BTreeMap<NodeId, Holding>,
    now: Instant,
) -> Option<NodeId> {
    if !members.settled {
        return None;
    }
    // Others may want it too, and not have said so yet.
    let gathered = members.others.is_empty() || now.saturating_duration_since(entry.since) >= GATHER;
    if !gathered && entry.renewer.is_none() {
        return None;
    }
    let own = entry.holding();
    let all = || said.iter().map(|(id, holding)| (*id, *holding)).chain([(members.own, own)]);
    let asks = |holding: &Holding| *holding == Holding::Asks;
    let is_granted = all().any(|(_, holding)| matches!(holding, Holding::Granted(..)));
    // Who has no address learns it from a node that was granted one; where no node was, one of those asks that have none.
    let askers = !is_granted && all().any(|(_, holding)| asks(&holding));
    let candidates = all().filter(|(_, holding)| asks(holding) == askers);
    election::renews(&key.vip, candidates.map(|(id, _)| id))
}

#[cfg(test)]
mod tests;
