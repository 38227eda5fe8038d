//! `viproutectl where`: the replica that has a flow, or would get it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};
use serde_json::{Value, json};
use viproute::internals::model::Family;
use viproute::internals::net::sockets::{Connection, Sockets};

use crate::harness::{
    Connection as Asking, Crowd, Families, Finished, Join, Lan, Netns, Node, PATIENCE, PORT, Pod, Run, SOON, Stub,
    until,
};

const VIPROUTECTL: &str = env!("CARGO_BIN_EXE_viproutectl");
const COUNT: u16 = 100;

/// A node, a client that routes to it, and three pods with servers that have joined "web".
struct Web {
    servers: Vec<Crowd>,
    pods: Vec<Pod>,
    client: Netns,
    node: Node,
    _lan: Lan,
    /// Clients ask at the VIP's address of that family.
    family: Family,
}

fn web() -> Join {
    Join::annotated("web").namespace("shop")
}

impl Web {
    fn new() -> Self {
        Self::of(&web())
    }

    fn of(join: &Join) -> Self {
        Self::by(Family::V4, join)
    }

    fn by(family: Family, join: &Join) -> Self {
        let lan = Lan::new();
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1", "10.1.1.0/24 via 192.0.2.1"]);
        let node = match family {
            Family::V4 => Node::new(&lan, 1),
            Family::V6 => {
                lan.add_ipv6(&client, 50);
                client.ip(&format!("route add {} via 2001:db8::1", Stub::NETWORK6));
                Node::dual(&lan, 1, Families::Both)
            }
        };
        let pods: Vec<_> = (0..3).map(|_| node.joined(join)).collect();
        let servers = pods.iter().map(|pod| Crowd::of_both(pod, PORT)).collect();
        let web = Self { servers, pods, client, node, _lan: lan, family };
        // A bucket that has just moved may move once more.
        until("even shares", PATIENCE, || {
            let status = web.ctl(&["status", "--output", "json"]).ok();
            let status: Value = serde_json::from_str(&status).unwrap();
            let replicas = status["vips"][0]["replicas"].as_array()?;
            replicas.iter().all(|replica| replica["buckets"].as_f64().unwrap() < 0.34).then_some(())
        });
        web
    }

    fn vip(&self) -> Ipv4Addr {
        self.pods[0].vip()
    }

    /// Where clients ask.
    fn at(&self) -> SocketAddr {
        match self.family {
            Family::V4 => (self.vip(), PORT).into(),
            Family::V6 => (self.pods[0].vips6()[0], PORT).into(),
        }
    }

    fn ctl(&self, arguments: &[&str]) -> Finished {
        self.node.ns.cmd(VIPROUTECTL).args(["--data-dir", &self.node.data()]).args(arguments).finish("")
    }

    fn where_is(&self, client: impl Into<SocketAddr>, more: &[&str]) -> Value {
        let (client, vip) = (client.into().to_string(), self.at().to_string());
        let arguments = [&["where", &client, &vip, "--output", "json"], more].concat();
        serde_json::from_str(&self.ctl(&arguments).ok()).expect("where --output json is JSON")
    }

    /// What `where` must say of a flow that is this pod's.
    fn place(&self, client: impl Into<SocketAddr>, pod: &str, because: &str) -> Value {
        let pod = self.pods.iter().find(|one| one.name == pod).unwrap_or_else(|| panic!("pod {pod}"));
        let result = pod.result.lock().unwrap().clone().unwrap();
        let device = result["interfaces"].as_array().unwrap().iter().find(|one| one["name"] == "vip0").unwrap();
        let host = result["interfaces"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["name"].as_str().unwrap().starts_with("vip") && one["name"] != device["name"]);
        json!({
            "vip": "shop/web", "address": self.at().ip().to_string(), "client": client.into().to_string(), "because": because,
            "replica": {
                "pod": format!("shop/{}", pod.name), "address": pod.address().to_string(),
                "device": host.unwrap()["name"],
            },
        })
    }

