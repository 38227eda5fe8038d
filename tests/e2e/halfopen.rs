//! Connections that are being opened, or have just been closed, while replicas come and go.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect as connect_socket, setsockopt, socket, sockopt,
};
use serde_json::json;

use crate::harness::{Join, LONG, Netns, PORT, Run, Service, Storm, connect, deadline, hear, until};

pub const HANDSHAKES: usize = 200;

/// First nothing comes back from the servers; a SYN that is sent again may open the connection a second time, elsewhere.
const HOLD_ANSWERS: &str = "table inet hold { chain answers {
    type filter hook input priority 0; tcp sport 8080 tcp flags & (syn | ack) == syn | ack drop;
}
}
";

/// Then the servers' SYN-ACKs decide alone which of the two it is.
const HOLD_REQUESTS: &str = "delete table inet hold
table inet hold { chain requests {
    type filter hook output priority 0; tcp dport 8080 tcp flags & (syn | ack) == syn drop;
}
}
";

/// When: the first replica sends its SYN-ACK again after 7 s, one that was reached by a SYN after 1 or 3 s, later than that.
const TURN: Duration = Duration::from_millis(6300);

/// A socket that connects to the VIP without waiting for it; from `port` if there is one, though it was used just now.
pub fn begin(ns: &Netns, vip: impl Into<IpAddr>, port: Option<u16>) -> TcpStream {
    let vip = vip.into();
    let (family, unspecified): (_, IpAddr) = match vip {
        IpAddr::V4(_) => (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into()),
        IpAddr::V6(_) => (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into()),
    };
    until("a free port", LONG, || {
        let fd: OwnedFd = ns.run(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(family, SockType::Stream, flags, None).expect("a socket")
        });
        if let Some(port) = port {
            setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
            bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(unspecified, port))).expect("bind");
        }
        match connect_socket(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(vip, PORT))) {
            Ok(()) | Err(Errno::EINPROGRESS) => Some(TcpStream::from(fd)),
            // The last packet of the port's former connection is still under way.
            Err(Errno::EADDRNOTAVAIL) if port.is_some() => None,
            Err(error) => panic!("connect to {vip}: {error}"),
        }
    })
}

