//! No connection breaks and none is refused while replicas of several numbers come and go.

use std::thread;
use std::time::Duration;

use super::service;
use crate::harness::{Flows, Storm};

/// From each of three callers.
const FLOWS: usize = 100;

fn unbroken(flows: &mut [Flows], gone: &[String], when: &str) {
    for _ in 0..2 {
        flows.iter_mut().for_each(Flows::ask);
        flows.iter_mut().for_each(Flows::hear);
        thread::sleep(Duration::from_millis(500));
    }
    let complaints: Vec<_> = flows.iter().filter_map(|flows| flows.complaint(gone)).collect();
    assert!(complaints.is_empty(), "{when}\n{}", complaints.join("\n"));
}

#[test]
fn live_connections_stay_with_their_replica() {
    let service = service(3, 2);
    let mut flows = service.flows(FLOWS);
    for flows in flows.iter().filter(|flows| flows.from != "the node") {
        assert_eq!(flows.live().len(), 3, "each replica has connections from {}", flows.from);
    }
    service.add(&service.pods[3]);
    unbroken(&mut flows, &[], "a replica joins");
    service.drain(&service.pods[1]);
    unbroken(&mut flows, &[], "a replica drains");
    service.weigh(&service.pods[0], 9);
    unbroken(&mut flows, &[], "weights change");
    service.node.make_programs_another_builds();
    service.add(&service.pods[4]);
    unbroken(&mut flows, &[], "another build's programs are replaced");
    service.remove(&service.pods[2]);
    unbroken(&mut flows, &[service.pods[2].name.clone()], "a replica leaves");
    assert!(service.counter("steered") > 0, "some were where the hash would not send them");
}

#[test]
fn new_connections_are_opened_while_replicas_come_and_go() {
    let service = service(2, 1);
    let storms = service.addresses().into_iter().map(|vip| Storm::start(&service.client, vip, 100));
    let storms: Vec<Storm> = storms.collect();
    let next = |answers| storms.iter().map(|storm| storm.next(answers)).collect::<Vec<_>>();
    next(50);
    for _ in 0..3 {
        service.add(&service.pods[2]);
        for seen in next(100) {
            assert!(seen.of(&service.pods[2].name) > 0, "{seen:?}");
        }
        service.drain(&service.pods[2]);
        next(50);
        service.node.del(&service.pods[2], &service.join).ok();
        next(50);
    }
    for storm in storms {
        assert_eq!(storm.seen().failed, [""; 0]);
    }
}

/// A cookie is of the number that the pod has.
#[test]
fn syn_cookies_are_served_while_a_replica_joins() {
    let service = service(3, 1);
    for pod in &service.pods {
        pod.ns.set_sysctl("net/ipv4/tcp_syncookies", "2");
    }
    let storms = service.addresses().into_iter().map(|vip| Storm::start(&service.client, vip, 150));
    let storms: Vec<Storm> = storms.collect();
    for storm in &storms {
        storm.next(150);
    }
    service.add(&service.pods[3]);
    thread::sleep(Duration::from_secs(2));
    for storm in storms {
        storm.next(150);
        assert_eq!(storm.seen().failed, [""; 0]);
    }
}

/// A server that has closed its port: its next connections go to who listens, by another number.
#[test]
fn a_replica_that_does_not_listen_gets_no_connection() {
    let service = service(2, 0);
    let deaf = service.node.pod();
    let ports = format!("{}:9999/tcp", crate::harness::PORT);
    let join = service.join.clone().annotation("viproute.io/ports", &ports);
    service.node.add(&deaf, &join).ok();
    for vip in service.addresses() {
        for (from, ns) in service.sharers_of(vip) {
            let tally = crate::harness::connect(ns, vip, 60);
            assert_eq!(tally.names.len(), 2, "from {from} to {vip}: {tally:?}");
        }
    }
}
