//! The node that decides. Pure: messages, verdicts, time and what was saved come in; messages and what is to be saved go out.
//!
//! ```text
//! claim? ──▶ free address chosen ──▶ may? to every live node ──all: may──▶ register on disk ──▶ claim ADDRESS
//!                ▲                         │ taken
//!                └─────────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::lease::pools::{Pool, Pools, Wish, used_up};
use crate::model::VipKey;
use crate::model::node::NodeId;

use super::Out;
use super::message::{Message, What};
use super::register::{Entry, Register};

/// A question is asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// Who waits for an address hears why after this.
const EXPLAIN: Duration = Duration::from_secs(2);
/// An address that a node can't have isn't offered again for this long.
const QUARANTINE: Duration = Duration::from_secs(600);
/// Between two looks at whether nodes still have what they were granted, and at how many of them.
const REVIEW: Duration = Duration::from_secs(1);
const REVIEWED: usize = 4;

/// The register and what is being decided.
#[derive(Debug)]
pub(super) struct Keeper {
    pools: Pools,
    /// Pinned addresses of this node.
    pins: BTreeSet<IpAddr>,
    register: Register,
    deciding: BTreeMap<VipKey, Deciding>,
    bad: BTreeMap<Ipv4Addr, Instant>,
    numbers: u64,
    /// The number of the question whether a node still has a VIP.
    reviews: BTreeMap<(VipKey, NodeId), u64>,
    /// The last VIP that was looked at.
    reviewed: Option<VipKey>,
    review_at: Instant,
    /// The register has changed, and is being saved as of this number.
    saving: Option<u64>,
    saves: u64,
    /// What is on disk isn't what is known here: it couldn't be written.
    is_unsaved: bool,
    /// Who is answered once that is on disk.
    answers: Vec<(u64, NodeId, Message)>,
}

/// A VIP that is to get an address.
#[derive(Debug)]
struct Deciding {
    address: Ipv4Addr,
    /// Who wants it, by the numbers of their questions.
    claimants: BTreeMap<NodeId, u64>,
    /// Whose word is missing, and the number they were asked under.
    missing: BTreeSet<NodeId>,
    number: u64,
    asked: Instant,
    /// When to say who is silent.
    explain: Instant,
}

/// What a step of it is made with.
#[derive(Debug)]
pub(super) struct Step<'a> {
    /// The nodes that live, this one included.
    pub(super) nodes: &'a BTreeSet<NodeId>,
    pub(super) now: Instant,
    /// What comes of it.
    pub(super) out: &'a mut Vec<Out>,
}

/// A node's question for an address.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) from: NodeId,
    pub(super) number: u64,
    pub(super) vip: VipKey,
    pub(super) remembered: Option<Ipv4Addr>,
    pub(super) unfit: Option<Ipv4Addr>,
}

impl Keeper {
    pub(super) fn new(pools: Pools, pins: BTreeSet<IpAddr>, register: Register, now: Instant) -> Self {
        Self {
            pools,
            pins,
            register,
            deciding: BTreeMap::new(),
            bad: BTreeMap::new(),
            // Answers to the process before are none to this one.
            numbers: u64::from(rand::random::<u32>()) << 16,
            reviews: BTreeMap::new(),
            reviewed: None,
            review_at: now,
            saving: None,
            saves: 0,
            is_unsaved: false,
            answers: Vec::new(),
        }
    }

    /// A node wants an address for a VIP.
    pub(super) fn claim(&mut self, claim: Claim, step: &mut Step<'_>) {
        let Claim { from, number, vip, remembered, unfit } = claim;
        // It wants it: what it says of the time before counts no more.
        self.reviews.remove(&(vip.clone(), from));
        if let Some(deciding) = self.deciding.get_mut(&vip) {
            deciding.claimants.insert(from, number);
            return;
        }
        if let Some(entry) = self.register.0.get_mut(&vip) {
            if unfit != Some(entry.address) {
                let (address, is_new) = (entry.address, entry.nodes.insert(from));
                return self.grant(Message { number, vip, what: What::Granted(address) }, from, is_new, step.out);
            }
            let others = entry.nodes.iter().any(|node| *node != from);
            if others {
                let why = format!("{} is in conflict on this node, and other nodes have it for {vip}", entry.address);
                let what = What::Refused { exhausted: false, why };
                return step.out.push(Out::Send(from, Message { number, vip, what }));
            }
            self.register.0.remove(&vip);
        }
        if let Some(unfit) = unfit {
            self.bad.insert(unfit, step.now + QUARANTINE);
        }
        self.choose(vip, BTreeMap::from([(from, number)]), remembered, step);
    }