/// What a connection under way comes to: the replica that answers on it.
fn complete(stream: &mut TcpStream, deadline: Instant) -> Result<String, String> {
    while stream.peer_addr().is_err() {
        if let Some(error) = stream.take_error().map_err(|error| error.to_string())? {
            return Err(format!("not connected: {error}"));
        }
        if Instant::now() > deadline {
            return Err("not connected in time".into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    stream.set_nonblocking(false).expect("a stream that blocks");
    question(stream, b"who\n", deadline)
}

fn question(stream: &mut TcpStream, line: &[u8], deadline: Instant) -> Result<String, String> {
    stream.write_all(line).and_then(|()| hear(stream, deadline)).map_err(|error| error.to_string())
}

/// A VIP with so few buckets that none is without a connection: a replica that joins takes some of those in use.
fn service(joined: usize, spare: usize) -> Service {
    Service::with(&Join::annotated("web").key("group", json!({ "buckets": 16 })), joined, spare)
}

/// Newer kernels send the first SYNs each second, which would leave no bucket idle.
pub fn repeats_rarely(ns: &Netns) {
    let linear = "net/ipv4/tcp_syn_linear_timeouts";
    if ns.sysctls(&[linear.to_owned()])[0].is_some() {
        ns.set_sysctl(linear, "0");
    }
}

/// Handshakes from `ns` under way, then `change`, then they may go on: each must come to an answer.
pub fn complete_after(vip: impl Into<IpAddr>, ns: &Netns, change: impl FnOnce()) {
    let vip = vip.into();
    repeats_rarely(ns);
    let rules = |rules: &str| ns.cmd("nft").args(["-f", "-"]).finish(rules).ok();
    rules(HOLD_ANSWERS);
    let start = Instant::now();
    let mut streams: Vec<_> = (0..HANDSHAKES).map(|_| begin(ns, vip, None)).collect();
    thread::sleep(Duration::from_millis(200));
    assert!(streams.iter().all(|stream| stream.peer_addr().is_err()), "no handshake is complete");
    change();
    thread::sleep(TURN.saturating_sub(start.elapsed()));
    rules(HOLD_REQUESTS);
    all_complete(&mut streams);
}

/// Each comes to an answer.
pub fn all_complete(streams: &mut [TcpStream]) {
    let deadline = deadline(LONG);
    let count = streams.len();
    let answers: Vec<_> = streams.iter_mut().map(|stream| complete(stream, deadline)).collect();
    let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {count} failed: {:?}", failed.len(), &failed[..failed.len().min(5)]);
}

#[test]
fn handshakes_of_a_client_complete_while_replicas_join() {
    let service = service(3, 2);
    complete_after(service.vip, &service.client, || service.pods[3..].iter().for_each(|pod| service.add(pod)));
}

#[test]
fn handshakes_of_the_node_complete_while_replicas_join() {
    let service = service(3, 2);
    complete_after(service.vip, &service.node.ns, || service.pods[3..].iter().for_each(|pod| service.add(pod)));
}

#[test]
fn handshakes_complete_while_a_replica_drains() {
    let service = service(3, 0);
    complete_after(service.vip, &service.client, || service.drain(&service.pods[0]));
}

/// Those of the replica that leaves are begun anew by TCP itself: the SYN is sent again, and reaches another.
#[test]
fn handshakes_complete_while_a_replica_leaves() {
    let service = service(4, 0);
    complete_after(service.vip, &service.client, || service.remove(&service.pods[3]));
}

/// With cookies a replica that has sent a SYN-ACK knows nothing of the connection until the client's next packet.
#[test]
fn syn_cookies_are_served_while_a_replica_joins() {
    let service = service(3, 1);
    for pod in &service.pods {
        pod.ns.set_sysctl("net/ipv4/tcp_syncookies", "2");
    }
    for (_, ns) in service.callers() {
        connect(ns, service.vip, 100);
    }
    let storm = Storm::start(&service.client, service.vip, 500);
    thread::sleep(Duration::from_secs(1));
    service.add(&service.pods[3]);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(storm.next(100).failed, [""; 0]);
    let cookies: u64 = service.pods.iter().map(|pod| cookies_sent(&pod.ns)).sum();
    assert!(cookies >= 300, "only {cookies} cookies were sent");
}

/// `TcpExt SyncookiesSent` of a namespace.
fn cookies_sent(ns: &Netns) -> u64 {
    let text = ns.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat")).expect("the namespace's counters");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: ")).map(|line| line.split(' '));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let value = names.zip(values).find(|(name, _)| *name == "SyncookiesSent").expect("SyncookiesSent").1;
    value.parse().expect("a number")
}

/// The server has closed first and remembers the connection; the client opens another one from the same port at once, and
/// it lives on while replicas join: the memory of the old one, at another replica, must not be taken for it.
#[test]
fn a_port_is_used_again_after_the_server_has_closed() {
    const PORTS: std::ops::Range<u16> = 40_000..40_100;
    let service = service(2, 4);
    let client = &service.client;
    let open = |port| {
        let mut stream = begin(client, service.vip, Some(port));
        let replica = complete(&mut stream, deadline(LONG));
        (stream, replica.unwrap_or_else(|error| panic!("port {port}: {error}")))
    };
    let mut live: Vec<_> = PORTS.map(open).collect();
    for joining in &service.pods[2..] {
        for (port, (stream, replica)) in PORTS.zip(&mut live) {
            let answer = question(stream, b"bye\n", deadline(LONG));
            assert_eq!(answer.as_ref(), Ok(&*replica), "port {port}, before it is closed");
            assert!(hear(stream, deadline(LONG)).is_err(), "the server closes");
        }
        drop(live);
        live = PORTS.map(open).collect();
        service.add(joining);
        // Buckets move once they were idle.
        thread::sleep(Duration::from_secs(2));
        for (port, (stream, replica)) in PORTS.zip(&mut live) {
            let answer = question(stream, b"who\n", deadline(LONG));
            assert_eq!(answer.as_ref(), Ok(&*replica), "port {port}, after {} has joined", joining.name);
        }
    }
    assert_eq!(live[0].0.local_addr().unwrap(), SocketAddr::from(([192, 0, 2, 50], PORTS.start)));
}
