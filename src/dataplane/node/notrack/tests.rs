use serde_json::{Value, json};

use super::rules::{HOOK, REPLIES, TUNNEL, understand};
use super::*;

const TRACKED: Form = Form { tracked: true, tunnel: false };
const BARE: Form = Form { tracked: false, tunnel: false };

fn addresses(last: &[u8]) -> BTreeSet<IpAddr> {
    last.iter().map(|last| IpAddr::from([10, 118, 0, *last])).collect()
}

fn vips(last: &[u8]) -> Want {
    Want { vips: addresses(last), nodes: addresses(&[200]), pods: ["cni0".to_owned()].into(), members: BTreeSet::new() }
}

/// On a node that knows two others.
fn with_members(last: &[u8]) -> Want {
    Want { members: addresses(&[77, 78]), ..vips(last) }
}

fn table(last: &[u8]) -> Have {
    Have::Table { elements: vips(last), form: TRACKED }
}

/// `nft -j list table ip viproute`, nftables 1.0.6.
fn listed() -> Value {
    listed_of(Family::V4, TRACKED)
}

fn listed_of(family: Family, form: Form) -> Value {
    let (ip, ip_addr) = match family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let of = |name: &str, handle: u32| json!({ "family": ip, "table": "viproute", "name": name, "handle": handle });
    let set = |name: &str, of_type: &str, size: u32, elem: Value| {
        let mut set = of(name, size);
        (set["type"], set["size"], set["elem"]) = (json!(of_type), json!(size), elem);
        json!({ "set": set })
    };
    let hook = |name: &str, hook: &str| {
        json!({ "chain": { "family": ip, "table": "viproute", "name": name, "handle": 4, "type": "filter",
            "hook": hook, "prio": -300, "policy": "accept" } })
    };
    let rule = |(chain, expr): (&str, Value)| json!({ "rule": { "family": ip, "table": "viproute", "chain": chain, "handle": 5, "expr": expr } });
    let mut objects = vec![
        json!({ "metainfo": { "version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1 } }),
        json!({ "table": { "family": ip, "name": "viproute", "handle": 1 } }),
        set("vips", ip_addr, 16384, json!(["10.118.0.1", "10.118.0.2"])),
        set("nodes", ip_addr, 64, json!(["10.118.0.200"])),
        set("pods", "ifname", 4096, json!(["cni0"])),
        json!({ "counter": { "family": ip, "table": "viproute", "name": DENIED, "handle": 9, "packets": 7, "bytes": 588 } }),
        json!({ "chain": of(REPLIES, 3) }),
        hook(HOOK, HOOK),
    ];
    objects.extend(rules::listed(family, form).into_iter().map(rule));
    if form.tunnel {
        objects.push(set("members", ip_addr, 4096, json!(["10.118.0.77", "10.118.0.78"])));
        objects.push(json!({ "counter": { "family": ip, "table": "viproute", "name": STRANGERS, "handle": 9, "packets": 7, "bytes": 588 } }));
        objects.extend([hook(TUNNEL, "input"), hook("output", "output")]);
    }
    json!({ "nftables": objects })
}

#[test]
fn a_table_of_ours_is_known() {
    assert_eq!(understand(Family::V4, &listed()), Some(table(&[1, 2])));
    let mut empty = listed();
    empty["nftables"][2]["set"].as_object_mut().unwrap().remove("elem");
    assert_eq!(understand(Family::V4, &empty), Some(table(&[])));
    let mut bare = listed();
    for rule in [12, 10, 9] {
        bare["nftables"].as_array_mut().unwrap().remove(rule);
    }
    assert_eq!(understand(Family::V4, &bare), Some(Have::Table { elements: vips(&[1, 2]), form: BARE }));
}

/// Each family's is its own: a table of the other one's form isn't ours.
#[test]
fn a_table_of_ipv6_has_its_own_words() {
    let mut listed = listed_of(Family::V6, TRACKED);
    listed["nftables"][2]["set"]["elem"] = json!(["fd00:118::a76:1"]);
    listed["nftables"][3]["set"]["elem"] = json!(["2001:db8::1"]);
    let address = |text: &str| BTreeSet::from([text.parse::<IpAddr>().unwrap()]);
    let (vips, nodes) = (address("fd00:118::a76:1"), address("2001:db8::1"));
    let elements = Want { vips, nodes, pods: ["cni0".to_owned()].into(), members: BTreeSet::new() };
    let table = Have::Table { elements: elements.clone(), form: TRACKED };
    assert_eq!(understand(Family::V6, &listed), Some(table.clone()));
    assert_eq!(understand(Family::V4, &listed), None);
    assert_eq!(difference(Family::V6, &table, &elements, true), None);
    let made = difference(Family::V6, &Have::Nothing, &elements, true).unwrap();
    assert!(made.starts_with("add table ip6 viproute\n") && made.contains("ip6 daddr @vips notrack accept"), "{made}");
    assert!(!made.contains("ipv4_addr") && !made.contains("ip daddr"), "{made}");
    let none = difference(Family::V6, &table, &Want::default(), true);
    assert_eq!(none.as_deref(), Some("delete table ip6 viproute\n"));
}

/// Other nodes whose ends of the tunnel have such addresses are in it, and it is there for them alone, too.
#[test]
fn the_tunnels_rules_are_in_the_table_of_its_own_packets() {
    let members = BTreeSet::from(["2001:db8::2".parse::<IpAddr>().unwrap()]);
    let want = Want { members, ..Want::default() };
    let made = difference(Family::V6, &Have::Nothing, &want, true).unwrap();
    for part in [
        "set members { type ipv6_addr; size 4096; elements = { 2001:db8::2 }; }",
        "udp dport 8118 ip6 saddr != @members counter name \"tunnel_denied\" drop",
        "udp dport 8118 ip6 daddr @members notrack accept",
    ] {
        assert!(made.contains(part), "{part}: {made}");
    }
    let vips = Want { vips: BTreeSet::from(["fd00:118::1".parse::<IpAddr>().unwrap()]), ..Want::default() };
    let without = Have::Table { elements: vips.clone(), form: TRACKED };
    let added = difference(Family::V6, &without, &Want { members: want.members, ..vips }, true).unwrap();
    assert!(added.starts_with("add set ip6 viproute members { type ipv6_addr; size 4096; }\n"), "{added}");
    assert!(!added.contains(" ip saddr") && !added.contains("set ip viproute"), "{added}");
}

#[test]
fn whatever_is_different_is_seen() {
    for gone in 2..13 {
        let mut table = listed();
        table["nftables"].as_array_mut().unwrap().remove(gone);
        assert_eq!(understand(Family::V4, &table), None, "without {gone}");
    }
    let changes = [
        ("/nftables/7/chain/prio", json!(0)),
        ("/nftables/7/chain/policy", json!("drop")),
        ("/nftables/9/rule/expr/0", json!({ "accept": null })),
        ("/nftables/4/set/type", json!("ipv4_addr")),
        ("/nftables/2/set/size", json!(4)),
        ("/nftables/2/set/elem/0", json!({ "prefix": { "addr": "10.0.0.0", "len": 8 } })),
    ];
    for (place, value) in changes {
        let mut table = listed();
        *table.pointer_mut(place).unwrap() = value;
        assert_eq!(understand(Family::V4, &table), None, "{place}");
    }
    let mut dormant = listed();
    dormant["nftables"][1]["table"]["flags"] = json!(["dormant"]);
    assert_eq!(understand(Family::V4, &dormant), None);
}

#[test]
fn what_is_right_is_left_alone_and_a_set_is_changed_in_place() {
    let table = table(&[1, 2]);
    assert_eq!(difference(Family::V4, &table, &vips(&[1, 2]), true), None);
    assert_eq!(difference(Family::V4, &Have::Nothing, &vips(&[]), true), None);
    assert_eq!(difference(Family::V4, &table, &Want::default(), true).as_deref(), Some("delete table ip viproute\n"));
    let expected = "add element ip viproute vips { 10.118.0.3 }\ndelete element ip viproute vips { 10.118.0.1 }\n";
    assert_eq!(difference(Family::V4, &table, &vips(&[2, 3]), true).as_deref(), Some(expected));
    let moved = Want { nodes: addresses(&[201]), ..vips(&[1, 2]) };
    let expected =
        "add element ip viproute nodes { 10.118.0.201 }\ndelete element ip viproute nodes { 10.118.0.200 }\n";
    assert_eq!(difference(Family::V4, &table, &moved, true).as_deref(), Some(expected));
    let other = Want { pods: ["veth1".to_owned()].into(), ..vips(&[1, 2]) };
    let expected = "add element ip viproute pods { \"veth1\" }\ndelete element ip viproute pods { \"cni0\" }\n";
    assert_eq!(difference(Family::V4, &table, &other, true).as_deref(), Some(expected));
    assert_eq!(difference(Family::V4, &table, &vips(&[]), true).as_deref(), Some("delete table ip viproute\n"));
    assert_eq!(difference(Family::V4, &Have::Wrong, &vips(&[]), true).as_deref(), Some("delete table ip viproute\n"));
    assert_eq!(
        difference(Family::V4, &Have::Nothing, &vips(&[1]), true),
        difference(Family::V4, &Have::Wrong, &vips(&[1]), true)
    );
}

/// Rules are added, and the counter and the sets stay.
#[test]
fn the_rules_against_tracking_come_when_packets_are_tracked() {
    let bare = Have::Table { elements: vips(&[1]), form: BARE };
    assert_eq!(difference(Family::V4, &bare, &vips(&[1]), false), None);
    let expected = "add rule ip viproute replies ip daddr @nodes accept\nadd rule ip viproute replies notrack accept\n\
        add rule ip viproute prerouting ip daddr @vips notrack accept\n";
    assert_eq!(difference(Family::V4, &bare, &vips(&[1]), true).as_deref(), Some(expected));
    let made = difference(Family::V4, &Have::Nothing, &vips(&[1]), false).unwrap();
    assert!(made.contains("source_denied\" drop") && !made.contains("notrack"), "{made}");
}

/// As nftables 1.0.6 lists them.
#[test]
fn the_tunnels_rules_are_known() {
    let form = Form { tracked: true, tunnel: true };
    let listed = listed_of(Family::V4, form);
    let rules: Vec<&Value> =
        listed["nftables"].as_array().unwrap().iter().filter(|object| !object["rule"].is_null()).collect();
    let texts: Vec<String> = rules.iter().map(|rule| rule["rule"]["expr"].to_string()).collect();
    let stranger = r#"[{"match":{"left":{"payload":{"field":"dport","protocol":"udp"}},"op":"==","right":8118}},{"match":{"left":{"payload":{"field":"saddr","protocol":"ip"}},"op":"!=","right":"@members"}},{"counter":"tunnel_denied"},{"drop":null}]"#;
    assert!(texts.iter().any(|text| text == stranger), "{texts:#?}");
    assert_eq!(understand(Family::V4, &listed), Some(Have::Table { elements: with_members(&[1, 2]), form }));
    for gone in 2..listed["nftables"].as_array().unwrap().len() {
        let mut table = listed.clone();
        table["nftables"].as_array_mut().unwrap().remove(gone);
        assert_eq!(understand(Family::V4, &table), None, "without {gone}");
    }
}

/// The counters and sets stay while nodes come; with the last one the table is made anew.
#[test]
fn the_tunnels_rules_are_there_while_other_nodes_are() {
    let expected = "add set ip viproute members { type ipv4_addr; size 4096; }\n\
        add counter ip viproute tunnel_denied\n\
        add element ip viproute members { 10.118.0.77, 10.118.0.78 }\n\
        add rule ip viproute prerouting udp dport 8118 ip saddr @members notrack accept\n\
        add chain ip viproute tunnel { type filter hook input priority -300; policy accept; }\n\
        add rule ip viproute tunnel udp dport 8118 ip saddr != @members counter name \"tunnel_denied\" drop\n\
        add chain ip viproute output { type filter hook output priority -300; policy accept; }\n\
        add rule ip viproute output udp dport 8118 ip daddr @members notrack accept\n";
    assert_eq!(difference(Family::V4, &table(&[1]), &with_members(&[1]), true).as_deref(), Some(expected));
    let form = Form { tracked: false, tunnel: true };
    let guarded = Have::Table { elements: with_members(&[1]), form };
    assert_eq!(difference(Family::V4, &guarded, &with_members(&[1]), false), None);
    let tracked = difference(Family::V4, &guarded, &with_members(&[1]), true).unwrap();
    assert!(tracked.contains("add chain ip viproute output") && !tracked.contains("add set"), "{tracked}");
    let another = Want { members: addresses(&[77, 79]), ..vips(&[1]) };
    let expected =
        "add element ip viproute members { 10.118.0.79 }\ndelete element ip viproute members { 10.118.0.78 }\n";
    assert_eq!(difference(Family::V4, &guarded, &another, false).as_deref(), Some(expected));
    let alone = difference(Family::V4, &guarded, &vips(&[1]), false);
    assert_eq!(alone, difference(Family::V4, &Have::Nothing, &vips(&[1]), false), "made anew");
    assert!(!alone.unwrap().contains("8118"));
    let without_vips = difference(Family::V4, &Have::Nothing, &with_members(&[]), false).unwrap();
    assert!(without_vips.contains("tunnel_denied\" drop") && !without_vips.contains("notrack"), "{without_vips}");
}
