//! A VIP's port may have another number in the pod (`8080:9001/tcp`), and another one in the next pod: whatever holds of a port that has
//! the same number holds of it too.

mod closed;
mod datagrams;
mod entries;
mod live;
mod said;
mod shared;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use crate::harness::{Join, Netns, PORT, SOON, Service, connect, scaled};

fn service(replicas: usize, spare: usize) -> Service {
    Service::dual_translated(&Join::annotated("web"), replicas, spare)
}

fn dial(ns: &Netns, to: (IpAddr, u16)) -> std::io::Result<TcpStream> {
    ns.run(|| TcpStream::connect_timeout(&SocketAddr::from(to), scaled(SOON)))
}

/// Each caller of each of the VIP's addresses.
fn callers(service: &Service) -> Vec<(IpAddr, &'static str, &Netns)> {
    let of = |vip| service.callers_of(vip).into_iter().map(move |(from, ns)| (vip, from, ns));
    service.addresses().into_iter().flat_map(of).collect()
}

fn datagram_from(ns: &Netns, address: IpAddr) -> UdpSocket {
    ns.run(|| UdpSocket::bind((address, 0))).expect("a socket")
}

#[test]
fn replicas_of_several_numbers_are_one_service() {
    let service = service(3, 0);
    for vip in service.addresses() {
        for (from, ns) in service.sharers_of(vip) {
            let tally = connect(ns, vip, 120);
            assert_eq!(tally.names.len(), 3, "from {from} to {vip}: {tally:?}");
        }
    }
}

/// Segments of 64 KB whose checksums are left to a network card, both ways.
#[test]
fn what_is_long_comes_whole() {
    const SIZE: usize = 8_000_000;
    let service = service(1, 0);
    let pod = &service.pods[0];
    let ports = format!("{PORT}:{}/tcp,443:8443/tcp", service.target(pod));
    service.node.remove(pod, &service.join);
    let pod = service.node.pod();
    let join = service.join.clone().annotation("viproute.io/ports", &ports);
    service.node.add(&pod, &join).ok();
    let listener = pod.ns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8443))).expect("a server in a pod");
    let server = thread::spawn(move || {
        for _ in 0..4 {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut bytes = vec![0; SIZE];
            stream.read_exact(&mut bytes).expect("all of it");
            stream.write_all(&bytes).expect("and back");
        }
    });
    let callers = [&service.client, &service.bystander.ns];
    for (vip, ns) in service.addresses().into_iter().flat_map(|vip| callers.map(|ns| (vip, ns))) {
        let mut stream = dial(ns, (vip, 443)).expect("connect");
        let sent: Vec<u8> = (0..SIZE).map(|number| u8::try_from(number % 251).expect("a byte")).collect();
        let mut writing = stream.try_clone().expect("a second descriptor");
        let copy = sent.clone();
        let writer = thread::spawn(move || writing.write_all(&copy).expect("send"));
        let mut heard = vec![0; SIZE];
        stream.read_exact(&mut heard).expect("all of it comes back");
        writer.join().expect("the writer");
        assert!(heard == sent, "what came back is what was sent");
    }
    server.join().expect("the server");
}
