//! The pool's register of a cluster: an address that is given out is an `IPAddress` object of the API, whose name is the address. Making it
//! twice fails, so no two nodes can give one address to two VIPs, nor one that is a Service's in the cluster. Pure: what is to be asked of the
//! API comes out.
//!
//! The VIP's keeper makes the object, everyone else takes the address from it. Services that wait are served in the order in which they were
//! made: a keeper takes a free address for one only if enough are free for all that have waited longer.
//!
//! An address that stands in a Service's status and in no object (the objects were lost, or another installation gave it out) is adopted before
//! any Service that waits gets one. Of several Services that say the same address the oldest keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::lease::clock;
use crate::lease::decider::{self, Order};
use crate::lease::grant::{Lease, News};
use crate::lease::settings::Pool;
use crate::model::VipKey;
use crate::model::address::ipv4;

/// A VIP whose keeper makes nothing within this time is served by who wants it.
const WITHOUT_KEEPER: Duration = Duration::from_secs(4);
/// What failed is tried again after this time.
const AGAIN: Duration = Duration::from_secs(2);
/// An object that nothing needs any more stays for so long: the node that made it may just be about to use it.
const UNNEEDED: Duration = Duration::from_secs(60);

/// An address that is given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The VIP that has it.
    pub vip: VipKey,
    /// The Service it was given out for; `None`: pods name the VIP.
    pub service: Option<String>,
}

/// What is to be asked of the API, or told to the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give an address out.
    Create(Ipv4Addr, Entry),
    /// Take it back.
    Delete(Ipv4Addr, Entry),
    /// What has become of a VIP's address.
    Report(VipKey, News),
    /// A Service can't keep the address that its status says; why.
    Conflict(VipKey, String),
}

/// A Service, as far as its address goes. The oldest are the least.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    /// When it was made, Unix seconds.
    pub created: i64,
    /// Its VIP.
    pub vip: VipKey,
    /// The address that its status says.
    pub stated: Option<Ipv4Addr>,
    /// The address that it asks for.
    pub asked: Option<Ipv4Addr>,
}

/// What the API has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is given out.
    Made,
    /// Something else has that address.
    Taken,
    /// It can't be said; why.
    Failed(String),
}

/// What is known of VIPs.
pub trait Cluster {
    /// The oldest of the Services that have the VIP: its identity, and since when it is there.
    fn service(&self, vip: &VipKey) -> Option<(&str, i64)>;
    /// This node keeps the VIP's address.
    fn is_keeper(&self, vip: &VipKey) -> bool;
    /// A node has replicas of it.
    fn is_used(&self, vip: &VipKey) -> bool;
    /// The address that a Service asks for, for the VIP.
    fn asked(&self, vip: &VipKey) -> Option<Ipv4Addr>;
    /// The VIPs of Services, each as its oldest one claims it.
    fn services(&self) -> Box<dyn Iterator<Item = Claimant> + '_>;
}

/// A VIP that has, or is to have, an address.
#[derive(Debug)]
struct Open {
    remembered: Option<Ipv4Addr>,
    /// Addresses that are in conflict here.
    unfit: BTreeSet<Ipv4Addr>,
    granted: Option<Ipv4Addr>,
    /// The address that is being made.
    asking: Option<Ipv4Addr>,
    since: Instant,
    due: Instant,
}

/// This node's part in it.
#[derive(Debug)]
pub struct Register {
    pool: Pool,
    /// VIPs that have addresses by the configuration.
    pins: BTreeMap<VipKey, IpAddr>,
    /// Every address that is given out; an address of something else's has no entry.
    given: BTreeMap<Ipv4Addr, Option<Entry>>,
    /// All of them are known.
    is_complete: bool,
    /// Why they aren't.
    failed: Option<String>,
    open: BTreeMap<VipKey, Open>,
    /// Why VIPs don't have the addresses that Services ask for.
    refused: BTreeMap<VipKey, String>,
    /// Since when nothing needs an address.
    unneeded: BTreeMap<Ipv4Addr, Instant>,
    /// Those that are being taken back. Until that is done they are not given out: a deletion that comes late would be the next one's.
    leaving: BTreeSet<Ipv4Addr>,
}

