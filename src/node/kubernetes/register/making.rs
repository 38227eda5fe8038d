//! Which addresses are to be made for whom. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use crate::lease::grant::News;
use crate::lease::pools::{Pool, Refusal, Wish, used_up};
use crate::model::VipKey;

use super::{AGAIN, Claimant, Cluster, Entry, Refused, Register, Step, WITHOUT_KEEPER};

/// A turn of it.
pub(super) struct Making<'a> {
    register: &'a mut Register,
    cluster: &'a dyn Cluster,
    now: Instant,
    waiting: Waiting,
    rooms: Rooms,
    /// What this node is to make an address for now.
    due: BTreeSet<VipKey>,
}

impl<'a> Making<'a> {
    pub(super) fn new(register: &'a mut Register, cluster: &'a dyn Cluster, now: Instant) -> Self {
        register.forget_refusals(cluster);
        let waiting = Waiting::new(register, cluster);
        let rooms = Rooms::new(register, &waiting);
        let mut making = Self { register, cluster, now, waiting, rooms, due: BTreeSet::new() };
        making.due = making.register.open.keys().filter(|vip| making.is_due(vip)).cloned().collect();
        making
    }

    /// The keeper of a VIP makes its address; whose keeper does nothing, anybody.
    fn is_due(&self, vip: &VipKey) -> bool {
        let Some(open) = self.register.open.get(vip) else { return false };
        let is_late = self.now.saturating_duration_since(open.since) >= WITHOUT_KEEPER;
        let is_mine = self.cluster.is_keeper(vip) || open.granted.is_none() && is_late;
        let is_wanting = open.granted.is_none_or(|address| !self.register.is_wished(address, &self.cluster.wish(vip)));
        is_mine && is_wanting && open.asking.is_none() && self.now >= open.due
    }

    /// Those who adopt an address come first, then who waits, the oldest first, then what no Service names.
    pub(super) fn make(mut self, steps: &mut Vec<Step>) {
        let claims: Vec<(Ipv4Addr, VipKey)> = self.waiting.claims.iter().map(|(at, vip)| (*at, vip.clone())).collect();
        for (address, vip) in claims {
            if self.due.remove(&vip) && !self.rooms.asking.contains(&address) {
                self.create(vip, address, steps);
            }
        }
        let mut turns = BTreeMap::new();
        let queue = std::mem::take(&mut self.waiting.queue);
        for vip in queue {
            if self.due.remove(&vip) {
                self.serve(vip, steps);
            } else if let Some(since) = self.pass(&vip) {
                turns.insert(vip, since);
            }
        }
        self.register.turns = turns;
        for vip in std::mem::take(&mut self.due) {
            self.serve(vip, steps);
        }
    }

    /// Another node makes its address: one stays free for it. Not for ever: it may have a reason to make none (`limits`).
    fn pass(&mut self, vip: &VipKey) -> Option<Instant> {
        let wish = self.cluster.wish(vip);
        let serving = self.register.pools.serving(&wish).ok()?;
        let pool = serving.iter().find(|pool| self.rooms.has(pool))?;
        let since = self.register.turns.get(vip).copied().unwrap_or(self.now);
        if self.now.saturating_duration_since(since) < WITHOUT_KEEPER {
            self.rooms.take(&pool.name);
        }
        Some(since)
    }

    fn serve(&mut self, vip: VipKey, steps: &mut Vec<Step>) {
        let cluster = self.cluster;
        let found = self.choose(&vip, &cluster.wish(&vip));
        let (pool, address) = match found {
            Ok(found) => found,
            Err(refused) => return self.refuse(vip, refused, steps),
        };
        self.rooms.take(&pool);
        self.rooms.asking.insert(address);
        if let Some(stated) = self.waiting.stated.get(&vip).filter(|stated| **stated != address) {
            let why = self.waiting.conflict(*stated, self.register);
            steps.push(Step::Conflict(vip.clone(), format!("{why}: it gets {address}")));
        }
        self.create(vip, address, steps);
    }

