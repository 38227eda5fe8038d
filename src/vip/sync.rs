//! The node's side of a VIP: group, routes, nexthops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::cni::config::Group;
use crate::net::nexthop::{Nexthop, Object, Resilience};
use crate::net::route::{self, Filter, Kind};
use crate::net::{self, NodeNet, PROTOCOL, Request, link, nexthop};
use crate::registry::{LockedVip, VipRecord};

use super::owner::{self, Owner};
use super::plan::{self, DataRoute, Have, HaveNexthop, Op, Routes, Want, WantedMember};
use super::{Result, ids};

/// How often the plan is made anew when the kernel refuses it: a pod that dies in between takes its nexthop along.
const TRIES: u32 = 4;

/// Makes the kernel's tables match the registry for one VIP. Without endpoints nothing of it stays, on disk either: the
/// lock is consumed and given back only while the VIP exists.
pub fn sync(node: &NodeNet, mut vip: LockedVip) -> Result<Option<LockedVip>> {
    let Some(record) = vip.record.clone() else {
        if vip.is_unused()? {
            vip.remove()?;
            return Ok(None);
        }
        return Ok(Some(vip));
    };
    let want = want(&record, &mut vip)?;
    let owners = Owner::all(&record, &mut vip)?;
    settle(node, &want, owners)?;
    if vip.is_unused()? {
        vip.remove()?;
        return Ok(None);
    }
    Ok(Some(vip))
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
    let want = want(&record, vip)?;
    let mut findings: Vec<String> = plan::difference(&read(node, &want)?, &want).iter().map(Op::finding).collect();
    let owners = Owner::all(&record, vip)?;
    if owners.is_empty() && record.flow_owner.is_some() {
        findings.push("the flow owner isn't loaded".to_owned());
    }
    for owner in owners {
        findings.extend(owner.findings()?);
    }
    Ok(findings)
}

/// Whoever comes is known to the flow owner before the group can choose it; whoever goes, until the group no longer can.
fn settle(node: &NodeNet, want: &Want, mut owners: Vec<Owner>) -> Result<()> {
    let mut later = Vec::with_capacity(owners.len());
    for owner in &mut owners {
        let (before, after) = owner.difference()?;
        owner.apply(before)?;
        later.push(after);
    }
    settle_tables(node, want, &mut owners)?;
    owners.iter_mut().zip(later).try_for_each(|(owner, after)| owner.apply(after))
}

fn settle_tables(node: &NodeNet, want: &Want, owners: &mut [Owner]) -> Result<()> {
    let mut tries = 1;
    loop {
        let ops = plan::difference(&read(node, want)?, want);
        if ops.iter().any(Op::moves_buckets) {
            owners.iter_mut().try_for_each(Owner::unsettle)?;
        }
        // One by one: a step counts on those before it, and the kernel would go on behind a refused one.
        match ops.iter().try_for_each(|op| node.apply(&[op.request()])) {
            Ok(()) => return Ok(()),
            Err(e) if tries == TRIES => return Err(e.into()),
            Err(_) => tries += 1,
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

fn want(record: &VipRecord, vip: &mut LockedVip) -> Result<Want> {
    let mut want = bare_want(record);
    want.present &= !vip.is_unused()?;
    for member in vip.replicas()?.values().filter(|replica| owner::is_ready(replica)) {
        let index = member.ifindex;
        let Some(id) = ids::nexthop(index) else { continue };
        let nexthop = Nexthop { id, gateway: member.address, index };
        want.members.push(WantedMember { nexthop, weight: member.weight });
    }
    Ok(want)
}

fn read(node: &NodeNet, want: &Want) -> net::Result<Have> {
    let group = nexthop::get(node, want.group)?;
    let Routes { data, announced } = read_routes(node, want.address)?;
    let former = want.former.iter().map(|address| Ok((*address, read_routes(node, *address)?)));
    let former = former.collect::<net::Result<_>>()?;
    Ok(Have { nexthops: read_nexthops(node, want, group.as_ref())?, group, data, announced, former })
}

/// A nexthop that is in the group exists (the kernel takes a vanishing one out of its groups) and, its id being made of
/// its device's index, is the right one; only the others are asked for. So reading 1,000 replicas is one question.
fn read_nexthops(node: &NodeNet, want: &Want, group: Option<&Object>) -> net::Result<BTreeMap<u32, HaveNexthop>> {
    let in_group: BTreeSet<u32> = match group {
        Some(Object::Group(group)) => group.members.iter().map(|m| m.id).collect(),
        _ => BTreeSet::new(),
    };
    let mut nexthops = BTreeMap::new();
    for WantedMember { nexthop: wanted, .. } in &want.members {
        let have = if in_group.contains(&wanted.id) { HaveNexthop::Right } else { read_nexthop(node, *wanted)? };
        nexthops.insert(wanted.id, have);
    }
    Ok(nexthops)
}

fn read_nexthop(node: &NodeNet, wanted: Nexthop) -> net::Result<HaveNexthop> {
    Ok(match nexthop::get(node, wanted.id)? {
        Some(Object::Single(found)) if found == wanted => HaveNexthop::Right,
        Some(_) => HaveNexthop::Wrong,
        None if nexthop::is_foreign(node, wanted.id)? => HaveNexthop::Impossible,
        // A device that is down can't carry a nexthop.
        None if link::by_index(node, wanted.index)?.is_some_and(|link| link.up) => HaveNexthop::Missing,
        None => HaveNexthop::Impossible,
    })
}

fn read_routes(node: &NodeNet, address: Ipv4Addr) -> net::Result<Routes> {
    let filter = Filter { table: Some(route::MAIN), protocol: Some(PROTOCOL), prefix: Some(route::host(address)) };
    let mut data = None;
    let mut announced = BTreeSet::new();
    for route in route::list(node, filter)? {
        match route.kind {
            Kind::Unreachable => drop(announced.insert(route.metric)),
            Kind::Nexthop { id, source, cwnd } => data = Some(DataRoute { nexthop: Some(id), source, cwnd }),
            Kind::Via(_) | Kind::Throw | Kind::Other => {
                data = Some(DataRoute { nexthop: None, source: None, cwnd: None });
            }
        }
    }
    Ok(Routes { data, announced })
}
