use std::net::Ipv4Addr;

use super::*;
use crate::net::route::{self, Action, TableRoute};

fn id(last: u8) -> NodeId {
    NodeId(Ipv4Addr::new(192, 0, 2, last))
}

fn nexthop(number: u32, last: u8) -> Nexthop {
    Nexthop { id: 0x7800_0000 | number, gateway: id(last).0.into(), index: 9 }
}

fn want() -> Want {
    let programs = [(Hook::TunnelIngress, 31), (Hook::TunnelEgress, 32)].into();
    Want { own: id(1), mtu: 1500, nodes: [(1, id(2)), (2, id(3))].into(), programs, current: true }
}

fn right() -> Have {
    let settings = link::Settings { rp_filter: 2, forwarding: 1, ..link::Settings::default() };
    let link = Link {
        index: 9,
        name: "viptun0".into(),
        mac: Some(id(1).mac()),
        mtu: 1500,
        up: true,
        external_vxlan: Some(8118),
        settings,
        ..Link::default()
    };
    Have {
        link: Some(link),
        has_address: true,
        neighbours: [2, 3].map(|last| (id(last).0.into(), id(last).mac())).into(),
        nexthops: [nexthop(1, 2), nexthop(2, 3)].map(|nexthop| (nexthop.id, nexthop)).into(),
        former: Former::default(),
        programs: want().programs,
        wrong: Vec::new(),
    }
}

#[test]
fn what_is_right_is_left_alone() {
    assert_eq!(difference(&right(), &want()), []);
}

#[test]
fn the_device_is_made_first_and_comes_up_behind_its_programs() {
    assert_eq!(difference(&Have::default(), &want()), [Op::AddLink(id(1), 1500)]);
    let mut made = Have { link: right().link, ..Have::default() };
    made.link.as_mut().unwrap().up = false;
    let nodes = |ops: &mut Vec<Op>| {
        ops.extend([Op::SetNeighbour(9, id(2).0.into(), id(2)), Op::SetNeighbour(9, id(3).0.into(), id(3))]);
        ops.extend([Op::AddNexthop(nexthop(1, 2)), Op::AddNexthop(nexthop(2, 3))]);
    };
    let waits = Want { programs: BTreeMap::new(), ..want() };
    assert_eq!(difference(&made, &waits), [Op::AddAddress(9)], "nothing may pass it");
    let there = Have { has_address: true, link: made.link.clone(), ..Have::default() };
    assert_eq!(difference(&there, &waits), [], "as far as it can be");
    let mut expected = vec![Op::Configure(9), Op::AddAddress(9)];
    expected.extend([Op::Attach(9, Hook::TunnelIngress), Op::Attach(9, Hook::TunnelEgress), Op::Up(9)]);
    nodes(&mut expected);
    assert_eq!(difference(&made, &want()), expected);
}

#[test]
fn what_is_missing_or_wrong_is_put_right() {
    let without = |change: fn(&mut Have)| {
        let mut have = right();
        change(&mut have);
        difference(&have, &want())
    };
    assert_eq!(
        without(|have| assert!(have.neighbours.pop_first().is_some())),
        [Op::SetNeighbour(9, id(2).0.into(), id(2))]
    );
    assert_eq!(without(|have| assert!(have.nexthops.pop_first().is_some())), [Op::AddNexthop(nexthop(1, 2))]);
    let orphan = |have: &mut Have| assert_eq!(have.nexthops.insert(0x7800_0007, nexthop(7, 7)), None);
    assert_eq!(without(orphan), [Op::DelNexthop(0x7800_0007)]);
    let wrong = |have: &mut Have| assert!(have.nexthops.insert(0x7800_0001, nexthop(1, 7)).is_some());
    assert_eq!(without(wrong), [Op::DelNexthop(0x7800_0001), Op::AddNexthop(nexthop(1, 2))]);
    assert_eq!(without(|have| have.link.as_mut().unwrap().mtu = 1450), [Op::SetMtu(9, 1500)]);
    assert_eq!(without(|have| have.link.as_mut().unwrap().up = false), [Op::Configure(9), Op::Up(9)]);
    let another = |have: &mut Have| assert!(have.programs.insert(Hook::TunnelEgress, 7).is_some());
    assert_eq!(without(another), [Op::Attach(9, Hook::TunnelEgress)]);
}

#[test]
fn another_id_makes_another_device_and_a_foreign_one_stays() {
    assert_eq!(difference(&right(), &Want { own: id(5), ..want() }), [Op::DelLink(9)]);
    let mut foreign = right();
    foreign.link.as_mut().unwrap().external_vxlan = None;
    assert_eq!(difference(&foreign, &want()), [Op::AddLink(id(1), 1500)]);
    assert_eq!(removal(&foreign), []);
}