    fn choose(&self, vip: &VipKey, wish: &Wish<'_>) -> Result<(String, Ipv4Addr), Refused> {
        let register = &self.register;
        let refused = |kind, why| Refused { kind, why };
        if let Some(address) = wish.address {
            // It waits for no other, so it takes nobody's turn.
            let found = self.refusal(vip, address, wish);
            return found.map_or(Ok((String::new(), address)), |why| Err(refused(Refusal::Address, why)));
        }
        let serving = register.pools.serving(wish).map_err(|error| refused(error.refusal(), error.to_string()))?;
        let open = register.open.get(vip);
        let is_free = |address: &Ipv4Addr| {
            open.is_none_or(|open| !open.unfit.contains(address))
                && !self.rooms.is_out(*address, register)
                && !register.is_pinned(*address)
        };
        // Enough is there for those that have waited longer.
        let with_room: Vec<&Pool> = serving.iter().copied().filter(|pool| self.rooms.has(pool)).collect();
        let remembered = open.and_then(|open| open.remembered).filter(is_free).and_then(|address| {
            let pool = with_room.iter().find(|pool| pool.gives(address))?;
            Some((pool.name.clone(), address))
        });
        let lowest = |pool: &&Pool| Some((pool.name.clone(), pool.addresses().find(is_free)?));
        let found = remembered.or_else(|| with_room.iter().find_map(lowest));
        found.ok_or_else(|| refused(Refusal::UsedUp, used_up(&serving)))
    }

    /// Why a VIP can't have the address that is asked for.
    fn refusal(&self, vip: &VipKey, address: Ipv4Addr, wish: &Wish<'_>) -> Option<String> {
        let register = &self.register;
        if register.open.get(vip).is_some_and(|open| open.unfit.contains(&address)) {
            return Some(format!("{address} is used by another host of the network"));
        }
        let Some(pool) = register.pools.of(address) else {
            return Some(format!("{address} is no address of a pool: expected one of {}", register.pools));
        };
        if let Some(name) = wish.pool.filter(|name| *name != pool.name) {
            return Some(format!("{address} is of pool {}, and not of pool {name}, which it names", pool.name));
        }
        let of_pool = Wish { pool: Some(pool.name.as_str()), address: None, ..wish.clone() };
        if let Err(error) = register.pools.serving(&of_pool) {
            return Some(format!("{address} is of a pool that isn't for it: {error}"));
        }
        if register.leaving.contains(&address) {
            return Some(format!("{address} is being given back"));
        }
        let holder = register.given.get(&address).map(|entry| entry.as_ref().map(|entry| &entry.vip));
        match holder.or_else(|| self.waiting.claims.get(&address).map(Some)) {
            Some(Some(holder)) if holder == vip => None,
            Some(Some(holder)) => Some(format!("{address} is {holder}'s")),
            Some(None) => Some(format!("{address} is used by something else in the cluster")),
            None => self.rooms.asking.contains(&address).then(|| format!("{address} is being given to another VIP")),
        }
    }

    fn refuse(&mut self, vip: VipKey, refused: Refused, steps: &mut Vec<Step>) {
        let Some(open) = self.register.open.get_mut(&vip) else { return };
        open.due = self.now + AGAIN;
        let why = refused.why.clone();
        let exhausted = refused.kind == Refusal::UsedUp;
        open.refused = Some(refused);
        // One that has an address of another pool keeps it.
        if open.granted.is_none() {
            steps.push(Step::Report(vip, News::Trouble { why, exhausted }));
        }
    }

    fn create(&mut self, vip: VipKey, address: Ipv4Addr, steps: &mut Vec<Step>) {
        if let Some(open) = self.register.open.get_mut(&vip) {
            (open.asking, open.refused) = (Some(address), None);
        }
        let service = self.cluster.service(&vip).map(|(uid, _)| uid.to_owned());
        steps.push(Step::Create(address, Entry { vip, service }));
    }
}

impl Register {
    /// Of those that have by now what they ask for, or ask for nothing else any more.
    fn forget_refusals(&mut self, cluster: &dyn Cluster) {
        let refused = self.open.iter().filter(|(_, open)| open.refused.is_some());
        let is_over = |(vip, open): &(&VipKey, &super::Open)| {
            open.granted.is_some_and(|address| self.is_wished(address, &cluster.wish(vip)))
        };
        let over: Vec<VipKey> = refused.filter(is_over).map(|(vip, _)| vip.clone()).collect();
        for vip in over {
            if let Some(open) = self.open.get_mut(&vip) {
                open.refused = None;
            }
        }
    }

    fn is_pinned(&self, address: Ipv4Addr) -> bool {
        self.pins.values().any(|pin| *pin == IpAddr::V4(address))
    }

    /// It may be given out, and isn't.
    fn is_unassigned(&self, address: Ipv4Addr) -> bool {
        let is_of_a_pool = self.pools.iter().any(|pool| pool.gives(address));
        is_of_a_pool
            && !self.is_pinned(address)
            && !self.given.contains_key(&address)
            && !self.leaving.contains(&address)
    }
}

