use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use crate::dhcp::identity::Client;
use crate::dhcp::message::{Answer, Grant, Kind, Message};
use crate::dhcp::{Identity, Server};

use super::*;

/// Captured; see testdata/dhcp/README.md.
const DNSMASQ: &str = include_str!("../../../testdata/dhcp/dnsmasq.hex");
const KEA: &str = include_str!("../../../testdata/dhcp/kea.hex");
const DHCPD: &str = include_str!("../../../testdata/dhcp/dhcpd.hex");

const HEADERS: usize = ETHERNET + IPV4 + UDP;
const SERVER: Server = Server::at(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)));

fn captured(file: &str, name: &str) -> Vec<u8> {
    let hex = file.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn offer(address: [u8; 4]) -> Answer {
    Answer::Offer { address: address.into(), server: SERVER, prefix: None }
}

fn ack(address: [u8; 4], lease: u32, t1: Option<u32>, t2: Option<u32>) -> Answer {
    Answer::Ack(Grant {
        address: address.into(),
        server: SERVER,
        lease,
        t1,
        t2,
        infrastructure: Vec::new(),
        prefix: None,
    })
}

fn nak(why: &str) -> Answer {
    Answer::Nak { server: SERVER, why: why.to_owned() }
}

/// Without what the server says of the link.
fn terms(answer: Answer) -> Answer {
    match answer {
        Answer::Ack(grant) => Answer::Ack(Grant { infrastructure: Vec::new(), ..grant }),
        other => other,
    }
}

#[test]
fn real_servers_replies_are_read() {
    let web = [10, 77, 0, 100];
    let cases = [
        (DNSMASQ, "offer", 0x420c_5477, 0x02_0000, offer([10, 77, 2, 17])),
        (DNSMASQ, "ack", 0x420c_5477, 0x02_0000, ack([10, 77, 2, 17], 600, Some(300), Some(525))),
        (DNSMASQ, "nak", 0x7f13_66b2, 0x02_0008, nak("wrong address")),
        (KEA, "offer", 0xa939_7d2d, 0x03_0000, offer(web)),
        (KEA, "ack", 0xa939_7d2d, 0x03_0000, ack(web, 8, None, None)),
        (KEA, "nak", 0xf3ec_5c41, 0x03_0000, nak("")),
        (DHCPD, "offer", 0x5401_bb05, 0x07_0000, offer(web)),
        (DHCPD, "ack", 0x5401_bb05, 0x07_0000, ack(web, 30, None, None)),
        (DHCPD, "nak", 0xf7f2_baa0, 0x08_0000, nak("requested address not available")),
    ];
    for (file, name, xid, identity, answer) in cases {
        let reply = parse_frame(&captured(file, name)).unwrap();
        let [_, cluster, _, n] = u32::to_be_bytes(identity);
        assert_eq!((reply.xid, reply.client), (xid, Client::Mac([2, 0x11, cluster, 0x33, 0, n])), "{name}");
        assert_eq!(terms(reply.answer), answer);
        assert_eq!(reply.client_id.is_some(), file == KEA, "RFC 6842");
    }
}

#[test]
fn replies_to_a_relay_agent_are_read_from_the_datagram_alone() {
    for (file, lease) in [(KEA, 8), (DHCPD, 30)] {
        let address = [10, 99, 0, 100];
        for (name, answer) in [("relay-offer", offer(address)), ("relay-ack", ack(address, lease, None, None))] {
            let frame = captured(file, name);
            assert_eq!(wire::parse(&frame[HEADERS..]).unwrap().answer, answer);
            // The packet socket's client isn't the one asked.
            assert!(parse_frame(&frame).unwrap_err().to_string().contains("port 68"));
        }
    }
}

/// Makes the IP header whole again after a change.
fn mend(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let checksum = fold(sum(&frame[ETHERNET..ETHERNET + IPV4]));
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

#[test]
fn a_damaged_or_foreign_frame_is_refused() {
    let refused = |change: fn(&mut Vec<u8>)| {
        let mut frame = captured(DHCPD, "ack");
        change(&mut frame);
        parse_frame(&frame).map(drop).unwrap_err().to_string()
    };
    assert_eq!(refused(|frame| frame[13] = 6), "not IPv4"); // ARP
    assert_eq!(refused(|frame| frame[14] = 0x65), "not IPv4");
    assert_eq!(refused(|frame| frame[14] = 0x44), "not IPv4"); // a header of 16 octets
    assert_eq!(refused(|frame| frame[22] ^= 1), "bad IP header checksum");
    for flags in [[0x20, 0], [0, 1]] {
        let mut frame = captured(DHCPD, "ack");
        frame[20..22].copy_from_slice(&flags);
        mend(&mut frame);
        assert!(matches!(parse_frame(&frame), Err(WireError::Fragment)));
    }
    assert_eq!(
        refused(|frame| {
            frame[23] = 6;
            mend(frame);
        }),
        "not UDP"
    );
    assert_eq!(refused(|frame| frame[37] = 67), "not for port 68");
    assert_eq!(refused(|frame| frame[38] = 9), "cut short in the UDP datagram");
    assert_eq!(refused(|frame| frame.truncate(100)), "cut short in the IP packet");
    assert_eq!(refused(|frame| frame.truncate(13)), "cut short in the Ethernet header");
    assert!(refused(Vec::clear).starts_with("cut short"));
}

#[test]
fn padding_and_ip_options_are_no_trouble() {
    let frame = captured(KEA, "ack");
    let want = parse_frame(&frame).unwrap();
    let padded: Vec<u8> = frame.iter().copied().chain([0xaa; 30]).collect();
    assert_eq!(parse_frame(&padded).unwrap(), want);

    let mut optioned = frame[..ETHERNET + IPV4].to_vec();
    optioned.extend([1, 1, 1, 0]);
    optioned.extend(&frame[ETHERNET + IPV4..]);
    optioned[14] = 0x46;
    let length = u16::try_from(optioned.len() - ETHERNET).unwrap();
    optioned[16..18].copy_from_slice(&length.to_be_bytes());
    optioned[24..26].fill(0);
    let checksum = fold(sum(&optioned[ETHERNET..ETHERNET + IPV4 + 4]));
    optioned[24..26].copy_from_slice(&checksum.to_be_bytes());
    assert_eq!(parse_frame(&optioned).unwrap(), want);
}

#[test]
fn a_broadcast_has_right_checksums_and_says_what_it_should() {
    let identity = Identity { client_id: vec![255; 9], chaddr: [2; 6], hostname: "web".to_owned() };
    let message = Message { kind: Kind::Discover { wish: None }, xid: 7, secs: 0, prefix: None };
    let bytes = wire::encode(&message, &identity, None).unwrap();
    let frame = broadcast([2, 0, 0, 0, 0, 1], &bytes).unwrap();
    assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 0]);
    assert_eq!(frame[26..38], [0, 0, 0, 0, 255, 255, 255, 255, 0, 68, 0, 67]);
    assert_eq!(frame[HEADERS..], bytes);
    assert_eq!(ip_payload(&frame[ETHERNET..]).unwrap().len(), UDP + bytes.len());
    // Not for a client, and no reply either.
    assert!(parse_frame(&frame).is_err());
}

#[test]
fn what_fits_no_datagram_is_refused() {
    assert!(broadcast([2; 6], &vec![0; 65_535 - IPV4 - UDP]).is_ok());
    assert!(broadcast([2; 6], &vec![0; 65_536 - IPV4 - UDP]).is_err());
}

proptest! {
    #[test]
    fn a_datagrams_checksum_is_right(mac: [u8; 6], message in prop::collection::vec(any::<u8>(), 0..1500)) {
        let frame = broadcast(mac, &message).unwrap();
        let udp = &frame[ETHERNET + IPV4..];
        let pseudo = sum(&frame[26..34]) + u32::from(PROTOCOL_UDP) + u32::try_from(udp.len()).unwrap();
        prop_assert_eq!(fold(pseudo + sum(udp)), 0);
        prop_assert_ne!(&udp[6..8], &[0, 0]);
    }

    #[test]
    fn parse_never_panics(frame: Vec<u8>) {
        let _ = parse_frame(&frame);
    }

    #[test]
    fn parse_never_panics_on_a_damaged_reply(at in 0usize..300, with: u8, length in 0usize..400) {
        let mut frame = captured(KEA, "ack");
        frame[at] = with;
        frame.truncate(length);
        let _ = parse_frame(&frame);
    }
}
