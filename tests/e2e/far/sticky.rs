//! UDP flows of pods that ask for it stay where they began, whichever node their datagrams reach.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use viproute::internals::model::Family;

use crate::harness::{Datagrams, Echo, Kind, by_kind};

use super::scene::Cluster;

/// In each place and of each kind of socket.
const FLOWS: usize = 100;
/// Three datagrams of each flow.
const A_WHILE: Duration = Duration::from_millis(1500);

#[test]
fn udp_flows_stay_while_the_vip_moves_and_nodes_and_replicas_come_by_ipv4() {
    udp_flows_stay_while_the_vip_moves_and_nodes_and_replicas_come(Family::V4);
}

#[test]
fn udp_flows_stay_while_the_vip_moves_and_nodes_and_replicas_come_by_ipv6() {
    udp_flows_stay_while_the_vip_moves_and_nodes_and_replicas_come(Family::V6);
}

fn udp_flows_stay_while_the_vip_moves_and_nodes_and_replicas_come(family: Family) {
    let mut cluster = Cluster::sticky(family, 1);
    let vip = cluster.to;
    let mut servers: Vec<_> = [1, 2, 3].map(|number| Echo::start(&cluster.node(number).pods[0], vip)).into();
    cluster.stands_alone(3);
    let every = Duration::from_millis(500);
    let clients = [("the client", true), ("the client", false), ("a pod on 2", true)];
    let kinds = clients.map(|(from, connected)| Kind { from, ns: cluster.ns(from), connected, every });
    let flows = Datagrams::start(vip, &kinds, FLOWS);
    thread::sleep(A_WHILE);
    cluster.leads_to(2);
    thread::sleep(A_WHILE);
    cluster.knows_others(3);
    thread::sleep(A_WHILE);
    for at in [3, 1] {
        cluster.leads_to(at);
        thread::sleep(A_WHILE);
    }
    for number in [1, 2] {
        cluster.joins(number);
        servers.push(Echo::start(cluster.node(number).pods.last().expect("a pod"), vip));
        thread::sleep(A_WHILE);
    }
    cluster.drains(2);
    for at in [3, 2, 1] {
        cluster.leads_to(at);
        thread::sleep(A_WHILE);
    }
    let outcomes = flows.stop();
    let moved: Vec<_> = outcomes.iter().filter(|outcome| outcome.replicas.len() != 1).collect();
    let some: Vec<_> = moved.iter().take(5).map(|outcome| (&outcome.kind, &outcome.replicas)).collect();
    assert!(moved.is_empty(), "moved: {:?} {some:?}", by_kind(moved.iter().copied()));
    let lossy: Vec<_> = outcomes.iter().filter(|outcome| outcome.lost > 0).collect();
    let some: Vec<_> = lossy.iter().take(5).map(|outcome| (outcome.lost, outcome.sent)).collect();
    assert!(lossy.is_empty(), "with losses: {:?} (lost, sent) {some:?}", by_kind(lossy.iter().copied()));
    let names: BTreeSet<_> = outcomes.iter().map(|outcome| outcome.replicas[0].as_str()).collect();
    assert!(names.len() >= 2, "the flows are on both nodes: {names:?}");
}
