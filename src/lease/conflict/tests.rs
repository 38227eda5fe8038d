use super::*;

const STATIC: u8 = 4;
const BGP: u8 = 186;

fn candidate() -> IpAddr {
    IpAddr::from([10, 118, 0, 7])
}

fn hop(gateway: &str, index: u32) -> Hop {
    Hop { gateway: gateway.parse().ok(), index: Some(index) }
}

fn route(prefix: &str, protocol: u8, hops: &[Hop]) -> Route {
    Route {
        prefix: prefix.parse().unwrap(),
        table: MAIN,
        protocol,
        tos: 0,
        metric: 0,
        source: None,
        advmss: None,
        kind: Kind::Via(hops.to_vec()),
    }
}

fn evidence(routes: &[Route]) -> Evidence {
    Evidence {
        routes: routes.to_vec(),
        link: Some(2),
        own: vec![[192, 0, 2, 11].into()],
        peers: vec![[192, 0, 2, 11].into(), [192, 0, 2, 12].into()],
        ..Evidence::default()
    }
}

fn judged(allow: &[&str], routes: &[Route]) -> Findings {
    let allow = Allow::new(allow.iter().map(|n| n.parse().unwrap()).collect());
    judge(candidate(), &allow, &evidence(routes))
}

fn is_free(allow: &[&str], routes: &[Route]) -> bool {
    judged(allow, routes) == Findings::default()
}

#[test]
fn a_foreign_route_to_the_address_is_a_conflict() {
    let gateway = [hop("192.0.2.1", 2)];
    for prefix in ["10.118.0.7/32", "10.118.0.0/28", "10.118.0.0/17"] {
        for protocol in [STATIC, BGP, 3, 12, 16, 99] {
            let found = judged(&["10.118.0.0/16"], &[route(prefix, protocol, &gateway)]);
            assert_eq!(found.conflicts.len(), 1, "{prefix} {protocol}");
        }
    }
    let found = judged(&[], &[route("10.118.0.0/24", BGP, &[hop("192.0.2.1", 2), hop("192.0.2.2", 2)])]);
    assert_eq!(found.conflicts, ["bgp route 10.118.0.0/24 via 192.0.2.1, 192.0.2.2"]);
}

#[test]
fn a_route_as_wide_as_the_allow_entry_or_wider_says_nothing() {
    let gateway = [hop("192.0.2.1", 2)];
    for prefix in ["10.118.0.0/16", "10.0.0.0/8", "0.0.0.0/0"] {
        assert!(is_free(&["10.118.0.0/16"], &[route(prefix, BGP, &gateway)]), "{prefix}");
    }
    assert!(!is_free(&["10.118.0.0/15"], &[route("10.118.0.0/16", BGP, &gateway)]));
}

#[test]
fn without_an_allow_list_only_the_default_route_says_nothing() {
    let gateway = [hop("192.0.2.1", 2)];
    assert!(is_free(&[], &[route("0.0.0.0/0", STATIC, &gateway)]));
    assert!(!is_free(&[], &[route("0.0.0.0/1", STATIC, &gateway)]));
}

#[test]
fn routes_elsewhere_of_the_kernel_and_of_ours_say_nothing() {
    assert!(is_free(&[], &[route("10.119.0.0/16", BGP, &[hop("192.0.2.1", 2)])]));
    assert!(is_free(&[], &[route("10.118.0.0/24", KERNEL, &[hop("", 2)])]));
    assert!(is_free(&[], &[route("10.118.0.7/32", PROTOCOL, &[hop("", 9)])]));
}

#[test]
fn a_route_without_a_way_out_is_a_conflict() {
    for kind in [Kind::Unreachable, Kind::Other] {
        let blackhole = Route { kind, ..route("10.118.0.0/28", STATIC, &[]) };
        assert_eq!(judged(&[], &[blackhole]).conflicts, ["static route 10.118.0.0/28"]);
    }
}

