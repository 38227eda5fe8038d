//! The difference, step by step.

use std::net::Ipv4Addr;

use super::*;
use proptest::prelude::*;

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 118, 0, 7));
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const GROUP: u32 = 0x7700_0001;
const INBOUND: u32 = 0x7780_0001;
const RESILIENCE: Resilience = Resilience { buckets: 1024, idle_timer: 1, unbalanced_timer: 10 };

fn hop(n: u32) -> Nexthop {
    Nexthop { id: 0x7600_0000 | n, gateway: Ipv4Addr::from(0x0a01_0000 | n).into(), index: n }
}

fn want(members: &[u32]) -> Want {
    let members = members.iter().map(|n| WantedMember { nexthop: hop(*n), weight: 1, local: true }).collect();
    Want {
        addresses: vec![VIP],
        unserved: Vec::new(),
        previous: Vec::new(),
        source: NODE,
        mtu: None,
        group: GROUP,
        resilience: RESILIENCE,
        present: true,
        members,
        inbound: None,
        local: false,
    }
}

fn group(members: &[u32]) -> Group {
    let members = members.iter().map(|n| GroupMember { id: hop(*n).id, weight: 1 }).collect();
    Group { id: GROUP, members, resilience: RESILIENCE }
}

/// The kernel, as far as these steps go; refuses what it would refuse.
fn apply(have: &mut Have, ops: &[Op]) {
    for op in ops {
        let routes = |have: &Have| have.routes.values().any(|routes| routes.data.is_some());
        match op {
            Op::AddNexthop(n) | Op::ReplaceNexthop(n) => drop(have.nexthops.insert(n.id, HaveNexthop::Right)),
            Op::DelNexthop(id) if *id == GROUP => {
                assert!(!routes(have), "the routes must go before their group");
                have.group = None;
            }
            Op::DelNexthop(INBOUND) => {
                assert!(have.inbound_routes.is_empty(), "the routes must go before their group");
                have.inbound = None;
            }
            Op::DelNexthop(id) => drop(have.nexthops.insert(*id, HaveNexthop::Missing)),
            Op::AddGroup(g) | Op::ReplaceGroup(g) => {
                assert!(!g.members.is_empty(), "the kernel has no empty groups");
                assert!(g.members.iter().all(|m| have.nexthops[&m.id] == HaveNexthop::Right));
                let place = if g.id == INBOUND { &mut have.inbound } else { &mut have.group };
                assert_eq!(matches!(op, Op::AddGroup(_)), place.is_none());
                *place = Some(Object::Group(g.clone()));
            }
            Op::AddRoute(route) | Op::ReplaceRoute(route) => {
                assert!(have.group.is_some());
                assert_eq!(matches!(op, Op::AddRoute(_)), have.data(route.address).is_none());
                let NexthopRoute { address, nexthop, cwnd, mtu, .. } = *route;
                let data = DataRoute { nexthop: Some(nexthop), source: route.preferred(), cwnd, mtu };
                have.routes.entry(address).or_default().data = Some(data);
            }
            Op::AddInbound(route) | Op::ReplaceInbound(route) => {
                assert!(have.inbound.is_some());
                let before = have.inbound_routes.insert(route.prefix.ip(), *route);
                assert_eq!(matches!(op, Op::AddInbound(_)), before.is_none());
            }
            Op::DelInbound(route) => assert_eq!(have.inbound_routes.remove(&route.prefix.ip()), Some(*route)),
            Op::DelRoute(address) => have.routes.entry(*address).or_default().data = None,
            Op::Announce(address, metric) => {
                assert!(have.routes.entry(*address).or_default().announced.insert(*metric));
            }
            Op::Unannounce(address, metric) => {
                assert!(have.routes.entry(*address).or_default().announced.remove(metric));
            }
        }
    }
}

fn reconciled(members: &[u32]) -> Have {
    let mut have =
        Have { nexthops: members.iter().map(|n| (hop(*n).id, HaveNexthop::Missing)).collect(), ..Have::default() };
    let ops = difference(&have, &want(members));
    apply(&mut have, &ops);
    have
}