impl Register {
    /// With nothing known.
    pub fn new(pool: Pool, pins: BTreeMap<VipKey, IpAddr>) -> Self {
        let (given, open, refused, unneeded) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { pool, pins, given, is_complete: false, failed: None, open, refused, unneeded, leaving: BTreeSet::new() }
    }

    /// Why VIPs don't have the addresses that Services ask for.
    pub fn refused(&self) -> &BTreeMap<VipKey, String> {
        &self.refused
    }

    /// All addresses of VIPs that are given out.
    pub fn on_list(&mut self, entries: BTreeMap<Ipv4Addr, Entry>) {
        self.given = entries.into_iter().map(|(address, entry)| (address, Some(entry))).collect();
        self.is_complete = true;
        self.failed = None;
    }

    /// They can't be read.
    pub fn on_failed(&mut self, why: &str) {
        self.failed = Some(why.to_owned());
    }

    /// One of them; `None`: it is taken back.
    pub fn on_entry(&mut self, address: Ipv4Addr, entry: Option<Entry>, now: Instant) {
        if let Some(entry) = entry {
            self.given.insert(address, Some(entry));
            return;
        }
        self.given.remove(&address);
        // Who waits need wait no longer.
        self.open.values_mut().for_each(|open| open.due = open.due.min(now));
    }

    /// What the daemon wants.
    pub fn on_order(&mut self, order: Order, now: Instant) {
        let (vip, remembered, unfit) = match order {
            Order::Stop(vip) => return drop(self.open.remove(&vip)),
            Order::Ask(vip, remembered) => (vip, remembered.and_then(ipv4), None),
            Order::Another(vip) => {
                let unfit = self.open.get(&vip).and_then(|open| open.granted);
                (vip, None, unfit)
            }
        };
        let before = self.open.remove(&vip).map(|open| open.unfit).unwrap_or_default();
        let unfit = before.into_iter().chain(unfit).collect();
        self.open.insert(vip, Open { remembered, unfit, granted: None, asking: None, since: now, due: now });
    }

    /// What has come of a [`Step::Create`].
    pub fn on_made(&mut self, address: Ipv4Addr, entry: Entry, answer: Answer, now: Instant) -> Option<Step> {
        let open = self.open.get_mut(&entry.vip).filter(|open| open.asking == Some(address));
        match answer {
            Answer::Made => drop(self.given.insert(address, Some(entry.clone()))),
            // Whose it is, the watch says.
            Answer::Taken => {
                self.given.entry(address).or_insert(None);
            }
            Answer::Failed(_) => {}
        }
        let open = open?;
        open.asking = None;
        let Answer::Failed(why) = answer else { return None };
        open.due = now + AGAIN;
        let why = format!("the Kubernetes API gives out no address: {why}");
        Some(Step::Report(entry.vip, News::Trouble { why, exhausted: false }))
    }

    /// What has come of a [`Step::Delete`]. `is_gone`: the object of that entry is there no longer.
    pub fn on_taken_back(&mut self, address: Ipv4Addr, entry: &Entry, is_gone: bool, now: Instant) {
        self.leaving.remove(&address);
        if is_gone && self.given.get(&address).is_some_and(|given| given.as_ref() == Some(entry)) {
            self.given.remove(&address);
        }
        // Who waits need wait no longer.
        self.open.values_mut().for_each(|open| open.due = open.due.min(now));
    }

    /// What is to be done.
    pub fn steps(&mut self, cluster: &dyn Cluster, now: Instant) -> Vec<Step> {
        let mut steps = self.grant(cluster);
        if self.is_complete {
            self.make(cluster, now, &mut steps);
            self.take_back(cluster, now, &mut steps);
        } else if let Some(why) = &self.failed {
            for (vip, open) in self.open.iter_mut().filter(|(_, open)| open.granted.is_none() && now >= open.due) {
                open.due = now + AGAIN;
                let why = format!("the addresses that the Kubernetes API has given out can't be read: {why}");
                steps.push(Step::Report(vip.clone(), News::Trouble { why, exhausted: false }));
            }
        }
        steps
    }

