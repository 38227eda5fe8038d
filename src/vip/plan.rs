//! What the node's tables must have for one VIP, what they have, and the difference. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::net::nexthop::{Group, GroupMember, Nexthop, Object, Resilience};
use crate::net::route::NexthopRoute;
use crate::net::{Request, nexthop, route};

/// The metric of the announcement while nobody is ready: any other route to the VIP is better.
pub const NOBODY_READY: u32 = u32::MAX;

/// What a VIP must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its address.
    pub address: Ipv4Addr,
    /// Addresses it had that are still delivered, by routes that nobody announces.
    pub former: Vec<Ipv4Addr>,
    /// `src` of its route.
    pub source: Ipv4Addr,
    /// Its group's id.
    pub group: u32,
    /// Its group's parameters.
    pub resilience: Resilience,
    /// Whether the node may speak of the address at all: it has endpoints, and the address is ours.
    pub present: bool,
    /// The replicas that get connections.
    pub members: Vec<WantedMember>,
}

/// A replica that gets connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedMember {
    /// Its nexthop.
    pub nexthop: Nexthop,
    /// Its share.
    pub weight: u8,
}

/// What the kernel has of a VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// What stands under the group's id.
    pub group: Option<Object>,
    /// What is known of wanted members' nexthops.
    pub nexthops: BTreeMap<u32, HaveNexthop>,
    /// The data route.
    pub data: Option<DataRoute>,
    /// The metrics of the announcements.
    pub announced: BTreeSet<u32>,
    /// The same of the addresses it had.
    pub former: BTreeMap<Ipv4Addr, Routes>,
}

/// The routes of one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// The data route.
    pub data: Option<DataRoute>,
    /// The metrics of the announcements.
    pub announced: BTreeSet<u32>,
}

/// The state of one wanted nexthop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HaveNexthop {
    /// It is there and right.
    Right,
    /// Something else stands under its id.
    Wrong,
    /// It is missing; its device is there.
    Missing,
    /// It can't be: its device is gone (the pod is, or somebody deleted it), or its id is somebody else's.
    Impossible,
}

/// The route that carries a VIP's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRoute {
    /// `nhid`; `None`: it has none, so it isn't as we make it.
    pub nexthop: Option<u32>,
    /// `src`.
    pub source: Option<Ipv4Addr>,
    /// `cwnd`.
    pub cwnd: Option<u32>,
}

/// One step from what is to what must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A replica's nexthop.
    AddNexthop(Nexthop),
    /// A nexthop or group that must not be, or not like this.
    DelNexthop(u32),
    /// The VIP's group, new.
    AddGroup(Group),
    /// The VIP's group, changed in place.
    ReplaceGroup(Group),
    /// The data route, new. Somebody else's in its place is left there, and reported.
    AddRoute(NexthopRoute),
    /// The data route, changed in place.
    ReplaceRoute(NexthopRoute),
    /// The data route, gone.
    DelRoute(Ipv4Addr),
    /// The announcement with this metric.
    Announce(Ipv4Addr, u32),
    /// The announcement with this metric, gone.
    Unannounce(Ipv4Addr, u32),
}

/// The steps, in an order in which every moment between them is sound: members before the group, the group before its
/// route; the route goes before its group does, because the kernel drops a route whose group vanishes without telling
/// routing daemons; a new announcement stands before the old one goes.
pub fn difference(have: &Have, want: &Want) -> Vec<Op> {
    let mut ops = Vec::new();
    let ready = add_members(have, want, &mut ops);
    if ready.is_empty() || !want.present {
        del_routes(have, want, &mut ops);
        announce(have, want, want.present.then_some(NOBODY_READY), &mut ops);
        ops.extend(have.group.as_ref().map(|group| Op::DelNexthop(group.id())));
        return ops;
    }
    let count = u32::try_from(ready.len()).unwrap_or(NOBODY_READY - 1);
    let stand = put_group(have, want, ready, &mut ops);
    put_route(have.data.filter(|_| stand), want, (want.address, Some(count)), &mut ops);
    announce(have, want, Some(count), &mut ops);
    for address in &want.former {
        let data = have.former.get(address).and_then(|routes| routes.data);
        put_route(data.filter(|_| stand), want, (*address, None), &mut ops);
    }
    ops
}

/// The route to one of the VIP's addresses. Without `cwnd` routing daemons leave it alone.
fn put_route(have: Option<DataRoute>, want: &Want, (address, cwnd): (Ipv4Addr, Option<u32>), ops: &mut Vec<Op>) {
    let data = DataRoute { nexthop: Some(want.group), source: Some(want.source), cwnd };
    let route = NexthopRoute { address, nexthop: want.group, source: want.source, cwnd };
    match have {
        None => ops.push(Op::AddRoute(route)),
        Some(have) if have != data => ops.push(Op::ReplaceRoute(route)),
        Some(_) => {}
    }
}