#[test]
fn a_first_replica_adds_nexthop_group_data_route_and_advertised_route() {
    let have = Have { nexthops: [(hop(5).id, HaveNexthop::Missing)].into(), ..Have::default() };
    let ops = difference(&have, &want(&[5]));
    let route = Op::AddRoute(NexthopRoute { address: VIP, nexthop: GROUP, source: NODE, cwnd: Some(1), mtu: None });
    assert_eq!(ops, [Op::AddNexthop(hop(5)), Op::AddGroup(group(&[5])), route, Op::Announce(VIP, 1)]);
}

#[test]
fn another_replica_changes_the_group_in_place_and_the_weight_after_it() {
    let mut have = reconciled(&[5]);
    have.nexthops.insert(hop(6).id, HaveNexthop::Missing);
    let ops = difference(&have, &want(&[5, 6]));
    let route = Op::ReplaceRoute(NexthopRoute { address: VIP, nexthop: GROUP, source: NODE, cwnd: Some(2), mtu: None });
    let expected =
        [Op::AddNexthop(hop(6)), Op::ReplaceGroup(group(&[5, 6])), route, Op::Announce(VIP, 2), Op::Unannounce(VIP, 1)];
    assert_eq!(ops, expected);
}

#[test]
fn with_nobody_ready_requests_fail_at_once() {
    let have = reconciled(&[5]);
    let ops = difference(&have, &want(&[]));
    let expected = [Op::DelRoute(VIP), Op::Announce(VIP, NOBODY_READY), Op::Unannounce(VIP, 1), Op::DelNexthop(GROUP)];
    assert_eq!(ops, expected);
}

#[test]
fn an_address_that_is_not_ours_leaves_nothing() {
    let have = reconciled(&[5, 6]);
    let gone = Want { present: false, ..want(&[5, 6]) };
    let ops = difference(&have, &gone);
    assert_eq!(ops, [Op::DelRoute(VIP), Op::Unannounce(VIP, 2), Op::DelNexthop(GROUP)]);
}

#[test]
fn a_replica_without_device_is_left_out() {
    let mut have = reconciled(&[5, 6]);
    have.nexthops.insert(hop(6).id, HaveNexthop::Impossible);
    let ops = difference(&have, &want(&[5, 6]));
    assert!(ops.contains(&Op::ReplaceGroup(group(&[5]))), "{ops:?}");
}

#[test]
fn a_plain_group_in_the_place_of_ours_is_made_anew_without_its_route() {
    let mut have = reconciled(&[5]);
    have.group = Some(Object::Other(GROUP));
    let ops = difference(&have, &want(&[5]));
    assert_eq!(ops[..3], [Op::DelRoute(VIP), Op::DelNexthop(GROUP), Op::AddGroup(group(&[5]))]);
}

#[test]
fn another_number_of_buckets_waits_for_a_new_group() {
    let have = reconciled(&[5]);
    let more = Want { resilience: Resilience { buckets: 4096, ..RESILIENCE }, ..want(&[5]) };
    assert_eq!(difference(&have, &more), []);
    let slower = Want { resilience: Resilience { idle_timer: 30, ..RESILIENCE }, ..want(&[5]) };
    assert!(matches!(difference(&have, &slower)[..], [Op::ReplaceGroup(_)]));
}

#[test]
fn a_previous_address_has_a_route_that_is_not_advertised() {
    const OLD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 118, 0, 3));
    let data = |cwnd| Some(DataRoute { nexthop: Some(GROUP), source: Some(NODE), cwnd, mtu: None });
    let moved = Want { previous: vec![OLD], ..want(&[5]) };
    let mut have = reconciled(&[5]);
    // As the VIP's own address left it.
    have.routes.insert(OLD, Routes { data: data(Some(1)), announced: [1].into() });
    let route = NexthopRoute { address: OLD, nexthop: GROUP, source: NODE, cwnd: None, mtu: None };
    assert_eq!(difference(&have, &moved), [Op::Unannounce(OLD, 1), Op::ReplaceRoute(route)]);
    have.routes.insert(OLD, Routes { data: data(None), announced: BTreeSet::new() });
    assert_eq!(difference(&have, &moved), []);
    let lost = Want { present: false, ..moved };
    let expected = [Op::DelRoute(VIP), Op::DelRoute(OLD), Op::Unannounce(VIP, 1), Op::DelNexthop(GROUP)];
    assert_eq!(difference(&have, &lost), expected);
}

const PEER: Nexthop = Nexthop { id: 0x7800_0003, gateway: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 12)), index: 9 };