    /// The address that a VIP was given, the lowest of several; of those that are in conflict here none.
    fn address_of(&self, vip: &VipKey, asked: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let open = self.open.get(vip);
        let is_its = |entry: &Option<Entry>| entry.as_ref().is_some_and(|entry| entry.vip == *vip);
        let is_fit = |address: &Ipv4Addr| open.is_none_or(|open| !open.unfit.contains(address));
        let asked = asked.filter(|address| self.given.get(address).is_some_and(is_its) && is_fit(address));
        if asked.is_some() {
            return asked;
        }
        let mut given = self.given.iter().filter(|(_, entry)| is_its(entry)).map(|(address, _)| *address);
        let granted = open.and_then(|open| open.granted);
        granted.filter(|address| self.given.get(address).is_some_and(is_its)).or_else(|| given.find(is_fit))
    }

    fn grant(&mut self, cluster: &dyn Cluster) -> Vec<Step> {
        let next = |(vip, open): (&VipKey, &Open)| {
            let asked = cluster.asked(vip);
            let address = self.address_of(vip, asked)?;
            // One that is in use is changed for one that is asked for, and for no other.
            let is_next = open.granted.is_none() || asked == Some(address) && open.granted != asked;
            is_next.then(|| (vip.clone(), address))
        };
        let found: Vec<(VipKey, Ipv4Addr)> = self.open.iter().filter_map(next).collect();
        let mut steps = Vec::new();
        for (vip, address) in found {
            if let Some(open) = self.open.get_mut(&vip) {
                (open.granted, open.asking) = (Some(address), None);
            }
            steps.push(Step::Report(vip, News::Bound(Lease::permanent(address.into(), clock::now()))));
        }
        steps
    }

    fn make(&mut self, cluster: &dyn Cluster, now: Instant, steps: &mut Vec<Step>) {
        let waiting = Waiting::new(self, cluster);
        let asking: BTreeSet<Ipv4Addr> = self.open.values().filter_map(|open| open.asking).collect();
        let is_kept = |address: &Ipv4Addr| waiting.claims.contains_key(address) || waiting.asked.contains(address);
        let is_free = |address: &Ipv4Addr| !asking.contains(address) && !is_kept(address);
        self.refused.clear();
        self.make_asked(cluster, (&waiting, &asking), now, steps);
        let mut free: BTreeSet<Ipv4Addr> = self.unassigned().filter(is_free).collect();
        let mut wanted: Vec<(Option<usize>, VipKey)> = Vec::new();
        for (vip, open) in &self.open {
            let is_asked = cluster.asked(vip).is_some();
            if open.granted.is_none() && open.asking.is_none() && now >= open.due && !is_asked {
                wanted.push((waiting.place(vip), vip.clone()));
            }
        }
        wanted.sort();
        let free_at_first = free.len();
        for (place, vip) in wanted {
            let Some(open) = self.open.get_mut(&vip) else { continue };
            let is_late = now.saturating_duration_since(open.since) >= WITHOUT_KEEPER;
            if !cluster.is_keeper(&vip) && !is_late {
                continue;
            }
            let stated = waiting.stated.get(&vip).copied();
            let fit = |address: &Ipv4Addr| !open.unfit.contains(address);
            let adopted = stated.filter(|address| place.is_none() && !asking.contains(address));
            let remembered = open.remembered.filter(|address| free.contains(address) && fit(address));
            // Enough is there for those that have waited longer.
            let has_turn = place.is_some_and(|place| place < free_at_first);
            let chosen = adopted.or_else(|| remembered.or_else(|| free.iter().copied().find(fit)).filter(|_| has_turn));
            let Some(address) = chosen else {
                open.due = now + AGAIN;
                let why = format!("no address of {} is free", self.pool.cidr);
                steps.push(Step::Report(vip, News::Trouble { why, exhausted: true }));
                continue;
            };
            free.remove(&address);
            open.asking = Some(address);
            if let Some(stated) = stated.filter(|stated| *stated != address) {
                let why = waiting.conflict(stated, &self.given, &self.pool);
                steps.push(Step::Conflict(vip.clone(), format!("{why}: it gets {address}")));
            }
            let service = cluster.service(&vip).map(|(uid, _)| uid.to_owned());
            steps.push(Step::Create(address, Entry { vip, service }));
        }
    }