#[test]
fn every_table_counts() {
    let other = Route { table: 100, ..route("10.118.0.0/24", STATIC, &[hop("192.0.2.1", 2)]) };
    assert_eq!(judged(&[], &[other]).conflicts, ["static route 10.118.0.0/24 via 192.0.2.1 (table 100)"]);
}

#[test]
fn an_address_of_the_node_is_a_conflict() {
    let local = |prefix| Route { table: LOCAL, kind: Kind::Other, ..route(prefix, KERNEL, &[]) };
    assert_eq!(judged(&[], &[local("10.118.0.7/32")]).conflicts, ["it is an address of this node"]);
    assert!(is_free(&[], &[local("10.0.0.0/8")]));
    // The VIP's own, for what other nodes send.
    assert!(is_free(&[], &[Route { protocol: PROTOCOL, tos: 0x1c, ..local("10.118.0.7/32") }]));
}

#[test]
fn a_route_to_peers_alone_is_the_same_vip_on_another_node() {
    let to_peer = route("10.118.0.7/32", BGP, &[hop("192.0.2.12", 2)]);
    assert_eq!(judged(&[], std::slice::from_ref(&to_peer)), Findings { at_peer: true, ..Findings::default() });
    let mixed = route("10.118.0.7/32", BGP, &[hop("192.0.2.12", 2), hop("192.0.2.99", 2)]);
    assert!(!judged(&[], &[mixed]).conflicts.is_empty());
    let both = judged(&[], &[to_peer, route("10.118.0.0/28", STATIC, &[hop("192.0.2.1", 2)])]);
    assert!(both.at_peer && both.conflicts.len() == 1);
}

#[test]
fn the_links_own_prefix_under_another_protocol_says_nothing() {
    let allow = Allow::default();
    let on_link = route("192.0.2.0/24", 16, &[hop("", 2)]);
    let candidate = [192, 0, 2, 50].into();
    assert!(judge(candidate, &allow, &evidence(&[on_link])).conflicts.is_empty());
    for other in [hop("192.0.2.1", 2), hop("", 3)] {
        let elsewhere = route("192.0.2.0/24", 16, &[other]);
        assert_eq!(judge(candidate, &allow, &evidence(&[elsewhere])).conflicts.len(), 1);
    }
    let part = route("192.0.2.48/29", 16, &[hop("", 2)]);
    assert_eq!(judge(candidate, &allow, &evidence(&[part])).conflicts.len(), 1);
}

fn heard(prefix: &str, next_hop: &str) -> Heard {
    Heard { prefix: prefix.parse().unwrap(), next_hop: next_hop.parse().ok(), by: "BIRD's router1".into() }
}

#[test]
fn what_a_gateway_announces_is_a_conflict_unless_it_says_nothing_of_the_address() {
    let found = |allow: &[&str], evidence: &Evidence| {
        let networks = allow.iter().map(|network| network.parse().unwrap()).collect();
        judge(candidate(), &Allow::new(networks), evidence)
    };
    let evidence = |heard: Heard| Evidence {
        heard: vec![heard],
        peers: vec![[192, 0, 2, 12].into()],
        own: vec![[192, 0, 2, 11].into()],
        ..Evidence::default()
    };
    let conflicts = |allow: &[&str], heard| found(allow, &evidence(heard)).conflicts;
    let expected = "BIRD's router1 has a route 10.118.0.0/28 via 192.0.2.254";
    assert_eq!(conflicts(&["10.118.0.0/16"], heard("10.118.0.0/28", "192.0.2.254")), [expected]);
    assert_eq!(conflicts(&[], heard("10.118.0.7/32", "")), ["BIRD's router1 has a route 10.118.0.7/32"]);
    for nothing in ["0.0.0.0/0", "10.0.0.0/8", "10.118.0.0/16", "10.118.0.16/28"] {
        assert_eq!(conflicts(&["10.118.0.0/16"], heard(nothing, "192.0.2.254")), [""; 0], "{nothing}");
    }
    assert_eq!(conflicts(&[], heard("192.0.2.0/24", "192.0.2.254")), [""; 0], "the link's prefix");
}

