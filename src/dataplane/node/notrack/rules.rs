//! The table's form: as nft is given it, as it lists it, and what leads from one to the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::dataplane::node::pod_links;
use crate::ebpf::ADDRESSES;
use crate::model::Family;

use super::{DENIED, Form, Have, MEMBERS, NODES, PRIORITY, STRANGERS, TUNNEL_PORT, Want};

/// The chain of what VIPs send.
pub(super) const REPLIES: &str = "replies";
/// Where packets from elsewhere (requests, and the replicas' replies) pass.
pub(super) const HOOK: &str = "prerouting";
/// Where what the node sends passes: the tunnel's outer packets.
const OUTPUT: &str = "output";
/// The chain of what the node itself receives: the tunnel's outer packets among it.
pub(super) const TUNNEL: &str = "tunnel";

/// A chain of the table's.
struct Chain {
    name: &'static str,
    /// Where packets enter; none: by a jump.
    hook: Option<&'static str>,
    rules: Vec<Rule>,
}

/// A rule, as nft is given it and as it lists it.
struct Rule {
    text: String,
    listed: Value,
}

impl Rule {
    fn new<const N: usize>(parts: [(String, Value); N]) -> Self {
        let (text, listed): (Vec<String>, Vec<Value>) = parts.into_iter().unzip();
        Self { text: text.join(" "), listed: listed.into() }
    }
}

/// `accept`, `drop` or `notrack`.
fn word(word: &str) -> (String, Value) {
    (word.to_owned(), json!({ word: null }))
}

fn counted(name: &str) -> (String, Value) {
    (format!("counter name \"{name}\""), json!({ "counter": name }))
}

/// `PROTOCOL FIELD RIGHT`, or with `!=` its contrary.
fn of_packet(protocol: &str, field: &str, op: &str, right: &Value) -> (String, Value) {
    let shown = right.as_str().map_or_else(|| right.to_string(), str::to_owned);
    let between = if op == "==" { "" } else { "!= " };
    let left = json!({ "payload": { "protocol": protocol, "field": field } });
    let listed = json!({ "match": { "op": op, "left": left, "right": right } });
    (format!("{protocol} {field} {between}{shown}"), listed)
}