    /// Addresses that Services ask for: nobody waits for them. What a VIP has stays until it has the other one.
    fn make_asked(
        &mut self,
        cluster: &dyn Cluster,
        (waiting, asking): (&Waiting, &BTreeSet<Ipv4Addr>),
        now: Instant,
        steps: &mut Vec<Step>,
    ) {
        let open = self.open.iter().filter_map(|(vip, open)| Some((vip.clone(), cluster.asked(vip)?, open.granted)));
        let open: Vec<_> = open.filter(|(_, asked, granted)| *granted != Some(*asked)).collect();
        for (vip, asked, granted) in open {
            let why = self.refusal(&vip, asked, waiting);
            let Some(open) = self.open.get_mut(&vip).filter(|open| open.asking.is_none()) else { continue };
            let is_late = now.saturating_duration_since(open.since) >= WITHOUT_KEEPER && granted.is_none();
            let is_due = now >= open.due;
            match why {
                Some(why) => {
                    if granted.is_none() && is_due {
                        open.due = now + AGAIN;
                        let why = why.clone();
                        steps.push(Step::Report(vip.clone(), News::Trouble { why, exhausted: false }));
                    }
                    self.refused.insert(vip, why);
                }
                None if is_due && !asking.contains(&asked) && (cluster.is_keeper(&vip) || is_late) => {
                    open.asking = Some(asked);
                    let service = cluster.service(&vip).map(|(uid, _)| uid.to_owned());
                    steps.push(Step::Create(asked, Entry { vip, service }));
                }
                None => {}
            }
        }
    }

    /// Why a VIP can't have the address that is asked for.
    fn refusal(&self, vip: &VipKey, asked: Ipv4Addr, waiting: &Waiting) -> Option<String> {
        if self.open.get(vip).is_some_and(|open| open.unfit.contains(&asked)) {
            return Some(format!("{asked} is used by another host of the network"));
        }
        if self.leaving.contains(&asked) {
            return Some(format!("{asked} is being given back"));
        }
        let holder = self.given.get(&asked).map(|entry| entry.as_ref().map(|entry| &entry.vip));
        match holder.or_else(|| waiting.claims.get(&asked).map(Some)) {
            Some(Some(holder)) if holder == vip => None,
            Some(Some(holder)) => Some(format!("{asked} is {holder}'s")),
            Some(None) => Some(format!("{asked} is used by something else in the cluster")),
            None => None,
        }
    }

    /// What may be given out and isn't.
    fn unassigned(&self) -> impl Iterator<Item = Ipv4Addr> {
        let pins: BTreeSet<IpAddr> = self.pins.values().copied().collect();
        let free: Vec<Ipv4Addr> = decider::free(&self.pool, &pins).collect();
        free.into_iter().filter(|address| !self.given.contains_key(address) && !self.leaving.contains(address))
    }

    /// Addresses of Services that are gone, and of VIPs that no node has any more: their keepers take them back.
    fn take_back(&mut self, cluster: &dyn Cluster, now: Instant, steps: &mut Vec<Step>) {
        let mut unneeded = BTreeMap::new();
        let mut number: BTreeMap<&VipKey, usize> = BTreeMap::new();
        for entry in self.given.values().flatten() {
            *number.entry(&entry.vip).or_default() += 1;
        }
        for (address, entry) in &self.given {
            let Some(entry) = entry.as_ref().filter(|entry| cluster.is_keeper(&entry.vip)) else { continue };
            let there = cluster.service(&entry.vip);
            let is_needed = there.is_some() || cluster.is_used(&entry.vip) || self.open.contains_key(&entry.vip);
            let address_of = |vip: &VipKey| self.address_of(vip, cluster.asked(vip));
            let is_another = number.get(&entry.vip) != Some(&1) && address_of(&entry.vip) != Some(*address);
            if is_needed && !is_another {
                continue;
            }
            let since = *self.unneeded.get(address).unwrap_or(&now);
            // Who deletes a Service says so: nothing is about to use it.
            let waits = if entry.service.is_some() && !is_needed { Duration::ZERO } else { UNNEEDED };
            if now.saturating_duration_since(since) >= waits && self.leaving.insert(*address) {
                steps.push(Step::Delete(*address, entry.clone()));
            }
            unneeded.insert(*address, since);
        }
        self.unneeded = unneeded;
    }
}

