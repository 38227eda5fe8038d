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
        ops.extend(have.data.map(|_| Op::DelRoute(want.address)));
        announce(have, want, want.present.then_some(NOBODY_READY), &mut ops);
        ops.extend(have.group.as_ref().map(|group| Op::DelNexthop(group.id())));
        return ops;
    }
    let count = u32::try_from(ready.len()).unwrap_or(NOBODY_READY - 1);
    let standing = put_group(have, want, ready, &mut ops);
    let data = DataRoute { nexthop: Some(want.group), source: Some(want.source), cwnd: Some(count) };
    let route = NexthopRoute { address: want.address, nexthop: want.group, source: want.source, cwnd: count };
    match standing {
        None => ops.push(Op::AddRoute(route)),
        Some(standing) if standing != data => ops.push(Op::ReplaceRoute(route)),
        Some(_) => {}
    }
    announce(have, want, Some(count), &mut ops);
    ops
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

/// Brings the group about; returns the data route that stands afterwards.
fn put_group(have: &Have, want: &Want, members: Vec<GroupMember>, ops: &mut Vec<Op>) -> Option<DataRoute> {
    let mut group = Group { id: want.group, members, resilience: want.resilience };
    match &have.group {
        Some(Object::Group(existing)) => {
            group.resilience.buckets = existing.resilience.buckets; // can't be changed while the group lives
            let mut existing = existing.clone();
            existing.members.sort_unstable();
            if existing != group {
                ops.push(Op::ReplaceGroup(group));
            }
            have.data
        }
        Some(other) => {
            ops.extend(have.data.map(|_| Op::DelRoute(want.address)));
            ops.extend([Op::DelNexthop(other.id()), Op::AddGroup(group)]);
            None
        }
        None => {
            ops.push(Op::AddGroup(group));
            have.data
        }
    }
}