    /// `where` names the replica that answers: while there is a connection (before that, `before` looks), and when
    /// others have come and one has left.
    fn names_who_answers(
        &mut self,
        ns: fn(&Self) -> &Netns,
        client: impl Into<IpAddr>,
        before: fn(&Self, SocketAddr) -> Option<Value>,
    ) {
        let client = client.into();
        let mut open = Vec::new();
        for port in 20000..20000 + COUNT {
            let from = SocketAddr::new(client, port);
            let expected = before(self, from);
            let mut connection = connect_from(ns(self), port, self.at());
            let answer = connection.ask().expect("an answer");
            if let Some(expected) = expected {
                assert_eq!(expected, self.place(from, &answer.name, "route"), "before there is a connection");
            }
            open.push((from, answer.name, connection));
        }
        let names: BTreeSet<_> = open.iter().map(|(_, name, _)| name).collect();
        assert_eq!(names.len(), 3, "each replica has some");
        for _ in 0..2 {
            let pod = self.node.joined(&web());
            self.servers.push(Crowd::of_both(&pod, PORT));
            self.pods.push(pod);
        }
        for (from, name, _connection) in &open {
            assert_eq!(self.where_is(*from, &[]), self.place(*from, name, "connection"), "others have come");
        }
        // One that leaves takes its connections with it; those that stay are still found.
        let gone = self.pods.remove(0);
        self.node.del(&gone, &web()).ok();
        for (from, name, _connection) in open.iter().filter(|(_, name, _)| *name != gone.name) {
            assert_eq!(self.where_is(*from, &[]), self.place(*from, name, "connection"), "one has left");
        }
    }
}

/// A connection from a port of one's own choice.
pub fn connect_from(ns: &Netns, port: u16, to: impl Into<SocketAddr>) -> Asking {
    let to = to.into();
    let (family, any) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, Family::V4.unspecified()),
        SocketAddr::V6(_) => (AddressFamily::Inet6, Family::V6.unspecified()),
    };
    ns.run(|| {
        let socket: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
        let own = SockaddrStorage::from(SocketAddr::new(any, port));
        bind(socket.as_raw_fd(), &own).unwrap_or_else(|e| panic!("bind {port}: {e}"));
        let to_vip = SockaddrStorage::from(to);
        nix::sys::socket::connect(socket.as_raw_fd(), &to_vip).unwrap_or_else(|e| panic!("{to}: {e}"));
        Asking::over(TcpStream::from(socket)).expect("a connection")
    })
}

#[test]
fn of_a_clients_flows() {
    let client = Ipv4Addr::new(192, 0, 2, 50);
    Web::new().names_who_answers(|web| &web.client, client, |web, from| Some(web.where_is(from, &[])));
}

/// Where a new flow would go the kernel doesn't tell of IPv6, where there is a choice; a connection is found as by IPv4.
#[test]
fn of_a_clients_flows_by_ipv6() {
    let client: IpAddr = "2001:db8::32".parse().unwrap();
    let untold = |web: &Web, from: SocketAddr| {
        let finished = web.ctl(&["where", &from.to_string(), &web.at().to_string()]);
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(finished.stderr.contains("a new connection of IPv6"), "{finished:?}");
        None
    };
    Web::by(Family::V6, &web()).names_who_answers(|web| &web.client, client, untold);
}

#[test]
fn of_flows_to_one_replica_by_ipv6() {
    let mut web = Web::by(Family::V6, &web());
    for pod in web.pods.drain(1..) {
        web.node.del(&pod, &Join::annotated("web").namespace("shop")).ok();
    }
    for client in ["[2001:db8::32]:20000", "[2001:db8::1]:20000"] {
        let from: SocketAddr = client.parse().unwrap();
        assert_eq!(web.where_is(from, &[]), web.place(from, "p1", "route"));
        assert_eq!(web.where_is(from, &["--udp"]), web.place(from, "p1", "route"));
    }
    let text = web.ctl(&["where", "[2001:db8::32]:20000", &web.at().to_string()]).ok();
    assert!(
        text.starts_with("shop/web from [2001:db8::32]:20000: shop/p1 (") && text.ends_with("where the route leads\n")
    );
    let mixed = web.ctl(&["where", "192.0.2.50:20000", &web.at().to_string()]);
    assert!(mixed.status.code() == Some(1) && mixed.stderr.contains("are of two families"), "{mixed:?}");
    let at = web.at().to_string();
    web.pods[0].ns.ip("link del vip0");
    let none = web.ctl(&["where", "[2001:db8::32]:20000", &at]);
    assert!(none.stderr.contains("no replica of shop/web"), "{none:?}");
}

