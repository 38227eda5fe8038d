//! What the VIP serves reaches the replicas and nothing else does; what they send has the VIP as its source or goes nowhere.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use serde_json::json;

use crate::harness::{Crowd, Echo, Join, Netns, PORT, Service, connect, hear, until};

/// Served by every pod, and not by the VIP.
const OTHER: u16 = 9090;

/// Longer than any answer takes; so long silence is awaited.
const SILENCE: Duration = Duration::from_secs(2);

fn joining(vips: &str, ports: &str) -> Join {
    let mut join = Join::annotated(vips);
    join.annotations = Some(json!({ "viproute.io/vip": vips, "viproute.io/ports": ports }));
    join
}

/// A VIP of two pods that also listen on another port.
fn service() -> (Vec<Crowd>, Service) {
    let service = Service::with(&joining("web", "8080/tcp,8080/udp"), 2, 0);
    (service.pods.iter().map(|pod| Crowd::on(pod, OTHER)).collect(), service)
}

fn dial(ns: &Netns, to: impl Into<SocketAddr>) -> std::io::Result<TcpStream> {
    let to = to.into();
    ns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))
}

/// The name that answers at `to`.
fn ask(ns: &Netns, to: (Ipv4Addr, u16)) -> String {
    let mut stream = dial(ns, to).unwrap_or_else(|error| panic!("{to:?}: {error}"));
    stream.write_all(b"who\n").expect("ask");
    hear(&mut stream, Instant::now() + Duration::from_secs(10)).unwrap_or_else(|error| panic!("{to:?}: {error}"))
}

fn assert_refused(from: &str, ns: &Netns, to: (Ipv4Addr, u16)) {
    match dial(ns, to) {
        Ok(_) => panic!("from {from}: {to:?} is open"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "from {from}: {to:?}: {error}"),
    }
}

#[test]
fn another_tcp_port_is_refused_at_once() {
    let (_servers, service) = service();
    // The pods do listen there: it is the VIP that doesn't.
    assert_eq!(ask(&service.node.ns, (service.pods[0].address(), OTHER)), "p1");
    let before = service.counter("refused");
    for (from, ns) in service.callers() {
        connect(ns, service.vip, 10);
        for _ in 0..10 {
            assert_refused(from, ns, (service.vip, OTHER));
        }
    }
    let refused = service.counter("refused") - before;
    assert!(refused >= 30, "30 connections were refused, {refused} counted");
}

/// Sends one datagram to the VIP; the answer, if one comes.
fn say(ns: &Netns, to: (Ipv4Addr, u16)) -> std::io::Result<String> {
    let socket = ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket");
    // Connected, so that an ICMP error would be told.
    socket.connect(to).expect("connect");
    socket.set_read_timeout(Some(SILENCE)).expect("a time limit");
    socket.send(b"hello").expect("send");
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

#[test]
fn another_udp_port_is_silent() {
    let (_servers, service) = service();
    let served: Vec<_> = service.pods.iter().map(|pod| Echo::on(pod, service.vip, PORT)).collect();
    let others: Vec<_> = service.pods.iter().map(|pod| Echo::on(pod, service.vip, OTHER)).collect();
    let before = service.counter("refused");
    for (from, ns) in service.callers() {
        let answer = say(ns, (service.vip, PORT)).unwrap_or_else(|error| panic!("from {from}: {error}"));
        assert!(answer.ends_with(" hello"), "{answer}");
        let silence = say(ns, (service.vip, OTHER)).expect_err("no answer from a port that isn't served");
        assert_eq!(silence.kind(), ErrorKind::WouldBlock, "from {from}: {silence}");
        // Whether anybody listens there makes no difference.
        let silence = say(ns, (service.vip, OTHER + 1)).expect_err("no answer from a port that isn't served");
        assert_eq!(silence.kind(), ErrorKind::WouldBlock, "from {from}: {silence}");
    }
    assert_eq!(service.counter("refused") - before, 6);
    drop((served, others));
}

#[test]
fn ping_is_answered() {
    let (_servers, service) = service();
    for (from, ns) in service.callers() {
        let reply = ping(ns, service.vip);
        assert!(reply.is_ok(), "from {from}: {reply:?}");
    }
}

/// One echo request by a raw socket, which the standard library sends and receives by as if it were UDP's.
fn ping(ns: &Netns, to: Ipv4Addr) -> std::io::Result<()> {
    /// Type 8, code 0, checksum, identifier 0x7676, number 1.
    const REQUEST: [u8; 8] = [8, 0, 0x81, 0x88, 0x76, 0x76, 0, 1];
    let fd: OwnedFd = ns.run(|| {
        socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).expect("a raw socket")
    });
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.send_to(&REQUEST, (to, 0))?;
    let mut buffer = [0; 256];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        // The IP header first; our own requests to ourselves are seen here, too.
        if from.ip() == to && length == 28 && buffer[20] == 0 {
            assert_eq!(buffer[24..28], REQUEST[4..], "the echo of what was sent");
            return Ok(());
        }
    }
}

