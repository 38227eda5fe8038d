//! What is served reaches the replicas and nothing else does; what they send is an answer of the VIP's, or goes nowhere.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, connect as connect_socket, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::harness::segment::{ACK, segment, send_packet};
use crate::harness::{Crowd, Families, Join, Netns, PATIENCE, PORT, SOON, Service, connect, scaled, until};

use super::{dual, vip6};

const OTHER: u16 = 9090;
const CLIENT: &str = "2001:db8::32";
const SILENCE: Duration = Duration::from_secs(2);

fn limited() -> (Vec<Crowd>, Service) {
    let join = Join::annotated("web").annotation("viproute.io/ports", "8080/tcp,8080/udp");
    let service = Service::dual(&join, 2, 0, Families::Both);
    (service.pods.iter().map(|pod| Crowd::of_both(pod, OTHER)).collect(), service)
}

fn udp(ns: &Netns, at: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let at = SocketAddr::from((at.into(), port));
    let socket = ns.run(|| UdpSocket::bind(at)).unwrap_or_else(|error| panic!("bind {at}: {error}"));
    socket.set_read_timeout(Some(SILENCE)).expect("a time limit");
    socket
}

#[test]
fn another_tcp_port_is_refused_at_once() {
    let (_servers, service) = limited();
    let vip6 = vip6(&service);
    let before = service.counter("port_denied");
    for (from, ns) in service.callers_of(vip6.into()) {
        connect(ns, vip6, 10);
        for _ in 0..10 {
            let to = SocketAddr::from((vip6, OTHER));
            match ns.run(|| TcpStream::connect_timeout(&to, scaled(SOON))) {
                Ok(_) => panic!("from {from}: {to} is open"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "from {from}: {to}: {error}"),
            }
        }
    }
    assert!(service.counter("port_denied") - before >= 30);
}

#[test]
fn another_udp_port_is_silent_and_the_one_that_is_served_answers() {
    let (_servers, service) = limited();
    let vip6 = vip6(&service);
    let servers: Vec<_> =
        service.pods.iter().flat_map(|pod| [PORT, OTHER].map(|port| udp(&pod.ns, vip6, port))).collect();
    for (from, ns) in service.callers_of(vip6.into()) {
        connect(ns, vip6, 1); // so that the caller knows its gateway
        let socket = udp(ns, Ipv6Addr::UNSPECIFIED, 0);
        for (port, served) in [(PORT, true), (OTHER, false), (OTHER + 1, false)] {
            socket.send_to(b"hello", (vip6, port)).expect("send");
            let patience = if served { scaled(SOON) } else { SILENCE };
            let heard = until_heard(&servers, patience);
            assert_eq!(heard.is_some(), served, "from {from} to {port}");
            let Some((server, who)) = heard else { continue };
            server.send_to(b"answer", who).expect("answer");
            let mut buffer = [0; 64];
            let (_, answered_by) = socket.recv_from(&mut buffer).expect("an answer");
            assert_eq!(answered_by, SocketAddr::from((vip6, port)));
        }
    }
}

