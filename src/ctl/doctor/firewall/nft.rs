//! Reads `nft --json list ruleset` (libnftables-json(5)).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::model::Family;

use super::ruleset::{Chain, Hook, Operand, Place, Rule, Table, Test, Verdict};

/// The tables that packets of IPv4 or IPv6 meet. What isn't understood is unknown, never an error.
pub fn parse(text: &str) -> Result<Vec<Table>, serde_json::Error> {
    let whole: Value = serde_json::from_str(text)?;
    let mut tables: BTreeMap<(String, String), BTreeMap<String, Chain>> = BTreeMap::new();
    for object in whole["nftables"].as_array().into_iter().flatten() {
        let Some((kind, object)) = object.as_object().and_then(|object| object.iter().next()) else { continue };
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        let family = text("family");
        if !["ip", "ip6", "inet"].contains(&family.as_str()) {
            continue;
        }
        match kind.as_str() {
            "table" => drop(tables.entry((family, text("name"))).or_default()),
            "chain" => {
                let chains = tables.entry((family, text("table"))).or_default();
                let chain = chains.entry(text("name")).or_default();
                chain.hook = object["hook"].as_str().map(|hook| hook_of(hook, &text("type")));
                chain.drops = object["policy"] == "drop";
            }
            "rule" => {
                let chains = tables.entry((family, text("table"))).or_default();
                let shown = format!("handle {}", object["handle"]);
                let rules = rules(&object["expr"]).into_iter().map(|rule| Rule { shown: shown.clone(), ..rule });
                chains.entry(text("chain")).or_default().rules.extend(rules);
            }
            _ => {}
        }
    }
    let table = |((family, name), chains)| Table { place: Place::Nft { family, name }, chains };
    Ok(tables.into_iter().map(table).collect())
}

fn hook_of(hook: &str, kind: &str) -> Hook {
    match (hook, kind) {
        ("forward", _) => Hook::Forward,
        ("input", "filter") => Hook::Input,
        ("prerouting", _) => Hook::Prerouting,
        ("postrouting", "nat") => Hook::SourceNat,
        _ => Hook::Other,
    }
}

/// A rule's statements as rules of one verdict each: a verdict map has one for each of its elements.
fn rules(statements: &Value) -> Vec<Rule> {
    let (mut tests, mut found) = (Vec::new(), Vec::new());
    for statement in statements.as_array().into_iter().flatten() {
        let Some((name, body)) = statement.as_object().and_then(|statement| statement.iter().next()) else { continue };
        match name.as_str() {
            "match" => {
                tests.extend(presumed(&body["left"]));
                tests.push(test(body));
            }
            "vmap" => return map(&tests, body),
            // Neither tests nor decides.
            "counter" | "log" | "mangle" | "notrack" | "ct helper" | "ct timeout" | "flow" | "set" => {}
            "xt" if body["name"] == "comment" => {}
            "xt" if body["type"] == "match" => tests.push(unknown()),
            name => match verdict(name, body) {
                Some(verdict) => found.push(verdict),
                None => tests.push(unknown()),
            },
        }
    }
    let verdict = found.into_iter().next().unwrap_or(Verdict::Continue);
    vec![rule(tests, verdict)]
}

fn rule(tests: Vec<Test>, verdict: Verdict) -> Rule {
    Rule { tests, verdict, shown: String::new() }
}

fn unknown() -> Test {
    Test { target: Operand::Unknown, negated: false }
}

fn verdict(name: &str, body: &Value) -> Option<Verdict> {
    let target = || body["target"].as_str().unwrap_or_default().to_owned();
    Some(match name {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "masquerade" | "snat" => Verdict::Rewrite,
        "return" => Verdict::Return,
        "continue" => Verdict::Continue,
        "jump" => Verdict::Jump(target()),
        "goto" => Verdict::Goto(target()),
        "xt" => match body["name"].as_str().unwrap_or_default() {
            "REJECT" => Verdict::Drop,
            "MASQUERADE" | "SNAT" => Verdict::Rewrite,
            "REDIRECT" | "TPROXY" => Verdict::Redirect,
            "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" => Verdict::Continue,
            _ => Verdict::Unknown,
        },
        "redirect" | "tproxy" => Verdict::Redirect,
        "queue" | "synproxy" | "dnat" | "fwd" => Verdict::Unknown,
        _ => return None,
    })
}

fn map(tests: &[Test], body: &Value) -> Vec<Rule> {
    let Some(elements) = body["data"]["set"].as_array() else {
        // A map with a name: its elements are elsewhere, and change.
        return vec![rule(vec![unknown()], Verdict::Unknown)];
    };
    let of_element = |element: &Value| {
        let outcome = element[1].as_object().and_then(|verdict| verdict.iter().next());
        let verdict = outcome.and_then(|(name, body)| verdict(name, body)).unwrap_or(Verdict::Unknown);
        let mut tests = tests.to_vec();
        tests.extend(presumed(&body["key"]));
        tests.push(Test { target: target(&body["key"], &element[0]), negated: false });
        rule(tests, verdict)
    };
    elements.iter().map(of_element).collect()
}

