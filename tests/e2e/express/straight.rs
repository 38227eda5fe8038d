//! What goes straight, what never does, and that nothing is lost, changed or counted wrongly by it.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};

use viproute::internals::ebpf::ExpressCounts;

use super::{ASKED, Flow, Switch, Talk, goes_straight_to, joining, service, service6, since};
use crate::harness::{Echo, Join, PORT, SOON, Service, unspecified, until};

#[test]
fn a_connections_packets_go_straight_both_ways() {
    let service = service(3, 0);
    goes_straight_both_ways(&service, service.vip.into());
}

/// Beside one of IPv4 to the same replicas.
#[test]
fn one_of_ipv6_goes_straight_both_ways() {
    let (service, vip6) = service6(&Join::annotated("web"), 3);
    goes_straight_both_ways(&service, vip6);
    goes_straight_both_ways(&service, service.vip.into());
}

fn goes_straight_both_ways(service: &Service, vip: IpAddr) {
    let switch = Switch::on(&service.node);
    let hits = service.counter("local_hit");
    goes_straight_to(&service.client, vip, &switch);
    // Each is counted as one of the connection's, once: a question, the end of the handshake, acknowledgements.
    let hits = service.counter("local_hit") - hits;
    assert!((ASKED..=2 * ASKED + 2).contains(&hits), "{hits} packets of a connection were counted");
}

#[test]
fn without_a_generation_nothing_goes_straight() {
    let service = service(2, 0);
    let switch = Switch::on(&service.node);
    switch.off();
    let mut talk = Talk::with(&service.client, service.vip);
    for _ in 0..ASKED {
        talk.ask();
    }
    assert_eq!(since(switch.counts(), ExpressCounts::default()), (0, 0));
}

/// What the node's own sockets and other pods send doesn't come by an uplink.
#[test]
fn what_begins_on_the_node_is_the_stacks() {
    let service = service(2, 0);
    let switch = Switch::on(&service.node);
    for ns in [&service.bystander.ns, &service.node.ns] {
        let mut talk = Talk::with(ns, service.vip);
        for _ in 0..ASKED {
            talk.ask();
        }
    }
    assert_eq!(since(switch.counts(), ExpressCounts::default()), (0, 0));
}

#[test]
fn no_datagram_comes_twice() {
    let service = service(3, 0);
    let _servers: Vec<_> = service.pods.iter().map(|pod| Echo::start(pod, service.vip)).collect();
    super::no_datagram_comes_twice(&service, service.vip.into());
}

/// One clone a direction in half a second: the stack's rules see the flow go on.
#[test]
fn the_stack_sees_a_packet_of_each_lease() {
    let service = service(2, 0);
    let _servers: Vec<_> = service.pods.iter().map(|pod| Echo::start(pod, service.vip)).collect();
    super::nft(
        &service.node,
        "table ip seen {
             counter requests {}
             counter answers {}
             chain forward { type filter hook forward priority 0;
                 ip daddr 10.118.0.0/16 ip protocol udp counter name requests;
                 ip saddr 10.118.0.0/16 ip protocol udp counter name answers; }
         }",
    );
    let _switch = Switch::on(&service.node);
    let flow = Flow::with(&service.client, service.vip);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(4) {
        flow.ask().expect("an answer");
        thread::sleep(Duration::from_millis(10));
    }
    for counter in ["requests", "answers"] {
        let seen = super::seen(&service.node, counter);
        assert!((4..40).contains(&seen), "{counter}: the stack saw {seen} packets in 4 s");
    }
}

/// The TTL, or hop limit, of the datagram that a socket has, and its sender.
fn hear_ttl(socket: &std::net::UdpSocket) -> (i32, SockaddrStorage) {
    let (mut buffer, mut space) = ([0; 64], nix::cmsg_space!(i32));
    let mut into = [std::io::IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::empty());
    let message = message.expect("a datagram");
    let ttl = message.cmsgs().expect("what comes with it").find_map(|said| match said {
        ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => Some(ttl),
        _ => None,
    });
    (ttl.expect("its TTL"), message.address.expect("its sender"))
}

#[test]
fn a_hop_is_a_hop() {
    let service = service(1, 0);
    hops_are_counted(&service, service.vip.into());
}

#[test]
fn a_hop_of_ipv6_is_one_too() {
    let (service, vip6) = service6(&Join::annotated("web"), 1);
    hops_are_counted(&service, vip6);
}

