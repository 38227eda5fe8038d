//! Two ports of a VIP that have one number in the pod (Argo CD's 80 and 443): a flow's answers have the port that it asked for.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};

use super::closed::from;
use super::{callers, datagram_from};
use crate::express::Switch;
use crate::far::Cluster;
use crate::harness::{
    Crowd, Families, Flows, Join, Netns, PORT, Pod, Run, SOON, Service, Storm, deadline, hear, scaled, unspecified,
};

/// The VIP's second port.
const SECOND: u16 = 8443;
/// What the pods have in the place of both.
const TARGET: u16 = 9500;

fn ports() -> String {
    format!("{PORT}:{TARGET}/tcp,{SECOND}:{TARGET}/tcp,{PORT}:{TARGET}/udp,{SECOND}:{TARGET}/udp")
}

fn join() -> Join {
    Join::annotated("web").annotation("viproute.io/ports", &ports())
}

/// With servers on the pods' number.
fn service(joined: usize, spare: usize) -> (Service, Vec<Crowd>) {
    let service = Service::dual(&join(), joined, spare, Families::Both);
    let servers = service.pods.iter().map(|pod| Crowd::of_both(pod, TARGET)).collect();
    (service, servers)
}

fn unbroken(flows: &mut [Flows], gone: &[String], when: &str) {
    for _ in 0..2 {
        flows.iter_mut().for_each(Flows::ask);
        flows.iter_mut().for_each(Flows::hear);
    }
    let complaints: Vec<_> = flows.iter().filter_map(|flows| flows.complaint(gone)).collect();
    assert!(complaints.is_empty(), "{when}\n{}", complaints.join("\n"));
}

#[test]
fn connections_to_both_ports_live_on_whatever_replicas_do() {
    let (service, _servers) = service(3, 2);
    let both = |(vip, from, ns): (IpAddr, &'static str, &Netns)| {
        [PORT, SECOND].map(|port| Flows::on(from, ns, (vip, port), 60))
    };
    let mut flows: Vec<Flows> = callers(&service).into_iter().flat_map(both).collect();
    unbroken(&mut flows, &[], "from the beginning");
    service.add(&service.pods[3]);
    unbroken(&mut flows, &[], "a replica joins");
    service.drain(&service.pods[1]);
    unbroken(&mut flows, &[], "a replica drains");
    service.node.make_programs_another_builds();
    service.add(&service.pods[4]);
    unbroken(&mut flows, &[], "another build's programs are replaced");
    service.remove(&service.pods[2]);
    unbroken(&mut flows, &[service.pods[2].name.clone()], "a replica leaves");
    for pod in [&service.pods[0], &service.pods[3]] {
        service.node.check(pod, &service.join).ok();
    }
}

#[test]
fn both_ports_are_served_with_syn_cookies() {
    let (service, _servers) = service(2, 1);
    for pod in &service.pods {
        pod.ns.set_sysctl("net/ipv4/tcp_syncookies", "2");
    }
    let to = service.addresses().into_iter().flat_map(|vip| [(vip, PORT), (vip, SECOND)]);
    let storms: Vec<Storm> = to.map(|to| Storm::on(&service.client, to, 100)).collect();
    for storm in &storms {
        storm.next(200);
    }
    service.add(&service.pods[2]);
    for storm in storms {
        storm.next(200);
        assert_eq!(storm.seen().failed, [""; 0]);
    }
}

fn asks(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"who\n")?;
    hear(stream, deadline(SOON))
}

/// In one pod the two would be one connection.
#[test]
fn one_port_of_a_client_reaches_two_replicas_by_two_ports() {
    const CLIENTS: u16 = 41_000;
    let (service, _servers) = service(2, 0);
    for (number, (vip, caller, ns)) in (0..).zip(callers(&service)) {
        let connect = |port: u16| from(ns, CLIENTS + number, (vip, port));
        let mut first = connect(PORT).expect("connect");
        let mut second = connect(SECOND).unwrap_or_else(|error| panic!("from {caller}: {error}"));
        let (one, other) = (asks(&mut first).expect("an answer"), asks(&mut second).expect("an answer"));
        assert_ne!(one, other, "from {caller}");
        assert_eq!(asks(&mut first).expect("the first lives on"), one, "from {caller}");
    }
}

/// There is no second replica: the first connection is left in peace, and its end makes way for the second.
#[test]
fn one_port_of_a_client_has_one_connection_with_a_replica() {
    const CLIENT: u16 = 41_100;
    let (service, _servers) = service(1, 0);
    for vip in service.addresses() {
        has_one_connection(&service, vip, CLIENT);
    }
}

fn has_one_connection(service: &Service, vip: IpAddr, client: u16) {
    let mut first = from(&service.client, client, (vip, PORT)).expect("connect");
    let name = asks(&mut first).expect("an answer");
    let before = service.counter("port_denied");
    thread::scope(|scope| {
        let second = scope.spawn(|| from(&service.client, client, (vip, SECOND)));
        crate::harness::until("its SYN is refused", SOON, || (service.counter("port_denied") > before).then_some(()));
        assert_eq!(asks(&mut first).expect("the first lives on"), name);
        drop(first);
        let mut second = second.join().expect("a thread").expect("the SYN is sent again");
        assert_eq!(asks(&mut second).expect("an answer"), name);
    });
}

fn datagrams(ns: &Netns, to: (IpAddr, u16)) -> UdpSocket {
    let socket = datagram_from(ns, unspecified(to.0));
    socket.connect(to).expect("connect");
    socket.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
    socket
}