/// Of its own new flows the kernel doesn't tell where they would go; that is said and not guessed.
#[test]
fn of_the_nodes_own_flows() {
    Web::new().names_who_answers(
        |web| &web.node.ns,
        Ipv4Addr::new(192, 0, 2, 1),
        |web, from| {
            let finished = web.ctl(&["where", &from.to_string(), &web.at().to_string()]);
            assert_eq!(finished.status.code(), Some(1), "{finished:?}");
            assert!(finished.stderr.contains("a new connection of the node's own"), "{finished:?}");
            None
        },
    );
}

/// With one replica there is no choice.
#[test]
fn of_the_nodes_own_flows_to_one_replica() {
    let mut web = Web::new();
    for pod in web.pods.drain(1..) {
        web.node.del(&pod, &Join::annotated("web").namespace("shop")).ok();
    }
    let from = SocketAddrV4::new([192, 0, 2, 1].into(), 20000);
    assert_eq!(web.where_is(from, &[]), web.place(from, "p1", "route"));
}

#[test]
fn of_a_pods_flows() {
    let web = Web::new();
    let bystander = web.node.pod();
    for port in 20000..20020 {
        let from = SocketAddrV4::new(bystander.address(), port);
        let expected = web.where_is(from, &[]);
        let mut connection = connect_from(&bystander.ns, port, SocketAddrV4::new(web.vip(), PORT));
        let name = connection.ask().expect("an answer").name;
        assert_eq!(expected, web.place(from, &name, "route"));
        assert_eq!(web.where_is(from, &[]), web.place(from, &name, "connection"));
    }
}

/// As a Go program does it: one IPv6 socket for both.
#[test]
fn of_a_server_that_speaks_both_families() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pod = node.joined(&web());
    let listener = pod.ns.run(|| TcpListener::bind(("::", PORT)).unwrap());
    let web = Web { servers: Vec::new(), pods: vec![pod], client, node, _lan: lan, family: Family::V4 };
    let _connection = connect_from(&web.client, 20000, SocketAddrV4::new(web.vip(), PORT));
    let from = SocketAddrV4::new([192, 0, 2, 50].into(), 20000);
    let _accepted = listener.accept().unwrap();
    assert_eq!(web.where_is(from, &[]), web.place(from, "p1", "connection"));
}

/// What is over doesn't count, even while the kernel remembers it.
#[test]
fn a_connection_that_is_over_is_nobodys() {
    let web = Web::new();
    for pod in &web.pods {
        // A packet that comes twice, as happens on a busy machine, is answered by a client that is done with a reset, which
        // would make the server forget (RFC 1337).
        pod.ns.set_sysctl("net/ipv4/tcp_rfc1337", "1");
    }
    let from = SocketAddrV4::new([192, 0, 2, 50].into(), 20000);
    let listener_port = PORT + 1;
    let listeners: Vec<_> =
        web.pods.iter().map(|pod| pod.ns.run(|| TcpListener::bind(("0.0.0.0", listener_port)).unwrap())).collect();
    let mut connection = connect_from(&web.client, from.port(), SocketAddrV4::new(web.vip(), listener_port));
    for listener in &listeners {
        listener.set_nonblocking(true).unwrap();
    }
    let (at, accepted) = until("somebody has accepted", SOON, || {
        listeners.iter().enumerate().find_map(|(at, listener)| Some((at, listener.accept().ok()?.0)))
    });
    let vip = SocketAddrV4::new(web.vip(), listener_port).to_string();
    let because = || {
        let text = web.ctl(&["where", &from.to_string(), &vip, "--output", "json"]).ok();
        serde_json::from_str::<Value>(&text).unwrap()["because"].clone()
    };
    assert_eq!(because(), "connection");
    // Who ends it first remembers it: the server here. Dropped, the sockets would be closed with their last copy, and until it
    // begins its program a process that another test starts has copies: then the client might end first.
    let pod = &web.pods[at];
    accepted.shutdown(Shutdown::Write).unwrap();
    connection.end_after_server().unwrap();
    let mut sockets = String::new();
    let remembered = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        sockets = pod.ns.cmd("ss").args(["-Htan"]).finish("").ok();
        sockets.lines().any(|line| line.starts_with("TIME-WAIT") && line.contains(":20000"))
    });
    assert!(remembered, "the server doesn't remember it; its sockets:\n{sockets}");
    assert_eq!(because(), "route");
}

