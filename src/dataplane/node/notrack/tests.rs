use serde_json::{Value, json};

use super::rules::{HOOK, REPLIES, TUNNEL, understand};
use super::*;

const TRACKED: Form = Form { tracked: true, tunnel: false };
const BARE: Form = Form { tracked: false, tunnel: false };

fn addresses(last: &[u8]) -> BTreeSet<Ipv4Addr> {
    last.iter().map(|last| Ipv4Addr::new(10, 118, 0, *last)).collect()
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
    listed_of(TRACKED)
}

fn listed_of(form: Form) -> Value {
    let of = |name: &str, handle: u32| json!({ "family": "ip", "table": "viproute", "name": name, "handle": handle });
    let set = |name: &str, of_type: &str, size: u32, elem: Value| {
        let mut set = of(name, size);
        (set["type"], set["size"], set["elem"]) = (json!(of_type), json!(size), elem);
        json!({ "set": set })
    };
    let hook = |name: &str, hook: &str| {
        json!({ "chain": { "family": "ip", "table": "viproute", "name": name, "handle": 4, "type": "filter",
            "hook": hook, "prio": -300, "policy": "accept" } })
    };
    let rule = |(chain, expr): (&str, Value)| json!({ "rule": { "family": "ip", "table": "viproute", "chain": chain, "handle": 5, "expr": expr } });
    let mut objects = vec![
        json!({ "metainfo": { "version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1 } }),
        json!({ "table": { "family": "ip", "name": "viproute", "handle": 1 } }),
        set("vips", "ipv4_addr", 16384, json!(["10.118.0.1", "10.118.0.2"])),
        set("nodes", "ipv4_addr", 64, json!(["10.118.0.200"])),
        set("pods", "ifname", 4096, json!(["cni0"])),
        json!({ "counter": { "family": "ip", "table": "viproute", "name": DENIED, "handle": 9, "packets": 7, "bytes": 588 } }),
        json!({ "chain": of(REPLIES, 3) }),
        hook(HOOK, HOOK),
    ];
    objects.extend(rules::listed(form).into_iter().map(rule));
    if form.tunnel {
        objects.push(set("members", "ipv4_addr", 4096, json!(["10.118.0.77", "10.118.0.78"])));
        objects.push(json!({ "counter": { "family": "ip", "table": "viproute", "name": STRANGERS, "handle": 9, "packets": 7, "bytes": 588 } }));
        objects.extend([hook(TUNNEL, "input"), hook("output", "output")]);
    }
    json!({ "nftables": objects })
}

#[test]
fn a_table_of_ours_is_known() {
    assert_eq!(understand(&listed()), Some(table(&[1, 2])));
    let mut empty = listed();
    empty["nftables"][2]["set"].as_object_mut().unwrap().remove("elem");
    assert_eq!(understand(&empty), Some(table(&[])));
    let mut bare = listed();
    for rule in [12, 10, 9] {
        bare["nftables"].as_array_mut().unwrap().remove(rule);
    }
    assert_eq!(understand(&bare), Some(Have::Table { elements: vips(&[1, 2]), form: BARE }));
}

#[test]
fn whatever_is_different_is_seen() {
    for gone in 2..13 {
        let mut table = listed();
        table["nftables"].as_array_mut().unwrap().remove(gone);
        assert_eq!(understand(&table), None, "without {gone}");
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
        assert_eq!(understand(&table), None, "{place}");
    }
    let mut dormant = listed();
    dormant["nftables"][1]["table"]["flags"] = json!(["dormant"]);
    assert_eq!(understand(&dormant), None);
}

#[test]
fn what_is_right_is_left_alone_and_a_set_is_changed_in_place() {
    let table = table(&[1, 2]);
    assert_eq!(difference(&table, &vips(&[1, 2]), true), None);
    assert_eq!(difference(&Have::Nothing, &vips(&[]), true), None);
    assert_eq!(difference(&table, &Want::default(), true).as_deref(), Some("delete table ip viproute\n"));
    let expected = "add element ip viproute vips { 10.118.0.3 }\ndelete element ip viproute vips { 10.118.0.1 }\n";
    assert_eq!(difference(&table, &vips(&[2, 3]), true).as_deref(), Some(expected));
    let moved = Want { nodes: addresses(&[201]), ..vips(&[1, 2]) };
    let expected =
        "add element ip viproute nodes { 10.118.0.201 }\ndelete element ip viproute nodes { 10.118.0.200 }\n";
    assert_eq!(difference(&table, &moved, true).as_deref(), Some(expected));
    let other = Want { pods: ["veth1".to_owned()].into(), ..vips(&[1, 2]) };
    let expected = "add element ip viproute pods { \"veth1\" }\ndelete element ip viproute pods { \"cni0\" }\n";
    assert_eq!(difference(&table, &other, true).as_deref(), Some(expected));
    assert_eq!(difference(&table, &vips(&[]), true).as_deref(), Some("delete table ip viproute\n"));
    assert_eq!(difference(&Have::Wrong, &vips(&[]), true).as_deref(), Some("delete table ip viproute\n"));
    assert_eq!(difference(&Have::Nothing, &vips(&[1]), true), difference(&Have::Wrong, &vips(&[1]), true));
}

/// Rules are added, and the counter and the sets stay.
#[test]
fn the_rules_against_tracking_come_when_packets_are_tracked() {
    let bare = Have::Table { elements: vips(&[1]), form: BARE };
    assert_eq!(difference(&bare, &vips(&[1]), false), None);
    let expected = "add rule ip viproute replies ip daddr @nodes accept\nadd rule ip viproute replies notrack accept\n\
        add rule ip viproute prerouting ip daddr @vips notrack accept\n";
    assert_eq!(difference(&bare, &vips(&[1]), true).as_deref(), Some(expected));
    let made = difference(&Have::Nothing, &vips(&[1]), false).unwrap();
    assert!(made.contains("source_denied\" drop") && !made.contains("notrack"), "{made}");
}

/// As nftables 1.0.6 lists them.
#[test]
fn the_tunnels_rules_are_known() {
    let form = Form { tracked: true, tunnel: true };
    let listed = listed_of(form);
    let rules: Vec<&Value> =
        listed["nftables"].as_array().unwrap().iter().filter(|object| !object["rule"].is_null()).collect();
    let texts: Vec<String> = rules.iter().map(|rule| rule["rule"]["expr"].to_string()).collect();
    let stranger = r#"[{"match":{"left":{"payload":{"field":"dport","protocol":"udp"}},"op":"==","right":8118}},{"match":{"left":{"payload":{"field":"saddr","protocol":"ip"}},"op":"!=","right":"@members"}},{"counter":"tunnel_denied"},{"drop":null}]"#;
    assert!(texts.iter().any(|text| text == stranger), "{texts:#?}");
    assert_eq!(understand(&listed), Some(Have::Table { elements: with_members(&[1, 2]), form }));
    for gone in 2..listed["nftables"].as_array().unwrap().len() {
        let mut table = listed.clone();
        table["nftables"].as_array_mut().unwrap().remove(gone);
        assert_eq!(understand(&table), None, "without {gone}");
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
    assert_eq!(difference(&table(&[1]), &with_members(&[1]), true).as_deref(), Some(expected));
    let form = Form { tracked: false, tunnel: true };
    let guarded = Have::Table { elements: with_members(&[1]), form };
    assert_eq!(difference(&guarded, &with_members(&[1]), false), None);
    let tracked = difference(&guarded, &with_members(&[1]), true).unwrap();
    assert!(tracked.contains("add chain ip viproute output") && !tracked.contains("add set"), "{tracked}");
    let another = Want { members: addresses(&[77, 79]), ..vips(&[1]) };
    let expected =
        "add element ip viproute members { 10.118.0.79 }\ndelete element ip viproute members { 10.118.0.78 }\n";
    assert_eq!(difference(&guarded, &another, false).as_deref(), Some(expected));
    let alone = difference(&guarded, &vips(&[1]), false);
    assert_eq!(alone, difference(&Have::Nothing, &vips(&[1]), false), "made anew");
    assert!(!alone.unwrap().contains("8118"));
    let without_vips = difference(&Have::Nothing, &with_members(&[]), false).unwrap();
    assert!(without_vips.contains("tunnel_denied\" drop") && !without_vips.contains("notrack"), "{without_vips}");
}
