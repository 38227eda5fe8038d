//! The difference, step by step.

use super::*;
use crate::ebpf::{GUARDED, OVER_MEMBER_LIMIT, PortPolicy};
use crate::model::node::NodeId;

use super::super::want::port_number;

/// As many as one of the objects asks.
const LIMIT: usize = 256;

fn entry(netns: u32) -> Attached {
    Attached::new(netns, [6, 0x76, 0, 0, 0, 1], 0)
}

fn want(indices: &[u32]) -> Want {
    Want { attached: indices.iter().map(|index| (*index, entry(*index))).collect(), ..Want::default() }
}

fn members(indices: &[u32]) -> Known {
    let members = indices.iter().map(|index| Member::new(*index, &entry(*index))).collect();
    Known { members, ..Known::default() }
}

fn reconciled(indices: &[u32]) -> Have {
    Have { attached: want(indices).attached, known: Some(members(indices)), ..Have::default() }
}

fn steps(have: &Have, want: &Want) -> (Vec<Op>, Vec<Op>) {
    difference(have, want, LIMIT, u64::from)
}

#[test]
fn what_is_right_is_left_alone() {
    assert_eq!(steps(&reconciled(&[3, 4]), &want(&[3, 4])), (vec![], vec![]));
    assert_eq!(steps(&Have::default(), &want(&[])), (vec![], vec![]));
}

#[test]
fn a_replica_that_joins_is_known_before_the_group_changes() {
    let (before, after) = steps(&reconciled(&[3]), &want(&[3, 4]));
    assert_eq!(before, [Op::Attach(4, Box::new(entry(4))), Op::Set(members(&[3, 4]))]);
    assert_eq!(after, []);
}

#[test]
fn a_replica_that_leaves_is_asked_until_the_group_has_changed() {
    let (before, after) = steps(&reconciled(&[3, 4]), &want(&[4]));
    assert_eq!(before, []);
    assert_eq!(after, [Op::Set(members(&[4])), Op::Detach(3)]);
}

#[test]
fn the_last_one_takes_the_vip_along() {
    let (before, after) = steps(&reconciled(&[3]), &want(&[]));
    assert_eq!((before, after), (vec![], vec![Op::Detach(3), Op::Forget]));
}

#[test]
fn among_other_nodes_the_vip_stays_a_while_without_replicas() {
    let ring = Ring { next: Some(NodeId(Ipv4Addr::new(192, 0, 2, 2))), lingers: true, ..Ring::default() };
    let none = Want { lingers: Some(ring), ..want(&[]) };
    assert_eq!(steps(&reconciled(&[3]), &none), (vec![], vec![Op::Detach(3), Op::Linger(ring)]));
    let lingering = Have { known: Some(Known { ring, ..Known::default() }), ..Have::default() };
    assert_eq!(steps(&lingering, &none), (vec![], vec![]));
    assert_eq!(steps(&lingering, &want(&[])).1, [Op::Forget], "the other nodes are gone");
    let again = Want { lingers: Some(ring), ..want(&[3]) };
    assert_eq!(steps(&lingering, &again).0.last(), Some(&Op::Set(members(&[3]))));
    assert_eq!(steps(&Have::default(), &none), (vec![], vec![]));
}

#[test]
fn a_vip_that_other_nodes_have_replicas_of_is_known_without_any_here() {
    let next = NodeId(Ipv4Addr::new(192, 0, 2, 2));
    let ring = Ring { next: Some(next), ..Ring::default() };
    let far = Want { ring: Some(ring), ..want(&[]) };
    assert_eq!(steps(&Have::default(), &far).0, [Op::Set(Known { ring, ..Known::default() })]);
    let have = Have { known: Some(Known { ring, ..Known::default() }), ..Have::default() };
    assert_eq!(steps(&have, &far), (vec![], vec![]));
    // The last one here leaves.
    let before = Have { known: Some(Known { ring, ..members(&[3]) }), ..reconciled(&[3]) };
    assert_eq!(steps(&before, &far), (vec![], vec![Op::Set(Known { ring, ..Known::default() }), Op::Detach(3)]));
    // One falls silent.
    let suspect = Ring { suspect: true, ..Ring::default() };
    let silent = Want { ring: Some(suspect), ..want(&[3]) };
    assert_eq!(steps(&before, &silent), (vec![Op::Set(Known { ring: suspect, ..members(&[3]) })], vec![]));
    assert_eq!(steps(&have, &want(&[])), (vec![], vec![Op::Forget]));
}

