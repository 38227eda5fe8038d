//! Neighbour discovery's solicitations and advertisements on Ethernet (RFC 4861 sections 4.3 and 4.4, RFC 4862 section 5.4).

use std::net::{IpAddr, Ipv6Addr};

use crate::model::Mac;
use crate::net::checksum::fold;
use crate::net::ipv6::{self, ICMPV6, Multicast, ethernet_of};
use crate::net::packet::{self, Frames, code};

use super::{Packet, Says};

/// IPv6, `ICMPv6`, a solicitation or an advertisement. Neither comes behind an extension header (RFC 6980 has that of fragments).
const FILTER: [libc::sock_filter; 9] = [
    code(0x28, 0, 0, 12),                   // ldh [12]  the Ethernet type
    code(0x15, 0, 5, packet::IPV6 as u32),  // jeq IPv6  else drop
    code(0x30, 0, 0, 20),                   // ldb [20]  the next header
    code(0x15, 0, 3, ICMPV6 as u32),        // jeq ICMPv6  else drop
    code(0x30, 0, 0, 54),                   // ldb [54]  the type
    code(0x15, 2, 0, SOLICITATION as u32),  // jeq 135   accept
    code(0x15, 1, 0, ADVERTISEMENT as u32), // jeq 136   accept
    code(0x06, 0, 0, 0),                    // ret 0
    code(0x06, 0, 0, 0x40_000),             // ret all of it
];

/// Those.
pub(super) const FRAMES: Frames = Frames { ethertype: packet::IPV6, filter: &FILTER };

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Bytes of a message up to where options begin.
const MESSAGE: usize = 24;
/// Of the options "source" and "target link-layer address" with an Ethernet address.
const OPTION: usize = 8;
const SOURCE: u8 = 1;
const TARGET: u8 = 2;
/// Nothing that a router has passed on has this hop limit.
const ON_LINK: u8 = 255;
/// The advertisement's flag O: caches take the new address for the one that they have.
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Whether a host has `target`, asked as for duplicate address detection: without saying who asks.
pub(super) fn probe(mac: Mac, target: Ipv6Addr) -> Vec<u8> {
    let message = message(SOLICITATION, 0, target);
    frame(mac, Ipv6Addr::UNSPECIFIED, solicited_node(target), &message)
}

/// `address` is at `mac`, whatever was there before: unsolicited, to all nodes (RFC 4861 section 7.2.6). `from`: an address of the link;
/// none: the address itself.
pub(super) fn announcement(mac: Mac, address: Ipv6Addr, from: Option<Ipv6Addr>) -> Vec<u8> {
    let mut message = message(ADVERTISEMENT, OVERRIDE, address);
    message.extend([TARGET, 1]);
    message.extend(mac.0);
    frame(mac, from.unwrap_or(address), ALL_NODES, &message)
}

/// The group that a host with the address is in (RFC 4291 section 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// Where probes for the address are sent.
pub(super) fn probes_of(address: Ipv6Addr) -> Mac {
    ethernet_of(solicited_node(address))
}

fn message(kind: u8, flags: u8, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message
}

fn frame(mac: Mac, from: Ipv6Addr, group: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let packet = Multicast { from, group, next_header: ICMPV6, hop_limit: ON_LINK, payload, checksum: 2 };
    // 32 bytes at most.
    packet.frame(mac).unwrap_or_default()
}

/// What a frame says; none: nothing of an address, or something that RFC 4861 (section 7.1) has hosts drop.
pub(super) fn parse(frame: &[u8]) -> Option<Packet> {
    let sender = Mac(frame.get(6..12)?.try_into().ok()?);
    let packet = ipv6::read(frame)?;
    let (source, message) = (packet.from, packet.payload);
    if packet.next_header != ICMPV6 || packet.hop_limit != ON_LINK || message.len() < MESSAGE || message[1] != 0 {
        return None;
    }
    let target = Ipv6Addr::from(<[u8; 16]>::try_from(&message[8..MESSAGE]).ok()?);
    if target.is_multicast() || source.is_multicast() || fold(ipv6::summed(packet.whole)) != 0 {
        return None;
    }
    let (says, option) = match message[0] {
        SOLICITATION if source.is_unspecified() => (Says::Probes(IpAddr::V6(target)), None),
        SOLICITATION => (Says::Has(IpAddr::V6(source)), Some(SOURCE)),
        ADVERTISEMENT => (Says::Has(IpAddr::V6(target)), Some(TARGET)),
        _ => return None,
    };
    let named = option.and_then(|option| named(&message[MESSAGE..], option));
    Some(Packet { mac: named.unwrap_or(sender), says })
}

/// The Ethernet address that an option of that type names.
fn named(mut options: &[u8], wanted: u8) -> Option<Mac> {
    while let [kind, length, ..] = *options {
        let length = usize::from(length) * OPTION;
        let option = options.get(..length).filter(|option| !option.is_empty())?;
        if kind == wanted && length == OPTION {
            return option[2..].try_into().ok().map(Mac);
        }
        options = &options[length..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::ipv6::HEADER;
    use crate::net::packet::ETHERNET;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn address() -> Ipv6Addr {
        "fd00:118::a76:63".parse().unwrap()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
    }

    #[test]
    fn a_probe_is_as_the_kernel_sends_it() {
        // "IP6 :: > ff02::1:ff76:63: ICMP6, neighbor solicitation, who has fd00:118::a76:63, length 24", but for a nonce.
        let frame = probe(OURS, address());
        assert_eq!(
            hex(&frame),
            "3333ff76006302000000000186dd\
             6000000000183aff00000000000000000000000000000000ff0200000000000000000001ff760063\
             870070dd00000000fd00011800000000000000000a760063"
        );
        assert_eq!(parse(&frame), Some(Packet { mac: OURS, says: Says::Probes(address().into()) }));
        assert_eq!(probes_of(address()).0, frame[..6]);
    }

    #[test]
    fn what_has_an_address_says_so() {
        let has = |mac| Some(Packet { mac, says: Says::Has(address().into()) });
        let from: Ipv6Addr = "fe80::1".parse().unwrap();
        let mut frame = announcement(OURS, address(), Some(from));
        assert_eq!((frame.len(), &frame[..6]), (86, &[0x33, 0x33, 0, 0, 0, 1][..]));
        assert_eq!((frame[54], frame[58]), (ADVERTISEMENT, OVERRIDE));
        assert_eq!(parse(&frame), has(OURS));
        // The option counts, not who passes it on.
        frame[11] = 9;
        assert_eq!(parse(&frame), has(OURS));
        assert_eq!(parse(&announcement(OURS, address(), None)), has(OURS));
    }

    #[test]
    fn what_hosts_drop_says_nothing() {
        let good = announcement(OURS, address(), None);
        let changed = |at: usize, byte: u8| {
            let mut frame = good.clone();
            frame[at] = byte;
            parse(&frame)
        };
        for (what, at, byte) in [
            ("ARP", 13, 6),
            ("a hop limit that a router has lowered", ETHERNET + 7, 254),
            ("another code", ETHERNET + HEADER + 1, 1),
            ("a wrong checksum", ETHERNET + HEADER + 23, 0),
            ("a length beyond the frame", ETHERNET + 5, 33),
        ] {
            assert_eq!(changed(at, byte), None, "{what}");
        }
    }
}
