use dhcproto::v4::{Decodable, Decoder};
use proptest::prelude::*;

use super::*;

const A4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const A: IpAddr = IpAddr::V4(A4);
const SERVER: Server = Server::at(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)));
const KINDS: [Kind; 6] = [
    Kind::Discover { wish: None },
    Kind::Select { address: A, server: SERVER },
    Kind::Reboot { address: A },
    Kind::Decline { address: A, server: SERVER },
    Kind::Rebind { address: A },
    Kind::Release { address: A, server: SERVER },
];

fn identity() -> Identity {
    Identity { client_id: vec![255, 1, 2, 3, 4, 0, 2, 9], chaddr: [2, 0, 0, 0, 0, 7], hostname: "web-shop".to_owned() }
}

/// The message as another implementation's decoder sees it.
fn sent(kind: Kind, relay: Option<&RelayAgent>) -> v4::Message {
    let bytes = encode(&Message { kind, xid: 0x1234_5678, secs: 9, prefix: None }, &identity(), relay).unwrap();
    assert!(bytes.len() >= MIN_MESSAGE && bytes.len() + 28 <= usize::from(MAX_MESSAGE));
    v4::Message::decode(&mut Decoder::new(&bytes)).unwrap()
}

/// The options' numbers, in order.
fn codes(message: &v4::Message) -> Vec<u8> {
    let mut codes: Vec<u8> = message.opts().iter().map(|(&code, _)| code.into()).collect();
    codes.sort_unstable();
    codes
}

#[test]
fn each_kind_carries_what_rfc_2131_table_5_allows() {
    let cases: [(Kind, &[u8]); 6] = [
        (KINDS[0], &[12, 53, 55, 57, 61]),
        (KINDS[1], &[12, 50, 53, 54, 55, 57, 61]),
        (KINDS[2], &[12, 50, 53, 55, 57, 61]),
        (KINDS[3], &[50, 53, 54, 56, 61]),
        (KINDS[4], &[12, 53, 55, 57, 61]),
        (KINDS[5], &[53, 54, 61]),
    ];
    for (kind, want) in cases {
        assert_eq!(codes(&sent(kind, None)), want, "{kind:?}");
    }
}

#[test]
fn the_header_says_broadcast_and_only_of_an_address_in_use_which() {
    for kind in KINDS {
        let message = sent(kind, None);
        assert_eq!((message.xid(), message.secs(), message.chaddr()), (0x1234_5678, 9, &identity().chaddr[..]));
        assert!(message.flags().broadcast(), "{kind:?}");
        let used = matches!(kind, Kind::Rebind { .. } | Kind::Release { .. });
        assert_eq!(message.ciaddr(), if used { A4 } else { Ipv4Addr::UNSPECIFIED }, "{kind:?}");
        for address in [message.yiaddr(), message.giaddr()] {
            assert!(address.is_unspecified(), "{kind:?}");
        }
        assert_eq!(message.hops(), 0);
    }
}

#[test]
fn a_relayed_message_names_the_subnet_twice() {
    let agent = RelayAgent { giaddr: [10, 88, 0, 5].into(), subnet: [10, 99, 0, 0].into() };
    for kind in KINDS {
        let message = sent(kind, Some(&agent));
        assert_eq!((message.giaddr(), message.hops()), ([10, 88, 0, 5].into(), 1), "{kind:?}");
        assert_eq!(
            message.opts().get(OptionCode::SubnetSelection),
            Some(&DhcpOption::SubnetSelection([10, 99, 0, 0].into())),
            "{kind:?}"
        );
        let bytes = encode(&Message { kind, xid: 1, secs: 0, prefix: None }, &identity(), Some(&agent)).unwrap();
        // RFC 3046 section 2.1: last before the end; sub-option 5 (RFC 3527) of four octets.
        let end = bytes.windows(9).rposition(|last| last == [82, 6, 5, 4, 10, 99, 0, 0, 255]);
        assert!(end.is_some_and(|at| bytes[at + 9..].iter().all(|&pad| pad == 0)), "{kind:?}");
    }
}

#[test]
fn an_identity_without_a_name_sends_none() {
    let nameless = Identity { hostname: String::new(), ..identity() };
    let bytes =
        encode(&Message { kind: Kind::Discover { wish: None }, xid: 1, secs: 0, prefix: None }, &nameless, None)
            .unwrap();
    let message = v4::Message::decode(&mut Decoder::new(&bytes)).unwrap();
    assert_eq!(codes(&message), [53, 55, 57, 61]);
}

/// A server's message: header and the options given.
fn reply(yiaddr: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 1, 6, 0, 0x12, 0x34, 0x56, 0x78];
    bytes.resize(16, 0);
    bytes.extend(yiaddr.octets());
    bytes.resize(28, 0);
    bytes.extend(identity().chaddr);
    bytes.resize(236, 0);
    bytes.extend([99, 130, 83, 99]);
    bytes.extend(options);
    bytes.push(255);
    bytes
}

const SID: [u8; 6] = [54, 4, 10, 77, 0, 1];

