//! Anybody on the network can write a pod's address as a source.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::harness::{Join, PATIENCE, PORT, Service, connect, until};

/// The one that stands in for a pod where it calls itself.
const STAND_IN: Ipv4Addr = Ipv4Addr::new(169, 254, 118, 2);

/// An IPv4 packet of that protocol, without checksum where the protocol may have none.
fn packet(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("a short packet");
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

fn send(service: &Service, packet: &[u8]) {
    let fd: OwnedFd = service.client.run(|| {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        raw.expect("a raw socket")
    });
    UdpSocket::from(fd).send_to(packet, SocketAddrV4::new(service.vip, 0)).expect("send");
}

/// The kernel writes the IP header's checksum of a raw packet.
fn is_dropped(service: &Service, from: Ipv4Addr, protocol: u8, payload: &[u8]) {
    let before = service.counter("own_source");
    send(service, &packet(from, service.vip, protocol, payload));
    until(&format!("protocol {protocol} from {from} is dropped"), PATIENCE, || {
        (service.counter("own_source") > before).then_some(())
    });
}

#[test]
fn what_the_pod_has_not_sent_is_dropped() {
    for service in [Service::new(1, 0), Service::translated(&Join::annotated("web"), 1, 0)] {
        let pod = &service.pods[0];
        let [port_high, port_low] = PORT.to_be_bytes();
        let syn = [200, 0, port_high, port_low, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
        let datagram = [200, 0, port_high, port_low, 0, 8, 0, 0];
        for from in [pod.address(), STAND_IN] {
            is_dropped(&service, from, 6, &syn);
            is_dropped(&service, from, 17, &datagram);
        }
        assert_eq!(connect(&pod.ns, service.vip, 20).names.len(), 1, "its own calls are served all the same");
    }
}

/// A server that answers whatever it gets would answer itself, without end.
#[test]
fn a_server_never_talks_to_itself() {
    let service = Service::new(1, 0);
    let pod = &service.pods[0];
    let _echo = pod.ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))).expect("a socket");
    let [high, low] = PORT.to_be_bytes();
    is_dropped(&service, pod.address(), 17, &[high, low, high, low, 0, 8, 0, 0]);
}
