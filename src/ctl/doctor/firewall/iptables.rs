//! Reads `iptables-nft-save`, and that of IPv6: what iptables' own tables say, which nft shows as opaque `xt` expressions.

use ipnetwork::IpNetwork;

use crate::model::Family;

use super::ruleset::{Chain, Hook, Operand, Place, Rule, Table, Test, Verdict};

/// The tables of a family. What isn't understood is unknown, never an error.
pub fn parse(text: &str, family: Family) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            let place = Place::Iptables { family, name: name.to_owned() };
            tables.push(Table { place, chains: std::collections::BTreeMap::new() });
        }
        let Some(table) = tables.last_mut() else { continue };
        let Place::Iptables { name: table_name, .. } = &table.place else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let (name, policy) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let chain = Chain { hook: hook_of(table_name, name, policy), drops: policy == "DROP", rules: Vec::new() };
            table.chains.insert(name.to_owned(), chain);
        } else if let Some(rule) = line.strip_prefix("-A ") {
            // A rule that can't be split is one of an unknown form.
            let words = shlex::split(rule).unwrap_or_default();
            let Some((chain, words)) = words.split_first() else { continue };
            let rule = Rule { shown: line.to_owned(), ..read(words) };
            table.chains.entry(chain.clone()).or_default().rules.push(rule);
        }
    }
    tables
}

/// A user-defined chain has `-` in the policy's place.
fn hook_of(table: &str, chain: &str, policy: &str) -> Option<Hook> {
    match (table, chain, policy) {
        (_, _, "-") => None,
        ("nat", "POSTROUTING", _) => Some(Hook::SourceNat),
        (_, "FORWARD", _) => Some(Hook::Forward),
        (_, "INPUT", _) => Some(Hook::Input),
        (_, "PREROUTING", _) => Some(Hook::Prerouting),
        _ => Some(Hook::Other),
    }
}

fn read(words: &[String]) -> Rule {
    let mut rule = Rule { tests: Vec::new(), verdict: Verdict::Continue, shown: String::new() };
    let (mut words, mut negated) = (words.iter().map(String::as_str), false);
    while let Some(word) = words.next() {
        let target = match word {
            "!" => {
                negated = true;
                continue;
            }
            "-j" => {
                rule.verdict = verdict(words.next().unwrap_or_default());
                return rule; // the rest is the target's
            }
            "-g" => {
                rule.verdict = Verdict::Goto(words.next().unwrap_or_default().to_owned());
                return rule;
            }
            // They bring options, which follow.
            "-m" => match words.next() {
                Some("comment" | "conntrack" | "state" | "mark" | "tcp" | "udp" | "multiport" | "addrtype") => continue,
                _ => Operand::Unknown,
            },
            "--comment" => {
                words.next();
                continue;
            }
            option if option.starts_with('-') => target(option, &mut words),
            _ => continue, // of an option that isn't modelled
        };
        rule.tests.push(Test { target, negated: std::mem::take(&mut negated) });
    }
    rule
}

fn target<'a>(option: &str, words: &mut impl Iterator<Item = &'a str>) -> Operand {
    let list = |text: &str| text.split(',').map(str::to_owned).collect();
    let found = match option {
        "-i" => words.next().map(|device| Operand::Input(vec![pattern(device)])),
        "-o" => words.next().map(|device| Operand::Output(vec![pattern(device)])),
        "-s" => words.next().and_then(network).map(|network| Operand::Source(vec![network])),
        "-d" => words.next().and_then(network).map(|network| Operand::Destination(vec![network])),
        "-p" => words.next().map(|protocol| match protocol {
            "all" => Operand::Cache(true),
            number if number.parse::<u8>().is_ok() => Operand::Unknown,
            protocol => Operand::Protocol(vec![protocol.to_owned()]),
        }),
        "--dport" | "--dports" => words.next().and_then(ports),
        "--dst-type" => words.next().map(|types| Operand::AddressType(list(types))),
        "--ctstate" | "--state" => words.next().map(|states| Operand::State(list(states))),
        "--mark" => words.next().and_then(mark),
        _ => None,
    };
    found.unwrap_or(Operand::Unknown)
}

/// `80`, `80:90`, or several of them.
fn ports(text: &str) -> Option<Operand> {
    let range = |text: &str| {
        let (first, last) = text.split_once(':').unwrap_or((text, text));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.split(',').map(range).collect::<Option<_>>().map(Operand::Port)
}

/// `vip+`
fn pattern(device: &str) -> String {
    device.strip_suffix('+').map_or_else(|| device.to_owned(), |beginning| format!("{beginning}*"))
}

/// An address, or one and a mask in either form.
fn network(text: &str) -> Option<IpNetwork> {
    text.parse().ok()
}

/// `0x4000/0x4000`
fn mark(text: &str) -> Option<Operand> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    let mask = mask.map_or(Some(u64::from(u32::MAX)), number)?;
    Some(Operand::Mark { mask, value: number(value)? })
}

fn verdict(target: &str) -> Verdict {
    match target {
        "ACCEPT" => Verdict::Accept,
        "DROP" | "REJECT" => Verdict::Drop,
        "RETURN" => Verdict::Return,
        "MASQUERADE" | "SNAT" => Verdict::Rewrite,
        "REDIRECT" | "TPROXY" => Verdict::Redirect,
        "LOG" | "NFLOG" | "ULOG" | "MARK" | "CONNMARK" | "TCPMSS" | "CT" | "TRACE" | "TOS" | "DSCP" | "SET"
        | "AUDIT" | "SECMARK" | "CONNSECMARK" | "CHECKSUM" | "CLASSIFY" => Verdict::Continue,
        "NFQUEUE" | "NETMAP" | "DNAT" | "SYNPROXY" => Verdict::Unknown,
        chain => Verdict::Jump(chain.to_owned()),
    }
}
