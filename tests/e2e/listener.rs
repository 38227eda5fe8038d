//! A new connection goes to a replica that listens, wherever the group's hash sent it, and is refused only where none does.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect as connect_socket, socket};

use crate::harness::{
    Crowd, Echo, Join, LONG, Load, Netns, PORT, Pod, Run, SOON, Service, Storm, Tally, deadline, hear, scaled, until,
};

/// Nobody listens there but who is told to.
const OTHER: u16 = 9090;

fn load(ns: &Netns, service: &Service, count: usize) -> Tally {
    ns.run(|| Load { to: (service.vip, OTHER).into(), count, rate: None, concurrency: 4 }.run())
}

/// The names that answer so many connections of each caller's; none of them fails.
fn answers(service: &Service, count: usize) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for (from, ns) in service.callers() {
        let tally = load(ns, service, count);
        assert_eq!(tally.failed, 0, "from {from}: {tally:?}");
        for (name, count) in tally.names {
            *names.entry(name).or_default() += count;
        }
    }
    names
}

fn names(names: &BTreeMap<String, usize>) -> Vec<&str> {
    names.keys().map(String::as_str).collect()
}

#[test]
fn a_connection_is_refused_only_where_nobody_listens() {
    let service = Service::new(4, 0);
    for (from, ns) in service.callers() {
        let to = SocketAddr::from((service.vip, OTHER));
        let error = ns.run(|| TcpStream::connect_timeout(&to, scaled(SOON))).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "from {from}: {error}");
    }
    let first = Crowd::on(&service.pods[0], OTHER);
    assert_eq!(names(&answers(&service, 60)), ["p1"]);
    let second = Crowd::on(&service.pods[1], OTHER);
    let both = answers(&service, 100);
    assert_eq!(names(&both), ["p1", "p2"]);
    // What was hashed to the two that don't listen is divided between the two that do.
    assert!(both.values().all(|count| *count > 60), "{both:?}");
    // Those of the first one that are open stay, and it gets no new one though it listens.
    service.drain(&service.pods[0]);
    assert_eq!(names(&answers(&service, 60)), ["p2"]);
    drop(second);
    let refused = load(&service.client, &service, 20);
    assert_eq!(refused.failed, 20, "a draining one is not asked: {refused:?}");
    service.undrain(&service.pods[0]);
    assert_eq!(names(&answers(&service, 60)), ["p1"]);
    drop(first);
}

/// It takes part as soon as it listens, and the connections that others got in its place stay where they are.
#[test]
fn a_replica_that_begins_to_listen_takes_its_share() {
    let service = Service::new(2, 0);
    let _first = Crowd::on(&service.pods[0], OTHER);
    let mut streams: Vec<_> = (0..100)
        .map(|_| service.client.run(|| TcpStream::connect((service.vip, OTHER))).expect("a connection"))
        .collect();
    let _second = Crowd::on(&service.pods[1], OTHER);
    let both = answers(&service, 100);
    assert!(both.get("p2").is_some_and(|count| *count > 90), "half of 300: {both:?}");
    for stream in &mut streams {
        std::io::Write::write_all(stream, b"who\n").expect("ask");
        assert_eq!(hear(stream, deadline(SOON)).expect("an answer"), "p1");
    }
}

/// The socket closes while SYNs are on their way to it: the resets by which the pod's namespace answers them are withheld,
/// and the SYNs that TCP sends again are answered by another replica.
#[test]
fn a_socket_that_closes_under_a_syn_refuses_nobody() {
    let service = Service::new(2, 0);
    let slow = Crowd::on(&service.pods[0], OTHER);
    let fast = Crowd::on(&service.pods[1], OTHER);
    let index = service.pods[0].ns.ip_json("link show dev vip0")[0]["link_index"].clone();
    let links = service.node.ns.ip_json("link");
    let host_veth = links.iter().find(|link| link["ifindex"] == index).expect("its host veth")["ifname"].clone();
    // Behind the flow owner a SYN takes 0.6 s, after the first two.
    let tbf = ["root", "tbf", "rate", "1kbit", "burst", "150", "limit", "30000"];
    let device = ["qdisc", "add", "dev", host_veth.as_str().expect("a name")];
    service.node.ns.cmd("tc").args(device).args(tbf).finish("").ok();
    let sockets: Vec<OwnedFd> = (0..12).map(|_| begin(&service.client, (service.vip, OTHER))).collect();
    drop(slow);
    let mut answered = 0;
    for socket in sockets {
        let mut stream = TcpStream::from(socket);
        // The first two may have been with the server when it ended.
        until("an end of the handshake", LONG, || {
            let error = stream.take_error().expect("the socket's error");
            assert!(error.as_ref().is_none_or(|e| e.kind() != ErrorKind::ConnectionRefused), "{error:?}");
            (error.is_some() || stream.peer_addr().is_ok()).then_some(())
        });
        stream.set_nonblocking(false).expect("a stream that waits");
        let asked = std::io::Write::write_all(&mut stream, b"who\n");
        let answer = asked.ok().and_then(|()| hear(&mut stream, deadline(LONG)).ok());
        answered += usize::from(answer.as_deref() == Some("p2"));
    }
    let withheld = service.counter("reset_withheld");
    assert!(
        answered >= 10 && withheld > 0,
        "{answered} of 12 answered by the other replica, {withheld} resets withheld"
    );
    drop(fast);
}