/// Services without an object of theirs.
struct Waiting {
    /// What their statuses say.
    stated: BTreeMap<VipKey, Ipv4Addr>,
    /// Who adopts which address.
    claims: BTreeMap<Ipv4Addr, VipKey>,
    /// What is asked for.
    asked: BTreeSet<Ipv4Addr>,
    /// The others, the oldest first.
    queue: Vec<VipKey>,
}

impl Waiting {
    fn new(register: &Register, cluster: &dyn Cluster) -> Self {
        let served: BTreeSet<&VipKey> = register.given.values().flatten().map(|entry| &entry.vip).collect();
        let has_own = |claimant: &Claimant| served.contains(&claimant.vip) || register.pins.contains_key(&claimant.vip);
        let asked = cluster.services().filter_map(|claimant| claimant.asked).collect();
        let mut waiting: Vec<Claimant> = cluster.services().filter(|claimant| !has_own(claimant)).collect();
        waiting.sort();
        let fit =
            |vip: &VipKey, address: &Ipv4Addr| register.open.get(vip).is_none_or(|open| !open.unfit.contains(address));
        let unassigned: BTreeSet<Ipv4Addr> = if waiting.iter().any(|claimant| claimant.stated.is_some()) {
            register.unassigned().collect()
        } else {
            BTreeSet::new()
        };
        let mut found = Self { stated: BTreeMap::new(), claims: BTreeMap::new(), asked, queue: Vec::new() };
        for Claimant { vip, stated, asked, .. } in waiting {
            // Whoever asks for an address waits for no other.
            let stated = if asked.is_some() { asked.filter(|asked| stated == Some(*asked)) } else { stated };
            found.stated.extend(stated.map(|address| (vip.clone(), address)));
            let adopted = stated.filter(|address| unassigned.contains(address) && fit(&vip, address));
            match adopted.filter(|address| !found.claims.contains_key(address)) {
                Some(address) => drop(found.claims.insert(address, vip)),
                None if asked.is_some() => {}
                None => found.queue.push(vip),
            }
        }
        found
    }

    /// How many wait longer; `None`: it adopts an address. What no Service names comes last.
    fn place(&self, vip: &VipKey) -> Option<usize> {
        if self.stated.get(vip).is_some_and(|stated| self.claims.get(stated) == Some(vip)) {
            return None;
        }
        Some(self.queue.iter().position(|waiting| waiting == vip).unwrap_or(self.queue.len()))
    }

    /// Why an address that a status says isn't adopted.
    fn conflict(&self, stated: Ipv4Addr, given: &BTreeMap<Ipv4Addr, Option<Entry>>, pool: &Pool) -> String {
        let holder = given.get(&stated).map(|entry| entry.as_ref().map(|entry| &entry.vip));
        let holder = holder.or_else(|| self.claims.get(&stated).map(Some));
        match holder {
            Some(Some(vip)) => format!("the address of its status, {stated}, is {vip}'s, which has had it for longer"),
            Some(None) => format!("the address of its status, {stated}, is used by something else in the cluster"),
            None if pool.cidr.contains(stated) => {
                format!("the address of its status, {stated}, is pinned, excluded or in conflict on the network")
            }
            None => format!("the address of its status, {stated}, isn't of the pool ({})", pool.cidr),
        }
    }
}

#[cfg(test)]
mod tests;