/// Without `--udp` and with it the ports are the same; the hash knows the protocol.
#[test]
fn of_udp_flows() {
    let web = Web::new();
    let servers: Vec<_> =
        web.pods.iter().map(|pod| pod.ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap())).collect();
    for server in &servers {
        server.set_nonblocking(true).unwrap();
    }
    for port in 20000..20030 {
        let from = SocketAddrV4::new([192, 0, 2, 50].into(), port);
        let expected = web.where_is(from, &["--udp"]);
        let socket = web.client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        let heard = until("somebody hears it", SOON, || {
            socket.send_to(b"who", (web.vip(), PORT)).unwrap();
            std::thread::sleep(Duration::from_millis(5));
            servers.iter().position(|server| server.recv_from(&mut [0; 8]).is_ok())
        });
        assert_eq!(expected, web.place(from, &web.pods[heard].name, "route"));
    }
}

/// A flow that stays is where it began, also when the route leads elsewhere.
#[test]
fn of_udp_flows_that_stay() {
    for (family, client) in [(Family::V4, "192.0.2.50"), (Family::V6, "2001:db8::32")] {
        let join = web().annotation("viproute.io/udp-sticky", "true");
        let mut web = Web::by(family, &join);
        let bound = |ns: &Netns, port| ns.run(|| UdpSocket::bind((family.unspecified(), port)).unwrap());
        let servers: Vec<_> = web.pods.iter().map(|pod| bound(&pod.ns, PORT)).collect();
        for server in &servers {
            server.set_nonblocking(true).unwrap();
        }
        let mut flows = Vec::new();
        for port in 20000..20020 {
            let socket = bound(&web.client, port);
            let heard = until("a server hears it", SOON, || {
                socket.send_to(b"who", web.at()).unwrap();
                std::thread::sleep(Duration::from_millis(5));
                servers.iter().position(|server| server.recv_from(&mut [0; 8]).is_ok())
            });
            flows.push((SocketAddr::new(client.parse().unwrap(), port), heard));
        }
        let pod = web.node.joined(&join);
        web.pods.push(pod);
        for (from, heard) in flows {
            assert_eq!(web.where_is(from, &["--udp"]), web.place(from, &web.pods[heard].name, "sticky"));
        }
    }
}

#[test]
fn as_text() {
    let web = Web::new();
    let vip = SocketAddrV4::new(web.vip(), PORT);
    let ask = || web.ctl(&["where", "192.0.2.50:20000", &vip.to_string()]).ok();
    let before = ask();
    let mut connection = connect_from(&web.client, 20000, vip);
    let name = connection.ask().unwrap().name;
    let pod = web.pods.iter().find(|pod| pod.name == name).unwrap();
    let start = format!("shop/web from 192.0.2.50:20000: shop/{name} ({}, vip", pod.address());
    let after = ask();
    assert!(before.starts_with(&start) && before.ends_with("), where the route leads\n"), "{before}");
    assert!(after.starts_with(&start) && after.ends_with("), which has the connection\n"), "{after}");
}