fn with_peer(members: &[u32], weight: u8) -> Want {
    let mut want = want(members);
    want.members.push(WantedMember { nexthop: PEER, weight, local: false });
    want
}

#[test]
fn another_node_is_a_member_with_the_weight_of_its_replicas_and_not_advertised() {
    let nexthops = [(hop(5).id, HaveNexthop::Missing), (PEER.id, HaveNexthop::Missing)].into();
    let ops = difference(&Have { nexthops, ..Have::default() }, &with_peer(&[5], 7));
    let mut both = group(&[5]);
    both.members.push(GroupMember { id: PEER.id, weight: 7 });
    let route = NexthopRoute { address: VIP, nexthop: GROUP, source: NODE, cwnd: Some(1), mtu: None };
    let expected =
        [Op::AddNexthop(hop(5)), Op::AddNexthop(PEER), Op::AddGroup(both), Op::AddRoute(route), Op::Announce(VIP, 1)];
    assert_eq!(ops, expected);
}

#[test]
fn with_replicas_on_other_nodes_alone_packets_get_there_and_nothing_is_advertised() {
    let mut have = reconciled(&[5]);
    have.nexthops.insert(PEER.id, HaveNexthop::Right);
    let ops = difference(&have, &with_peer(&[], 2));
    let route = NexthopRoute { address: VIP, nexthop: GROUP, source: NODE, cwnd: None, mtu: None };
    let group = Group { members: vec![GroupMember { id: PEER.id, weight: 2 }], ..group(&[]) };
    let expected =
        [Op::ReplaceGroup(group), Op::ReplaceRoute(route), Op::Announce(VIP, NOBODY_READY), Op::Unannounce(VIP, 1)];
    assert_eq!(ops, expected);
    apply(&mut have, &ops);
    assert_eq!(difference(&have, &with_peer(&[], 2)), []);
}

#[test]
fn without_the_tunnels_device_a_node_is_left_out() {
    let mut have = reconciled(&[5]);
    have.nexthops.insert(PEER.id, HaveNexthop::Impossible);
    assert_eq!(difference(&have, &with_peer(&[5], 3)), []);
}

#[test]
fn what_other_nodes_send_is_for_the_replicas_here_alone() {
    let inbound = |have: &Have, want: Want| difference(have, &Want { inbound: Some(INBOUND), ..want });
    let mut have = reconciled(&[5]);
    have.nexthops.insert(PEER.id, HaveNexthop::Right);
    let ops = inbound(&have, with_peer(&[5], 3));
    let local = Group { id: INBOUND, resilience: Resilience { buckets: 1021, ..RESILIENCE }, ..group(&[5]) };
    let action = Action::Nexthop { id: INBOUND, source: NODE };
    let route = TableRoute { table: route::LOCAL, prefix: route::host(VIP), tos: 0x1c, action };
    assert!(
        matches!(&ops[..], [first, .., last] if *first == Op::AddGroup(local) && *last == Op::AddInbound(route)),
        "{ops:?}"
    );
    apply(&mut have, &ops);
    assert_eq!(inbound(&have, with_peer(&[5], 3)), []);
    // The last one here leaves: the VIP is the other node's alone, and what comes from there goes back.
    let ops = inbound(&have, with_peer(&[], 3));
    assert_eq!(ops[ops.len() - 2..], [Op::DelInbound(route), Op::DelNexthop(INBOUND)]);
    assert!(ops.contains(&Op::Announce(VIP, NOBODY_READY)) && !ops.contains(&Op::DelRoute(VIP)), "{ops:?}");
    apply(&mut have, &ops);
    assert_eq!(inbound(&have, with_peer(&[], 3)), []);
}

#[test]
fn each_address_has_its_routes() {
    let second: IpAddr = [10, 118, 9, 9].into();
    let six: IpAddr = "2001:db8::7".parse().unwrap();
    let mut have = reconciled(&[5]);
    let wanted = Want { addresses: vec![VIP, second, six], ..want(&[5]) };
    let ops = difference(&have, &wanted);
    let route = NexthopRoute { address: second, nexthop: GROUP, source: NODE, cwnd: Some(1), mtu: None };
    // By a gateway of IPv4 no route of IPv6 can lead: as long as that is all there is, requests by it fail at once.
    assert_eq!(ops, [Op::AddRoute(route), Op::Announce(second, 1), Op::Announce(six, NOBODY_READY)]);
    apply(&mut have, &ops);
    assert_eq!(difference(&have, &wanted), []);
    let ops = difference(&have, &Want { present: false, ..wanted });
    apply(&mut have, &ops);
    assert!(have.routes.values().all(|routes| *routes == Routes::default()), "{ops:?}");
}

