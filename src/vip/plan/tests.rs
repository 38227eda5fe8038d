//! The difference, step by step.

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
    Want {
        address: VIP,
        former: Vec::new(),
        source: NODE,
        group: GROUP,
        resilience: RESILIENCE,
        present: true,
        members,
    }
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
                have.data = Some(DataRoute { nexthop: Some(nexthop), source: Some(source), cwnd });
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
    let route = Op::AddRoute(NexthopRoute { address: VIP, nexthop: GROUP, source: NODE, cwnd: Some(1) });
    assert_eq!(ops, [Op::AddNexthop(hop(5)), Op::AddGroup(group(&[5])), route, Op::Announce(VIP, 1)]);
}

#[test]
fn another_replica_changes_the_group_in_place_and_the_weight_after_it() {
    let mut have = settled(&[5]);
    have.nexthops.insert(hop(6).id, HaveNexthop::Missing);
    let ops = difference(&have, &want(&[5, 6]));
    let route = Op::ReplaceRoute(NexthopRoute { address: VIP, nexthop: GROUP, source: NODE, cwnd: Some(2) });
    let expected =
        [Op::AddNexthop(hop(6)), Op::ReplaceGroup(group(&[5, 6])), route, Op::Announce(VIP, 2), Op::Unannounce(VIP, 1)];
    assert_eq!(ops, expected);
}

#[test]
fn with_nobody_ready_requests_fail_at_once() {
    let have = settled(&[5]);
    let ops = difference(&have, &want(&[]));
    let expected = [Op::DelRoute(VIP), Op::Announce(VIP, NOBODY_READY), Op::Unannounce(VIP, 1), Op::DelNexthop(GROUP)];
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

#[test]
fn an_address_it_had_has_a_route_that_nobody_announces() {
    const OLD: Ipv4Addr = Ipv4Addr::new(10, 118, 0, 3);
    let data = |cwnd| Some(DataRoute { nexthop: Some(GROUP), source: Some(NODE), cwnd });
    let moved = Want { former: vec![OLD], ..want(&[5]) };
    let mut have = settled(&[5]);
    // As the VIP's own address left it.
    have.former.insert(OLD, Routes { data: data(Some(1)), announced: [1].into() });
    let route = NexthopRoute { address: OLD, nexthop: GROUP, source: NODE, cwnd: None };
    assert_eq!(difference(&have, &moved), [Op::Unannounce(OLD, 1), Op::ReplaceRoute(route)]);
    have.former.insert(OLD, Routes { data: data(None), announced: BTreeSet::new() });
    assert_eq!(difference(&have, &moved), []);
    let lost = Want { present: false, ..moved };
    let expected = [Op::DelRoute(VIP), Op::DelRoute(OLD), Op::Unannounce(VIP, 1), Op::DelNexthop(GROUP)];
    assert_eq!(difference(&have, &lost), expected);
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
