//! What the VIP serves reaches the replicas and nothing else does; what they send has the VIP as its source or goes nowhere.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect as connect_socket, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::json;

use crate::harness::{Crowd, Echo, Join, Netns, PORT, SOON, Service, connect, deadline, hear, scaled, until};

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
    ns.run(|| TcpStream::connect_timeout(&to, scaled(SOON)))
}

/// The name that answers at `to`.
fn ask(ns: &Netns, to: (Ipv4Addr, u16)) -> String {
    let mut stream = dial(ns, to).unwrap_or_else(|error| panic!("{to:?}: {error}"));
    stream.write_all(b"who\n").expect("ask");
    hear(&mut stream, deadline(SOON)).unwrap_or_else(|error| panic!("{to:?}: {error}"))
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
    let before = service.counter("port_denied");
    for (from, ns) in service.callers() {
        connect(ns, service.vip, 10);
        for _ in 0..10 {
            assert_refused(from, ns, (service.vip, OTHER));
        }
    }
    let refused = service.counter("port_denied") - before;
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
    let before = service.counter("port_denied");
    for (from, ns) in service.callers() {
        let answer = say(ns, (service.vip, PORT)).unwrap_or_else(|error| panic!("from {from}: {error}"));
        assert!(answer.ends_with(" hello"), "{answer}");
        let silence = say(ns, (service.vip, OTHER)).expect_err("no answer from a port that isn't served");
        assert_eq!(silence.kind(), ErrorKind::WouldBlock, "from {from}: {silence}");
        // Whether anybody listens there makes no difference.
        let silence = say(ns, (service.vip, OTHER + 1)).expect_err("no answer from a port that isn't served");
        assert_eq!(silence.kind(), ErrorKind::WouldBlock, "from {from}: {silence}");
    }
    assert_eq!(service.counter("port_denied") - before, 6);
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

fn ping(ns: &Netns, to: Ipv4Addr) -> std::io::Result<()> {
    ping_from(ns, Ipv4Addr::UNSPECIFIED, to)
}

/// One echo request by a raw socket, which the standard library sends and receives by as if it were UDP's.
fn ping_from(ns: &Netns, from: Ipv4Addr, to: Ipv4Addr) -> std::io::Result<()> {
    /// Type 8, code 0, checksum, identifier 0x7676, number 1.
    const REQUEST: [u8; 8] = [8, 0, 0x81, 0x88, 0x76, 0x76, 0, 1];
    let fd: OwnedFd = ns.run(|| {
        socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).expect("a raw socket")
    });
    bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(SILENCE))?;
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

/// A pod that gives itself another VIP's address, or any, gets no packet out by its veth pair.
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
        // Of the VIP's ports only this one may send unasked.
        let socket = pod.run(|| UdpSocket::bind((source, PORT))).expect("a socket");
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

/// A pod whose own interface is shut by a policy, and listeners wherever its VIP could lead around that.
struct WayOut {
    service: Service,
    listeners: Vec<(&'static str, Ipv4Addr, TcpListener)>,
}

/// The address of every host veth.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 118, 1);

impl WayOut {
    fn new(join: &Join) -> Self {
        let service = Service::with(join, 2, 0);
        let listen = |ns: &Netns| ns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 1680))).expect("a listener");
        let (client, node) = (listen(&service.client), listen(&service.node.ns));
        let gateway = node.try_clone().expect("a second descriptor");
        let listeners = vec![
            ("another host", Ipv4Addr::new(192, 0, 2, 50), client),
            ("the node", service.node.address(), node),
            ("the node by the gateway's address", GATEWAY, gateway),
        ];
        Self { service, listeners }
    }

    /// Whether a connection from the VIP comes about.
    fn leads_out(&self, to: Ipv4Addr) -> bool {
        let fd: OwnedFd = self.service.pods[0].ns.run(|| {
            let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
            bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(self.service.vip, 0))).expect("bind the VIP");
            fd
        });
        let wait = TimeVal::seconds(i64::try_from(SILENCE.as_secs()).expect("few seconds"));
        setsockopt(&fd, sockopt::SendTimeout, &wait).expect("SO_SNDTIMEO");
        connect_socket(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(to, 1680))).is_ok()
    }

    /// Whether a datagram from that port of the VIP's reaches the client.
    fn is_heard(&self, port: u16) -> bool {
        let listener = self.service.client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 1680))).expect("a socket");
        listener.set_read_timeout(Some(SILENCE)).expect("a time limit");
        let sender = self.service.pods[0].ns.run(|| UdpSocket::bind((self.service.vip, port))).expect("a socket");
        sender.send_to(b"out", "192.0.2.50:1680").expect("send");
        listener.recv(&mut [0; 8]).is_ok()
    }
}