#[test]
fn datagrams_are_answered_from_the_port_that_was_asked() {
    let (service, _servers) = service(1, 0);
    let servers: Vec<_> = service.addresses().into_iter().map(|vip| Returning::on(&service.pods[0], vip)).collect();
    for (vip, caller, ns) in callers(&service) {
        let sockets = [PORT, SECOND].map(|port| datagrams(ns, (vip, port)));
        for socket in sockets.iter().chain(&sockets) {
            for length in [1, 1900] {
                socket.send(&vec![b'x'; length]).expect("send");
                assert_eq!(socket.recv(&mut [0; 4096]).expect("an answer"), length, "from {caller}");
            }
        }
    }
    drop(servers);
}

/// A server that sends back what it gets. It stops when dropped.
struct Returning {
    socket: UdpSocket,
    thread: Option<JoinHandle<()>>,
}

impl Returning {
    /// By IPv4 on no address: what comes from such a socket is answered from the VIP there.
    fn on(pod: &Pod, vip: IpAddr) -> Self {
        let at = if vip.is_ipv4() { unspecified(vip) } else { vip };
        let socket = pod.ns.run(|| UdpSocket::bind((at, TARGET))).expect("a server in a pod");
        let server = socket.try_clone().expect("a second descriptor");
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = server.recv_from(&mut buffer) {
                let _ = server.send_to(&buffer[..length], client);
            }
        });
        Self { socket, thread: Some(thread) }
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The pod's error quotes its own number.
#[test]
fn a_port_without_a_socket_is_unreachable_by_either() {
    let (service, _servers) = service(1, 0);
    for (vip, caller, ns) in callers(&service) {
        for port in [PORT, SECOND, PORT] {
            let socket = datagrams(ns, (vip, port));
            socket.send(b"x").expect("send");
            let error = socket.recv(&mut [0; 64]).expect_err("no server");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "from {caller}: {port}: {error}");
        }
    }
}

#[test]
fn the_express_path_carries_both() {
    const ASKED: u64 = 40;
    let (service, _servers) = service(2, 0);
    let switch = Switch::on(&service.node);
    for port in [PORT, SECOND] {
        let connect = || TcpStream::connect_timeout(&(service.vip, port).into(), scaled(SOON));
        let mut stream = service.client.run(connect).expect("connect");
        let (name, before) = (asks(&mut stream).expect("an answer"), switch.counts());
        for _ in 0..ASKED {
            assert_eq!(asks(&mut stream).expect("an answer"), name);
        }
        let now = switch.counts();
        let straight = (now.in_packets - before.in_packets, now.out_packets - before.out_packets);
        assert!(straight.0 >= ASKED - 2 && straight.1 >= ASKED - 2, "{port}: {straight:?} went straight of {ASKED}");
    }
}

#[test]
fn replicas_on_other_nodes_serve_both() {
    let cluster = Cluster::of(&join(), 1);
    let _servers = [1, 2, 3].map(|number| Crowd::on(&cluster.node(number).pods[0], TARGET));
    let froms = ["the client", "a pod on 2", "node 1"];
    let both =
        |from: &'static str| [PORT, SECOND].map(|port| Flows::on(from, cluster.ns(from), (cluster.vip, port), 60));
    let mut flows: Vec<Flows> = froms.into_iter().flat_map(both).collect();
    for at in [2, 3, 1] {
        cluster.leads_to(at);
        unbroken(&mut flows, &[], &format!("the VIP's packets come to {at}"));
    }
    assert!(flows.iter().all(|flows| flows.live().len() == 3), "each node's replica has some of each");
}

/// A server that speaks once it is told to, whatever its client says.
struct Speaker {
    listener: TcpListener,
}

impl Speaker {
    fn on(pod: &Pod) -> Self {
        Self { listener: pod.ns.run(|| TcpListener::bind(("0.0.0.0", TARGET))).expect("a server in a pod") }
    }
}

/// Nothing was noted while one port had the number alone, and the client is silent.
#[test]
fn a_connection_from_before_the_second_port_hears_its_server() {
    let alone = Join::annotated("web").annotation("viproute.io/ports", &format!("{SECOND}:{TARGET}/tcp"));
    let service = Service::with(&alone, 1, 0);
    let speaker = Speaker::on(&service.pods[0]);
    let connect = || TcpStream::connect_timeout(&(service.vip, SECOND).into(), scaled(SOON));
    let mut client = service.client.run(connect).expect("connect");
    client.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
    let (mut server, _) = speaker.listener.accept().expect("a client");
    let list = format!("{PORT}:{TARGET}/tcp,{SECOND}:{TARGET}/tcp");
    let pod = format!("default/{}", service.pods[0].name);
    service.node.ctl().args(["join", &pod, "default/web", "--ports", &list]).finish("").ok();
    for _ in 0..3 {
        server.write_all(b"news").expect("send");
        client.read_exact(&mut [0; 4]).expect("what the server says unasked");
    }
    let mut other = service.client.run(|| TcpStream::connect_timeout(&(service.vip, PORT).into(), scaled(SOON)));
    let (mut server, _) = speaker.listener.accept().expect("a client");
    server.write_all(b"news").expect("send");
    other.as_mut().expect("connect").set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit");
    other.as_mut().expect("connect").read_exact(&mut [0; 4]).expect("what the server says");
}
