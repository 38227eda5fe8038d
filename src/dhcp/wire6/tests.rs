use super::*;

const DUID: [u8; 18] =
    [0, 4, 0x2e, 0x5f, 0xc4, 0x4d, 0x32, 0xb4, 0x13, 0xfb, 0xe6, 0xec, 0x2b, 0x1b, 4, 0x18, 0x66, 0x76];
const IAID: u32 = 0xaa28_0179;
/// dnsmasq's: a DUID-LLT.
const SERVER_DUID: [u8; 14] = [0, 1, 0, 1, 0x30, 1, 2, 3, 2, 0, 0, 0, 0, 0xfe];

fn identity() -> Identity {
    let client_id = [&[255][..], &IAID.to_be_bytes(), &DUID].concat();
    Identity { client_id, chaddr: [2, 0, 0, 0, 0, 7], hostname: "web-shop".to_owned() }
}

fn from() -> IpAddr {
    "fe80::fe".parse().unwrap()
}

fn server() -> Server {
    Server::called(&SERVER_DUID, from()).unwrap()
}

fn address() -> IpAddr {
    "2001:db8::100".parse().unwrap()
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap();
    [&code.to_be_bytes()[..], &length.to_be_bytes(), value].concat()
}

/// An `IA_NA` with T1 20 and T2 40, and these addresses with their lifetimes.
fn association(addresses: &[(IpAddr, u32)], more: &[u8]) -> Vec<u8> {
    let mut value = [IAID, 20, 40].map(u32::to_be_bytes).concat();
    for (address, valid) in addresses {
        let octets = v6_of(*address).unwrap().octets();
        value.extend(option(IAADDR, &[&octets[..], &valid.to_be_bytes(), &valid.to_be_bytes()].concat()));
    }
    value.extend(more);
    option(IA_NA, &value)
}

fn reply(kind: u8, options: &[Vec<u8>]) -> Vec<u8> {
    let known = [option(CLIENT, &DUID), option(SERVER, &SERVER_DUID)].concat();
    [&[kind, 0x12, 0x34, 0x56][..], &known, &options.concat()].concat()
}

fn answer(kind: u8, options: &[Vec<u8>]) -> Answer {
    let reply = parse(&reply(kind, options), from()).unwrap();
    assert_eq!((reply.xid, &reply.client), (0x0012_3456, &Client::Duid(DUID.into())));
    assert!(reply.answers(0xff12_3456) && !reply.answers(0x0012_3457));
    reply.answer
}

fn refused(why: &str) -> Answer {
    Answer::Nak { server: server(), why: why.to_owned() }
}

/// The options of a message, in the order of their numbers.
fn sent(kind: Kind) -> (u8, Vec<(u16, Vec<u8>)>) {
    let message = Message { kind, xid: 0xab12_3456, secs: 7, prefix: None };
    let bytes = encode(&message, &identity(), None).unwrap();
    assert_eq!(bytes[1..4], [0x12, 0x34, 0x56]);
    let options = Options(&bytes[4..]).map(|option| option.map(|(code, value)| (code, value.to_vec())));
    (bytes[0], options.collect::<Result<_, _>>().unwrap())
}

#[test]
fn what_is_asked_is_as_the_rfc_wants_it() {
    let (address, server) = (address(), server());
    for (kind, number, named, asked) in [
        (Kind::Discover { wish: None }, 1, false, false),
        (Kind::Discover { wish: Some(address) }, 1, false, true),
        (Kind::Select { address, server }, 3, true, true),
        (Kind::Reboot { address }, 6, false, true),
        (Kind::Rebind { address }, 6, false, true),
        (Kind::Release { address, server }, 8, true, true),
        (Kind::Decline { address, server }, 9, true, true),
    ] {
        let (message, options) = sent(kind);
        let value = |code| options.iter().find(|(found, _)| *found == code).map(|(_, value)| value.as_slice());
        assert_eq!(message, number, "{kind:?}");
        assert_eq!(value(CLIENT), Some(&DUID[..]));
        assert_eq!(value(SERVER), named.then_some(&SERVER_DUID[..]), "{kind:?}");
        assert_eq!(value(8), Some(&700_u16.to_be_bytes()[..]));
        let association = Association::read(value(IA_NA).unwrap()).unwrap();
        assert_eq!(value(IA_NA).unwrap()[..4], IAID.to_be_bytes());
        let lent: Vec<IpAddr> = association.addresses.iter().map(|lent| lent.address.into()).collect();
        assert_eq!(lent, if asked { vec![address] } else { vec![] }, "{kind:?}");
        let is_asking = number < 8;
        assert_eq!(value(6), is_asking.then_some(&NAME_SERVERS.to_be_bytes()[..]));
        assert_eq!(value(FQDN), is_asking.then_some(&b"\0\x08web-shop"[..]));
    }
}