#[test]
fn a_vip_begins_no_flow() {
    for ports in ["", "8080/tcp,8080/udp"] {
        let join = if ports.is_empty() { Join::annotated("web") } else { joining("web", ports) };
        let way = WayOut::new(&join);
        let service = &way.service;
        let mut denied = 0;
        let mut rises = |what: &str| {
            let now = service.counter("egress_denied");
            assert!(now > denied, "{ports:?}: {what} is not counted");
            denied = now;
        };
        for (what, to, _) in &way.listeners {
            assert!(!way.leads_out(*to), "{ports:?}: a connection from the VIP to {what}");
            rises(what);
        }
        assert!(!way.is_heard(0), "{ports:?}: UDP from the VIP");
        rises("UDP");
        let pinged = ping_from(&service.pods[0].ns, service.vip, Ipv4Addr::new(192, 0, 2, 50));
        assert!(pinged.is_err(), "{ports:?}: an echo request from the VIP");
        rises("an echo request");
        // It answers any client.
        connect(&service.client, service.vip, 20);
        connect(&service.bystander.ns, service.vip, 5);
        for from in [service.node.address(), GATEWAY] {
            let answer = ask_from(&service.node.ns, from, (service.vip, PORT));
            assert!(answer.starts_with('p'), "{ports:?}: asked from {from}: {answer}");
        }
        let _echo: Vec<_> = service.pods.iter().map(|pod| Echo::on(pod, service.vip, PORT)).collect();
        for (from, ns) in service.callers() {
            let answer = say(ns, (service.vip, PORT)).unwrap_or_else(|error| panic!("{ports:?}: from {from}: {error}"));
            assert!(answer.ends_with(" hello"), "{answer}");
            assert!(ping(ns, service.vip).is_ok(), "{ports:?}: from {from}");
        }
        assert_eq!(service.counter("egress_denied"), denied, "{ports:?}: an answer was denied");
    }
}

/// The name that answers at `to` when it is asked from one of the node's addresses.
fn ask_from(ns: &Netns, from: Ipv4Addr, to: (Ipv4Addr, u16)) -> String {
    let fd: OwnedFd = ns.run(|| {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0))).expect("bind");
        fd
    });
    connect_socket(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(to.0, to.1))).expect("connect");
    let mut stream = TcpStream::from(fd);
    stream.write_all(b"who\n").expect("ask");
    hear(&mut stream, deadline(SOON)).unwrap_or_else(|error| panic!("{to:?}: {error}"))
}

#[test]
fn with_any_egress_a_vip_begins_flows() {
    let way = WayOut::new(&joining("web", "8080/tcp").key("vipEgress", json!("any")));
    for (what, to, _) in &way.listeners {
        assert!(way.leads_out(*to), "a connection from the VIP to {what}");
    }
    assert_eq!(way.service.counter("egress_denied"), 0);
    assert!(way.is_heard(0), "UDP from the VIP");
    connect(&way.service.client, way.service.vip, 20);
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
    assert_eq!(service.counter("port_denied"), 0);
}

/// A connection that was there before its replica is asked for elsewhere is counted as the owner's.
#[test]
fn what_the_owner_does_is_counted() {
    let service = Service::new(2, 1);
    let mut streams: Vec<_> =
        (0..50).map(|_| dial(&service.node.ns, (service.vip, PORT)).expect("a connection")).collect();
    assert!(service.counter("local_hit") > 0, "packets for the chosen replica");
    // The node's own sockets look their route up again.
    service.add(&service.pods[2]);
    for stream in &mut streams {
        stream.write_all(b"bye\n").expect("ask");
        stream.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and the end");
        assert!(answer.ends_with('\n'), "{answer:?}");
    }
    assert!(service.counter("steered") > 0, "packets for another one: {}", service.status());
    // No replica's: the one that had the connection is removed.
    let mut stray: Vec<_> =
        (0..20).map(|_| dial(&service.client, (service.vip, PORT)).expect("a connection")).collect();
    service.remove(&service.pods[2]);
    service.remove(&service.pods[1]);
    let before = service.counter("no_owner");
    let answers: Vec<_> = stray.iter_mut().map(|stream| stream.write_all(b"who\n")).collect();
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    until("missed packets are counted", SOON, || (service.counter("no_owner") > before).then_some(()));
}
