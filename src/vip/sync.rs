//! The node's side of a VIP: group, routes, nexthops.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use crate::cni::config::Group;
use crate::net::nexthop::{Found, Nexthop, Object, Resilience};
use crate::net::route::{self, Filter, Kind, Route};
use crate::net::{self, NodeNet, PROTOCOL, Request, link, nexthop};
use crate::registry::{LockedVip, Replica, VipRecord};

use super::owner::{self, Owner};
use super::plan::{self, DataRoute, Have, HaveNexthop, Op, Routes, Want, WantedMember};
use super::{Result, ids, timing};

/// How often the plan is made anew when the kernel refuses it: a pod that dies in between takes its nexthop along.
const TRIES: u32 = 4;

/// Makes the kernel's tables match the registry for one VIP. Without endpoints nothing of it stays, on disk either: the
/// lock is consumed and given back only while the VIP exists.
pub fn sync(node: &NodeNet, vip: LockedVip) -> Result<Option<LockedVip>> {
    put_right(node, vip).map(|synced| synced.vip)
}

/// What came of a [`sync`].
#[derive(Debug)]
pub struct Synced {
    /// The VIP, while it exists.
    pub vip: Option<LockedVip>,
    /// What was amiss, in words: a sentence for each step taken.
    pub found: Vec<String>,
}

/// [`sync`] for those who want to know what it did.
pub fn put_right(node: &NodeNet, vip: LockedVip) -> Result<Synced> {
    timing::timed(|| bring(node, vip, None))
}

/// [`put_right`] for those who bring many VIPs in order: the kernel finds one prefix among its routes only by going through
/// all of them (`inet_dump_fib`), so they were read once. What has changed since makes a step fail, and everything is read
/// anew; or it makes none, since replacing what is right already changes nothing.
pub fn put_right_by(node: &NodeNet, vip: LockedVip, tables: &Tables) -> Result<Synced> {
    timing::timed(|| bring(node, vip, Some(tables)))
}

/// What is known of the tables before a VIP is brought in order.
struct Seen<'a> {
    group: Option<Object>,
    tables: Option<&'a Tables>,
}

fn bring(node: &NodeNet, mut vip: LockedVip, tables: Option<&Tables>) -> Result<Synced> {
    let mut found = Vec::new();
    if let Some(record) = vip.record.clone() {
        let want = want(&record, vip.is_unused()?, vip.replicas()?);
        let group = nexthop::get(node, want.group)?;
        let gone = gone(node, group.as_ref(), vip.replicas()?)?;
        let owners = Owner::all(&record, &mut vip, &gone)?;
        found = settle(node, &want, Seen { group, tables }, owners)?;
    }
    let vip = if vip.is_unused()? { vip.remove().map(|()| None)? } else { Some(vip) };
    Ok(Synced { vip, found })
}

/// Takes one of a VIP's former addresses out of the kernel's tables and the flow owner's maps.
pub fn drop_former(node: &NodeNet, record: &VipRecord, address: Ipv4Addr) -> Result<()> {
    let routes = read_routes(node, address)?;
    let mut requests: Vec<Request> = routes.announced.iter().map(|m| route::del_unreachable(address, *m)).collect();
    requests.extend(routes.data.map(|_| route::del_nexthop(address)));
    node.apply(&requests)?;
    let Some(mut owner) = Owner::bare(record, address)? else { return Ok(()) };
    let (before, after) = owner.difference()?;
    owner.apply(before)?;
    owner.apply(after)
}

/// What is not as it should be: a sentence for each step that [`sync`] would take now.
pub fn differs(node: &NodeNet, vip: &mut LockedVip) -> Result<Vec<String>> {
    let Some(record) = vip.record.clone() else { return Ok(Vec::new()) };
    let want = want(&record, vip.is_unused()?, vip.replicas()?);
    let group = nexthop::get(node, want.group)?;
    let gone = gone(node, group.as_ref(), vip.replicas()?)?;
    let have = read(node, &want, Seen { group, tables: None })?;
    let mut findings: Vec<String> = plan::difference(&have, &want).iter().map(Op::finding).collect();
    let owners = Owner::all(&record, vip, &gone)?;
    if owners.is_empty() && record.flow_owner.is_some() {
        findings.push("the flow owner isn't loaded".to_owned());
    }
    for owner in owners {
        let (before, after) = owner.difference()?;
        findings.extend(owner.findings(before.iter().chain(&after)));
    }
    Ok(findings)
}

