//! No connection breaks and none is refused while replicas of several numbers come and go.

use std::thread;
use std::time::Duration;

use super::service;
use crate::harness::{Flows, Service, Storm};

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
    for flows in &flows {
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
    let storm = Storm::start(&service.client, service.vip, 200);
    storm.next(100);
    for _ in 0..3 {
        service.add(&service.pods[2]);
        let seen = storm.next(200);
        assert!(seen.of(&service.pods[2].name) > 0, "{seen:?}");
        service.drain(&service.pods[2]);
        storm.next(100);
        service.node.del(&service.pods[2], &service.join).ok();
        storm.next(100);
    }
    assert_eq!(storm.seen().failed, [""; 0]);
}

/// A cookie is of the number that the pod has.
#[test]
fn syn_cookies_are_served_while_a_replica_joins() {
    let service = service(3, 1);
    for pod in &service.pods {
        pod.ns.set_sysctl("net/ipv4/tcp_syncookies", "2");
    }
    let storm = Storm::start(&service.client, service.vip, 300);
    storm.next(300);
    service.add(&service.pods[3]);
    thread::sleep(Duration::from_secs(2));
    storm.next(300);
    assert_eq!(storm.seen().failed, [""; 0]);
}

/// A server that has closed its port: its next connections go to who listens, by another number.
#[test]
fn a_replica_that_does_not_listen_gets_no_connection() {
    let service = Service::translated(&crate::harness::Join::annotated("web"), 2, 0);
    let deaf = service.node.pod();
    let ports = format!("{}:9999/tcp", crate::harness::PORT);
    let join = service.join.clone().annotation("viproute.io/ports", &ports);
    service.node.add(&deaf, &join).ok();
    for (from, ns) in service.callers() {
        let tally = crate::harness::connect(ns, service.vip, 60);
        assert_eq!(tally.names.len(), 2, "from {from}: {tally:?}");
    }
}
