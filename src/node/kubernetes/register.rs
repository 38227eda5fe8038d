//! The pool's register of a cluster: an address that is given out is an `IPAddress` object of the API, whose name is the address. Making it
//! twice fails, so no two nodes can give one address to two VIPs, nor one that is a Service's in the cluster. Pure: what is to be asked of the
//! API comes out.
//!
//! The VIP's keeper makes the object, everyone else takes the address from it. Services that wait are served in the order in which they were
//! made: a keeper takes a free address for one only if enough are free for all that have waited longer.
//!
//! A Service may name its pool or its address, and another one later: its keeper makes a second object then, all nodes move to that address, and the first
//! one is taken back a while later.
//!
//! An address that stands in a Service's status and in no object (the objects were lost, or another installation gave it out) is adopted before
//! any Service that waits gets one. Of several Services that say the same address the oldest keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::lease::clock;
use crate::lease::decider::Order;
use crate::lease::grant::{Lease, News};
use crate::lease::pools::{Pools, Refusal, Wish};
use crate::model::VipKey;
use crate::model::address::ipv4;

mod making;

use making::Making;

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
    /// With what its address is asked for.
    fn wish<'a>(&'a self, vip: &'a VipKey) -> Wish<'a>;
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
    /// Why it can't have what it asks for.
    refused: Option<Refused>,
}

/// Why a VIP can't have what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// In a word.
    pub kind: Refusal,
    /// In one sentence.
    pub why: String,
}

/// This node's part in it.
#[derive(Debug)]
pub struct Register {
    pools: Pools,
    /// VIPs that have addresses by the configuration.
    pins: BTreeMap<VipKey, IpAddr>,
    /// Every address that is given out; an address of something else's has no entry.
    given: BTreeMap<Ipv4Addr, Option<Entry>>,
    /// All of them are known.
    is_complete: bool,
    /// Why they aren't.
    failed: Option<String>,
    open: BTreeMap<VipKey, Open>,
    /// Since when nothing needs an address.
    unneeded: BTreeMap<Ipv4Addr, Instant>,
    /// Those that are being taken back. Until that is done they are not given out: a deletion that comes late would be the next one's.
    leaving: BTreeSet<Ipv4Addr>,
    /// Since when an address has been there for a Service that another node, or nobody, is to make it for.
    turns: BTreeMap<VipKey, Instant>,
}

impl Register {
    /// With nothing known.
    pub fn new(pools: Pools, pins: BTreeMap<VipKey, IpAddr>) -> Self {
        let (given, open, unneeded) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (leaving, turns) = (BTreeSet::new(), BTreeMap::new());
        Self { pools, pins, given, is_complete: false, failed: None, open, unneeded, leaving, turns }
    }

    /// What is given out.
    pub fn given(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.given.iter().filter(|(_, entry)| entry.is_some()).map(|(address, _)| *address)
    }

    /// Why a VIP can't have what it asks for.
    pub fn refused(&self, vip: &VipKey) -> Option<&Refused> {
        self.open.get(vip)?.refused.as_ref()
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
        let (granted, asking, refused) = (None, None, None);
        self.open.insert(vip, Open { remembered, unfit, granted, asking, since: now, due: now, refused });
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
            Making::new(self, cluster, now).make(&mut steps);
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

    /// The address that a VIP was given, of all that it was given: one of the pool that it names, then the one that it has, then the lowest; of
    /// those that are in conflict here none.
    fn address_of(&self, vip: &VipKey, given: &[Ipv4Addr], wish: &Wish<'_>) -> Option<Ipv4Addr> {
        let open = self.open.get(vip);
        let is_fit = |address: &Ipv4Addr| open.is_none_or(|open| !open.unfit.contains(address));
        let granted = open.and_then(|open| open.granted);
        let fit = given.iter().copied().filter(|address| Some(*address) == granted || is_fit(address));
        fit.min_by_key(|address| (!self.is_wished(*address, wish), Some(*address) != granted, *address))
    }

    /// It is the one that is asked for, else of the pool that is named; where none is, any is as good.
    fn is_wished(&self, address: Ipv4Addr, wish: &Wish<'_>) -> bool {
        if let Some(asked) = wish.address {
            return address == asked;
        }
        wish.pool.is_none_or(|name| self.pools.of(address).is_some_and(|pool| pool.name == name))
    }

    fn grant(&mut self, cluster: &dyn Cluster) -> Vec<Step> {
        let given = by_vip(&self.given);
        let change = |(vip, open): (&VipKey, &Open)| {
            let address = self.address_of(vip, given.get(vip)?, &cluster.wish(vip))?;
            (open.granted != Some(address)).then(|| (vip.clone(), address))
        };
        let found: Vec<(VipKey, Ipv4Addr)> = self.open.iter().filter_map(change).collect();
        let mut steps = Vec::new();
        for (vip, address) in found {
            if let Some(open) = self.open.get_mut(&vip) {
                (open.granted, open.asking, open.refused) = (Some(address), None, None);
            }
            steps.push(Step::Report(vip, News::Bound(Lease::permanent(address.into(), clock::now()))));
        }
        steps
    }

    /// Addresses of Services that are gone, and of VIPs that no node has any more: their keepers take them back.
    fn take_back(&mut self, cluster: &dyn Cluster, now: Instant, steps: &mut Vec<Step>) {
        let mut unneeded = BTreeMap::new();
        let given = by_vip(&self.given);
        for (address, entry) in &self.given {
            let Some(entry) = entry.as_ref().filter(|entry| cluster.is_keeper(&entry.vip)) else { continue };
            let there = cluster.service(&entry.vip);
            let is_needed = there.is_some() || cluster.is_used(&entry.vip) || self.open.contains_key(&entry.vip);
            let of_vip = given.get(&entry.vip).map_or(&[][..], Vec::as_slice);
            let is_another =
                of_vip.len() > 1 && self.address_of(&entry.vip, of_vip, &cluster.wish(&entry.vip)) != Some(*address);
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

/// What was given to whom.
fn by_vip(given: &BTreeMap<Ipv4Addr, Option<Entry>>) -> BTreeMap<&VipKey, Vec<Ipv4Addr>> {
    let mut found: BTreeMap<&VipKey, Vec<Ipv4Addr>> = BTreeMap::new();
    for (address, entry) in given {
        if let Some(entry) = entry {
            found.entry(&entry.vip).or_default().push(*address);
        }
    }
    found
}

#[cfg(test)]
mod tests;
