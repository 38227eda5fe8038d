use proptest::prelude::*;

use super::ruleset::{Fate, Packet, Table};
use super::{iptables, nft};
use crate::model::Family;

fn to_vip(state: &'static str) -> Packet<'static> {
    Packet {
        input: Some("eth0"),
        output: Some("vip0123456789a"),
        destination: Some([10, 118, 0, 7].into()),
        ..Packet::of("tcp", state)
    }
}

/// From a pod, as it leaves.
fn call() -> Packet<'static> {
    Packet { input: None, source: Some([10, 1, 1, 2].into()), mark: Some(0), ..to_vip("new") }
}

fn table(rules: &str) -> Table {
    iptables::parse(rules, Family::V4).remove(0)
}

/// What becomes of a new packet to a VIP in a FORWARD chain of these rules.
fn fate(policy: &str, rules: &str) -> Fate {
    table(&format!("*filter\n:FORWARD {policy} [0:0]\n:OTHER - [0:0]\n{rules}\nCOMMIT\n"))
        .fate("FORWARD", &to_vip("new"))
}

#[test]
fn a_policy_drops_what_nobody_accepts() {
    assert_eq!(fate("ACCEPT", ""), Fate::Passes);
    assert_eq!(fate("DROP", ""), Fate::Dropped);
    assert_eq!(fate("DROP", "-A FORWARD -o vip+ -j ACCEPT"), Fate::Passes);
    assert_eq!(fate("DROP", "-A FORWARD -d 10.118.0.0/16 -j ACCEPT"), Fate::Passes);
    assert_eq!(fate("DROP", "-A FORWARD -d 10.118.0.0/255.255.0.0 -i eth0 -p tcp -m tcp -j ACCEPT"), Fate::Passes);
    assert_eq!(fate("DROP", "-A FORWARD -d 10.119.0.0/16 -j ACCEPT"), Fate::Dropped);
    assert_eq!(fate("DROP", "-A FORWARD -p udp -j ACCEPT"), Fate::Dropped);
}

#[test]
fn what_may_be_accepted_is_not_said_to_be_dropped() {
    for rule in [
        "-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT",
        "-A FORWARD -s 192.0.2.0/24 -j ACCEPT",
        "-A FORWARD -m set --match-set friends src -j ACCEPT",
        "-A FORWARD -m mark --mark 0x1/0x1 -j ACCEPT",
        "-A FORWARD -j NFQUEUE --queue-num 0",
        "-A FORWARD -m set --match-set x src -j OTHER\n-A OTHER -j ACCEPT",
        "-A FORWARD ! -s 192.0.2.0/24 -j RETURN",
    ] {
        assert_eq!(fate("DROP", rule), Fate::Passes, "{rule}");
    }
    for rule in ["-A FORWARD -s 192.0.2.0/24 -j DROP", "-A FORWARD -p tcp -m multiport --dports 1,2 -j REJECT"] {
        assert_eq!(fate("ACCEPT", rule), Fate::Passes, "{rule}");
    }
}

#[test]
fn chains_return() {
    assert_eq!(
        fate("ACCEPT", "-A FORWARD -j OTHER\n-A FORWARD -j DROP\n-A OTHER -j RETURN\n-A OTHER -j ACCEPT"),
        Fate::Dropped
    );
    assert_eq!(fate("ACCEPT", "-A FORWARD -g OTHER\n-A FORWARD -j DROP\n-A OTHER -p udp -j DROP"), Fate::Passes);
    assert_eq!(fate("ACCEPT", "-A FORWARD -j OTHER\n-A OTHER -j OTHER"), Fate::Passes, "no kernel takes that");
}

/// Docker's, which drops whatever isn't its own.
#[test]
fn dockers_rules() {
    let docker = r#"
-A FORWARD -j DOCKER-USER
-A FORWARD -m set --match-set docker-ext-bridges-v4 dst -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -m comment --comment "a \"quoted\" word" -j ACCEPT
-A DOCKER-USER -j RETURN"#;
    assert_eq!(fate("DROP", docker), Fate::Dropped);
}

#[test]
fn conntracks_opinion() {
    let rules = "-A FORWARD -m conntrack --ctstate INVALID -j DROP";
    let table = table(&format!("*filter\n:FORWARD ACCEPT [0:0]\n{rules}\n"));
    assert_eq!(table.fate("FORWARD", &to_vip("new")), Fate::Passes);
    assert_eq!(table.fate("FORWARD", &to_vip("invalid")), Fate::Dropped);
    assert_eq!(table.fate("FORWARD", &to_vip("untracked")), Fate::Passes);
    assert!(table.chains["FORWARD"].needs_conntrack());
}

