//! Ethernet, IPv6 and UDP around a `DHCPv6` message, for a packet socket.

use std::net::{IpAddr, Ipv6Addr};

use crate::model::Mac;
use crate::net::ipv6::{self, Multicast};
use crate::net::packet::{self, Frames, code};

use super::message::{Reply, WireError};
use super::wire6;

/// The port servers send to (RFC 8415 section 7.2). The packet socket's filter checks it, and so does [`parse_frame`].
pub const CLIENT_PORT: u16 = 546;
/// The port servers and relay agents listen on.
pub const SERVER_PORT: u16 = 547;

const UDP: usize = 8;
/// `All_DHCP_Relay_Agents_and_Servers` (RFC 8415 section 7.1).
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// IPv6, UDP without extension headers, port 546.
const FILTER: [libc::sock_filter; 8] = [
    code(0x28, 0, 0, 12),                  // ldh [12]  the Ethernet type
    code(0x15, 0, 4, packet::IPV6 as u32), // jeq IPv6  else drop
    code(0x30, 0, 0, 20),                  // ldb [20]  the next header
    code(0x15, 0, 2, ipv6::UDP as u32),    // jeq UDP   else drop
    code(0x28, 0, 0, 56),                  // ldh [56]  the destination port
    code(0x15, 1, 0, CLIENT_PORT as u32),  // jeq 546   accept
    code(0x06, 0, 0, 0),                   // ret 0
    code(0x06, 0, 0, 0x40_000),            // ret all of it
];

/// Those.
pub const FRAMES: Frames = Frames { ethertype: packet::IPV6, filter: &FILTER };

/// A frame from `mac` and port 546 of the link-local address `from` to all servers of the link.
pub fn multicast(mac: [u8; 6], from: Ipv6Addr, message: &[u8]) -> Result<Vec<u8>, WireError> {
    const LONG: WireError = WireError::Not("a message that fits a datagram");
    let length = u16::try_from(UDP + message.len()).map_err(|_| LONG)?;
    let ports = [CLIENT_PORT, SERVER_PORT, length, 0];
    let mut datagram: Vec<u8> = ports.into_iter().flat_map(u16::to_be_bytes).collect();
    datagram.extend(message);
    let packet =
        Multicast { from, group: SERVERS, next_header: ipv6::UDP, hop_limit: 1, payload: &datagram, checksum: 6 };
    packet.frame(Mac(mac)).ok_or(LONG)
}

/// Reads a frame off the link. Never panics, whatever the bytes. The UDP checksum isn't verified: a sender on this machine leaves it to the
/// hardware, and a packet socket sees the datagram before that.
pub fn parse_frame(frame: &[u8]) -> Result<Reply, WireError> {
    const SHORT: WireError = WireError::Short("UDP datagram");
    let packet = ipv6::read(frame).ok_or(WireError::Not("IPv6"))?;
    if packet.next_header != ipv6::UDP {
        return Err(WireError::Not("UDP"));
    }
    let header = packet.payload.get(..UDP).ok_or(SHORT)?;
    if u16::from_be_bytes([header[2], header[3]]) != CLIENT_PORT {
        return Err(WireError::Not("for port 546"));
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    wire6::parse(packet.payload.get(UDP..length).ok_or(SHORT)?, IpAddr::V6(packet.from))
}
