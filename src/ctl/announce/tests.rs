use std::path::Path;

use crate::node::config::Config;

use super::*;

fn session(last: u8, asn: u32, device: &str) -> Session {
    Session { router: [192, 0, 2, last].into(), asn, local: [192, 0, 2, 11].into(), device: device.into() }
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
fn far_routers_are_spoken_to_over_hops() {
    let facts = Facts { multihop: Some(3), ..facts() };
    let bird = bird::text(&facts);
    assert!(bird.contains("  multihop 3;\n") && bird.contains("  multihop { min rx") && !bird.contains("  direct;"));
    let frr = frr::text(&facts);
    assert!(frr.contains("neighbor 192.0.2.254 ebgp-multihop 3") && !frr.contains("192.0.2.253 ebgp-multihop"));
    assert!(frr.contains("neighbor 192.0.2.253 update-source 192.0.2.11"));
}
