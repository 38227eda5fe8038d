//! Single packets, as any machine on the LAN can send them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::Netns;

pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// A segment of TCP's without data, from one address to another.
pub fn segment(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    let mut tcp = [0_u8; 20];
    tcp[0..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&[0x11, 0x22, 0x33, 0x44]);
    tcp[12..16].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
    let sum = checksum(from.ip(), to.ip(), libc::IPPROTO_TCP, &tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    tcp.into()
}

/// A datagram with its checksum.
pub fn datagram(from: SocketAddr, to: SocketAddr, said: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + said.len()).expect("a short datagram");
    let mut udp = [from.port(), to.port(), length, 0].map(u16::to_be_bytes).concat();
    udp.extend(said);
    let sum = checksum(from.ip(), to.ip(), libc::IPPROTO_UDP, &udp);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    udp
}

/// The Internet checksum over the pseudo-header and what follows it: the words of IPv6's add up as IPv4's do (RFC 8200, 8.1).
fn checksum(from: IpAddr, to: IpAddr, protocol: i32, payload: &[u8]) -> u16 {
    let octets = |address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut summed = [octets(from), octets(to)].concat();
    summed.extend([0, u8::try_from(protocol).expect("a protocol")]);
    summed.extend(u16::try_from(payload.len()).expect("a short payload").to_be_bytes());
    summed.extend(payload);
    let word = |word: &[u8]| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low));
    let sum: u32 = summed.chunks(2).map(word).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("sixteen bits")
}

/// Sends a segment that says it is from that client.
pub fn send(ns: &Netns, client: SocketAddr, vip: SocketAddr, flags: u8) {
    send_raw(ns, SockProtocol::Tcp, &segment(client, vip, flags), vip.ip());
}

/// Sends a datagram without a checksum (RFC 768) from that port of the client's.
pub fn send_unchecked(ns: &Netns, port: u16, vip: SocketAddr, said: &[u8]) {
    let length = u16::try_from(8 + said.len()).expect("a short datagram");
    let header = [port, vip.port(), length, 0].map(u16::to_be_bytes).concat();
    send_raw(ns, SockProtocol::Udp, &[&header, said].concat(), vip.ip());
}

fn send_raw(ns: &Netns, protocol: SockProtocol, bytes: &[u8], to: IpAddr) {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd: OwnedFd = ns.run(|| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).expect("a raw socket"));
    // The standard library sends by it as if it were UDP's.
    UdpSocket::from(fd).send_to(bytes, (to, 0)).expect("send");
}

/// A packet of that protocol, with its IP header.
fn packet(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = |header: usize| u16::try_from(header + payload.len()).expect("a short packet").to_be_bytes();
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend(length(20));
            // The kernel writes the header's checksum of a raw packet.
            packet.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(from.octets().into_iter().chain(to.octets()));
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length(0));
            packet.extend([protocol, 64]);
            packet.extend(from.octets().into_iter().chain(to.octets()));
        }
        _ => panic!("{from} and {to} are of two families"),
    }
    packet.extend(payload);
    packet
}

/// Sends a packet that says it is from there.
pub fn send_packet(ns: &Netns, (from, to): (IpAddr, IpAddr), protocol: u8, payload: &[u8]) {
    send_raw(ns, SockProtocol::Raw, &packet(from, to, protocol, payload), to);
}