    /// What is given out.
    pub(super) fn given(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.register.0.values().map(|entry| entry.address)
    }

    /// Answers when the register is on disk, where it has changed.
    fn grant(&mut self, message: Message, to: NodeId, has_changed: bool, out: &mut Vec<Out>) {
        if has_changed || self.is_unsaved {
            self.save(out);
        }
        match self.saving {
            Some(number) => self.answers.push((number, to, message)),
            None => out.push(Out::Send(to, message)),
        }
    }

    fn save(&mut self, out: &mut Vec<Out>) {
        self.saves += 1;
        self.is_unsaved = false;
        self.saving = Some(self.saves);
        out.push(Out::Save(self.saves, self.register.clone()));
    }

    fn choose(
        &mut self,
        vip: VipKey,
        claimants: BTreeMap<NodeId, u64>,
        remembered: Option<Ipv4Addr>,
        step: &mut Step<'_>,
    ) {
        self.bad.retain(|_, until| step.now < *until);
        let deciding: BTreeSet<Ipv4Addr> = self.deciding.values().map(|deciding| deciding.address).collect();
        let registered: BTreeSet<Ipv4Addr> = self.register.0.values().map(|entry| entry.address).collect();
        let is_free = |address: &Ipv4Addr| {
            !deciding.contains(address) && !registered.contains(address) && !self.bad.contains_key(address)
        };
        let remembered = remembered.filter(|address| is_free(address) && !self.pins.contains(&IpAddr::V4(*address)));
        let is_unpinned = |address: &Ipv4Addr| !self.pins.contains(&IpAddr::V4(*address));
        let serving = self.pools.serving(&Wish::of(&vip));
        let lowest = || {
            let mut all = serving.iter().flatten().flat_map(|pool| pool.addresses());
            all.find(|address| is_unpinned(address) && is_free(address))
        };
        let Some(address) = remembered.or_else(lowest) else {
            let what = match &serving {
                Ok(pools) => What::Refused { exhausted: true, why: self.exhausted(pools, step.nodes) },
                Err(unserved) => What::not_now(&unserved.to_string()),
            };
            for (node, number) in claimants {
                step.out.push(Out::Send(node, Message { number, vip: vip.clone(), what: what.clone() }));
            }
            return;
        };
        self.numbers += 1;
        let (missing, number, asked) = (step.nodes.clone(), self.numbers, step.now);
        let deciding = Deciding { address, claimants, missing, number, asked, explain: asked + EXPLAIN };
        deciding.ask(&vip, step.out);
        self.deciding.insert(vip, deciding);
    }

    fn exhausted(&self, pools: &[&Pool], nodes: &BTreeSet<NodeId>) -> String {
        let is_silent = |entry: &&Entry| entry.nodes.is_disjoint(nodes);
        let silent = self.register.0.values().filter(is_silent).count();
        let kept = match silent {
            0 => String::new(),
            silent => format!(
                "; {silent} are kept for nodes that aren't heard: start viprouted there, or make the pool larger"
            ),
        };
        format!("{}{kept}", used_up(pools))
    }

    /// What a node says of an address that a VIP is to have; none: it may have it, as far as that node knows.
    pub(super) fn on_verdict(
        &mut self,
        from: NodeId,
        (number, vip): (u64, &VipKey),
        taken: Option<&VipKey>,
        step: &mut Step<'_>,
    ) {
        let Some(mut deciding) = self.deciding.remove(vip) else { return };
        if deciding.number == number && taken.is_some() {
            self.bad.insert(deciding.address, step.now + QUARANTINE);
            return self.choose(vip.clone(), deciding.claimants, None, step);
        }
        if deciding.number == number {
            deciding.missing.remove(&from);
        }
        self.deciding.insert(vip.clone(), deciding);
        self.conclude(vip, step.out);
    }

    /// All have confirmed it: it is the VIP's.
    fn conclude(&mut self, vip: &VipKey, out: &mut Vec<Out>) {
        if self.deciding.get(vip).is_none_or(|deciding| !deciding.missing.is_empty()) {
            return;
        }
        let Some(Deciding { address, claimants, .. }) = self.deciding.remove(vip) else { return };
        let nodes = claimants.keys().copied().collect();
        self.register.0.insert(vip.clone(), Entry { address, nodes });
        self.save(out);
        for (node, number) in claimants {
            self.grant(Message { number, vip: vip.clone(), what: What::Granted(address) }, node, false, out);
        }
    }