fn del_routes(have: &Have, want: &Want, ops: &mut Vec<Op>) {
    ops.extend(have.data.map(|_| Op::DelRoute(want.address)));
    let former = want.former.iter().filter(|address| have.former.get(address).is_some_and(|have| have.data.is_some()));
    ops.extend(former.map(|address| Op::DelRoute(*address)));
}

/// Brings the members' nexthops about; returns those that can be in the group.
fn add_members(have: &Have, want: &Want, ops: &mut Vec<Op>) -> Vec<GroupMember> {
    let mut members = Vec::with_capacity(want.members.len());
    for WantedMember { nexthop, weight } in &want.members {
        match have.nexthops.get(&nexthop.id).copied().unwrap_or(HaveNexthop::Impossible) {
            HaveNexthop::Right => {}
            HaveNexthop::Impossible => continue,
            HaveNexthop::Missing => ops.push(Op::AddNexthop(*nexthop)),
            HaveNexthop::Wrong => ops.extend([Op::DelNexthop(nexthop.id), Op::AddNexthop(*nexthop)]),
        }
        members.push(GroupMember { id: nexthop.id, weight: u32::from(*weight) });
    }
    members.sort_unstable();
    members
}

/// Brings the group about; returns whether the routes still stand afterwards.
fn put_group(have: &Have, want: &Want, members: Vec<GroupMember>, ops: &mut Vec<Op>) -> bool {
    let mut group = Group { id: want.group, members, resilience: want.resilience };
    match &have.group {
        Some(Object::Group(existing)) => {
            group.resilience.buckets = existing.resilience.buckets; // can't be changed while the group lives
            let mut existing = existing.clone();
            existing.members.sort_unstable();
            if existing != group {
                ops.push(Op::ReplaceGroup(group));
            }
            true
        }
        Some(other) => {
            del_routes(have, want, ops);
            ops.extend([Op::DelNexthop(other.id()), Op::AddGroup(group)]);
            false
        }
        None => {
            ops.push(Op::AddGroup(group));
            true
        }
    }
}

fn announce(have: &Have, want: &Want, metric: Option<u32>, ops: &mut Vec<Op>) {
    let missing = metric.filter(|metric| !have.announced.contains(metric));
    ops.extend(missing.map(|metric| Op::Announce(want.address, metric)));
    let stale = have.announced.iter().filter(|announced| Some(**announced) != metric);
    ops.extend(stale.map(|metric| Op::Unannounce(want.address, *metric)));
    for (address, routes) in &have.former {
        ops.extend(routes.announced.iter().map(|metric| Op::Unannounce(*address, *metric)));
    }
}

impl Op {
    /// The request that does it.
    pub fn request(&self) -> Request {
        match self {
            Self::AddNexthop(nexthop) => nexthop::add(*nexthop),
            Self::DelNexthop(id) => nexthop::del(*id),
            Self::AddGroup(group) => nexthop::add_group(group),
            Self::ReplaceGroup(group) => nexthop::replace_group(group),
            Self::AddRoute(route) => route::add_nexthop(*route),
            Self::ReplaceRoute(route) => route::replace_nexthop(*route),
            Self::DelRoute(address) => route::del_nexthop(*address),
            Self::Announce(address, metric) => route::add_unreachable(*address, *metric),
            Self::Unannounce(address, metric) => route::del_unreachable(*address, *metric),
        }
    }

    /// Whether flows may come to other members by it.
    pub fn moves_buckets(&self) -> bool {
        matches!(self, Self::AddGroup(_) | Self::ReplaceGroup(_))
    }

    /// What is amiss where this step is needed, in a word for CHECK.
    pub fn finding(&self) -> String {
        match self {
            Self::AddNexthop(n) => format!("nexthop {} via {} is missing", n.id, n.gateway),
            Self::DelNexthop(id) => format!("nexthop {id} is not as it should be"),
            Self::AddGroup(group) => format!("nexthop group {} is missing", group.id),
            Self::ReplaceGroup(group) => format!("nexthop group {} is not as it should be", group.id),
            Self::AddRoute(route) => format!("route {}/32 nhid {} is missing", route.address, route.nexthop),
            Self::ReplaceRoute(route) => {
                format!("route {}/32 nhid {} is not as it should be", route.address, route.nexthop)
            }
            Self::DelRoute(address) => format!("route {address}/32 should not be there"),
            Self::Announce(address, metric) => format!("route unreachable {address}/32 metric {metric} is missing"),
            Self::Unannounce(address, metric) => {
                format!("route unreachable {address}/32 metric {metric} should not be there")
            }
        }
    }
}

#[cfg(test)]
mod tests;
