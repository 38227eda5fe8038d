use std::path::Path;

use crate::node::config::Config;

use super::*;

fn session(last: u8, asn: u32, device: &str) -> Session {
    Session { router: [192, 0, 2, last].into(), asn, local: [192, 0, 2, 11].into(), device: device.into() }
}

/// With a router of IPv6 besides.
fn dual() -> Facts {
    let [router, local] = ["2001:db8::fe", "2001:db8::b"].map(|address| address.parse().unwrap());
    let mut facts = facts();
    facts.prefixes.extend(["fd00:118::/96", "fd00:119::7/128"].map(|prefix| prefix.parse::<IpNetwork>().unwrap()));
    facts.sessions.push(Session { router, asn: 65000, local, device: "eth0".into() });
    facts
}

fn facts() -> Facts {
    Facts {
        router_id: [192, 0, 2, 11].into(),
        asn: 65001,
        prefixes: vec!["10.118.0.0/16".parse().unwrap(), "198.51.100.7/32".parse().unwrap()],
        sessions: vec![session(254, 65000, "eth0"), session(253, 65001, "eth1")],
        multihop: None,
        answers_arp: false,
    }
}

/// The configuration without comments.
fn lines<'a>(text: &'a str, comment: &str) -> Vec<&'a str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(comment)).collect()
}

fn found(path: &str, text: &str) -> Result<Vec<String>, String> {
    let found = prefixes(&Config::parse(text).unwrap(), Path::new(path)).map_err(|error| error.to_string())?;
    Ok(found.iter().map(ToString::to_string).collect())
}

#[test]
fn vips_lie_in_allow_or_in_the_pool_and_at_pins() {
    let pool = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n";
    assert_eq!(found("x", pool), Ok(vec!["10.118.0.0/24".into()]));
    let six = format!(
        "{pool}cidr6 = \"fd00:118::/96\"\n[[pin]]\nvip = \"a/b\"\naddress = \"10.118.0.1\"\naddress6 = \"fd00:119::1\""
    );
    let networks = ["10.118.0.0/24", "fd00:118::/96", "fd00:119::1/128"].map(str::to_owned);
    assert_eq!(found("x", &six), Ok(networks.into()));
    let pins = "[[pin]]\nvip = \"a/b\"\naddress = \"10.119.0.1\"\n[[pin]]\nvip = \"a/c\"\naddress = \"10.118.0.9\"\n";
    assert_eq!(found("x", &format!("{pool}{pins}")), Ok(vec!["10.118.0.0/24".into(), "10.119.0.1/32".into()]));
    assert_eq!(found("x", &format!("allow = [\"10.0.0.0/8\"]\n{pool}{pins}")), Ok(vec!["10.0.0.0/8".into()]));
    let error = found("/etc/viproute/viprouted.toml", "").unwrap_err();
    assert!(error.starts_with("/etc/viproute/viprouted.toml: allow is not set"), "{error}");
}

#[test]
fn a_bandwidth_is_a_float_of_bytes() {
    // As FRR writes 1 and 3 Mbit/s.
    assert_eq!((bandwidth(1), bandwidth(3)), (0x47f4_2400, 0x48b7_1b00));
    assert_eq!(bandwidth(MOST_COUNTED + 1), bandwidth(MOST_COUNTED));
    assert!((1..MOST_COUNTED).all(|n| f32::from_bits(bandwidth(n)) < f32::from_bits(bandwidth(n + 1))));
}

#[test]
fn an_asn_of_four_bytes_stands_as_another_in_the_community() {
    let facts = Facts { asn: 4_200_000_000, ..facts() };
    assert_eq!(facts.community_asn(), 23456);
    assert!(bird::text(&facts).contains("(generic, 0x00045ba0, 0x47f42400)"));
    assert!(frr::text(&facts).contains("router bgp 4200000000"));
}

#[test]
fn bird_has_a_session_for_each_router_and_takes_no_vip() {
    let text = bird::text(&facts());
    let lines = lines(&text, "#");
    let count = |wanted: &str| lines.iter().filter(|line| line.contains(wanted)).count();
    assert_eq!(count("from to_router {"), 2);
    assert!(lines.contains(&"neighbor 192.0.2.254 as 65000;") && lines.contains(&"neighbor 192.0.2.253 as 65001;"));
    assert!(lines.contains(&"define VIPS = [ 10.118.0.0/16{32,32}, 198.51.100.7/32{32,32} ];"));
    assert!(lines.contains(&"define WITHIN = [ 10.118.0.0/16{16,32}, 198.51.100.7/32{32,32} ];"));
    assert_eq!(count("interface \""), 2, "BFD on both devices");
    assert_eq!((count("import table on;"), count("import filter routes_in;")), (1, 1));
    assert_eq!(count("export none;"), 1, "the kernel's table");
    assert_eq!(count("bgp_ext_community.add"), 65);
    assert_eq!(text.matches('{').count(), text.matches('}').count());
}