    /// The register of that number is on disk, or why not.
    pub(super) fn saved(&mut self, number: u64, result: &Result<(), String>, out: &mut Vec<Out>) {
        let (done, waiting) = std::mem::take(&mut self.answers).into_iter().partition(|(at, ..)| *at <= number);
        self.answers = waiting;
        self.is_unsaved |= result.is_err();
        if self.saving == Some(number) {
            self.saving = None;
        }
        for (_, node, message) in done {
            let what = match result {
                Ok(()) => message.what,
                Err(why) => What::not_now(&format!("the register of the pool can't be kept: {why}")),
            };
            out.push(Out::Send(node, Message { what, ..message }));
        }
    }

    /// Whether a node still has what it was granted.
    pub(super) fn on_review(&mut self, from: NodeId, (number, vip): (u64, VipKey), has: bool, out: &mut Vec<Out>) {
        let key = (vip, from);
        if self.reviews.get(&key) != Some(&number) {
            return;
        }
        self.reviews.remove(&key);
        let Some(entry) = self.register.0.get_mut(&key.0).filter(|_| !has) else { return };
        entry.nodes.remove(&from);
        if entry.nodes.is_empty() {
            self.register.0.remove(&key.0);
        }
        self.save(out);
    }

    /// It is `now`: asks again, and looks at what was granted.
    pub(super) fn tick(&mut self, step: &mut Step<'_>) {
        let now = step.now;
        let vips: Vec<VipKey> = self.deciding.keys().cloned().collect();
        for vip in vips {
            if let Some(deciding) = self.deciding.get_mut(&vip) {
                // Whom the register grants nothing, and nobody hears, has no address of the pool.
                deciding.missing.retain(|node| step.nodes.contains(node));
                if now >= deciding.asked + ASK_AGAIN {
                    deciding.asked = now;
                    deciding.ask(&vip, step.out);
                }
                if now >= deciding.explain && !deciding.missing.is_empty() {
                    deciding.explain = now + EXPLAIN;
                    deciding.explain(&vip, step.out);
                }
            }
            self.conclude(&vip, step.out);
        }
        if now >= self.review_at {
            self.review_at = now + REVIEW;
            self.review(step.nodes, step.out);
        }
    }

    /// When [`Keeper::tick`] has something to do next.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        let deciding = self.deciding.values().map(|deciding| deciding.asked + ASK_AGAIN);
        deciding.chain((!self.register.0.is_empty()).then_some(self.review_at)).min()
    }

    fn review(&mut self, nodes: &BTreeSet<NodeId>, out: &mut Vec<Out>) {
        let after = self.reviewed.take();
        let next = self.register.0.iter().filter(|(vip, _)| after.as_ref().is_none_or(|after| *vip > after));
        let next: Vec<(VipKey, BTreeSet<NodeId>)> =
            next.take(REVIEWED).map(|(vip, entry)| (vip.clone(), entry.nodes.clone())).collect();
        for (vip, holders) in next {
            for node in holders.intersection(nodes) {
                self.numbers += 1;
                self.reviews.insert((vip.clone(), *node), self.numbers);
                out.push(Out::Send(*node, Message { number: self.numbers, vip: vip.clone(), what: What::Has }));
            }
            self.reviewed = Some(vip);
        }
    }
}

impl Deciding {
    fn explain(&self, vip: &VipKey, out: &mut Vec<Out>) {
        let silent: Vec<String> = self.missing.iter().take(5).map(ToString::to_string).collect();
        let why = format!(
            "{} must say whether {} may be its address, and doesn't answer: see that viprouted runs there (viproutectl nodes)",
            silent.join(" and "),
            self.address
        );
        for (node, number) in &self.claimants {
            out.push(Out::Send(*node, Message { number: *number, vip: vip.clone(), what: What::not_now(&why) }));
        }
    }

    fn ask(&self, vip: &VipKey, out: &mut Vec<Out>) {
        let message = || Message { number: self.number, vip: vip.clone(), what: What::May(self.address) };
        out.extend(self.missing.iter().map(|node| Out::Send(*node, message())));
    }
}