/// ipMasq of the base plugins, and kube-proxy's, which is for services alone.
#[test]
fn masquerade() {
    let nat = |rules: &str| table(&format!("*nat\n:POSTROUTING ACCEPT [0:0]\n:CNI-1 - [0:0]\n{rules}\n"));
    let masq = "-A POSTROUTING -s 10.1.1.2/32 -m comment --comment \"name: \\\"pods\\\"\" -j CNI-1
-A CNI-1 -d 10.1.1.0/24 -j ACCEPT\n-A CNI-1 ! -d 224.0.0.0/4 -j MASQUERADE";
    assert_eq!(nat(masq).fate("POSTROUTING", &call()), Fate::Rewritten);
    let exempt = format!("-A POSTROUTING -o vip+ -j ACCEPT\n{masq}");
    assert_eq!(nat(&exempt).fate("POSTROUTING", &call()), Fate::Passes);
    let kube = "-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A POSTROUTING -j MASQUERADE --random-fully";
    assert_eq!(nat(kube).fate("POSTROUTING", &call()), Fate::Passes);
}

fn nft_chain(hook: &str, expressions: &[&str]) -> Table {
    let rules = expressions
        .iter()
        .map(|expr| format!(r#",{{"rule":{{"family":"inet","table":"t","chain":"c","handle":2,"expr":[{expr}]}}}}"#));
    let text = format!(
        r#"{{"nftables":[{{"metainfo":{{}}}},{{"table":{{"family":"inet","name":"t"}}}},{{"table":{{"family":"ip6","name":"x"}}}},
        {{"chain":{{"family":"inet","table":"t","name":"c",{hook}}}}}{}]}}"#,
        rules.collect::<String>()
    );
    nft::parse(&text).expect("JSON").remove(0)
}

/// As `nft --json list ruleset` prints them (nftables 1.0.6).
#[test]
fn nftables_rules() {
    const FORWARD: &str = r#""type":"filter","hook":"forward","prio":0,"policy":"drop""#;
    const TRUSTED: &str = r#"{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":{"set":["lo","eth0"]}}},
        {"match":{"op":"in","left":{"ct":{"key":"state"}},"right":["established","new"]}},{"counter":{"packets":0,"bytes":0}},{"accept":null}"#;
    let fate = |expressions: &[&str]| nft_chain(FORWARD, expressions).fate("c", &to_vip("new"));
    assert_eq!(fate(&[]), Fate::Dropped);
    assert_eq!(fate(&[TRUSTED]), Fate::Passes);
    assert_eq!(nft_chain(FORWARD, &[TRUSTED]).fate("c", &to_vip("untracked")), Fate::Dropped);
    let vip = r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"daddr"}},"right":{"prefix":{"addr":"10.118.0.0","len":16}}}},{"accept":null}"#;
    assert_eq!(fate(&[vip]), Fate::Passes);
    let other = r#"{"match":{"op":"==","left":{"meta":{"key":"oifname"}},"right":"docker0"}},{"accept":null}"#;
    assert_eq!(fate(&[other]), Fate::Dropped);
    let map =
        r#"{"vmap":{"key":{"ct":{"key":"state"}},"data":{"set":[["invalid",{"drop":null}],["new",{"accept":null}]]}}}"#;
    assert_eq!(fate(&[map]), Fate::Passes);
    let status = r#"{"match":{"op":"in","left":{"ct":{"key":"status"}},"right":"dnat"}},{"accept":null}"#;
    assert_eq!(fate(&[status]), Fate::Dropped);
    let named = r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"@friends"}},{"accept":null}"#;
    assert_eq!(fate(&[named]), Fate::Passes);
    let limited = r#"{"limit":{"rate":5,"burst":5,"per":"second"}},{"accept":null}"#;
    assert_eq!(fate(&[limited]), Fate::Passes);
}