fn hops_are_counted(service: &Service, vip: IpAddr) {
    let bind = |ns: &crate::harness::Netns, to: SocketAddr| {
        let socket = ns.run(|| std::net::UdpSocket::bind(to)).expect("a socket");
        if to.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvTtl, &true).expect("IP_RECVTTL");
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true).expect("IPV6_RECVHOPLIMIT");
        }
        socket.set_read_timeout(Some(SOON)).expect("a time limit");
        socket
    };
    let server = bind(&service.pods[0].ns, (vip, PORT).into());
    let client = bind(&service.client, (unspecified(vip), 0).into());
    let switch = Switch::on(&service.node);
    let mut straight = 0;
    for _ in 0..20 {
        let before = switch.counts();
        client.send_to(b"x", (vip, PORT)).expect("send");
        let (ttl, from) = hear_ttl(&server);
        assert_eq!(ttl, 63, "one hop to the pod");
        nix::sys::socket::sendto(server.as_raw_fd(), b"y", &from, MsgFlags::empty()).expect("answer");
        assert_eq!(hear_ttl(&client).0, 63, "one hop back");
        straight += u32::from(since(switch.counts(), before) == (1, 1));
    }
    assert!(straight >= 15, "{straight} of 20 went straight");
    // The node can't forward this one, and says so: the stack does.
    client.connect((vip, PORT)).expect("connect");
    if vip.is_ipv4() {
        client.set_ttl(1).expect("IP_TTL");
        setsockopt(&client, sockopt::Ipv4RecvErr, &true).expect("IP_RECVERR");
    } else {
        setsockopt(&client, sockopt::Ipv6Ttl, &1).expect("IPV6_UNICAST_HOPS");
        setsockopt(&client, sockopt::Ipv6RecvErr, &true).expect("IPV6_RECVERR");
    }
    client.send(b"x").expect("send");
    until("time exceeded", SOON, || {
        let error = client.take_error().expect("SO_ERROR")?;
        assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "{error}");
        Some(())
    });
}

#[test]
fn fragments_go_by_the_stack() {
    let service = service(1, 0);
    let _server = Echo::start(&service.pods[0], service.vip);
    let switch = Switch::on(&service.node);
    let flow = Flow::with(&service.client, service.vip);
    for _ in 0..5 {
        flow.ask().expect("an answer");
    }
    let before = switch.counts();
    // The server's buffer is 2,048 bytes: two fragments each way.
    assert!(flow.ask_with(&[b'x'; 2000]).is_some(), "two fragments, and two back");
    assert_eq!(since(switch.counts(), before), (0, 0));
    flow.ask().expect("an answer");
    assert_eq!(since(switch.counts(), before), (1, 1), "the same flow's small ones");
}

#[test]
fn what_has_ip_options_goes_by_the_stack() {
    let service = service(1, 0);
    // Four times "no operation".
    goes_by_the_stack_with(&service, service.vip.into(), (libc::IPPROTO_IP, libc::IP_OPTIONS, &[1; 4]));
}

#[test]
fn what_has_extension_headers_goes_by_the_stack() {
    let (service, vip6) = service6(&Join::annotated("web"), 1);
    // Destination options: padding.
    goes_by_the_stack_with(&service, vip6, (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &[0, 0, 1, 4, 0, 0, 0, 0]));
}

/// Sends datagrams with a socket option of that level and number.
fn goes_by_the_stack_with(service: &Service, vip: IpAddr, (level, number, value): (i32, i32, &[u8])) {
    let _server = Echo::start(&service.pods[0], vip);
    let switch = Switch::on(&service.node);
    let flow = Flow::with(&service.client, vip);
    flow.ask().expect("an answer");
    let plain = switch.counts();
    flow.ask().expect("an answer");
    let before = switch.counts();
    assert_eq!(since(before, plain), (1, 1), "without it");
    let length = libc::socklen_t::try_from(value.len()).expect("a short value");
    // SAFETY: a system call with a pointer to a value of the size given.
    let set = unsafe { libc::setsockopt(flow.0.as_raw_fd(), level, number, value.as_ptr().cast(), length) };
    assert_eq!(set, 0, "a socket option");
    flow.ask().expect("an answer");
    assert_eq!(since(switch.counts(), before).0, 0);
}

#[test]
fn ports_that_are_not_served_stay_shut_beside_a_flow_that_goes_straight() {
    let service = Service::with(&joining("8080/tcp,8080/udp", &[]), 2, 0);
    let _servers: Vec<_> = service.pods.iter().map(|pod| Echo::start(pod, service.vip)).collect();
    let _others: Vec<_> = service.pods.iter().map(|pod| Echo::on(pod, service.vip, 9090)).collect();
    let switch = Switch::on(&service.node);
    let flow = Flow::with(&service.client, service.vip);
    for _ in 0..10 {
        flow.ask().expect("an answer");
    }
    assert!(since(switch.counts(), ExpressCounts::default()).0 >= 8);
    let before = service.counter("port_denied");
    // From the very port of the flow.
    let (mut buffer, other) = ([0; 64], flow.0.try_clone().expect("a second descriptor"));
    other.connect((service.vip, 9090)).expect("connect");
    for _ in 0..3 {
        other.send(b"x").expect("send");
    }
    other.recv(&mut buffer).expect_err("no answer from a port that isn't served");
    assert_eq!(service.counter("port_denied") - before, 3);
}