/// As nft calls a family's tables, and the header that its rules read.
pub(super) const fn protocol(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The type of its sets of addresses.
const fn addresses(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

fn address(family: Family, field: &str, set: &str) -> (String, Value) {
    of_packet(protocol(family), field, "==", &json!(set))
}

/// A tunnel's packet: only such ones are looked up in the set of the nodes.
fn to_tunnel() -> (String, Value) {
    of_packet("udp", "dport", "==", &json!(TUNNEL_PORT))
}

/// The chains of a table of that form, each with the rules of a lesser form first.
fn chains(family: Family, form: Form) -> Vec<Chain> {
    let address = |field, set| address(family, field, set);
    let device = json!({ "match": { "op": "==", "left": { "meta": { "key": "iifname" } }, "right": "@pods" } });
    let jump = (format!("jump {REPLIES}"), json!({ "jump": { "target": REPLIES } }));
    let mut replies = vec![Rule::new([("iifname @pods".to_owned(), device), counted(DENIED), word("drop")])];
    let mut incoming = vec![Rule::new([address("saddr", "@vips"), jump])];
    if form.tracked {
        replies.push(Rule::new([address("daddr", "@nodes"), word("accept")]));
        replies.push(Rule::new([word("notrack"), word("accept")]));
        incoming.push(Rule::new([address("daddr", "@vips"), word("notrack"), word("accept")]));
    }
    let mut of_tunnel = Vec::new();
    if form.tunnel {
        let stranger = of_packet(protocol(family), "saddr", "!=", &json!("@members"));
        let rules = vec![Rule::new([to_tunnel(), stranger, counted(STRANGERS), word("drop")])];
        of_tunnel.push(Chain { name: TUNNEL, hook: Some("input"), rules });
    }
    if form.tunnel && form.tracked {
        incoming.push(Rule::new([to_tunnel(), address("saddr", "@members"), word("notrack"), word("accept")]));
        let rules = vec![Rule::new([to_tunnel(), address("daddr", "@members"), word("notrack"), word("accept")])];
        of_tunnel.push(Chain { name: OUTPUT, hook: Some(OUTPUT), rules });
    }
    let mut all = vec![
        Chain { name: REPLIES, hook: None, rules: replies },
        Chain { name: HOOK, hook: Some(HOOK), rules: incoming },
    ];
    all.extend(of_tunnel);
    all
}

/// The transaction by which the table comes to have exactly these elements, and the rules of its form; where nothing is wanted it
/// goes. `None`: it is right.
pub(super) fn difference(family: Family, have: &Have, want: &Want, is_tracked: bool) -> Option<String> {
    let form = Form { tracked: is_tracked, tunnel: !want.members.is_empty() };
    match have {
        Have::Nothing if want.is_nothing() => None,
        _ if want.is_nothing() => Some(format!("delete table {} viproute\n", protocol(family))),
        Have::Table { elements, form: found } if *found == form && elements == want => None,
        Have::Table { elements, form: found } if found.is_within(form) => Some(
            objects_added(family, *found, form)
                + &elements_changed(family, elements, want)
                + &rules_added(family, *found, form),
        ),
        Have::Nothing | Have::Wrong | Have::Table { .. } => Some(whole(family, want, form)),
    }
}

fn elements_changed(family: Family, have: &Want, want: &Want) -> String {
    let of = protocol(family);
    [
        steps((of, "vips"), &have.vips, &want.vips),
        steps((of, "nodes"), &have.nodes, &want.nodes),
        steps((of, "pods"), &quoted(&have.pods), &quoted(&want.pods)),
        steps((of, "members"), &have.members, &want.members),
    ]
    .concat()
}

fn steps<T: Ord + Clone + Display>((of, set): (&str, &str), have: &BTreeSet<T>, want: &BTreeSet<T>) -> String {
    let steps = [("add", want - have), ("delete", have - want)];
    let steps = steps.iter().filter(|(_, some)| !some.is_empty());
    let steps = steps.map(|(verb, some)| format!("{verb} element {of} viproute {set} {{ {} }}\n", listing(some)));
    steps.collect::<Vec<_>>().concat()
}

/// What the tunnel's rules need.
fn objects_added(family: Family, have: Form, want: Form) -> String {
    if have.tunnel == want.tunnel {
        return String::new();
    }
    let (of, addresses) = (protocol(family), addresses(family));
    let set = format!("add set {of} viproute members {{ type {addresses}; size {MEMBERS}; }}\n");
    set + &format!("add counter {of} viproute {STRANGERS}\n")
}

fn rules_added(family: Family, have: Form, want: Form) -> String {
    let (of, have, mut added) = (protocol(family), chains(family, have), Vec::new());
    for Chain { name, hook, rules } in chains(family, want) {
        let found = have.iter().find(|found| found.name == name);
        if let (None, Some(hook)) = (found, hook) {
            added.push(format!("add chain {of} viproute {name} {{ {} }}\n", entrance(hook)));
        }
        let rules = rules.iter().skip(found.map_or(0, |found| found.rules.len()));
        added.extend(rules.map(|rule| format!("add rule {of} viproute {name} {}\n", rule.text)));
    }
    added.concat()
}

fn entrance(hook: &str) -> String {
    format!("type filter hook {hook} priority {PRIORITY}; policy accept;")
}

/// Added before it is deleted: deleting one that isn't there would be refused.
fn whole(family: Family, want: &Want, form: Form) -> String {
    let (table, of_addresses) = (protocol(family), addresses(family));
    let set = |name, of, size, elements| {
        let elements = match elements {
            none if String::is_empty(&none) => none,
            some => format!(" elements = {{ {some} }};"),
        };
        format!(" set {name} {{ type {of}; size {size};{elements} }}\n")
    };
    let mut parts = vec![
        format!(" counter {DENIED} {{ }}\n"),
        set("vips", of_addresses, ADDRESSES, listing(&want.vips)),
        set("nodes", of_addresses, NODES, listing(&want.nodes)),
        set("pods", "ifname", pod_links::MOST, listing(&quoted(&want.pods))),
    ];
    if form.tunnel {
        parts.push(format!(" counter {STRANGERS} {{ }}\n"));
        parts.push(set("members", of_addresses, MEMBERS, listing(&want.members)));
    }
    for Chain { name, hook, rules } in chains(family, form) {
        let mut lines: Vec<String> = hook.map(entrance).into_iter().collect();
        lines.extend(rules.into_iter().map(|rule| rule.text));
        parts.push(format!(" chain {name} {{\n  {}\n }}\n", lines.join("\n  ")));
    }
    format!(
        "add table {table} viproute\ndelete table {table} viproute\ntable {table} viproute {{\n{}}}\n",
        parts.concat()
    )
}

fn listing<T: Display>(elements: &BTreeSet<T>) -> String {
    elements.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// Names may begin with a digit, or be words of nft's.
fn quoted(names: &BTreeSet<String>) -> BTreeSet<String> {
    names.iter().map(|name| format!("\"{name}\"")).collect()
}

/// The rules as nft lists them, each with its chain.
#[cfg(test)]
pub(super) fn listed(family: Family, form: Form) -> Vec<(&'static str, Value)> {
    let of = |chain: Chain| chain.rules.into_iter().map(move |rule| (chain.name, rule.listed));
    chains(family, form).into_iter().flat_map(of).collect()
}

/// What a list of the table says of its chains and counters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Listed {
    counters: BTreeSet<String>,
    /// By name: type, hook, priority and policy.
    chains: BTreeMap<String, [Value; 4]>,
    /// By chain.
    rules: BTreeMap<String, Vec<Value>>,
}

impl Listed {
    fn of(family: Family, form: Form) -> Self {
        let mut listed = Self::default();
        listed.counters.insert(DENIED.to_owned());
        listed.counters.extend(form.tunnel.then(|| STRANGERS.to_owned()));
        for chain in chains(family, form) {
            let entrance = match chain.hook {
                None => [Value::Null, Value::Null, Value::Null, Value::Null],
                Some(hook) => [json!("filter"), json!(hook), json!(PRIORITY), json!("accept")],
            };
            listed.chains.insert(chain.name.to_owned(), entrance);
            let rules = chain.rules.into_iter().map(|rule| rule.listed).collect();
            listed.rules.insert(chain.name.to_owned(), rules);
        }
        listed
    }
}

/// A table that is as we make it; `None` where anything is missing, different or too much.
pub(super) fn understand(family: Family, listed: &Value) -> Option<Have> {
    let of_addresses = addresses(family);
    let (mut vips, mut nodes, mut pods, mut members) = (None, None, None, None);
    let mut found = Listed::default();
    for object in listed["nftables"].as_array()? {
        let (kind, object) = object.as_object()?.iter().next()?;
        let name = || object["name"].as_str().map(str::to_owned);
        match kind.as_str() {
            "metainfo" => {}
            "table" if object["flags"].is_null() => {}
            "set" if object["flags"].is_null() => match object["name"].as_str()? {
                "vips" => vips = Some(elements(object, of_addresses, ADDRESSES)?),
                "nodes" => nodes = Some(elements(object, of_addresses, NODES)?),
                "pods" => pods = Some(elements(object, "ifname", pod_links::MOST)?),
                "members" => members = Some(elements(object, of_addresses, MEMBERS)?),
                _ => return None,
            },
            "counter" => drop(found.counters.insert(name()?)),
            "chain" => {
                found.chains.insert(name()?, ["type", "hook", "prio", "policy"].map(|key| object[key].clone()));
            }
            "rule" => {
                let chain = object["chain"].as_str()?.to_owned();
                found.rules.entry(chain).or_default().push(object["expr"].clone());
            }
            _ => return None,
        }
    }
    let both = [false, true];
    let forms = both.into_iter().flat_map(|tunnel| both.map(|tracked| Form { tracked, tunnel }));
    let form = forms.filter(|form| form.tunnel == members.is_some()).find(|form| found == Listed::of(family, *form))?;
    let elements = Want { vips: vips?, nodes: nodes?, pods: pods?, members: members.unwrap_or_default() };
    Some(Have::Table { elements, form })
}

/// Of a set of that type and size.
fn elements<T: Ord + FromStr>(set: &Value, of: &str, size: u32) -> Option<BTreeSet<T>> {
    match &set["elem"] {
        _ if set["type"] != of || set["size"] != size => None,
        Value::Null => Some(BTreeSet::new()),
        listed => listed.as_array()?.iter().map(|element| element.as_str()?.parse().ok()).collect(),
    }
}
