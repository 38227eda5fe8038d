//! The pods' numbers are no ports of the VIP, and resets carry the port that was asked.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use super::{callers, datagram_from, service};
use crate::harness::segment::{self, ACK, RST};
use crate::harness::{Echo, Netns, PORT, SOON, deadline, hear, unspecified, until};

/// Longer than any answer takes; so long silence is awaited.
const SILENCE: Duration = Duration::from_secs(1);

/// A connection from that port of the client's.
pub fn from(ns: &Netns, port: u16, to: impl Into<SocketAddr>) -> std::io::Result<TcpStream> {
    let to = to.into();
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd: OwnedFd = ns.run(|| {
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
        let at = SocketAddr::new(unspecified(to.ip()), port);
        bind(fd.as_raw_fd(), &SockaddrStorage::from(at)).expect("a free port");
        fd
    });
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(fd))
}

#[test]
fn a_pods_number_is_refused_and_takes_nothing_from_a_connection() {
    const CLIENTS: u16 = 40_000;
    let service = service(1, 0);
    let target = service.target(&service.pods[0]);
    for (number, (vip, caller, ns)) in (0..).zip(callers(&service)) {
        let port = CLIENTS + number;
        let mut live = from(ns, port, (vip, PORT)).expect("connect");
        let before = service.counter("port_denied");
        // The pod's socket of the connection has the very same addresses and ports.
        let error = from(ns, port, (vip, target)).expect_err("a closed port");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "from {caller}: {error}");
        assert!(service.counter("port_denied") > before, "from {caller}");
        live.write_all(b"who\n").expect("ask");
        hear(&mut live, deadline(SOON)).unwrap_or_else(|error| panic!("from {caller}: {error}"));
    }
}

/// A segment of no handshake, as the pod's own socket would take it.
#[test]
fn a_stray_segment_to_a_pods_number_never_gets_there() {
    const PORT_OF_CLIENT: u16 = 40_100;
    let service = service(1, 0);
    let target = service.target(&service.pods[0]);
    for vip in service.addresses() {
        let mut live = from(&service.client, PORT_OF_CLIENT, (vip, PORT)).expect("connect");
        let client = live.local_addr().expect("its address");
        let before = service.counter("port_denied");
        for flags in [RST, ACK] {
            segment::send(&service.client, client, (vip, target).into(), flags);
        }
        until("they are counted", SOON, || (service.counter("port_denied") >= before + 2).then_some(()));
        live.write_all(b"who\n").expect("ask");
        hear(&mut live, deadline(SOON)).expect("an answer");
    }
}

#[test]
fn a_pods_number_is_silent_by_udp() {
    let service = service(1, 0);
    let pod = &service.pods[0];
    let target = service.target(pod);
    let _servers: Vec<_> = service.addresses().into_iter().map(|vip| Echo::on(pod, vip, target)).collect();
    for (vip, caller, ns) in callers(&service) {
        for (port, is_open) in [(PORT, true), (target, false)] {
            let socket = datagram_from(ns, unspecified(vip));
            socket.connect((vip, port)).expect("connect");
            socket.set_read_timeout(Some(SILENCE)).expect("a time limit");
            socket.send(b"x").expect("send");
            assert_eq!(socket.recv(&mut [0; 64]).is_ok(), is_open, "from {caller} to {vip}: {port}");
        }
    }
}

/// The number that the VIP has in another one's place is none that the pod sends from.
#[test]
fn a_pod_answers_from_no_port_that_is_translated() {
    let service = service(1, 0);
    let pod = &service.pods[0];
    for vip in service.addresses() {
        let client = datagram_from(&service.client, unspecified(vip));
        client.connect((vip, PORT)).expect("connect");
        let to = client.local_addr().expect("its address");
        client.set_read_timeout(Some(SILENCE)).expect("a time limit");
        let before = service.counter("egress_denied");
        let server = pod.ns.run(|| UdpSocket::bind((vip, PORT))).expect("bind to the VIP");
        server.send_to(b"x", to).expect("send");
        assert!(client.recv(&mut [0; 64]).is_err(), "a datagram from a number that the pod doesn't have");
        assert_eq!(service.counter("egress_denied"), before + 1);
    }
}
