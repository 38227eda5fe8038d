use netlink_packet_core::Emitable;

use std::collections::{BTreeMap, BTreeSet};

use super::decode::{destination, read};
use super::dump::note_devices;
use super::lookup::best_way;
use super::*;

fn default_route(metric: u32, kind: Kind) -> Route {
    Route { prefix: DEFAULT, table: MAIN, protocol: 4, tos: 0, metric, source: None, advmss: None, kind }
}

/// An IPv4 route's message: its prefix's length, protocol, type, and attributes.
fn payload(length: u8, about: (u8, u8), attributes: &[(u16, &[u8])]) -> Vec<u8> {
    payload_of(libc::AF_INET, length, about, attributes)
}

fn payload_of(family: i32, length: u8, (protocol, kind): (u8, u8), attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(family).unwrap(), length, 0, 0, 254, protocol, 0, kind, 0, 0, 0, 0];
    for (kind, value) in attributes {
        bytes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(*value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

#[test]
fn routes_name_devices_by_gateway_or_network() {
    let (kernel, unicast, local) = (2, 1, 2);
    let index = |index: u32| index.to_ne_bytes();
    let gateway = [192, 0, 2, 254];
    let mut found = BTreeMap::new();
    let mut objects = BTreeSet::new();
    let mut note = |payload: &[u8]| note_devices(payload, &mut found, &mut objects);
    note(&payload(0, (kernel, unicast), &[(5, &gateway), (4, &index(2))]));
    note(&payload(24, (kernel, unicast), &[(4, &index(3))]));
    note(&payload(32, (kernel, unicast), &[(4, &index(4))]));
    note(&payload(32, (kernel, local), &[(4, &index(5))]));
    note(&payload(24, (PROTOCOL, unicast), &[(4, &index(6))]));
    note(&payload(0, (4, unicast), &[(30, &index(77))]));
    // Two hops: a gateway on one device, and another device.
    let mut hops = vec![16, 0, 0, 0];
    hops.extend(index(7));
    hops.extend([8, 0, 5, 0, 192, 0, 2, 254]);
    hops.extend([8, 0, 0, 0]);
    hops.extend(index(8));
    note(&payload(24, (4, unicast), &[(9, &hops)]));
    note(&payload(24, (4, unicast), &[(9, &hops[..20])]));
    note(&[2, 24]);
    let reach = |gateway, network| Reach { gateway, network };
    let expected = [
        (2, reach(true, false)),
        (3, reach(false, true)),
        (4, reach(false, false)),
        (7, reach(true, false)),
        (8, reach(false, true)),
    ];
    assert_eq!(found, expected.into());
    assert_eq!(objects, [77].into());
}

#[test]
fn routes_of_ipv6_name_devices_but_those_that_every_device_has() {
    let about = (2, 1);
    let mut found = BTreeMap::new();
    let mut note = |length, device: u32, attribute: (u16, &[u8])| {
        let message = payload_of(libc::AF_INET6, length, about, &[attribute, (4, &device.to_ne_bytes())]);
        note_devices(&message, &mut found, &mut BTreeSet::new());
    };
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    note(0, 2, (5, &address("fe80::1")));
    note(64, 3, (1, &address("2001:db8::")));
    note(128, 4, (1, &address("2001:db8::7")));
    note(64, 5, (1, &address("fe80::")));
    note(8, 6, (1, &address("ff00::")));
    let reach = |gateway, network| Reach { gateway, network };
    assert_eq!(found, [(2, reach(true, false)), (3, reach(false, true)), (4, reach(false, false))].into());
}

/// As a nexthop that packets of both families take: `RTA_VIA` has the family (`struct rtvia`) before the address.
#[test]
fn a_route_of_ipv4_may_lead_to_a_gateway_of_ipv6() {
    let gateway: Ipv6Addr = "fe80::76:c000:202".parse().unwrap();
    let via = [&10_u16.to_ne_bytes()[..], &gateway.octets()].concat();
    let single = payload(32, (PROTOCOL, 1), &[(18, &via), (4, &7_u32.to_ne_bytes())]);
    let mut hops = vec![32, 0, 0, 0];
    hops.extend(7_u32.to_ne_bytes());
    hops.extend([22, 0, 18, 0]);
    hops.extend(&via);
    hops.resize(32, 0);
    let hop = Hop { gateway: Some(gateway.into()), index: Some(7) };
    assert_eq!(super::decode::gateway(&single), Some(gateway.into()));
    assert_eq!(super::decode::gateway(&payload(32, (4, 1), &[(5, &[192, 0, 2, 254])])), Some([192, 0, 2, 254].into()));
    let (mut found, mut objects) = (BTreeMap::new(), BTreeSet::new());
    note_devices(&payload(0, (4, 1), &[(18, &via), (4, &7_u32.to_ne_bytes())]), &mut found, &mut objects);
    assert_eq!(found, [(7, Reach { gateway: true, network: false })].into());
    for message in [single, payload(32, (PROTOCOL, 1), &[(9, &hops)])] {
        let route = decode(&message).expect("a route");
        assert_eq!(route.kind, Kind::Via(vec![hop.clone()]));
        assert_eq!(route.of_ours(), None, "ours lead by nexthops");
    }
}

#[test]
fn our_routes_are_read_as_they_are_written() {
    let via_of = |source, advmss| Action::Via { gateway: [169, 254, 118, 1].into(), index: 5, source, advmss };
    let via = |source| via_of(source, None);
    let group = Action::Nexthop { id: 0x7780_0001, source: [192, 0, 2, 1].into() };
    let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
    let via6 = Action::Via { gateway: v6("fe80::1"), index: 5, source: Some(v6("2001:db8::7")), advmss: None };
    for (prefix, action, shown) in [
        ("0.0.0.0/0", via(None), "default via 169.254.118.1 table 1180"),
        ("0.0.0.0/0", via(Some([10, 118, 0, 7].into())), "default via 169.254.118.1 src 10.118.0.7 table 1180"),
        ("0.0.0.0/0", via_of(None, Some(1410)), "default via 169.254.118.1 table 1180 advmss 1410"),
        ("0.0.0.0/0", Action::Unreachable, "unreachable default table 1180"),
        ("10.118.0.7/32", group, "10.118.0.7/32 nhid 2004877313 src 192.0.2.1 table 1180"),
        ("224.0.0.0/4", Action::Throw, "throw 224.0.0.0/4 table 1180"),
        ("10.118.0.7/32", Action::Local(5), "local 10.118.0.7/32 table 1180"),
        ("::/0", via6, "default via fe80::1 src 2001:db8::7 table 1180"),
        ("ff00::/8", Action::Throw, "throw ff00::/8 table 1180"),
    ] {
        let route = TableRoute { table: 1180, prefix: prefix.parse().unwrap(), tos: 0, action };
        assert_eq!(read(&table_message(route)).and_then(|route| route.of_ours()), Some(route));
        assert_eq!(route.to_string(), shown);
    }
    let of_tos = TableRoute { table: LOCAL, prefix: host([10, 118, 0, 7].into()), tos: 0x1c, action: group };
    assert_eq!(read(&table_message(of_tos)).and_then(|route| route.of_ours()), Some(of_tos));
    assert_eq!(of_tos.to_string(), "10.118.0.7/32 tos 0x1c nhid 2004877313 src 192.0.2.1 table 255");
}

#[test]
fn a_prefix_is_read_without_the_rest() {
    for (prefix, inside, outside) in
        [("10.118.0.0/16", "10.118.3.4", "10.119.0.1"), ("2001:db8::/32", "2001:db8::7", "2001:db9::7")]
    {
        let prefix: IpNetwork = prefix.parse().unwrap();
        let message = ours(prefix, MAIN);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let found = destination(&bytes).unwrap();
        assert_eq!(found, prefix);
        assert!(found.contains(inside.parse().unwrap()) && !found.contains(outside.parse().unwrap()));
    }
}

#[test]
fn the_lowest_metric_with_a_device_is_the_way() {
    let via = |index| Kind::Via(vec![Hop { gateway: None, index: Some(index) }]);
    let routes = [default_route(0, Kind::Unreachable), default_route(200, via(3)), default_route(100, via(2))];
    assert_eq!(best_way(&routes).and_then(|way| way.hop.index), Some(2));
    assert_eq!(best_way(&routes[..1]), None);
}
