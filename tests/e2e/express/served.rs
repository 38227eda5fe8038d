//! Replicas with different ports: a flow that has come to another one than the group has chosen goes straight to that one.

use super::{Flow, Switch, Talk, joining, since};
use crate::harness::{Echo, Service};

const ASKED: u64 = 40;

#[test]
fn flows_go_straight_to_those_that_serve_their_port() {
    let service = Service::with(&joining("8080/tcp,8080/udp", &[]), 1, 2);
    for pod in &service.pods[1..] {
        service.node.add(pod, &joining("9090/tcp,9090/udp", &[])).ok();
    }
    let _servers: Vec<_> = service.pods.iter().map(|pod| Echo::start(pod, service.vip)).collect();
    let switch = Switch::on(&service.node);
    let name = &service.pods[0].name;
    // The group has chosen another one for two thirds of them.
    for _ in 0..6 {
        let before = switch.counts();
        let (mut talk, flow) = (Talk::with(&service.client, service.vip), Flow::with(&service.client, service.vip));
        for _ in 0..ASKED {
            assert_eq!(&talk.ask(), name);
            assert_eq!(flow.ask().as_ref(), Some(name));
        }
        let (requests, answers) = since(switch.counts(), before);
        let most = 2 * ASKED - 4;
        assert!(requests >= most && answers >= most, "of {ASKED} each {requests} in and {answers} out went straight");
    }
}
