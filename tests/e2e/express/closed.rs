//! A UDP socket closes while flows go straight to it.

use std::io::ErrorKind;

use std::net::IpAddr;

use super::{Flow, Switch, UDP_LEASE, joining, service6, since};
use crate::harness::{Echo, Netns, PORT, SOON, Service, until};

/// More than the errors that a namespace sends one address in a burst (`icmp_ratelimit`: six, then one a second).
const FLOWS: usize = 40;

/// What one datagram has met with.
#[derive(Debug, PartialEq, Eq)]
enum Met {
    Answer(String),
    Refusal,
    Silence,
}

impl Flow {
    fn meet(&self) -> Met {
        let mut buffer = [0; 64];
        match self.0.send(b"x").and_then(|_| self.0.recv(&mut buffer)) {
            Ok(length) => {
                let answer = String::from_utf8_lossy(&buffer[..length]);
                Met::Answer(answer.split(' ').next().expect("a name").to_owned())
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Met::Refusal,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Met::Silence,
            Err(error) => panic!("receive: {error}"),
        }
    }
}

/// So many flows that one replica has, which go straight.
fn flows_to(service: &Service, vip: IpAddr, name: &str) -> Vec<Flow> {
    let all = std::iter::repeat_with(|| Flow::with(&service.client, vip));
    let flows: Vec<Flow> = all.filter(|flow| flow.ask().as_deref() == Some(name)).take(FLOWS).collect();
    for flow in &flows {
        flow.0.set_read_timeout(Some(UDP_LEASE / 4)).expect("a time limit");
    }
    flows
}

/// A copy of the socket that a child of this process has for a moment takes datagrams still.
fn until_closed(ns: &Netns) {
    let port = format!(":{PORT:04X} ");
    until("the socket is closed", SOON, || {
        let of = |family| ns.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{family}")));
        let sockets = ["udp", "udp6"].map(|family| of(family).unwrap_or_default());
        (!sockets.concat().contains(&port)).then_some(())
    });
}

#[test]
fn its_first_refusal_sends_all_flows_of_its_port_to_others() {
    for sticky in ["false", "true"] {
        let service = Service::with(&joining("8080/udp", &[("udp-sticky", sticky)]), 3, 0);
        its_flows_go_to_others(&service, service.vip.into());
    }
}

#[test]
fn its_first_refusal_by_ipv6_does_so_too() {
    let (service, vip6) = service6(&joining("8080/udp", &[]), 3);
    its_flows_go_to_others(&service, vip6);
}

fn its_flows_go_to_others(service: &Service, vip: IpAddr) {
    let mut servers: Vec<_> = service.pods.iter().map(|pod| Echo::start(pod, vip)).collect();
    let switch = Switch::on(&service.node);
    let name = &service.pods[0].name;
    let flows = flows_to(service, vip, name);
    let before = switch.counts();
    for flow in flows.iter().chain(&flows) {
        assert_eq!(flow.meet(), Met::Answer(name.clone()));
    }
    let straight = since(switch.counts(), before).0;
    assert!(straight >= FLOWS as u64 / 2, "{straight} went straight");
    drop(servers.remove(0));
    until_closed(&service.pods[0].ns);
    let met: Vec<Met> = flows.iter().map(Flow::meet).collect();
    let refused = met.iter().filter(|met| **met == Met::Refusal).count();
    let elsewhere = met.iter().filter(|met| matches!(met, Met::Answer(other) if other != name)).count();
    assert!(refused <= 1 && refused + elsewhere == FLOWS, "{met:?}");
}