#[test]
fn all_of_it_goes() {
    let gone = [Op::DelNexthop(0x7800_0001), Op::DelNexthop(0x7800_0002), Op::DelLink(9)];
    assert_eq!(removal(&right()), gone);
    assert_eq!(removal(&Have::default()), []);
    let former = |needed_by| Have { former: former(needed_by), ..right() };
    assert_eq!(removal(&former(&[VIP]))[..3], gone);
    assert_eq!(removal(&former(&[VIP]))[3..], former_gone());
}

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 118, 0, 7));

fn former(needed_by: &[IpAddr]) -> Former {
    let refusal = TableRoute { table: 119, prefix: route::DEFAULT, tos: 0, action: Action::Unreachable };
    let action = Action::Nexthop { id: 0x7780_0001, source: id(1).0.into() };
    let routes = vec![TableRoute { prefix: route::host(VIP), action, ..refusal }, refusal];
    Former { has_rule: true, routes, needed_by: needed_by.iter().copied().collect() }
}

fn former_gone() -> Vec<Op> {
    let mut gone = vec![Op::DelRule];
    gone.extend(former(&[]).routes.into_iter().map(Op::DelRoute));
    gone
}

#[test]
fn an_earlier_builds_rule_goes_once_nothing_needs_it() {
    let have = Have { former: former(&[]), ..right() };
    assert_eq!(difference(&have, &want()), former_gone());
    assert_eq!(difference(&have, &Want { current: false, ..want() }), [], "its programs are still there");
    assert_eq!(difference(&Have { former: former(&[VIP]), ..right() }, &want()), [], "a VIP has no other route yet");
    // The programs come first.
    let mut before = have;
    before.programs.insert(Hook::TunnelIngress, 7);
    let mut expected = vec![Op::Attach(9, Hook::TunnelIngress)];
    expected.extend(former_gone());
    assert_eq!(difference(&before, &want()), expected);
}

#[test]
fn segments_leave_room_for_the_tunnels_headers() {
    assert_eq!(advmss(1450, 1500), Some(1410));
    assert_eq!(advmss(8950, 1500), None);
    assert_eq!(advmss(1450, 1400), None);
    assert_eq!(advmss(1450, 1451), Some(1410));
    assert_eq!(advmss(10, 1500), None);
}

/// Of IPv4 what is longer goes in fragments of the tunnel's own packets; of IPv6 there are none.
#[test]
fn a_tunnel_over_ipv6_has_less_room() {
    let over = |family| Underlay { index: 2, mtu: 1500, family };
    let [v4, v6] = Family::ALL.map(over);
    assert_eq!([v4, v6].map(Underlay::whole), [1450, 1430]);
    assert_eq!([v4, v6].map(Underlay::device_mtu), [1500, 1430]);
    assert_eq!(advmss(v6.whole(), 1500), Some(1390));
}

#[test]
fn a_device_that_has_ipv6_knows_each_node_by_a_second_address() {
    let mut have = right();
    have.link.as_mut().unwrap().ipv6 = true;
    let [second, third] = [2, 3].map(|last| IpAddr::V6(ids::peer_link_local(id(last))));
    let both = [Op::SetNeighbour(9, second, id(2)), Op::SetNeighbour(9, third, id(3))];
    assert_eq!(difference(&have, &want()), both);
    have.neighbours.extend([(second, id(2).mac()), (third, id(3).mac())]);
    // One that VIPs of both families take may have it as its gateway.
    have.nexthops.insert(0x7800_0001, Nexthop { gateway: second, ..nexthop(1, 2) });
    assert_eq!(difference(&have, &want()), []);
    let wrong = vec![("net.ipv6.conf.viptun0.accept_ra".to_owned(), 0)];
    assert_eq!(difference(&Have { wrong: wrong.clone(), ..have.clone() }, &want()), [Op::Settle(wrong)]);
    // It takes none any more.
    have.link.as_mut().unwrap().mtu = 1270;
    let narrow = Want { mtu: 1270, ..want() };
    assert_eq!(difference(&have, &narrow), [Op::DelNexthop(0x7800_0001), Op::AddNexthop(nexthop(1, 2))]);
    let programs = [want().programs, [(Hook::TunnelIngressIpv6, 33), (Hook::TunnelEgressIpv6, 34)].into()];
    let six = Want { programs: programs.into_iter().flatten().collect(), ..want() };
    let attached = [Op::Attach(9, Hook::TunnelIngressIpv6), Op::Attach(9, Hook::TunnelEgressIpv6)];
    assert_eq!(difference(&right(), &six), attached);
}