/// Whoever comes is known to the flow owner before the group can choose it; whoever goes, until the group no longer can.
fn settle(node: &NodeNet, want: &Want, seen: Seen<'_>, mut owners: Vec<Owner>) -> Result<Vec<String>> {
    let (mut found, mut later) = (Vec::new(), Vec::with_capacity(owners.len()));
    for owner in &mut owners {
        let (before, after) = owner.difference()?;
        found.extend(owner.findings(before.iter().chain(&after)));
        owner.apply(before)?;
        later.push(after);
    }
    found.extend(settle_tables(node, want, seen, &mut owners)?);
    for (owner, after) in owners.iter_mut().zip(later) {
        owner.apply(after)?;
    }
    Ok(found)
}

/// `seen` is a moment old: what has changed since makes a step fail, and then everything is read anew.
fn settle_tables(node: &NodeNet, want: &Want, mut seen: Seen<'_>, owners: &mut [Owner]) -> Result<Vec<String>> {
    let mut tries = 1;
    loop {
        let ops = plan::difference(&read(node, want, seen)?, want);
        if ops.iter().any(Op::moves_buckets) {
            owners.iter_mut().try_for_each(Owner::unsettle)?;
        }
        // One by one: a step counts on those before it, and the kernel would go on behind a refused one.
        match ops.iter().try_for_each(|op| node.apply(&[op.request()])) {
            Ok(()) => return Ok(ops.iter().map(Op::finding).collect()),
            Err(e) if tries == TRIES => return Err(e.into()),
            Err(_) => {
                tries += 1;
                seen = Seen { group: nexthop::get(node, want.group)?, tables: None };
            }
        }
    }
}

fn bare_want(record: &VipRecord) -> Want {
    let Group { buckets, idle_timer, unbalanced_timer } = record.group;
    Want {
        address: record.address,
        former: record.former_addresses().collect(),
        source: record.node,
        group: ids::group(record.slot),
        resilience: Resilience { buckets, idle_timer, unbalanced_timer },
        present: !record.withdrawn,
        members: Vec::new(),
    }
}

fn want(record: &VipRecord, unused: bool, replicas: &BTreeMap<String, Replica>) -> Want {
    let mut want = bare_want(record);
    want.present &= !unused;
    for member in replicas.values().filter(|replica| owner::is_ready(replica)) {
        let index = member.ifindex;
        let Some(id) = ids::nexthop(index) else { continue };
        let nexthop = Nexthop { id, gateway: member.address, index };
        want.members.push(WantedMember { nexthop, weight: member.weight });
    }
    want
}

/// Host ends that are no more: their pods are gone, and a DEL is yet to come. Their namespaces' ids may be others' by now,
/// so nobody may be asked by them. One whose nexthop is in the group is there.
fn gone(node: &NodeNet, group: Option<&Object>, replicas: &BTreeMap<String, Replica>) -> net::Result<BTreeSet<u32>> {
    let in_group = members_of(group);
    let mut gone = BTreeSet::new();
    for index in replicas.values().map(|replica| replica.ifindex) {
        let is_member = ids::nexthop(index).is_some_and(|id| in_group.contains(&id));
        if !is_member && link::by_index(node, index)?.is_none() {
            gone.insert(index);
        }
    }
    Ok(gone)
}

fn members_of(group: Option<&Object>) -> BTreeSet<u32> {
    match group {
        Some(Object::Group(group)) => group.members.iter().map(|m| m.id).collect(),
        _ => BTreeSet::new(),
    }
}

/// Everything of ours in the node's tables, read at once: a look at 1,000 VIPs, each of which would read them all.
#[derive(Debug)]
pub struct Tables {
    routes: HashMap<Ipv4Addr, Routes>,
    objects: HashMap<u32, Object>,
}

