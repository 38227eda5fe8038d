//! Ethernet, IPv4 and UDP around a DHCP message, for a packet socket.

use crate::net::checksum::{fold, sum};

use super::message::{Reply, WireError};
use super::wire;

/// The port servers send to. The packet socket's filter checks it, and so does [`parse_frame`].
pub const CLIENT_PORT: u16 = 68;
/// The port servers and relay agents listen on.
pub const SERVER_PORT: u16 = 67;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const PROTOCOL_UDP: u8 = 17;
const TTL: u8 = 64;

/// A broadcast frame from `mac` and 0.0.0.0:68 to 255.255.255.255:67. `mac` is the interface's own address, not the
/// identity's `chaddr`: Kea answers to the frame's source, and switches learn it.
pub fn broadcast(mac: [u8; 6], message: &[u8]) -> Result<Vec<u8>, WireError> {
    let too_long = |_| WireError::Not("a message that fits a datagram");
    let udp_length = u16::try_from(UDP + message.len()).map_err(too_long)?;
    let ip_length = u16::try_from(IPV4 + UDP + message.len()).map_err(too_long)?;
    let mut frame = Vec::with_capacity(ETHERNET + usize::from(ip_length));
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend(ETHERTYPE_IPV4);

    let mut ip = [0; IPV4];
    ip[0] = 0x45; // version 4, five words
    ip[2..4].copy_from_slice(&ip_length.to_be_bytes());
    ip[8] = TTL;
    ip[9] = PROTOCOL_UDP;
    ip[16..20].copy_from_slice(&[0xff; 4]);
    let checksum = fold(sum(&ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(ip);

    let mut udp = [0; UDP];
    udp[0..2].copy_from_slice(&CLIENT_PORT.to_be_bytes());
    udp[2..4].copy_from_slice(&SERVER_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
    // The pseudo header (RFC 768): addresses, protocol, length.
    let pseudo = sum(&ip[12..20]) + u32::from(PROTOCOL_UDP) + u32::from(udp_length);
    let checksum = match fold(pseudo + sum(&udp) + sum(message)) {
        0 => 0xffff, // zero on the wire means "no checksum"
        checksum => checksum,
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(udp);
    frame.extend(message);
    Ok(frame)
}

/// Reads a frame off the link. Never panics, whatever the bytes.
pub fn parse_frame(frame: &[u8]) -> Result<Reply, WireError> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET).ok_or(WireError::Short("Ethernet header"))?;
    if ethernet[12..14] != ETHERTYPE_IPV4 {
        return Err(WireError::Not("IPv4"));
    }
    wire::parse(udp_payload(ip_payload(packet)?)?)
}

/// What an IPv4 packet carries, if that is UDP. Its addresses don't matter: the filter and the xid decide.
fn ip_payload(packet: &[u8]) -> Result<&[u8], WireError> {
    const SHORT: WireError = WireError::Short("IP packet");
    let header = packet.get(..IPV4).ok_or(SHORT)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_length < IPV4 {
        return Err(WireError::Not("IPv4"));
    }
    let header = packet.get(..header_length).ok_or(SHORT)?; // with its options
    if fold(sum(header)) != 0 {
        return Err(WireError::Checksum);
    }
    // More-fragments flag or an offset.
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Err(WireError::Fragment);
    }
    if header[9] != PROTOCOL_UDP {
        return Err(WireError::Not("UDP"));
    }
    // Behind the total length there is the Ethernet padding of short frames.
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    packet.get(header_length..total).ok_or(SHORT)
}

/// What a UDP datagram carries, if it is for a DHCP client. Its checksum isn't verified: a sender on this machine
/// leaves it to the hardware, and a packet socket sees the datagram before that.
fn udp_payload(datagram: &[u8]) -> Result<&[u8], WireError> {
    const SHORT: WireError = WireError::Short("UDP datagram");
    let header = datagram.get(..UDP).ok_or(SHORT)?;
    if u16::from_be_bytes([header[2], header[3]]) != CLIENT_PORT {
        return Err(WireError::Not("for port 68"));
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    datagram.get(UDP..length).ok_or(SHORT)
}

#[cfg(test)]
mod tests;