#[test]
fn a_vip_of_both_families_has_routes_by_gateways_of_ipv6() {
    let six: IpAddr = "2001:db8::7".parse().unwrap();
    let mut have = reconciled(&[5]);
    have.nexthops.insert(hop(5).id, HaveNexthop::OtherGateway);
    let mut wanted = Want { addresses: vec![VIP, six], ..want(&[5]) };
    wanted.members[0].nexthop.gateway = "fe80::2".parse().unwrap();
    let ops = difference(&have, &wanted);
    let route = NexthopRoute { address: six, nexthop: GROUP, source: NODE, cwnd: Some(1), mtu: None };
    assert_eq!(route.preferred(), None, "an address of IPv4 is no source of IPv6's");
    let nexthop = wanted.members[0].nexthop;
    // Behind the data route, whose metric is 1.
    assert_eq!(ops, [Op::ReplaceNexthop(nexthop), Op::AddRoute(route), Op::Announce(six, 2)]);
    apply(&mut have, &ops);
    assert_eq!(difference(&have, &wanted), []);
    assert_eq!(difference_for(have.clone(), wanted.clone(), nexthop.id), []);
    let ops = difference(&have, &Want { members: Vec::new(), ..wanted });
    assert!(ops.contains(&Op::Announce(six, NOBODY_READY)) && ops.contains(&Op::DelRoute(six)), "{ops:?}");
}

#[test]
fn an_address_of_a_family_that_isnt_asked_for_has_no_routes() {
    let six: IpAddr = "2001:db8::7".parse().unwrap();
    let mut both = Want { addresses: vec![VIP, six], ..want(&[5]) };
    both.members[0].nexthop.gateway = "fe80::2".parse().unwrap();
    let mut have = Have { nexthops: [(hop(5).id, HaveNexthop::Missing)].into(), ..Have::default() };
    let ops = difference(&have, &both);
    apply(&mut have, &ops);
    let one = Want { addresses: vec![VIP], unserved: vec![six], ..both.clone() };
    let ops = difference(&have, &one);
    assert_eq!(ops, [Op::DelRoute(six), Op::Unannounce(six, 2)]);
    apply(&mut have, &ops);
    assert_eq!(difference(&have, &one), []);
    let ops = difference(&have, &both);
    assert!(ops.contains(&Op::Announce(six, 2)) && ops.len() == 2, "{ops:?}");
}

#[test]
fn while_a_node_doesnt_serve_a_vip_by_ipv6_the_replicas_here_do() {
    let six: IpAddr = "2001:db8::7".parse().unwrap();
    let far: IpAddr = "fe80::76:a00:c".parse().unwrap();
    let dual = |weight, gateway| {
        let mut want = Want { addresses: vec![VIP, six], inbound: Some(INBOUND), ..with_peer(&[5], weight) };
        want.members[0].nexthop.gateway = "fe80::2".parse().unwrap();
        want.members[1].nexthop.gateway = gateway;
        want
    };
    let nexthops = [(hop(5).id, HaveNexthop::Missing), (PEER.id, HaveNexthop::Missing)].into();
    let mut have = Have { nexthops, ..Have::default() };
    let route = |group| NexthopRoute { address: six, nexthop: group, source: NODE, cwnd: Some(1), mtu: None };
    let ops = difference(&have, &dual(3, far));
    assert!(ops.contains(&Op::AddRoute(route(GROUP))), "all nodes' replicas: {ops:?}");
    apply(&mut have, &ops);
    // Another node takes its place, whose configuration has no IPv6: the route leaves the group before that is its member.
    let ops = difference(&have, &dual(4, PEER.gateway));
    let place = |op: &Op| ops.iter().position(|found| found == op).unwrap_or_else(|| panic!("{op:?}: {ops:?}"));
    let changed = ops.iter().position(|op| matches!(op, Op::ReplaceGroup(group) if group.id == GROUP));
    assert!(Some(place(&Op::ReplaceRoute(route(INBOUND)))) < changed, "{ops:?}");
    apply(&mut have, &ops);
    assert_eq!(difference(&have, &dual(4, PEER.gateway)), []);
    // The last replica here leaves.
    let alone = Want { members: dual(4, PEER.gateway).members.split_off(1), ..dual(4, PEER.gateway) };
    let ops = difference(&have, &alone);
    assert!(ops.contains(&Op::DelRoute(six)) && ops.contains(&Op::Announce(six, NOBODY_READY)), "{ops:?}");
    apply(&mut have, &ops);
    assert_eq!(difference(&have, &alone), []);
}

