//! Single packets, as any machine on the LAN can send them.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::Netns;

pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// The client of [`Service`](super::Service).
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);

/// Sends one of TCP's that says it is from that client.
pub fn send(ns: &Netns, client: SocketAddrV4, vip: SocketAddrV4, flags: u8) {
    let mut tcp = [0_u8; 20];
    tcp[0..2].copy_from_slice(&client.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&vip.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&[0x11, 0x22, 0x33, 0x44]);
    tcp[12..16].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
    let mut summed = [client.ip().octets(), vip.ip().octets()].concat();
    summed.extend([0, 6, 0, 20]);
    summed.extend(tcp);
    let sum: u32 = summed.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("sixteen bits");
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    send_raw(ns, SockProtocol::Tcp, &tcp, *vip.ip());
}

/// Sends a datagram without a checksum (RFC 768) from that port of the client's.
pub fn send_unchecked(ns: &Netns, port: u16, vip: SocketAddrV4, said: &[u8]) {
    let length = u16::try_from(8 + said.len()).expect("a short datagram");
    let header = [port, vip.port(), length, 0].map(u16::to_be_bytes).concat();
    send_raw(ns, SockProtocol::Udp, &[&header, said].concat(), *vip.ip());
}

fn send_raw(ns: &Netns, protocol: SockProtocol, bytes: &[u8], to: Ipv4Addr) {
    let fd: OwnedFd =
        ns.run(|| socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).expect("a raw socket"));
    // The standard library sends by it as if it were UDP's.
    UdpSocket::from(fd).send_to(bytes, (to, 0)).expect("send");
}