impl Tables {
    /// Reads them.
    pub fn read(node: &NodeNet) -> net::Result<Self> {
        let filter = Filter { table: Some(route::MAIN), protocol: Some(PROTOCOL), prefix: None };
        let mut routes: HashMap<Ipv4Addr, Routes> = HashMap::new();
        for route in route::list(node, filter)?.iter().filter(|route| route.prefix.prefix() == 32) {
            sort_in(routes.entry(route.prefix.ip()).or_default(), route);
        }
        let objects = nexthop::list(node)?.into_iter().map(|object| (object.id(), object)).collect();
        Ok(Self { routes, objects })
    }

    /// Whether a VIP with these replicas has what it must. Nobody's lock is held, so "no" may be wrong by now.
    pub fn have(&self, record: &VipRecord, replicas: &BTreeMap<String, Replica>) -> bool {
        let want = want(record, replicas.is_empty(), replicas);
        let state = |wanted: &Nexthop| match self.objects.get(&wanted.id) {
            Some(Object::Single(found)) if found == wanted => HaveNexthop::Right,
            Some(_) => HaveNexthop::Wrong,
            None => HaveNexthop::Missing,
        };
        let nexthops = want.members.iter().map(|member| (member.nexthop.id, state(&member.nexthop))).collect();
        let group = self.objects.get(&want.group).cloned();
        let Routes { data, announced } = self.routes(want.address);
        let former = want.former.iter().map(|address| (*address, self.routes(*address))).collect();
        plan::difference(&Have { group, nexthops, data, announced, former }, &want).is_empty()
    }

    fn routes(&self, address: Ipv4Addr) -> Routes {
        self.routes.get(&address).cloned().unwrap_or_default()
    }
}

fn read(node: &NodeNet, want: &Want, Seen { group, tables }: Seen<'_>) -> net::Result<Have> {
    let routes = |address| tables.map_or_else(|| read_routes(node, address), |tables| Ok(tables.routes(address)));
    let Routes { data, announced } = routes(want.address)?;
    let former = want.former.iter().map(|address| Ok((*address, routes(*address)?)));
    let former = former.collect::<net::Result<_>>()?;
    Ok(Have { nexthops: read_nexthops(node, want, group.as_ref())?, group, data, announced, former })
}

/// A nexthop that is in the group exists (the kernel takes a vanishing one out of its groups) and, its id being made of
/// its device's index, is the right one; only the others are asked for. So reading 1,000 replicas is one question.
fn read_nexthops(node: &NodeNet, want: &Want, group: Option<&Object>) -> net::Result<BTreeMap<u32, HaveNexthop>> {
    let in_group = members_of(group);
    let mut nexthops = BTreeMap::new();
    for WantedMember { nexthop: wanted, .. } in &want.members {
        let have = if in_group.contains(&wanted.id) { HaveNexthop::Right } else { read_nexthop(node, *wanted)? };
        nexthops.insert(wanted.id, have);
    }
    Ok(nexthops)
}

fn read_nexthop(node: &NodeNet, wanted: Nexthop) -> net::Result<HaveNexthop> {
    Ok(match nexthop::find(node, wanted.id)? {
        Some(Found::Ours(Object::Single(found))) if found == wanted => HaveNexthop::Right,
        Some(Found::Ours(_)) => HaveNexthop::Wrong,
        // A device that is down can't carry a nexthop.
        None if link::by_index(node, wanted.index)?.is_some_and(|link| link.up) => HaveNexthop::Missing,
        Some(Found::Foreign) | None => HaveNexthop::Impossible,
    })
}

fn read_routes(node: &NodeNet, address: Ipv4Addr) -> net::Result<Routes> {
    let filter = Filter { table: Some(route::MAIN), protocol: Some(PROTOCOL), prefix: Some(route::host(address)) };
    let mut found = Routes::default();
    route::list(node, filter)?.iter().for_each(|route| sort_in(&mut found, route));
    Ok(found)
}

/// A route of protocol 118 in table main is a VIP's data route, or an announcement.
fn sort_in(routes: &mut Routes, route: &Route) {
    match route.kind {
        Kind::Unreachable => drop(routes.announced.insert(route.metric)),
        Kind::Nexthop { id, source, cwnd } => routes.data = Some(DataRoute { nexthop: Some(id), source, cwnd }),
        Kind::Via(_) | Kind::Throw | Kind::Other => {
            routes.data = Some(DataRoute { nexthop: None, source: None, cwnd: None });
        }
    }
}