fn options(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn replies_are_read() {
    let link = [3, 4, 10, 77, 0, 1, 6, 8, 10, 77, 0, 2, 10, 77, 0, 3];
    let ack = options(&[&[53, 1, 5], &SID, &[51, 4, 0, 0, 2, 88], &[58, 4, 0, 0, 1, 44], &[61, 2, 255, 7], &link]);
    let read = parse(&reply(A4, &ack)).unwrap();
    assert_eq!(
        (read.xid, read.client, read.client_id),
        (0x1234_5678, Client::Mac(identity().chaddr), Some(vec![255, 7]))
    );
    let infrastructure = [1, 2, 3].map(|last| IpAddr::from([10, 77, 0, last])).into();
    let grant = Grant { t1: Some(300), infrastructure, ..granted() };
    assert_eq!(read.answer, Answer::Ack(grant));

    let offer = options(&[&[53, 1, 2], &SID]);
    assert_eq!(parse(&reply(A4, &offer)).unwrap().answer, Answer::Offer { address: A, server: SERVER, prefix: None });

    let nak = options(&[&[53, 1, 6], &SID, &[56, 2, b'n', b'o']]);
    let none = Ipv4Addr::UNSPECIFIED;
    assert_eq!(parse(&reply(none, &nak)).unwrap().answer, Answer::Nak { server: SERVER, why: "no".to_owned() });
}

fn granted() -> Grant {
    Grant { address: A, server: SERVER, lease: 600, t1: None, t2: None, infrastructure: Vec::new(), prefix: None }
}

#[test]
fn a_malformed_option_that_does_not_matter_costs_nothing() {
    let ack = options(&[&[53, 1, 5], &SID, &[51, 4, 0, 0, 2, 88], &[58, 2, 1, 1], &[3, 3, 1, 2, 3], &[15, 0]]);
    assert_eq!(parse(&reply(A4, &ack)).unwrap().answer, Answer::Ack(granted()));
}

#[test]
fn what_is_no_reply_is_refused() {
    let good = options(&[&[53, 1, 5], &SID, &[51, 4, 0, 0, 2, 88]]);
    let refused = |yiaddr, options: &[u8]| parse(&reply(yiaddr, options)).unwrap_err().to_string();
    assert!(parse(&reply(A4, &good)).is_ok());
    assert!(refused(A4, &[]).contains("not a DHCP message"));
    assert!(refused(A4, &options(&[&[53, 1, 1], &SID])).contains("not an OFFER"));
    let mut request = reply(A4, &good);
    request[0] = 1;
    assert!(parse(&request).unwrap_err().to_string().contains("BOOTREPLY"));
    for length in [0, 5, 7, 16, 255] {
        let mut other = reply(A4, &good);
        other[2] = length;
        assert!(parse(&other).unwrap_err().to_string().contains("Ethernet"), "{length}");
    }
}

/// They are read as far as that: the error names what is wrong with the answers.
#[test]
fn an_answer_that_lacks_something_says_what() {
    let flaw = |yiaddr, options: &[u8]| match parse(&reply(yiaddr, options)).unwrap().answer {
        Answer::Unfit { server, flaw } => (server, flaw.to_string()),
        fit => panic!("{fit:?}"),
    };
    let lease = [51, 4, 0, 0, 2, 88];
    for kind in [2, 5, 6] {
        let (server, what) = flaw(A4, &options(&[&[53, 1, kind], &lease]));
        assert_eq!((server, &what[..]), (None, "option 54 (server identifier) is absent or malformed"), "{kind}");
    }
    let no_time = "option 51 (lease time) is absent or malformed".to_owned();
    assert_eq!(flaw(A4, &options(&[&[53, 1, 5], &SID])), (Some(SERVER), no_time.clone()));
    assert_eq!(flaw(A4, &options(&[&[53, 1, 5], &SID, &[51, 4, 0, 0, 0, 0]])), (Some(SERVER), no_time));
    for address in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
        let (_, what) = flaw(address.into(), &options(&[&[53, 1, 5], &SID, &lease]));
        assert!(what.contains("no host's address"), "{what}");
    }
}

proptest! {
    #[test]
    fn parse_never_panics(bytes: Vec<u8>) {
        let _ = parse(&bytes);
    }

    #[test]
    fn parse_never_panics_on_options(options: Vec<u8>, cut in 0usize..400, length: u8) {
        let mut bytes = reply(A4, &options);
        bytes[2] = length;
        bytes.truncate(cut);
        let _ = parse(&bytes);
    }

    #[test]
    fn whatever_the_identity_it_can_be_sent(
        client_id in prop::collection::vec(any::<u8>(), 2..=255),
        hostname in "[a-z0-9-]{0,63}",
        chaddr: [u8; 6],
        xid: u32,
        secs: u16,
    ) {
        let identity = Identity { client_id: client_id.clone(), chaddr, hostname };
        for kind in KINDS {
            let bytes = encode(&Message { kind, xid, secs, prefix: None }, &identity, None).unwrap();
            let message = v4::Message::decode(&mut Decoder::new(&bytes)).unwrap();
            let id = message.opts().get(OptionCode::ClientIdentifier);
            prop_assert_eq!(id, Some(&DhcpOption::ClientIdentifier(client_id.clone())));
            prop_assert_eq!((message.xid(), message.secs()), (xid, secs));
        }
    }
}