#[test]
fn frr_takes_no_vip_and_weighs_by_the_metric() {
    let text = frr::text(&facts());
    let lines = lines(&text, "!");
    let count = |wanted: &str| lines.iter().filter(|line| line.contains(wanted)).count();
    assert!(lines.contains(&"ip prefix-list VIPROUTE-VIPS seq 5 permit 10.118.0.0/16 ge 32"));
    assert!(lines.contains(&"ip prefix-list VIPROUTE-VIPS seq 10 permit 198.51.100.7/32"));
    assert!(lines.contains(&"neighbor 192.0.2.254 remote-as 65000"));
    assert_eq!(count("route-map VIPROUTE-IN in"), 2);
    assert_eq!(count("route-map VIPROUTE-OUT out"), 2);
    assert_eq!(count("soft-reconfiguration inbound"), 2);
    assert_eq!(count("match metric"), 65, "64 numbers, and none");
    assert_eq!((count("set origin igp"), count("set metric 0")), (65, 65));
    assert_eq!(count("advertisement-interval 0"), 1, "to the other AS");
}

#[test]
fn ipv6_addresses_are_announced_to_a_router_of_ipv6() {
    let (bird, frr) = (bird::text(&dual()), frr::text(&dual()));
    for line in [
        "define VIPS6 = [ fd00:118::/96{128,128}, fd00:119::7/128{128,128} ];",
        "define WITHIN6 = [ fd00:118::/96{96,128}, fd00:119::7/128{128,128} ];",
        "if krt_source = 118 && defined(krt_cwnd) && net ~ VIPS6 then accept;",
        "protocol bgp router3 from to_router6 {",
        "neighbor 2001:db8::fe as 65000;",
    ] {
        assert!(lines(&bird, "#").contains(&line), "{line}\n{bird}");
    }
    for line in [
        "ipv6 prefix-list VIPROUTE-VIPS6 seq 5 permit fd00:118::/96 ge 128",
        "ipv6 prefix-list VIPROUTE-WITHIN6 seq 10 permit fd00:119::7/128",
        "match ipv6 address prefix-list VIPROUTE-VIPS6",
        "no neighbor 2001:db8::fe activate",
        "neighbor 2001:db8::fe activate",
    ] {
        assert!(lines(&frr, "!").contains(&line), "{line}\n{frr}");
    }
    // One replica is metric 2 there, and the highest of 64 is 65.
    let weight = |number: u32, metric: u32| {
        let list = "match ipv6 address prefix-list VIPROUTE-VIPS6";
        format!("route-map VIPROUTE-WEIGHT6 permit {number}\n {list}\n match metric {metric}\n")
    };
    assert!(frr.contains(&weight(2, 2)) && frr.contains(&weight(65, 65)), "{frr}");
}

#[test]
fn a_family_that_is_announced_to_no_router_is_named() {
    let untold =
        |facts: &Facts| facts.head("x").iter().any(|line| line.contains("IPv6 address, --router [ADDRESS]:ASN"));
    assert!(!untold(&facts()) && !untold(&dual()));
    let mut facts = dual();
    facts.sessions.pop();
    assert!(untold(&facts));
    assert!(!bird::text(&facts).contains("ipv6 {") && !frr::text(&facts).contains("ipv6 prefix-list"));
}

#[test]
fn far_routers_are_spoken_to_over_hops() {
    let facts = Facts { multihop: Some(3), ..facts() };
    let bird = bird::text(&facts);
    assert!(bird.contains("  multihop 3;\n") && bird.contains("  multihop { min rx") && !bird.contains("  direct;"));
    let frr = frr::text(&facts);
    assert!(frr.contains("neighbor 192.0.2.254 ebgp-multihop 3") && !frr.contains("192.0.2.253 ebgp-multihop"));
    assert!(frr.contains("neighbor 192.0.2.253 update-source 192.0.2.11"));
}
