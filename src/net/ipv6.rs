//! IPv6 on Ethernet (RFC 8200, RFC 2464), as packet sockets send and receive it.

use std::net::Ipv6Addr;

use crate::model::Mac;

use super::checksum::{fold, sum};
use super::packet::{ETHERNET, IPV6};

/// Bytes of a header without extensions.
pub const HEADER: usize = 40;
/// Next header: UDP.
pub const UDP: u8 = 17;
/// Next header: `ICMPv6`.
pub const ICMPV6: u8 = 58;

/// What a group of the link is sent.
#[derive(Clone, Copy, Debug)]
pub struct Multicast<'a> {
    /// Whose.
    pub from: Ipv6Addr,
    /// To whom.
    pub group: Ipv6Addr,
    /// What the payload is.
    pub next_header: u8,
    /// No router passes it on where that is 1; some protocols have 255 on the link.
    pub hop_limit: u8,
    /// The next header and what comes behind it.
    pub payload: &'a [u8],
    /// Where in the payload its checksum is, which is zero so far.
    pub checksum: usize,
}

impl Multicast<'_> {
    /// The frame from `mac`. None: too long, or no room for the checksum.
    pub fn frame(&self, mac: Mac) -> Option<Vec<u8>> {
        let length = u16::try_from(self.payload.len()).ok()?;
        let mut frame = Vec::with_capacity(ETHERNET + HEADER + self.payload.len());
        frame.extend(ethernet_of(self.group).0);
        frame.extend(mac.0);
        frame.extend(IPV6.to_be_bytes());
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([self.next_header, self.hop_limit]);
        frame.extend(self.from.octets());
        frame.extend(self.group.octets());
        frame.extend(self.payload);
        let checksum = match fold(summed(&frame[ETHERNET..])) {
            0 if self.next_header == UDP => 0xffff, // zero on the wire means "no checksum"
            checksum => checksum,
        };
        frame.get_mut(ETHERNET + HEADER + self.checksum..)?.get_mut(..2)?.copy_from_slice(&checksum.to_be_bytes());
        Some(frame)
    }
}

/// The Ethernet address of a group (RFC 2464 section 7).
pub fn ethernet_of(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// The sum of a packet without extension headers and of its pseudo-header (RFC 8200 section 8.1).
pub fn summed(packet: &[u8]) -> u32 {
    let (header, payload) = packet.split_at(HEADER);
    let length = u32::try_from(payload.len()).unwrap_or_default();
    sum(&header[8..]) + length + u32::from(header[6]) + sum(payload)
}

/// A packet as it was received: its header, and what it carries.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Whose.
    pub from: Ipv6Addr,
    /// What the payload is.
    pub next_header: u8,
    /// How many routers may pass it on.
    pub hop_limit: u8,
    /// What it carries.
    pub payload: &'a [u8],
    /// The whole of it, without what Ethernet has padded.
    pub whole: &'a [u8],
}

/// Reads a frame; none: it carries no IPv6, or not all of it.
pub fn read(frame: &[u8]) -> Option<Packet<'_>> {
    if frame.get(12..ETHERNET)? != IPV6.to_be_bytes() {
        return None;
    }
    let packet = &frame[ETHERNET..];
    let header: &[u8; HEADER] = packet.first_chunk()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let whole = packet.get(..HEADER + length)?;
    let from = Ipv6Addr::from(<[u8; 16]>::try_from(&header[8..24]).ok()?);
    let is_ipv6 = header[0] >> 4 == 6;
    is_ipv6.then(|| Packet { from, next_header: header[6], hop_limit: header[7], payload: &whole[HEADER..], whole })
}