prop_compose! {
    fn any_want()(
        members in proptest::collection::btree_set(1u32..6, 0..5),
        present: bool,
        weight in 1u8..4,
        far: bool,
    ) -> Want {
        let members: Vec<_> = members.into_iter().collect();
        let mut want = Want { present, inbound: Some(INBOUND), ..want(&members) };
        want.members.iter_mut().for_each(|m| m.weight = weight);
        want.members.extend(far.then_some(WantedMember { nexthop: PEER, weight, local: false }));
        want
    }
}

proptest! {
    /// From any state that another want left behind, one round reconciles, and a second one changes nothing.
    #[test]
    fn one_round_reconciles(first in any_want(), second in any_want(), dead in 1u32..6, data: bool, extra in 0u32..9) {
        let nexthops = (1..6).map(hop).chain([PEER]).map(|hop| (hop.id, HaveNexthop::Missing)).collect();
        let mut have = Have { nexthops, ..Have::default() };
        let ops = difference(&have, &first);
        apply(&mut have, &ops);
        have.nexthops.insert(hop(dead).id, HaveNexthop::Impossible);
        let routes = have.routes.entry(VIP).or_default();
        if data { routes.data = None; }
        routes.announced.insert(extra);
        let ops = difference(&have, &second);
        apply(&mut have, &ops);
        prop_assert_eq!(difference(&have, &second), vec![]);
    }
}

#[test]
fn a_route_that_cannot_be_put_is_withdrawn() {
    let mut have = reconciled(&[5, 6]);
    assert_eq!(withdrawal(&have, &want(&[5, 6])), [], "it carries packets");
    have.routes.entry(VIP).or_default().data = None;
    let ops = withdrawal(&have, &want(&[5, 6]));
    assert_eq!(ops, [Op::Announce(VIP, NOBODY_READY), Op::Unannounce(VIP, 2)]);
    apply(&mut have, &ops);
    assert_eq!(withdrawal(&have, &want(&[5, 6])), []);
    assert_eq!(withdrawal(&have, &Want { present: false, ..want(&[5]) }), []);
}

#[test]
fn a_vip_that_is_for_a_nodes_own_replicas_is_advertised_where_some_are_ready() {
    let local = |members: &[u32]| Want { local: true, ..want(members) };
    let spoken = |ops: &[Op]| ops.iter().filter(|op| matches!(op, Op::Announce(..))).count();
    assert_eq!(spoken(&difference(&Have::default(), &local(&[]))), 0);
    assert_eq!(spoken(&difference(&Have::default(), &want(&[]))), 1, "as the last resort");
    let nobody = Routes { announced: BTreeSet::from([NOBODY_READY]), ..Routes::default() };
    let have = Have { routes: BTreeMap::from([(VIP, nobody)]), ..Have::default() };
    assert!(difference(&have, &local(&[])).contains(&Op::Unannounce(VIP, NOBODY_READY)));
}

#[test]
fn routes_get_the_tunnels_mtu_and_lose_it() {
    let have = reconciled(&[5]);
    let narrow = Want { mtu: Some(1430), ..want(&[5]) };
    let route = NexthopRoute { address: VIP, nexthop: GROUP, source: NODE, cwnd: Some(1), mtu: None };
    let changed = Op::ReplaceRoute(NexthopRoute { mtu: Some(1430), ..route });
    assert_eq!(difference(&have, &narrow), std::slice::from_ref(&changed));
    assert_eq!(difference_for(have.clone(), narrow.clone(), hop(5).id), std::slice::from_ref(&changed));
    let mut then = have;
    apply(&mut then, &[changed]);
    assert_eq!(difference(&then, &narrow), []);
    assert_eq!(difference(&then, &want(&[5])), [Op::ReplaceRoute(route)]);
}