/// A connection that is begun, and not waited for.
fn begin(ns: &Netns, (vip, port): (Ipv4Addr, u16)) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = ns.run(|| socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket"));
    let begun = connect_socket(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(vip, port)));
    assert!(matches!(begun, Ok(()) | Err(nix::Error::EINPROGRESS)), "{begun:?}");
    fd
}

/// Who answers a datagram of each of so many flows of a client's.
fn heard(service: &Service, flows: usize) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for _ in 0..flows {
        let socket = service.client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket");
        *names.entry(said(&socket, service.vip)).or_default() += 1;
    }
    names
}

/// Asked once a second, as clients of UDP do: on the express path the first datagram for a socket that has closed is lost.
fn said(socket: &UdpSocket, vip: Ipv4Addr) -> String {
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a time limit");
    let mut buffer = [0; 256];
    let length = until("an answer", SOON, || {
        socket.send_to(b"who", (vip, PORT)).expect("send");
        socket.recv(&mut buffer).ok()
    });
    String::from_utf8_lossy(&buffer[..length]).split(' ').next().expect("a name").to_owned()
}

#[test]
fn a_datagram_for_a_declared_port_goes_to_a_replica_with_a_socket() {
    let web = |sticky: &str| {
        Join::annotated("web")
            .annotation("viproute.io/ports", &format!("{PORT}/udp,{PORT}/tcp"))
            .annotation("viproute.io/udp-sticky", sticky)
    };
    for sticky in ["false", "true"] {
        let service = Service::with(&web(sticky), 3, 0);
        let first = Echo::start(&service.pods[0], service.vip);
        assert_eq!(names(&heard(&service, 40)), ["p1"], "sticky {sticky}");
        let second = Echo::start(&service.pods[1], service.vip);
        let both = heard(&service, 60);
        assert_eq!(names(&both), ["p1", "p2"], "sticky {sticky}");
        // A flow that has begun goes on where there is a socket.
        let flows: Vec<_> = (0..20)
            .map(|_| service.client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket"))
            .collect();
        for flow in &flows {
            said(flow, service.vip);
        }
        drop(first);
        for flow in &flows {
            assert_eq!(said(flow, service.vip), "p2", "sticky {sticky}");
        }
        drop(second);
    }
}

/// Resets that a namespace has sent (`Tcp OutRsts`).
fn resets_sent(pod: &Pod) -> usize {
    counter(&pod.ns, "snmp", "Tcp: ", "OutRsts")
}

fn counter(ns: &Netns, file: &str, label: &str, name: &str) -> usize {
    let path = format!("/proc/thread-self/net/{file}");
    let text = ns.run(|| std::fs::read_to_string(path)).expect("the namespace's counters");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(label)).map(|line| line.split(' '));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let value = names.zip(values).find(|(known, _)| *known == name).expect(name).1;
    value.parse().expect("a number")
}

/// Three servers without a check are replaced one after the other. Each just ends, and its pod goes later; the new one is a
/// replica before it listens.
fn rolling_update(rate: u32) {
    const STEP: Duration = Duration::from_millis(700);
    let service = Service::new(3, 3);
    let (old, new) = service.pods.split_at(3);
    let mut servers: Vec<_> = old.iter().map(|pod| Crowd::on(pod, OTHER)).collect();
    let repeated = || counter(&service.client, "netstat", "TcpExt: ", "TCPSynRetrans");
    let (before, storm) = (repeated(), Storm::on(&service.client, (service.vip, OTHER), rate));
    storm.next(50);
    let mut resets = 0;
    for (old, new) in old.iter().zip(new) {
        service.add(new);
        thread::sleep(STEP);
        servers.push(Crowd::on(new, OTHER));
        storm.next(50);
        drop(servers.remove(0));
        thread::sleep(STEP);
        resets += resets_sent(old);
        service.remove(old);
    }
    let seen = storm.next(100);
    assert!(new.iter().all(|pod| seen.of(&pod.name) > 0), "{seen:?}");
    let (all, repeated) = (storm.seen(), repeated() - before);
    eprintln!(
        "{rate} a second: {} answered, {} reset by servers that ended, {repeated} SYNs repeated",
        all.answers(),
        all.failed.len()
    );
    let refused: Vec<_> = all.failed.iter().filter(|error| error.contains("refused")).collect();
    assert_eq!(refused, [""; 0], "of {all:?}");
    // A server that ends resets what it hasn't answered; nobody else resets anything.
    assert!(all.failed.len() <= resets, "{resets} resets by servers that ended: {all:?}");
    assert_eq!(new.iter().map(resets_sent).sum::<usize>(), 0, "resets of servers that live");
}

#[test]
fn a_rolling_update_of_servers_that_just_end_refuses_nobody() {
    for rate in [85, 1_000] {
        rolling_update(rate);
    }
}
