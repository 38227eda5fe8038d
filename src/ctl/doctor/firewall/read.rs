//! Asks the programs of packet filters for their rules.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::{Finding, advice, command};
use super::ruleset::{Place, Table};
use super::{iptables, nft};
use crate::ctl::child;
use crate::model::Family;

/// More than any node's rules, bytes.
const LONGEST: usize = 256 << 20;

/// Of the packet filters: why it matters that they can't be read.
const UNKNOWN: &str = "What the firewall does to VIPs and to other nodes is not known.";

/// What became of a question.
enum Answer {
    /// What it is.
    Text(String),
    /// None: there is no such program, or it fails.
    None,
    /// None, and it has taken its time.
    Late(Finding),
}

/// What is on this node. The tables of `iptables-nft` are read by itself, which understands its extensions.
pub fn tables(findings: &mut Vec<Finding>) -> Vec<Table> {
    let mut saved = |save| match ask(save, &[]) {
        Answer::Text(text) => Some(text),
        Answer::None => None,
        Answer::Late(finding) => {
            findings.push(finding);
            None
        }
    };
    let [of_legacy, of_nft, of_ipv6] =
        ["iptables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"].map(&mut saved);
    findings.extend(of_legacy.as_deref().and_then(legacy));
    let both = [(of_nft, Family::V4), (of_ipv6, Family::V6)].into_iter();
    let mut tables: Vec<Table> =
        both.flat_map(|(text, family)| text.map(|text| iptables::parse(&text, family)).unwrap_or_default()).collect();
    let known: Vec<(&str, String)> = tables
        .iter()
        .filter_map(|table| table.place.shadow())
        .map(|(family, name)| (family, name.to_owned()))
        .collect();
    let listed = match ask("nft", &["--json", "list", "ruleset"]) {
        Answer::Text(text) => nft::parse(&text).map_err(|_| unreadable()),
        Answer::None => Err(unreadable()),
        Answer::Late(finding) => Err(Some(finding)),
    };
    match listed {
        Ok(theirs) => {
            let is_known = |table: &Table| match &table.place {
                Place::Nft { family, name } => known.iter().any(|(of, known)| of == family && known == name),
                Place::Iptables { .. } => false,
            };
            tables.extend(theirs.into_iter().filter(|table| !is_known(table)));
        }
        Err(finding) => findings.extend(finding),
    }
    tables
}

/// What is in the calling thread's network namespace, those of the old kernel interface included.
pub fn all_tables() -> Vec<Table> {
    let mut found = tables(&mut Vec::new());
    if let Answer::Text(text) = ask("iptables-legacy-save", &[]) {
        found.extend(iptables::parse(&text, Family::V4));
    }
    found
}

/// All of nftables, as `nft --json list ruleset` says it; none: it says nothing.
pub fn listed() -> Option<serde_json::Value> {
    match ask("nft", &["--json", "list", "ruleset"]) {
        Answer::Text(text) => serde_json::from_str(&text).ok(),
        Answer::None | Answer::Late(_) => None,
    }
}

/// What `iptables-save` of each kind says.
pub fn saved() -> Vec<String> {
    let text = |save| match ask(save, &[]) {
        Answer::Text(text) => Some(text),
        Answer::None | Answer::Late(_) => None,
    };
    ["iptables-legacy-save", "iptables-nft-save"].into_iter().filter_map(text).collect()
}

/// A kernel without nftables has no such tables.
fn unreadable() -> Option<Finding> {
    if !Path::new("/sys/module/nf_tables").exists() {
        return None;
    }
    let cure = if program("nft").is_some() {
        advice("Run `nft --json list ruleset`: it fails.")
    } else {
        command("apt-get install nftables")
    };
    Some(Finding::hint("nftables' rules can't be read", UNKNOWN, cure))
}

/// The old kernel interface, beside nftables: where it has rules, the administrator has to read them.
fn legacy(saved: &str) -> Option<Finding> {
    let says = |line: &str| line.starts_with("-A ") || (line.starts_with(':') && line.contains(" DROP "));
    saved.lines().any(says).then(|| {
        let what = "iptables-legacy has rules or policies, which doctor doesn't read";
        let why = "What they drop of VIPs, or rewrite, is not known.";
        let cure = "`iptables-legacy-save` shows them: what goes to and comes from vip+ must pass. Better, move them to nftables.";
        Finding::hint(what, why, advice(cure))
    })
}

fn ask(name: &str, arguments: &[&str]) -> Answer {
    let Some(path) = program(name) else { return Answer::None };
    let mut asked = Command::new(path);
    asked.args(arguments);
    match child::run(asked, "", LONGEST) {
        Ok(ended) if ended.timed_out => {
            let question = [&[name][..], arguments].concat().join(" ");
            let what = format!("`{question}` could not be asked for its rules: {}", ended.why());
            Answer::Late(Finding::warning(what, UNKNOWN, advice(format!("Run `{question}`: it hangs."))))
        }
        Ok(ended) if ended.status == Some(0) => Answer::Text(String::from_utf8_lossy(&ended.output).into_owned()),
        _ => Answer::None,
    }
}

/// The program's path: administrators' programs aren't on every root's `PATH`.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir: PathBuf| dir.join(name)).find(|path| path.is_file())
}