/// A pod that gives itself another VIP's address, or any, gets no packet out by its pair.
#[test]
fn a_source_that_is_not_the_pods_goes_nowhere() {
    const ALIEN: &str = "10.118.0.99";
    let (_servers, service) = service();
    let pod = &service.pods[0].ns;
    pod.ip(&format!("addr add {ALIEN}/32 dev vip0"));
    pod.ip(&format!("rule add from {ALIEN} lookup 118"));
    let listener = service.client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7000))).expect("a socket");
    listener.set_read_timeout(Some(SILENCE)).expect("a time limit");
    let send = |source: &str| {
        let socket = pod.run(|| UdpSocket::bind((source, 0))).expect("a socket");
        socket.send_to(source.as_bytes(), "192.0.2.50:7000").expect("send");
    };
    let mut buffer = [0; 256];
    let before = service.counter("spoofed");
    send(&service.vip.to_string());
    let (_, from) = listener.recv_from(&mut buffer).expect("what the VIP itself sends");
    assert_eq!(from.ip(), service.vip);
    send(ALIEN);
    send(&service.pods[0].address().to_string());
    let (_, from) = listener.recv_from(&mut buffer).expect("the pod's own address, by the pod's own device");
    assert_eq!(from.ip(), service.pods[0].address());
    let alien = listener.recv_from(&mut buffer).expect_err("nothing from an address that isn't the pod's");
    assert_eq!(alien.kind(), ErrorKind::WouldBlock, "{alien}");
    assert!(service.counter("spoofed") > before, "it is counted");
    // A TCP connection of the VIP's is none of that.
    assert_eq!(connect(&service.client, service.vip, 20).failed, 0);
}

#[test]
fn two_vips_of_a_pod_serve_different_ports() {
    let join = joining("web,api", "web=8080/tcp,api=9090/tcp,9091/tcp");
    let service = Service::with(&join, 2, 0);
    let _servers: Vec<_> =
        service.pods.iter().flat_map(|pod| [OTHER, OTHER + 1].map(|port| Crowd::on(pod, port))).collect();
    let [web, api] = ["default/web", "default/api"].map(|vip| service.node.stub(|stub| stub.address(vip)));
    for (from, ns) in service.callers() {
        // What has no name before it is served by both.
        for open in [(web, PORT), (api, OTHER), (web, OTHER + 1), (api, OTHER + 1)] {
            ask(ns, open);
        }
        for closed in [(web, OTHER), (api, PORT)] {
            assert_refused(from, ns, closed);
        }
    }
}

/// Without ports everything is served.
#[test]
fn a_vip_without_ports_serves_all() {
    let service = Service::new(2, 0);
    let _servers: Vec<_> = service.pods.iter().map(|pod| Crowd::on(pod, OTHER)).collect();
    for (_, ns) in service.callers() {
        ask(ns, (service.vip, OTHER));
    }
    assert_eq!(service.counter("refused"), 0);
}

/// A connection that was there before its replica is asked for elsewhere is counted as the owner's.
#[test]
fn what_the_owner_does_is_counted() {
    let service = Service::new(2, 1);
    let mut streams: Vec<_> =
        (0..50).map(|_| dial(&service.node.ns, (service.vip, PORT)).expect("a connection")).collect();
    assert!(service.counter("chosen") > 0, "packets for the chosen replica");
    // The node's own sockets look their route up again.
    service.add(&service.pods[2]);
    for stream in &mut streams {
        stream.write_all(b"bye\n").expect("ask");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and the end");
        assert!(answer.ends_with('\n'), "{answer:?}");
    }
    assert!(service.counter("owned") > 0, "packets for another one: {}", service.status());
    // Nobody's: the replica that had the connection is gone.
    let mut stray: Vec<_> =
        (0..20).map(|_| dial(&service.client, (service.vip, PORT)).expect("a connection")).collect();
    service.remove(&service.pods[2]);
    service.remove(&service.pods[1]);
    let before = service.counter("missed");
    let answers: Vec<_> = stray.iter_mut().map(|stream| stream.write_all(b"who\n")).collect();
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    until("missed packets are counted", Duration::from_secs(10), || (service.counter("missed") > before).then_some(()));
}