#[test]
fn a_server_of_which_only_the_address_is_known_is_told_nothing() {
    let kind = Kind::Release { address: address(), server: Server::at(from()) };
    let error = encode(&Message { kind, xid: 1, secs: 0, prefix: None }, &identity(), None).unwrap_err();
    assert!(matches!(error, WireError::Not(_)), "{error:?}");
}

#[test]
fn a_relays_message_carries_it_whole() {
    let [giaddr, subnet]: [IpAddr; 2] = ["2001:db8::1", "2001:db8:99::"].map(|text| text.parse().unwrap());
    let message = Message { kind: Kind::Reboot { address: address() }, xid: 1, secs: 0, prefix: None };
    let inner = encode(&message, &identity(), None).unwrap();
    let outer = encode(&message, &identity(), Some(&RelayAgent { giaddr, subnet })).unwrap();
    let octets = |address| v6_of(address).unwrap().octets();
    assert_eq!(outer[..2], [RELAY_FORW, 0]);
    assert_eq!((&outer[2..18], &outer[18..34]), (&octets(subnet)[..], &octets(giaddr)[..]));
    assert_eq!(outer[34..], option(RELAYED, &inner));
    let said = reply(REPLY, &[association(&[(address(), 60)], &[])]);
    let back = [&[RELAY_REPL, 0][..], &[0; 32], &option(18, b"eth0"), &option(RELAYED, &said)].concat();
    assert!(matches!(parse_relayed(&back, from()).unwrap().answer, Answer::Ack(_)));
    assert!(parse_relayed(&said, from()).is_err());
}

#[test]
fn what_servers_grant_is_read() {
    let lent = association(&[(address(), 60)], &[]);
    assert_eq!(
        answer(ADVERTISE, std::slice::from_ref(&lent)),
        Answer::Offer { address: address(), server: server(), prefix: None }
    );
    let servers: IpAddr = "2001:db8::53".parse().unwrap();
    let named = option(NAME_SERVERS, &v6_of(servers).unwrap().octets());
    let Answer::Ack(grant) = answer(REPLY, &[lent, named]) else { panic!() };
    let expected = Grant {
        address: address(),
        server: server(),
        lease: 60,
        t1: Some(20),
        t2: Some(40),
        infrastructure: vec![servers],
        prefix: None,
    };
    assert_eq!(grant, expected);
    // Kea, renumbered: the old one's time is over, and another one is there.
    let other: IpAddr = "2001:db8:1::7".parse().unwrap();
    let Answer::Ack(grant) = answer(REPLY, &[association(&[(address(), 0), (other, 60)], &[])]) else { panic!() };
    assert_eq!(grant.address, other);
}

/// An `IA_PD` with a prefix and its lifetime.
fn delegation(prefix: &str, bits: u8, valid: u32) -> Vec<u8> {
    let octets = v6_of(prefix.parse().unwrap()).unwrap().octets();
    let lifetimes = [valid, valid].map(u32::to_be_bytes).concat();
    let inner = option(IAPREFIX, &[&lifetimes[..], &[bits], &octets].concat());
    option(IA_PD, &[[IAID, 20, 40].map(u32::to_be_bytes).concat(), inner].concat())
}