/// How many addresses of each pool are left for who waits.
struct Rooms {
    left: BTreeMap<String, usize>,
    /// Addresses that are being made.
    asking: BTreeSet<Ipv4Addr>,
    /// Those that are adopted, or asked for.
    claimed: BTreeSet<Ipv4Addr>,
}

impl Rooms {
    fn new(register: &Register, waiting: &Waiting) -> Self {
        let asking: BTreeSet<Ipv4Addr> = register.open.values().filter_map(|open| open.asking).collect();
        let claimed: BTreeSet<Ipv4Addr> = waiting.claims.keys().chain(&waiting.asked).copied().collect();
        let pins = register.pins.values().filter_map(|pin| match pin {
            IpAddr::V4(pin) => Some(*pin),
            IpAddr::V6(_) => None,
        });
        let given = register.given.keys().chain(&register.leaving).chain(&asking).chain(&claimed).copied();
        let out: BTreeSet<Ipv4Addr> = given.chain(pins).collect();
        let left = |pool: &Pool| {
            let taken = out.iter().filter(|address| pool.gives(**address)).count();
            (pool.name.clone(), pool.size().saturating_sub(taken))
        };
        Self { left: register.pools.iter().map(left).collect(), asking, claimed }
    }

    fn has(&self, pool: &Pool) -> bool {
        self.left.get(&pool.name).is_some_and(|left| *left > 0)
    }

    fn take(&mut self, pool: &str) {
        if let Some(left) = self.left.get_mut(pool) {
            *left = left.saturating_sub(1);
        }
    }

    fn is_out(&self, address: Ipv4Addr, register: &Register) -> bool {
        let is_here = self.asking.contains(&address) || self.claimed.contains(&address);
        is_here || register.given.contains_key(&address) || register.leaving.contains(&address)
    }
}

/// Services without an object of theirs.
struct Waiting {
    /// What their statuses say.
    stated: BTreeMap<VipKey, Ipv4Addr>,
    /// Who adopts which address.
    claims: BTreeMap<Ipv4Addr, VipKey>,
    /// What is asked for, which nobody else gets.
    asked: BTreeSet<Ipv4Addr>,
    /// The others, the oldest first.
    queue: Vec<VipKey>,
}

impl Waiting {
    fn new(register: &Register, cluster: &dyn Cluster) -> Self {
        let served: BTreeSet<&VipKey> = register.given.values().flatten().map(|entry| &entry.vip).collect();
        let has_own = |claimant: &Claimant| served.contains(&claimant.vip) || register.pins.contains_key(&claimant.vip);
        let mut waiting: Vec<Claimant> = cluster.services().filter(|claimant| !has_own(claimant)).collect();
        waiting.sort();
        let fit =
            |vip: &VipKey, address: &Ipv4Addr| register.open.get(vip).is_none_or(|open| !open.unfit.contains(address));
        let asked = cluster.services().filter_map(|claimant| cluster.wish(&claimant.vip).address).collect();
        let mut found = Self { stated: BTreeMap::new(), claims: BTreeMap::new(), asked, queue: Vec::new() };
        for Claimant { vip, stated, .. } in waiting {
            let asked = cluster.wish(&vip).address;
            let stated = stated.filter(|stated| asked.is_none_or(|asked| asked == *stated));
            found.stated.extend(stated.map(|address| (vip.clone(), address)));
            let adopted = stated.filter(|address| register.is_unassigned(*address) && fit(&vip, address));
            match adopted.filter(|address| !found.claims.contains_key(address)) {
                Some(address) => drop(found.claims.insert(address, vip)),
                None => found.queue.push(vip),
            }
        }
        found
    }

    /// Why an address that a status says isn't adopted.
    fn conflict(&self, stated: Ipv4Addr, register: &Register) -> String {
        let holder = register.given.get(&stated).map(|entry| entry.as_ref().map(|entry| &entry.vip));
        let holder = holder.or_else(|| self.claims.get(&stated).map(Some));
        let said = format!("the address of its status, {stated}, ");
        match holder {
            Some(Some(vip)) => format!("{said}is {vip}'s, which has had it for longer"),
            Some(None) => format!("{said}is used by something else in the cluster"),
            None if register.pools.of(stated).is_some() => {
                format!("{said}is pinned, excluded or in conflict on the network")
            }
            None => format!("{said}isn't of {}", register.pools),
        }
    }
}
