//! ARP's packets for IPv4 on Ethernet (RFC 826, RFC 5227).

use std::net::{IpAddr, Ipv4Addr};

use crate::model::Mac;
use crate::net::packet::{self, ETHERNET, Frames};

use super::{Packet, Says};

/// All of them.
pub(super) const FRAMES: Frames = Frames { ethertype: packet::ARP, filter: &[] };

/// Ethernet header and ARP for IPv4.
const FRAME: usize = ETHERNET + 28;
/// Ethernet, IPv4, their address lengths.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const BROADCAST: Mac = Mac([0xff; 6]);

/// Whether a host has `target`, asked without saying who asks (RFC 5227 section 2.1.1).
pub(super) fn probe(mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    request(mac, Ipv4Addr::UNSPECIFIED, target)
}

/// `address` is at `mac` (RFC 5227 section 2.3).
pub(super) fn announcement(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    request(mac, address, address)
}

/// "Who has `target`? Tell `sender`", by broadcast.
fn request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = frame(BROADCAST, mac, REQUEST, sender);
    frame[38..42].copy_from_slice(&target.octets());
    frame.to_vec()
}

/// "`address` is at `mac`", to who probed for it.
pub(super) fn reply(mac: Mac, address: Ipv4Addr, to: Mac) -> Vec<u8> {
    let mut frame = frame(to, mac, REPLY, address);
    frame[32..38].copy_from_slice(&to.0);
    frame.to_vec()
}

fn frame(to: Mac, mac: Mac, op: u16, sender: Ipv4Addr) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&mac.0);
    frame[12..14].copy_from_slice(&packet::ARP.to_be_bytes());
    frame[14..20].copy_from_slice(&KIND);
    frame[20..22].copy_from_slice(&op.to_be_bytes());
    frame[22..28].copy_from_slice(&mac.0);
    frame[28..32].copy_from_slice(&sender.octets());
    frame
}

/// What a frame says; none: nothing of an address, or no ARP for IPv4.
pub(super) fn parse(frame: &[u8]) -> Option<Packet> {
    let arp: &[u8; FRAME] = frame.first_chunk()?;
    if arp[12..14] != packet::ARP.to_be_bytes() || arp[14..20] != KIND {
        return None;
    }
    let address = |at: usize| Ipv4Addr::new(arp[at], arp[at + 1], arp[at + 2], arp[at + 3]);
    let (op, mac) = (u16::from_be_bytes([arp[20], arp[21]]), Mac(arp[22..28].try_into().ok()?));
    let (sender, target) = (address(28), address(38));
    let says = match sender.is_unspecified() {
        true if op == REQUEST => Says::Probes(IpAddr::V4(target)),
        true => return None,
        false => Says::Has(IpAddr::V4(sender)),
    };
    Some(Packet { mac, says })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 99);

    #[test]
    fn a_probe_is_as_tcpdump_shows_it() {
        // "Request who-has 10.77.0.99 tell 0.0.0.0", from 02:00:00:00:00:01 to Broadcast.
        let frame = probe(OURS, ADDRESS);
        let hex = frame.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        assert_eq!(
            hex,
            "ffffffffffff02000000000108060001080006040001020000000001\
             000000000000000000000a4d0063"
        );
        assert_eq!(parse(&frame), Some(Packet { mac: OURS, says: Says::Probes(ADDRESS.into()) }));
    }

    #[test]
    fn what_has_an_address_says_so() {
        let theirs = Mac([2, 0, 0, 0, 0, 9]);
        let has = Some(Packet { mac: OURS, says: Says::Has(ADDRESS.into()) });
        assert_eq!(parse(&announcement(OURS, ADDRESS)), has);
        let answer = reply(OURS, ADDRESS, theirs);
        assert_eq!((parse(&answer), &answer[..6]), (has, &theirs.0[..]));
    }
}