#[test]
fn a_prefix_is_asked_for_and_read() {
    let network: IpAddr = "2001:db8:1:100::".parse().unwrap();
    let sent = |kind, prefix| {
        let bytes = encode(&Message { kind, xid: 1, secs: 0, prefix: Some(prefix) }, &identity(), None).unwrap();
        let association = Options(&bytes[4..]).map(Result::unwrap).find(|(code, _)| *code == IA_PD).unwrap().1.to_vec();
        assert!(!Options(&bytes[4..]).any(|option| option.unwrap().0 == IA_NA));
        association
    };
    // At first its length is a hint; times of zero are the server's to say.
    let asked = |bits, octets: &[u8]| {
        [&IAID.to_be_bytes()[..], &[0; 8][..], &option(IAPREFIX, &[&[0; 8][..], &[bits], octets].concat())].concat()
    };
    assert_eq!(sent(Kind::Discover { wish: None }, 64), asked(64, &[0; 16]));
    assert_eq!(sent(Kind::Reboot { address: network }, 56), asked(56, &v6_of(network).unwrap().octets()));
    let offered = answer(ADVERTISE, &[delegation("2001:db8:1:100::", 56, 60)]);
    assert_eq!(offered, Answer::Offer { address: network, server: server(), prefix: Some(56) });
    let Answer::Ack(grant) = answer(REPLY, &[delegation("2001:db8:1:100::", 56, 60)]) else { panic!() };
    assert_eq!((grant.address, grant.prefix, grant.lease), (network, Some(56), 60));
    assert_eq!(answer(REPLY, &[delegation("2001:db8:1:100::", 56, 0)]), refused("its lifetime is over"));
    for (prefix, bits, flaw) in [
        ("2001:db8:1:100::", 112, Flaw::Prefix(112)),
        ("2000::", 3, Flaw::Prefix(3)),
        ("8000::", 1, Flaw::Prefix(1)),
        ("2001:db8:1:100::1", 64, Flaw::Address("2001:db8:1:100::1".parse().unwrap())),
        ("fe80::", 64, Flaw::Address("fe80::".parse().unwrap())),
    ] {
        let unfit = Answer::Unfit { server: Some(server()), flaw };
        assert_eq!(answer(REPLY, &[delegation(prefix, bits, 60)]), unfit, "{prefix}/{bits}");
    }
    let none = option(STATUS, &[&6u16.to_be_bytes()[..], b"no prefixes"].concat());
    assert_eq!(answer(ADVERTISE, &[none]), Answer::Unfit { server: Some(server()), flaw: Flaw::NoAddress });
}

#[test]
fn what_servers_refuse_is_read() {
    let over = association(&[(address(), 0)], &[]);
    assert_eq!(answer(REPLY, &[over]), refused("its lifetime is over"));
    let status = |code: u16, text: &str| option(STATUS, &[&code.to_be_bytes()[..], text.as_bytes()].concat());
    let nothing = association(&[], &status(3, "no binding"));
    assert_eq!(answer(REPLY, &[nothing]), refused("NoBinding: no binding"));
    assert_eq!(answer(REPLY, &[status(4, "")]), refused("NotOnLink"));
    for (code, name) in [(1, "UnspecFail"), (5, "UseMulticast"), (7, "not known")] {
        let unfit = Answer::Unfit { server: Some(server()), flaw: Flaw::Status { code, name } };
        for kind in [ADVERTISE, REPLY] {
            assert_eq!(answer(kind, &[association(&[], &status(code, "later"))]), unfit);
            assert_eq!(answer(kind, &[status(code, "")]), unfit);
        }
    }
    let none = Answer::Unfit { server: Some(server()), flaw: Flaw::NoAddress };
    assert_eq!(answer(ADVERTISE, &[association(&[], &status(2, "no addresses"))]), none);
    assert_eq!(answer(ADVERTISE, &[status(2, "")]), none);
    assert_eq!(answer(REPLY, &[status(0, "release received")]), Answer::Noted { server: Some(server()) });
    let multicast = association(&[("ff02::1".parse().unwrap(), 60)], &[]);
    assert!(matches!(answer(REPLY, &[multicast]), Answer::Unfit { flaw: Flaw::Address(_), .. }));
}

#[test]
fn what_is_cut_short_or_for_nobody_is_no_reply() {
    let whole = reply(REPLY, &[association(&[(address(), 60)], &[])]);
    for length in 0..whole.len() {
        // Where an option ends, the rest may be missing.
        if let Ok(reply) = parse(&whole[..length], from()) {
            assert!(!matches!(reply.answer, Answer::Ack(_)), "{length}");
        }
    }
    assert!(parse(&[REPLY, 0, 0, 1], from()).is_err());
    assert!(parse(&reply(1, &[]), from()).is_err());
}
