//! Ports that the pod has under another number go straight, too.

use std::io::{Read, Write};

use viproute::internals::ebpf::ExpressCounts;

use super::{Flow, Switch, Talk, goes_straight, no_datagram_comes_twice, since};
use crate::harness::{Echo, Join, PORT, SOON, Service, scaled};

fn service(replicas: usize, spare: usize) -> Service {
    Service::translated(&Join::annotated("web"), replicas, spare)
}

#[test]
fn a_connections_packets_go_straight_both_ways() {
    let service = service(3, 0);
    let switch = Switch::on(&service.node);
    for _ in 0..5 {
        goes_straight(&service, &switch);
    }
}

/// Clones pass the host veth a second time, with the numbers that the originals have there.
#[test]
fn datagrams_go_straight_and_none_comes_twice() {
    let service = service(2, 0);
    let _servers: Vec<_> = service.pods.iter().map(|pod| Echo::on(pod, service.vip, service.target(pod))).collect();
    no_datagram_comes_twice(&service, service.vip.into());
}

/// A segment of many, whose checksum is left to a network card, and one that a card has put together.
#[test]
fn long_segments_come_whole() {
    let service = service(1, 0);
    let switch = Switch::on(&service.node);
    let mut talk = Talk::with(&service.client, service.vip);
    talk.ask();
    talk.0.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
    for _ in 0..20 {
        talk.0.write_all(&b"who\n".repeat(200)).expect("ask");
        let (mut lines, mut buffer) = (0, [0; 1 << 14]);
        while lines < 200 {
            let length = talk.0.read(&mut buffer).expect("answers");
            lines += buffer[..length].split(|byte| *byte == b'\n').count() - 1;
            assert!(length > 0 && lines <= 200, "an answer for each question");
        }
    }
    assert!(since(switch.counts(), ExpressCounts::default()).0 > 0, "some went straight");
    let ns = &service.client;
    let denied = ns.run(|| {
        std::net::TcpStream::connect_timeout(&(service.vip, service.target(&service.pods[0])).into(), scaled(SOON))
    });
    assert_eq!(denied.expect_err("a closed port").kind(), std::io::ErrorKind::ConnectionRefused);
}

/// The pod's number changes under a flow that goes straight: the lease is void at once.
#[test]
fn another_number_is_followed_at_once() {
    let service = service(1, 0);
    let pod = &service.pods[0];
    let (first, second) = (Echo::on(pod, service.vip, service.target(pod)), Echo::on(pod, service.vip, 9999));
    let switch = Switch::on(&service.node);
    let flow = Flow::with(&service.client, service.vip);
    for _ in 0..20 {
        flow.ask().expect("an answer");
    }
    assert!(since(switch.counts(), ExpressCounts::default()).0 > 10, "it goes straight");
    let attachment = format!("default/{}", pod.name);
    let ports = format!("{PORT}:9999/udp");
    let mut command = service.node.ctl();
    command.args(["join", &attachment, "default/web", "--ports", &ports]);
    crate::harness::Run::finish(&mut command, "").ok();
    drop(first);
    for _ in 0..20 {
        flow.ask().expect("an answer of the other server's");
    }
    drop(second);
}
