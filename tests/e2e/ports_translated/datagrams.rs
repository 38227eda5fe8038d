//! UDP: short and long datagrams, such without a checksum, errors, flows that stay.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use super::{callers, datagram_from, service};
use crate::harness::{
    Datagrams, Echo, Join, Kind, Netns, PORT, SOON, Service, connect, scaled, segment, unspecified, until,
};

fn servers(service: &Service) -> Vec<Echo> {
    let of = |vip| service.pods.iter().map(move |pod| Echo::on(pod, vip, service.target(pod)));
    service.addresses().into_iter().flat_map(of).collect()
}

fn connected(ns: &Netns, vip: IpAddr) -> UdpSocket {
    let socket = datagram_from(ns, unspecified(vip));
    socket.connect((vip, PORT)).expect("connect");
    socket.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
    socket
}

/// The length of the answer without the name before it.
fn echoed(socket: &UdpSocket, said: &[u8]) -> usize {
    socket.send(said).expect("send");
    let mut buffer = vec![0; 1 << 16];
    let length = socket.recv(&mut buffer).expect("an answer");
    let name = buffer.iter().position(|byte| *byte == b' ').expect("a name");
    length - name - 1
}

#[test]
fn flows_are_answered_and_none_is_lost() {
    let service = service(3, 0);
    let _servers = servers(&service);
    let every = Duration::from_millis(50);
    let flows = service.addresses().into_iter().map(|vip| {
        let callers = service.callers_of(vip).into_iter();
        // So that each caller knows its gateway: what it sends before may be lost.
        let callers = callers.inspect(|(_, ns)| drop(connect(ns, vip, 1)));
        let kinds: Vec<_> = callers.map(|(from, ns)| Kind { from, ns, connected: true, every }).collect();
        (vip, Datagrams::start(vip, &kinds, 30))
    });
    let flows: Vec<_> = flows.collect();
    thread::sleep(Duration::from_secs(2));
    for (vip, flows) in flows {
        for outcome in flows.stop() {
            // A socket of the node's own asks for its way by IPv6 before it has a source address, and with it after a change of any route.
            let may_move = vip.is_ipv6() && outcome.kind.starts_with("from the node");
            assert_eq!(outcome.lost, 0, "{} to {vip}", outcome.kind);
            assert!(may_move || outcome.replicas.len() == 1, "{} to {vip}", outcome.kind);
            assert!(outcome.sent > 10, "{} to {vip}", outcome.kind);
        }
    }
}

#[test]
fn fragments_are_answered() {
    let service = service(2, 0);
    let _servers = servers(&service);
    for (vip, from, ns) in callers(&service) {
        let socket = connected(ns, vip);
        for length in [1, 1400, 1900] {
            assert_eq!(echoed(&socket, &vec![b'x'; length]), length, "from {from} to {vip}");
        }
    }
}

/// IPv6 has none without (RFC 8200, 8.1).
#[test]
fn a_datagram_without_a_checksum_is_answered() {
    let service = service(1, 0);
    let _servers = servers(&service);
    let socket = connected(&service.client, service.vip.into());
    let port = socket.local_addr().expect("its address").port();
    segment::send_unchecked(&service.client, port, (service.vip, PORT).into(), b"hello");
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).expect("an answer");
    assert_eq!(&buffer[..length], format!("{} hello", service.pods[0].name).as_bytes());
}

/// The pod's ICMP error quotes the pod's number; the client's socket knows the VIP's.
#[test]
fn a_port_without_a_socket_is_unreachable() {
    let service = service(1, 0);
    for (vip, from, ns) in callers(&service) {
        let socket = connected(ns, vip);
        for said in [&b"x"[..], &[b'x'; 1000]] {
            socket.send(said).expect("send");
            let error = socket.recv(&mut [0; 64]).expect_err("no server");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "from {from} to {vip}: {error}");
        }
    }
}

/// The client's ICMP error quotes the VIP's number; the pod's socket knows the pod's.
#[test]
fn a_client_that_is_gone_is_told_to_the_pod() {
    let service = service(2, 0);
    for vip in service.addresses() {
        is_told(&service, vip);
    }
}

fn is_told(service: &Service, vip: IpAddr) {
    let clients: Vec<_> = service.pods.iter().map(|_| connected(&service.client, vip)).collect();
    let sockets: Vec<_> = service
        .pods
        .iter()
        .zip(&clients)
        .map(|(pod, client)| {
            let socket = pod.ns.run(|| UdpSocket::bind((vip, service.target(pod)))).expect("a socket");
            let client = client.local_addr().expect("its address");
            socket.connect(client).expect("connect to the client");
            socket
        })
        .collect();
    // They have begun: else the guard takes what comes for no answer.
    drop(clients);
    for (pod, socket) in service.pods.iter().zip(&sockets) {
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time limit");
        // A program that another test starts has the client's socket too until it begins.
        until(&format!("{} is told", pod.name), SOON, || {
            let error = socket.send(b"x").map_or_else(Err, |_| socket.recv(&mut [0; 64])).expect_err("nobody is there");
            (error.kind() == ErrorKind::ConnectionRefused).then_some(())
        });
    }
}

#[test]
fn sticky_flows_stay_when_a_replica_joins() {
    let service = Service::dual_translated(&Join::annotated("web").annotation("viproute.io/udp-sticky", "true"), 2, 1);
    let _servers = servers(&service);
    let kind = Kind { from: "the client", ns: &service.client, connected: true, every: Duration::from_millis(400) };
    let flows: Vec<_> = service.addresses().into_iter().map(|vip| Datagrams::start(vip, &[kind], 60)).collect();
    thread::sleep(Duration::from_secs(2));
    service.add(&service.pods[2]);
    thread::sleep(Duration::from_secs(4));
    for outcome in flows.into_iter().flat_map(Datagrams::stop) {
        assert_eq!((outcome.lost, outcome.replicas.len()), (0, 1), "{}", outcome.kind);
    }
}

/// A server that binds no address is found by the number that it has.
#[test]
fn an_unbound_server_answers_from_the_vip() {
    let service = Service::dual_translated(&Join::annotated("web").annotation("viproute.io/udp-reply", "vip"), 1, 0);
    let pod = &service.pods[0];
    let at = (std::net::Ipv6Addr::UNSPECIFIED, service.target(pod));
    let server = pod.ns.run(|| UdpSocket::bind(at)).expect("a server");
    let answering = thread::spawn(move || {
        let mut buffer = [0; 64];
        for _ in 0..4 {
            let (length, client) = server.recv_from(&mut buffer).expect("a datagram");
            server.send_to(&[b"p ", &buffer[..length]].concat(), client).expect("an answer");
        }
    });
    for vip in service.addresses() {
        for ns in [&service.client, &service.bystander.ns] {
            assert_eq!(echoed(&connected(ns, vip), b"hello"), 5, "{vip}");
        }
    }
    answering.join().expect("the server");
}
