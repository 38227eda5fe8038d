//! The pool's register of a cluster: an address that is given out is an `IPAddress` object of the API, whose name is the address. Making it
//! twice fails, so no two nodes can give one address to two VIPs, nor one that is a Service's in the cluster. Pure: what is to be asked of the
//! API comes out.
//!
//! The VIP's keeper makes the object, everyone else takes the address from it. Services that wait are served in the order in which they were
//! made: a keeper takes a free address for one only if enough are free for all that have waited longer.

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
    Delete(Ipv4Addr),
    /// What has become of a VIP's address.
    Report(VipKey, News),
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
    /// The Service of that name: its identity, and since when it is there.
    fn service(&self, vip: &VipKey) -> Option<(&str, i64)>;
    /// This node keeps the VIP's address.
    fn is_keeper(&self, vip: &VipKey) -> bool;
    /// A node has replicas of it.
    fn is_used(&self, vip: &VipKey) -> bool;
    /// The Services that there are.
    fn services(&self) -> Box<dyn Iterator<Item = (VipKey, i64)> + '_>;
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
    pins: BTreeSet<IpAddr>,
    /// Every address that is given out; an address of something else's has no entry.
    given: BTreeMap<Ipv4Addr, Option<Entry>>,
    /// All of them are known.
    is_complete: bool,
    open: BTreeMap<VipKey, Open>,
    /// Since when nothing needs an address.
    unneeded: BTreeMap<Ipv4Addr, Instant>,
}

impl Register {
    /// With nothing known.
    pub fn new(pool: Pool, pins: BTreeSet<IpAddr>) -> Self {
        let (given, open, unneeded) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { pool, pins, given, is_complete: false, open, unneeded }
    }

    /// All addresses of VIPs that are given out.
    pub fn on_list(&mut self, entries: BTreeMap<Ipv4Addr, Entry>) {
        self.given = entries.into_iter().map(|(address, entry)| (address, Some(entry))).collect();
        self.is_complete = true;
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

    /// What is to be done.
    pub fn steps(&mut self, cluster: &dyn Cluster, now: Instant) -> Vec<Step> {
        let mut steps = self.grant();
        if self.is_complete {
            self.make(cluster, now, &mut steps);
            self.take_back(cluster, now, &mut steps);
        }
        steps
    }

    /// The address that a VIP was given, the lowest of several; of those that are in conflict here none.
    fn address_of(&self, vip: &VipKey) -> Option<Ipv4Addr> {
        let open = self.open.get(vip);
        let is_its = |entry: &Option<Entry>| entry.as_ref().is_some_and(|entry| entry.vip == *vip);
        let is_fit = |address: &Ipv4Addr| open.is_none_or(|open| !open.unfit.contains(address));
        let mut given = self.given.iter().filter(|(_, entry)| is_its(entry)).map(|(address, _)| *address);
        let granted = open.and_then(|open| open.granted);
        granted.filter(|address| self.given.get(address).is_some_and(is_its)).or_else(|| given.find(is_fit))
    }

    fn grant(&mut self) -> Vec<Step> {
        let waiting = self.open.iter().filter(|(_, open)| open.granted.is_none());
        let found: Vec<(VipKey, Ipv4Addr)> =
            waiting.filter_map(|(vip, _)| Some((vip.clone(), self.address_of(vip)?))).collect();
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
        let asking: BTreeSet<Ipv4Addr> = self.open.values().filter_map(|open| open.asking).collect();
        let is_free = |address: &Ipv4Addr| !self.given.contains_key(address) && !asking.contains(address);
        let mut free: BTreeSet<Ipv4Addr> = decider::free(&self.pool, &self.pins).filter(is_free).collect();
        let queue = self.queue(cluster);
        let mut wanted: Vec<(usize, VipKey)> = Vec::new();
        for (vip, open) in &self.open {
            if open.granted.is_some() || open.asking.is_some() || now < open.due {
                continue;
            }
            let place = queue.iter().position(|waiting| waiting == vip).unwrap_or(queue.len());
            wanted.push((place, vip.clone()));
        }
        wanted.sort();
        let free_at_first = free.len();
        for (place, vip) in wanted {
            let Some(open) = self.open.get_mut(&vip) else { continue };
            let is_late = now.saturating_duration_since(open.since) >= WITHOUT_KEEPER;
            if !cluster.is_keeper(&vip) && !is_late {
                continue;
            }
            let fit = |address: &Ipv4Addr| !open.unfit.contains(address);
            let remembered = open.remembered.filter(|address| free.contains(address) && fit(address));
            // Enough is there for those that have waited longer.
            let chosen = remembered.or_else(|| free.iter().copied().find(fit)).filter(|_| place < free_at_first);
            let Some(address) = chosen else {
                open.due = now + AGAIN;
                let why = format!("no address of {} is free", self.pool.cidr);
                steps.push(Step::Report(vip, News::Trouble { why, exhausted: true }));
                continue;
            };
            free.remove(&address);
            open.asking = Some(address);
            let service = cluster.service(&vip).map(|(uid, _)| uid.to_owned());
            steps.push(Step::Create(address, Entry { vip, service }));
        }
    }

    /// Services without an address, the oldest first.
    fn queue(&self, cluster: &dyn Cluster) -> Vec<VipKey> {
        let served: BTreeSet<&VipKey> = self.given.values().flatten().map(|entry| &entry.vip).collect();
        let mut waiting: Vec<(i64, VipKey)> =
            cluster.services().filter(|(vip, _)| !served.contains(vip)).map(|(vip, created)| (created, vip)).collect();
        waiting.sort();
        waiting.into_iter().map(|(_, vip)| vip).collect()
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
            let is_another = number.get(&entry.vip) != Some(&1) && self.address_of(&entry.vip) != Some(*address);
            if is_needed && !is_another {
                continue;
            }
            let since = *self.unneeded.get(address).unwrap_or(&now);
            // Who deletes a Service says so: nothing is about to use it.
            let waits = if entry.service.is_some() && !is_needed { Duration::ZERO } else { UNNEEDED };
            if now.saturating_duration_since(since) >= waits {
                steps.push(Step::Delete(*address));
            }
            unneeded.insert(*address, since);
        }
        self.unneeded = unneeded;
    }
}

#[cfg(test)]
mod tests;