#[test]
fn what_cannot_be_answered_is_said_in_a_sentence() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.joined(&web());
    let address = pod.vip();
    let vip = format!("{address}:{PORT}");
    let refused = |client: &str, vip: &str, status: i32| {
        let mut command = node.ns.cmd(VIPROUTECTL);
        let finished = command.args(["--data-dir", &node.data(), "where", client, vip]).finish("");
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(status), ""), "{finished:?}");
        finished.stderr
    };
    let client = "192.0.2.50:20000";
    let unknown = refused(client, "10.118.0.99:80", 1);
    assert_eq!(unknown, "viproutectl: no VIP on this node has the address 10.118.0.99\n");
    // With its veth pair the route to it is deleted; what is left of the VIP refuses.
    pod.ns.ip("link del vip0");
    let nobody = refused(client, &vip, 1);
    assert!(nobody.contains("no replica of shop/web") && nobody.lines().count() == 1, "{nobody}");
    node.ns.ip(&format!("route add {address} via 192.0.2.254"));
    let elsewhere = refused(client, &vip, 1);
    assert!(elsewhere.contains("this node sends it out by eth0"), "{elsewhere}");
    node.ns.ip("route del default");
    let stranger = refused("203.0.113.9:20000", &vip, 1);
    assert!(stranger.contains("no route to the client 203.0.113.9"), "{stranger}");
    for (client, vip) in [
        ("192.0.2.50", vip.as_str()),
        ("192.0.2.50:0", vip.as_str()),
        ("192.0.2.50:65536", vip.as_str()),
        (client, "shop/web"),
        (client, "2001:db8::1:80"),
        (client, ""),
    ] {
        let usage = refused(client, vip, 2);
        assert!(usage.contains("expected an address and a port, such as"), "{usage}");
    }
    node.del(&pod, &web()).ok();
    refused(client, &vip, 1);
}

#[test]
fn a_pods_sockets_are_listed() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1", "10.1.1.0/24 via 192.0.2.1"]);
    let pod = node.joined(&web());
    let (vip, own) = (pod.vip(), pod.address());
    let (any, both, _bound, _only_v6) = pod.ns.run(|| {
        let listen = |address: &str, port| TcpListener::bind((address, port)).unwrap();
        (listen("0.0.0.0", 80), listen("::", 81), listen(&vip.to_string(), 82), listen("::1", 83))
    });
    let sockets = Sockets::open(&viproute::internals::net::Netns::open(Path::new(&pod.ns.path())).unwrap()).unwrap();
    let open = [(20000, vip, 80), (20001, vip, 81), (20002, own, 80), (20003, vip, 80)];
    let mut connections: Vec<_> =
        open.iter().map(|(from, to, port)| Some(connect_from(&client, *from, SocketAddrV4::new(*to, *port)))).collect();
    let mut accepted: Vec<_> = [&any, &both, &any, &any].iter().map(|listener| listener.accept().unwrap().0).collect();
    let remote = |port| SocketAddr::new([192, 0, 2, 50].into(), port);
    let found = |address: Ipv4Addr| {
        let mut found = sockets.connections(address.into()).unwrap();
        found.sort();
        found
    };
    let connection = |port, from| Connection { port, remote: remote(from) };
    assert_eq!(found(vip), [connection(80, 20000), connection(80, 20003), connection(81, 20001)]);
    assert_eq!(found(own), [connection(80, 20002)]);
    // The client has said all it has to say, and may still be answered: that is a connection.
    connections[0] = None;
    until("the end arrives", SOON, || {
        let half_open = pod.ns.cmd("ss").args(["-Htn", "state", "close-wait"]).finish("").ok();
        half_open.contains(":20000").then_some(())
    });
    assert!(found(vip).contains(&connection(80, 20000)));
    assert!(sockets.has_connection(SocketAddr::new(vip.into(), 80), remote(20000)).unwrap());
    // Closed on both sides it is none.
    accepted.clear();
    connections.clear();
    until("all are over", SOON, || found(vip).is_empty().then_some(()));
    assert!(!sockets.has_connection(SocketAddr::new(vip.into(), 80), remote(20000)).unwrap(), "a listener is none");
    assert!(!sockets.has_connection(SocketAddr::new(vip.into(), 8), remote(20000)).unwrap(), "not even that");
}