#[test]
fn who_serves_a_port_is_known_before_lots_are_drawn_and_after() {
    let server = |ifindex| Server { ifindex, weight: 1, of: 1, ..Server::default() };
    let by_port = ByPort::from([(80, vec![server(3)]), (443, vec![server(4)])]);
    let differ = Want { servers: by_port.clone(), ports_differ: true, ..want(&[3, 4]) };
    let marked = Known { ports_differ: true, ..members(&[3, 4]) };
    let (before, after) = steps(&reconciled(&[3, 4]), &differ);
    let written = [Op::Serve(80, vec![server(3)]), Op::Serve(443, vec![server(4)]), Op::Set(marked.clone())];
    assert_eq!((before, after), (written.into(), vec![]));
    let have = Have { servers: by_port, known: Some(marked), ..reconciled(&[3, 4]) };
    assert_eq!(steps(&have, &differ), (vec![], vec![]));
    let (before, after) = steps(&have, &want(&[3, 4]));
    assert_eq!(before, [Op::Set(members(&[3, 4]))]);
    assert_eq!(after, [Op::Serve(80, vec![]), Op::Serve(443, vec![])]);
}

#[test]
fn who_may_come_is_known_before_a_replica_is() {
    let policy = PortPolicy { affinity: 60, sources: Some(BTreeSet::from([(IpAddr::from([10, 0, 0, 0]), 8)])) };
    let policies = Policies::from([(80, policy.clone())]);
    let asks = Want { policies: policies.clone(), ..want(&[3]) };
    let known = Known { is_policed: true, ..members(&[3]) };
    let (before, after) = steps(&Have::default(), &asks);
    let change = |before, wanted| Op::Police(80, Box::new(PolicyChange { before, wanted }));
    let written = change(None, Some(policy.clone()));
    let expected = [written, Op::Attach(3, Box::new(entry(3))), Op::Set(known.clone())];
    assert_eq!((before, after), (expected.into(), vec![]));
    let have = Have { policies, known: Some(known), ..reconciled(&[3]) };
    assert_eq!(steps(&have, &asks), (vec![], vec![]));
    let removed = change(Some(policy), None);
    assert_eq!(steps(&have, &want(&[3])), (vec![Op::Set(members(&[3]))], vec![removed.clone()]));
    // It is somebody else's by now.
    assert_eq!(steps(&Have { known: None, ..have }, &want(&[])).1, [removed, Op::Detach(3)]);
}

#[test]
fn a_wrong_entry_is_written_anew() {
    let mut have = reconciled(&[3]);
    have.attached.insert(3, Attached { flags: GUARDED, ..entry(3) });
    assert_eq!(steps(&have, &want(&[3])).0, [Op::Attach(3, Box::new(entry(3)))]);
    have.attached.clear();
    assert_eq!(steps(&have, &want(&[3])).0, [Op::Attach(3, Box::new(entry(3)))]);
    let incomplete = Have { incomplete: BTreeSet::from([3]), ..reconciled(&[3]) };
    assert_eq!(steps(&incomplete, &want(&[3])).0, [Op::Attach(3, Box::new(entry(3)))]);
}

#[test]
fn of_too_many_those_are_asked_that_were_of_use_last() {
    let many: Vec<u32> = (1..=300).collect();
    let (before, after) = steps(&Have::default(), &want(&many));
    let last = members(&many[300 - LIMIT..]);
    assert_eq!(before.last(), Some(&Op::Set(last.clone())));
    assert_eq!(after, []);
    // Any 256 of them are good enough until something changes.
    let have = Have { attached: want(&many).attached, known: Some(members(&many[..LIMIT])), ..Have::default() };
    assert_eq!(steps(&have, &want(&many)), (vec![], vec![]));
}

#[test]
fn replicas_beyond_the_limit_note_when_they_are_of_use() {
    let flags = |limit| want(&[3, 4, 5]).limited_to(limit).attached.into_values().map(|entry| entry.flags);
    assert!(flags(3).all(|flags| flags == 0));
    assert!(flags(2).all(|flags| flags == OVER_MEMBER_LIMIT));
}

#[test]
fn ports_are_as_the_program_has_them() {
    assert_eq!(port_number("80/tcp".parse().unwrap()), 0x0006_0050);
    assert_eq!(port_number("53/udp".parse().unwrap()), 0x0011_0035);
}