/// The first of the servers to which a datagram comes, and who sent it.
fn until_heard(servers: &[UdpSocket], patience: Duration) -> Option<(&UdpSocket, SocketAddr)> {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        for server in servers {
            server.set_nonblocking(true).expect("a socket that doesn't block");
            if let Ok((_, who)) = server.recv_from(&mut [0; 64]) {
                return Some((server, who));
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// An echo request is answered; Neighbour Discovery and the like, from the pod, goes nowhere.
#[test]
fn ping_is_answered() {
    let (_servers, service) = limited();
    let vip6 = vip6(&service);
    for (from, ns) in service.callers_of(vip6.into()) {
        // The first one may be lost: the pod has yet to find its gateway, whose address is a tentative one for a while.
        until(&format!("an echo reply {from} gets"), PATIENCE, || ping(ns, vip6).ok());
    }
}

#[test]
fn a_source_that_is_not_the_pods_goes_nowhere() {
    const ALIEN: &str = "fd00:118::99";
    let service = dual(2);
    let pod = &service.pods[0].ns;
    pod.ip(&format!("addr add {ALIEN}/128 dev vip0 nodad"));
    pod.ip(&format!("-6 rule add from {ALIEN} lookup 118"));
    let listener = udp(&service.client, Ipv6Addr::UNSPECIFIED, 7000);
    let before = service.counter("spoofed");
    let sender = udp(pod, ALIEN.parse::<Ipv6Addr>().unwrap(), PORT);
    sender.send_to(b"alien", format!("[{CLIENT}]:7000")).expect("send");
    let alien = listener.recv_from(&mut [0; 8]).expect_err("nothing from an address that isn't the pod's");
    assert_eq!(alien.kind(), ErrorKind::WouldBlock, "{alien}");
    assert!(service.counter("spoofed") > before, "it is counted");
    connect(&service.client, vip6(&service), 20);
}

/// The maps have VIPs of IPv6 by numbers of 240.0.0.0/4. As addresses of IPv4 those are nobody's: not of the pod that sends with one as
/// the source, and no packet's destination.
#[test]
fn the_numbers_of_vips_are_no_addresses() {
    let service = dual(1);
    let (node, pod) = (&service.node.ns, &service.pods[0].ns);
    let client = Ipv4Addr::new(192, 0, 2, 50);
    let numbers = || (0..64).map(|last| Ipv4Addr::new(240, 0, 0, last)); // those of the first eight slots: the VIP's is among them
    pod.ip(&format!("rule add to {client} lookup 118"));
    let before = service.counter("spoofed");
    for number in numbers() {
        let answer = segment((number, PORT).into(), (client, 40_000).into(), ACK);
        send_packet(pod, (number.into(), client.into()), 6, &answer);
    }
    until("all sources are counted as foreign", PATIENCE, || (service.counter("spoofed") - before >= 64).then_some(()));
    let nexthops = node.ip_json("nexthop show proto 118");
    let to_pod = nexthops.iter().find(|nexthop| nexthop["gateway"].is_string()).expect("the pod's nexthop");
    node.ip(&format!("route add 240.0.0.0/26 nhid {}", to_pod["id"]));
    let before = service.counter("misrouted");
    let sender = udp(node, Ipv4Addr::UNSPECIFIED, 0);
    for number in numbers() {
        sender.send_to(b"stray", (number, PORT)).expect("send");
    }
    until("all are for no VIP of the pod's", PATIENCE, || (service.counter("misrouted") - before >= 64).then_some(()));
    connect(&service.client, vip6(&service), 20);
}

#[test]
fn a_vip_begins_no_flow() {
    let service = dual(2);
    let vip6 = vip6(&service);
    let pod = &service.pods[0].ns;
    let listener = service.client.run(|| TcpListener::bind(("::", 1680))).expect("a listener");
    let heard = udp(&service.client, Ipv6Addr::UNSPECIFIED, 1680);
    let before = service.counter("egress_denied");
    assert!(!leads_out(pod, vip6), "a connection from the VIP");
    udp(pod, vip6, 0).send_to(b"out", format!("[{CLIENT}]:1680")).expect("send");
    assert!(heard.recv(&mut [0; 8]).is_err(), "UDP from the VIP");
    assert!(service.counter("egress_denied") > before);
    drop(listener);
    connect(&service.client, vip6, 20);
}

/// Whether a connection from that address comes about.
fn leads_out(ns: &Netns, source: Ipv6Addr) -> bool {
    let fd: OwnedFd = ns.run(|| {
        let fd = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(source, 0, 0, 0))).expect("bind the VIP");
        fd
    });
    let wait = TimeVal::seconds(i64::try_from(SILENCE.as_secs()).expect("few seconds"));
    setsockopt(&fd, sockopt::SendTimeout, &wait).expect("SO_SNDTIMEO");
    let to = SocketAddrV6::new(CLIENT.parse().expect("an address"), 1680, 0, 0);
    connect_socket(fd.as_raw_fd(), &SockaddrIn6::from(to)).is_ok()
}

/// One echo request by a raw socket, which the standard library sends and receives by as if it were UDP's. The kernel sums it.
fn ping(ns: &Netns, to: Ipv6Addr) -> std::io::Result<()> {
    const REQUEST: [u8; 8] = [128, 0, 0, 0, 0x76, 0x76, 0, 1];
    let fd: OwnedFd = ns.run(|| {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6).expect("a raw socket")
    });
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(SILENCE))?;
    socket.send_to(&REQUEST, (to, 0))?;
    let mut buffer = [0; 256];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer) {
            // The kernel begins no read anew that has a time limit.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            heard => heard?,
        };
        if from.ip() == to && length == REQUEST.len() && buffer[0] == 129 {
            assert_eq!(buffer[4..8], REQUEST[4..], "the echo of what was sent");
            return Ok(());
        }
    }
}

/// A packet for a replica from one of the pod's own addresses: the kernel would take it, and the pod would answer itself.
#[test]
fn what_comes_from_the_pods_own_address_is_dropped() {
    let service = dual(1);
    let vip6 = vip6(&service);
    let own = service.pods[0].ns.ip("-6 -o addr show dev eth0 scope global");
    let own: Ipv6Addr = own.split_whitespace().nth(3).unwrap().split('/').next().unwrap().parse().expect("an address");
    let server = udp(&service.pods[0].ns, vip6, PORT);
    let before = service.counter("own_source");
    service.client.ip(&format!("addr add {own}/128 dev lo nodad"));
    udp(&service.client, own, 0).send_to(b"own", (vip6, PORT)).expect("send");
    assert!(server.recv(&mut [0; 8]).is_err(), "from {own}");
    assert_eq!(service.counter("own_source") - before, 1);
    udp(&service.client, CLIENT.parse::<Ipv6Addr>().unwrap(), 0).send_to(b"ok", (vip6, PORT)).expect("send");
    assert!(server.recv(&mut [0; 8]).is_ok());
}