fn announce(have: &Have, want: &Want, metric: Option<u32>, ops: &mut Vec<Op>) {
    let missing = metric.filter(|metric| !have.announced.contains(metric));
    ops.extend(missing.map(|metric| Op::Announce(want.address, metric)));
    let stale = have.announced.iter().filter(|announced| Some(**announced) != metric);
    ops.extend(stale.map(|metric| Op::Unannounce(want.address, *metric)));
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 118, 0, 7);
    const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const GROUP: u32 = 0x7700_0001;
    const RESILIENCE: Resilience = Resilience { buckets: 1024, idle_timer: 1, unbalanced_timer: 10 };

    fn hop(n: u32) -> Nexthop {
        Nexthop { id: 0x7600_0000 | n, gateway: Ipv4Addr::from(0x0a01_0000 | n), index: n }
    }

    fn want(members: &[u32]) -> Want {
        let members = members.iter().map(|n| WantedMember { nexthop: hop(*n), weight: 1 }).collect();
        Want { address: VIP, source: NODE, group: GROUP, resilience: RESILIENCE, present: true, members }
    }

    fn group(members: &[u32]) -> Group {
        let members = members.iter().map(|n| GroupMember { id: hop(*n).id, weight: 1 }).collect();
        Group { id: GROUP, members, resilience: RESILIENCE }
    }

    /// The kernel, as far as these steps go; refuses what it would refuse.
    fn apply(have: &mut Have, ops: &[Op]) {
        for op in ops {
            match op {
                Op::AddNexthop(n) => drop(have.nexthops.insert(n.id, HaveNexthop::Right)),
                Op::DelNexthop(id) if *id == GROUP => {
                    assert!(have.data.is_none(), "the route must go before its group");
                    have.group = None;
                }
                Op::DelNexthop(id) => drop(have.nexthops.insert(*id, HaveNexthop::Missing)),
                Op::AddGroup(g) | Op::ReplaceGroup(g) => {
                    assert!(!g.members.is_empty(), "the kernel has no empty groups");
                    assert!(g.members.iter().all(|m| have.nexthops[&m.id] == HaveNexthop::Right));
                    assert_eq!(matches!(op, Op::AddGroup(_)), have.group.is_none());
                    have.group = Some(Object::Group(g.clone()));
                }
                Op::AddRoute(route) | Op::ReplaceRoute(route) => {
                    assert!(have.group.is_some());
                    assert_eq!(matches!(op, Op::AddRoute(_)), have.data.is_none());
                    let NexthopRoute { nexthop, source, cwnd, .. } = *route;
                    have.data = Some(DataRoute { nexthop: Some(nexthop), source: Some(source), cwnd: Some(cwnd) });
                }
                Op::DelRoute(_) => have.data = None,
                Op::Announce(_, metric) => assert!(have.announced.insert(*metric)),
                Op::Unannounce(_, metric) => assert!(have.announced.remove(metric)),
            }
        }
    }

    fn settled(members: &[u32]) -> Have {
        let mut have =
            Have { nexthops: members.iter().map(|n| (hop(*n).id, HaveNexthop::Missing)).collect(), ..Have::default() };
        let ops = difference(&have, &want(members));
        apply(&mut have, &ops);
        have
    }

    #[test]
    fn a_first_replica_brings_nexthop_group_route_and_announcement() {
        let have = Have { nexthops: [(hop(5).id, HaveNexthop::Missing)].into(), ..Have::default() };
        let ops = difference(&have, &want(&[5]));
        let route = Op::AddRoute(NexthopRoute { address: VIP, nexthop: GROUP, source: NODE, cwnd: 1 });
        assert_eq!(ops, [Op::AddNexthop(hop(5)), Op::AddGroup(group(&[5])), route, Op::Announce(VIP, 1)]);
    }

    #[test]
    fn another_replica_changes_the_group_in_place_and_the_weight_after_it() {
        let mut have = settled(&[5]);
        have.nexthops.insert(hop(6).id, HaveNexthop::Missing);
        let ops = difference(&have, &want(&[5, 6]));
        let route = Op::ReplaceRoute(NexthopRoute { address: VIP, nexthop: GROUP, source: NODE, cwnd: 2 });
        let expected = [
            Op::AddNexthop(hop(6)),
            Op::ReplaceGroup(group(&[5, 6])),
            route,
            Op::Announce(VIP, 2),
            Op::Unannounce(VIP, 1),
        ];
        assert_eq!(ops, expected);
    }

    #[test]
    fn with_nobody_ready_requests_fail_at_once() {
        let have = settled(&[5]);
        let ops = difference(&have, &want(&[]));
        let expected =
            [Op::DelRoute(VIP), Op::Announce(VIP, NOBODY_READY), Op::Unannounce(VIP, 1), Op::DelNexthop(GROUP)];
        assert_eq!(ops, expected);
    }

    #[test]
    fn an_address_that_is_not_ours_leaves_nothing() {
        let have = settled(&[5, 6]);
        let gone = Want { present: false, ..want(&[5, 6]) };
        let ops = difference(&have, &gone);
        assert_eq!(ops, [Op::DelRoute(VIP), Op::Unannounce(VIP, 2), Op::DelNexthop(GROUP)]);
    }

    #[test]
    fn a_replica_without_device_is_left_out() {
        let mut have = settled(&[5, 6]);
        have.nexthops.insert(hop(6).id, HaveNexthop::Impossible);
        let ops = difference(&have, &want(&[5, 6]));
        assert!(ops.contains(&Op::ReplaceGroup(group(&[5]))), "{ops:?}");
    }

    #[test]
    fn a_plain_group_in_the_place_of_ours_is_made_anew_without_its_route() {
        let mut have = settled(&[5]);
        have.group = Some(Object::Other(GROUP));
        let ops = difference(&have, &want(&[5]));
        assert_eq!(ops[..3], [Op::DelRoute(VIP), Op::DelNexthop(GROUP), Op::AddGroup(group(&[5]))]);
    }

    #[test]
    fn another_number_of_buckets_waits_for_a_new_group() {
        let have = settled(&[5]);
        let more = Want { resilience: Resilience { buckets: 4096, ..RESILIENCE }, ..want(&[5]) };
        assert_eq!(difference(&have, &more), []);
        let slower = Want { resilience: Resilience { idle_timer: 30, ..RESILIENCE }, ..want(&[5]) };
        assert!(matches!(difference(&have, &slower)[..], [Op::ReplaceGroup(_)]));
    }

    prop_compose! {
        fn any_want()(members in proptest::collection::btree_set(1u32..6, 0..5), present: bool, weight in 1u8..4) -> Want {
            let members: Vec<_> = members.into_iter().collect();
            let mut want = Want { present, ..want(&members) };
            want.members.iter_mut().for_each(|m| m.weight = weight);
            want
        }
    }

    proptest! {
        /// From any state another want left behind, one round settles, and a second one changes nothing.
        #[test]
        fn one_round_settles(first in any_want(), second in any_want(), dead in 1u32..6, data: bool, stray in 0u32..9) {
            let mut have = Have { nexthops: (1..6).map(|n| (hop(n).id, HaveNexthop::Missing)).collect(), ..Have::default() };
            let ops = difference(&have, &first);
            apply(&mut have, &ops);
            have.nexthops.insert(hop(dead).id, HaveNexthop::Impossible);
            if data { have.data = None; }
            have.announced.insert(stray);
            let ops = difference(&have, &second);
            apply(&mut have, &ops);
            prop_assert_eq!(difference(&have, &second), vec![]);
        }
    }
}