#[test]
fn another_nodes_vip_is_told_apart_by_its_next_hop_or_by_membership() {
    let known = Evidence { peers: vec![[192, 0, 2, 12].into()], ..Evidence::default() };
    let found = |heard: Heard, served_elsewhere| {
        let evidence =
            Evidence { heard: vec![heard], served_elsewhere, peers: known.peers.clone(), ..Evidence::default() };
        judge(candidate(), &Allow::default(), &evidence)
    };
    let at_peer = Findings { at_peer: true, ..Findings::default() };
    assert_eq!(found(heard("10.118.0.7/32", "192.0.2.12"), false), at_peer);
    assert_eq!(found(heard("10.118.0.7/32", "192.0.2.254"), true), at_peer);
    assert_eq!(found(heard("10.118.0.7/32", "192.0.2.254"), false).conflicts.len(), 1);
    assert_eq!(found(heard("10.118.0.0/28", "192.0.2.12"), true).conflicts.len(), 1, "no VIP's route");
    let own = Evidence {
        heard: vec![heard("10.118.0.7/32", "192.0.2.11")],
        connected: vec![connected("192.0.2.11/24", 2)],
        ..Evidence::default()
    };
    assert_eq!(judge(candidate(), &Allow::default(), &own), Findings::default(), "this node's own, come back");
}

fn connected(prefix: &str, index: u32) -> Connected {
    Connected { prefix: prefix.parse().unwrap(), index, link: format!("link{index}") }
}

#[test]
fn a_prefix_on_another_link_is_a_conflict() {
    let found = |connected: &[Connected]| {
        let evidence = Evidence { link: Some(2), connected: connected.to_vec(), ..Evidence::default() };
        judge(candidate(), &Allow::default(), &evidence).conflicts
    };
    assert_eq!(found(&[connected("10.118.0.1/16", 9)]), ["10.118.0.0/16 is connected on link9"]);
    assert_eq!(found(&[connected("10.118.0.1/16", 2)]), [""; 0], "the link itself");
    assert_eq!(found(&[connected("10.118.0.1/16", 2), connected("10.118.0.1/24", 9)]).len(), 1, "a bridge in it");
    assert_eq!(found(&[connected("10.118.0.1/24", 2), connected("10.118.0.2/24", 9)]), [""; 0], "twice on one LAN");
    assert_eq!(found(&[connected("10.118.0.1/24", 2), connected("10.0.0.1/8", 9)]), [""; 0], "longest match");
    assert_eq!(found(&[connected("10.119.0.1/16", 9)]), [""; 0]);
}

#[test]
fn gateways_and_name_servers_are_no_vips() {
    let one = BTreeSet::from([candidate()]);
    let gateway = Evidence { gateways: one.clone(), ..Evidence::default() };
    let conflicts = |evidence| judge(candidate(), &Allow::default(), evidence).conflicts;
    assert_eq!(conflicts(&gateway), ["it is a gateway of this node's routes"]);
    let name_server = Evidence { name_servers: one, ..Evidence::default() };
    assert_eq!(conflicts(&name_server), ["it is a name server of this node"]);
}

#[test]
fn an_arp_answer_is_a_conflict_unless_a_peers() {
    let (stranger, peer) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    let mut evidence = Evidence { answers: BTreeSet::from([stranger, peer]), ..Evidence::default() };
    assert_eq!(judge(candidate(), &Allow::default(), &evidence).conflicts.len(), 2);
    evidence.peer_macs.insert(peer);
    let conflicts = judge(candidate(), &Allow::default(), &evidence).conflicts;
    assert_eq!(conflicts, ["02:00:00:00:00:01 answers ARP for it"]);
}