/// What a packet must be for that to be asked of it: nft has it tested without showing it.
fn presumed(left: &Value) -> Option<Test> {
    let target = match left["payload"]["protocol"].as_str()? {
        protocol @ ("tcp" | "udp" | "udplite" | "sctp" | "dccp" | "icmp" | "igmp" | "esp" | "ah") => {
            Operand::Protocol(vec![protocol.to_owned()])
        }
        "ip" => Operand::Family(vec![Family::V4]),
        "ip6" | "icmpv6" => Operand::Family(vec![Family::V6]),
        "arp" => Operand::Cache(false),
        // What the ports of TCP and UDP have in common, and what isn't modelled, is left to the test itself.
        _ => return None,
    };
    Some(Test { target, negated: false })
}

fn test(body: &Value) -> Test {
    match body["op"].as_str() {
        Some("==" | "in") => Test { target: target(&body["left"], &body["right"]), negated: false },
        Some("!=") => Test { target: target(&body["left"], &body["right"]), negated: true },
        _ => unknown(),
    }
}

fn target(left: &Value, right: &Value) -> Operand {
    let found = match left.as_object().and_then(|left| left.iter().next()).map(|(kind, body)| (kind.as_str(), body)) {
        Some(("meta", body)) => meta(body, right),
        Some(("payload", body)) if body["protocol"] == "ip" || body["protocol"] == "ip6" => payload(body, right),
        Some(("payload", body)) if body["field"] == "dport" => ports(right).map(Operand::Port),
        Some(("fib", body)) if body["result"] == "type" && is_of_destination(&body["flags"]) => {
            words(right).map(Operand::AddressType)
        }
        Some(("ct", body)) if body["key"] == "state" || body["key"] == "status" => words(right).map(Operand::State),
        Some(("&", body)) if body[0]["meta"]["key"] == "mark" => {
            body[1].as_u64().zip(right.as_u64()).map(|(mask, value)| Operand::Mark { mask, value })
        }
        _ => None,
    };
    found.unwrap_or(Operand::Unknown)
}

fn meta(body: &Value, right: &Value) -> Option<Operand> {
    match body["key"].as_str()? {
        "iifname" | "iif" => words(right).map(Operand::Input),
        "oifname" | "oif" => words(right).map(Operand::Output),
        "mark" => right.as_u64().map(|value| Operand::Mark { mask: u64::from(u32::MAX), value }),
        "nfproto" => {
            words(right).map(|names| Operand::Family(names.iter().filter_map(|name| name.parse().ok()).collect()))
        }
        "l4proto" => words(right).map(Operand::Protocol),
        _ => None,
    }
}

fn payload(body: &Value, right: &Value) -> Option<Operand> {
    match body["field"].as_str()? {
        "saddr" => networks(right).map(Operand::Source),
        "daddr" => networks(right).map(Operand::Destination),
        // Of IPv6 that of the header behind the first one, of what has no others.
        "protocol" | "nexthdr" => words(right).map(Operand::Protocol),
        _ => None,
    }
}

/// One, a list, or a set of them.
fn each<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    match value.as_array().or_else(|| value["set"].as_array()) {
        Some(list) => list.iter().map(read).collect(),
        None => read(value).map(|one| vec![one]),
    }
}

/// `@name` is a set whose elements are elsewhere.
fn words(value: &Value) -> Option<Vec<String>> {
    each(value, |word| word.as_str().filter(|word| !word.starts_with('@')).map(str::to_owned))
}

/// `"daddr"`, by itself or in a list.
fn is_of_destination(flags: &Value) -> bool {
    *flags == "daddr" || flags.as_array().is_some_and(|flags| flags.len() == 1 && flags[0] == "daddr")
}

fn ports(value: &Value) -> Option<Vec<RangeInclusive<u16>>> {
    let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    each(value, |port| match &port["range"] {
        Value::Array(ends) => Some(number(ends.first()?)?..=number(ends.get(1)?)?),
        _ => number(port).map(|port| port..=port),
    })
}

fn networks(value: &Value) -> Option<Vec<IpNetwork>> {
    each(value, |network| match &network["prefix"] {
        Value::Object(prefix) => {
            let length = prefix.get("len")?.as_u64().and_then(|length| u8::try_from(length).ok())?;
            IpNetwork::new(prefix.get("addr")?.as_str()?.parse().ok()?, length).ok()
        }
        _ => network.as_str()?.parse().ok(),
    })
}