#[test]
fn nftables_masquerade() {
    const NAT: &str = r#""type":"nat","hook":"postrouting","prio":100,"policy":"accept""#;
    let masq = r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"10.1.1.2"}},
        {"match":{"op":"!=","left":{"payload":{"protocol":"ip","field":"daddr"}},"right":{"prefix":{"addr":"10.1.1.0","len":24}}}},{"masquerade":null}"#;
    assert_eq!(nft_chain(NAT, &[masq]).fate("c", &call()), Fate::Rewritten);
    let kube = r#"{"match":{"op":"!=","left":{"&":[{"meta":{"key":"mark"}},16384]},"right":16384}},{"return":null}"#;
    assert_eq!(nft_chain(NAT, &[kube, r#"{"masquerade":{"flags":"fully-random"}}"#]).fate("c", &call()), Fate::Passes);
}

/// What another node sends by the tunnel.
fn from_node(state: &'static str) -> Packet<'static> {
    Packet {
        port: Some(8118),
        address_type: Some("local"),
        input: Some("eth0"),
        source: Some([192, 0, 2, 2].into()),
        destination: Some([192, 0, 2, 1].into()),
        ..Packet::of("udp", state)
    }
}

/// What becomes of it in an INPUT chain of these rules, and by which.
fn end(policy: &str, rules: &str) -> (Fate, Option<String>) {
    let table = table(&format!("*filter\n:INPUT {policy} [0:0]\n:OTHER - [0:0]\n{rules}\nCOMMIT\n"));
    let (fate, rule) = table.end("INPUT", &from_node("untracked"));
    (fate, rule.map(str::to_owned))
}

#[test]
fn a_rule_that_drops_is_named() {
    for rule in [
        "-A INPUT -p udp -m udp --dport 8118 -j DROP",
        "-A INPUT -i eth0 -p udp -m multiport --dports 53,8000:8200 -j REJECT --reject-with icmp-port-unreachable",
        "-A INPUT ! -s 198.51.100.0/24 -j DROP",
        "-A INPUT -p udp -m udp ! --dport 53 -j DROP",
        "-A INPUT -m addrtype --dst-type LOCAL -j DROP",
    ] {
        assert_eq!(end("ACCEPT", rule), (Fate::Dropped, Some(rule.to_owned())));
    }
    let inner = "-A OTHER -p udp -j DROP";
    assert_eq!(end("ACCEPT", &format!("-A INPUT -j OTHER\n{inner}")), (Fate::Dropped, Some(inner.to_owned())));
    assert_eq!(end("DROP", "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"), (Fate::Dropped, None), "the policy");
    // A rule that may drop isn't the one that does.
    assert_eq!(end("DROP", "-A INPUT -m set --match-set x src -j DROP"), (Fate::Dropped, None));
}

#[test]
fn what_lets_other_nodes_in() {
    for rule in [
        "-A INPUT -p udp -m udp --dport 8118 -j ACCEPT",
        "-A INPUT -p udp -m multiport --dports 22,8118:8119 -j ACCEPT",
        "-A INPUT -s 192.0.2.0/24 -j ACCEPT",
        "-A INPUT -m set --match-set nodes src -j ACCEPT",
        "-A INPUT -m conntrack --ctstate UNTRACKED -j ACCEPT",
    ] {
        assert_eq!(end("DROP", rule).0, Fate::Passes, "{rule}");
    }
    for rule in ["-A INPUT -p udp -m udp --sport 8118 -j DROP", "-A INPUT -p udp -m udp --dport 8120:8130 -j DROP"] {
        assert_eq!(end("ACCEPT", rule).0, Fate::Passes, "{rule}");
    }
}

/// As ufw makes it (`/etc/ufw/before.rules`), without a rule of the administrator's.
#[test]
fn ufws_rules() {
    let ufw = "-A INPUT -j before\n-A INPUT -j user\n\
        -A before -i lo -j ACCEPT\n\
        -A before -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A before -m conntrack --ctstate INVALID -j DROP\n\
        -A before -p icmp -m icmp --icmp-type 8 -j ACCEPT\n\
        -A before -p udp -m udp --sport 67 --dport 68 -j ACCEPT\n\
        -A before -j not-local\n\
        -A before -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT\n\
        -A not-local -m addrtype --dst-type LOCAL -j RETURN\n\
        -A not-local -m addrtype --dst-type MULTICAST -j RETURN\n\
        -A not-local -m limit --limit 3/min --limit-burst 10 -j LOG\n\
        -A not-local -j DROP\n\
        -A user -p tcp -m tcp --dport 22 -j ACCEPT";
    assert_eq!(end("DROP", ufw), (Fate::Dropped, None));
    let opened = format!("{ufw}\n-A user -p udp -m udp --dport 8118 -j ACCEPT");
    assert_eq!(end("DROP", &opened).0, Fate::Passes);
}

/// As firewalld makes it, shortened: a zone's services, and what is left is rejected.
#[test]
fn firewallds_rules() {
    const INPUT: &str = r#""type":"filter","hook":"input","prio":10,"policy":"accept""#;
    const KNOWN: &str =
        r#"{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":["established","related"]}},{"accept":null}"#;
    const SSH: &str =
        r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":22}},{"accept":null}"#;
    const DHCP6: &str = r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip6","field":"daddr"}},"right":{"prefix":{"addr":"fe80::","len":64}}}},
        {"match":{"op":"==","left":{"payload":{"protocol":"udp","field":"dport"}},"right":546}},{"accept":null}"#;
    const PING: &str = r#"{"match":{"op":"==","left":{"meta":{"key":"l4proto"}},"right":{"set":["icmp","ipv6-icmp"]}}},{"accept":null}"#;
    const REST: &str = r#"{"reject":{"type":"icmpx","expr":"admin-prohibited"}}"#;
    let closed = nft_chain(INPUT, &[KNOWN, SSH, DHCP6, PING, REST]);
    assert_eq!(closed.end("c", &from_node("untracked")), (Fate::Dropped, Some("handle 2")));
    let open = r#"{"match":{"op":"==","left":{"payload":{"protocol":"udp","field":"dport"}},"right":{"set":[53,{"range":[8118,8119]}]}}},{"accept":null}"#;
    assert_eq!(nft_chain(INPUT, &[KNOWN, SSH, open, REST]).fate("c", &from_node("new")), Fate::Passes);
    let local =
        r#"{"match":{"op":"!=","left":{"fib":{"result":"type","flags":["daddr"]}},"right":"local"}},{"drop":null}"#;
    assert_eq!(nft_chain(INPUT, &[local]).fate("c", &from_node("new")), Fate::Passes);
    let others =
        r#"{"match":{"op":"!=","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":22}},{"drop":null}"#;
    assert_eq!(nft_chain(INPUT, &[others]).fate("c", &from_node("new")), Fate::Passes, "of TCP alone");
}

/// What is between nodes that speak by IPv6.
#[test]
fn packets_of_ipv6_meet_their_own_rules() {
    const INPUT: &str = r#""type":"filter","hook":"input","prio":10,"policy":"drop""#;
    const V4: &str = r#"{"match":{"op":"==","left":{"meta":{"key":"nfproto"}},"right":"ipv4"}},{"accept":null}"#;
    const ANY: &str = r#"{"match":{"op":"!=","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"192.0.2.9"}},{"accept":null}"#;
    const TWO: &str = r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip6","field":"saddr"}},"right":{"prefix":{"addr":"2001:db8::2","len":127}}}},{"accept":null}"#;
    let from = |address: &str| Packet {
        family: Family::V6,
        source: Some(address.parse().unwrap()),
        destination: Some("2001:db8::1".parse().unwrap()),
        ..from_node("new")
    };
    let rules = "*filter\n:INPUT DROP [0:0]\n-A INPUT -s 2001:db8::2/128 -p udp -m udp --dport 8118 -j ACCEPT\n";
    let six = iptables::parse(rules, Family::V6).remove(0);
    let fates = |table: &Table, chain| ["2001:db8::2", "2001:db8::3"].map(|node| table.fate(chain, &from(node)));
    assert_eq!(fates(&six, "INPUT"), [Fate::Passes, Fate::Dropped]);
    assert_eq!(six.fate("INPUT", &from_node("new")), Fate::Passes, "IPv4 doesn't come here");
    assert_eq!(fates(&table("*filter\n:INPUT DROP [0:0]\n"), "INPUT"), [Fate::Passes; 2], "nor IPv6 there");
    assert_eq!(fates(&nft_chain(INPUT, &[V4, ANY]), "c"), [Fate::Dropped; 2]);
    assert_eq!(fates(&nft_chain(INPUT, &[TWO]), "c"), [Fate::Passes; 2]);
    assert_eq!(nft_chain(INPUT, &[TWO]).fate("c", &from_node("new")), Fate::Dropped);
}

proptest! {
    #[test]
    fn no_text_makes_the_parsers_panic(text in "\\PC{0,200}", lines in "([*:-][A-Za-z -]{0,20}\n){0,8}") {
        let _ = nft::parse(&text);
        let _ = iptables::parse(&text, Family::V4);
        let _ = iptables::parse(&lines, Family::V4);
    }

    /// Chains that jump to each other and themselves.
    #[test]
    fn every_walk_ends(rules in proptest::collection::vec(("[A-D]", "(-p udp|-s 10.0.0.0/8|-i eth0|-m x --y z|)", "[A-D]|DROP|RETURN"), 0..40)) {
        let rules = rules.iter().map(|(chain, test, target)| format!("-A {chain} {test} -j {target}\n"));
        let text = format!("*filter\n:A ACCEPT [0:0]\n:B - [0:0]\n:C - [0:0]\n:D - [0:0]\n{}", rules.collect::<String>());
        let _ = table(&text).fate("A", &to_vip("new"));
    }
}
