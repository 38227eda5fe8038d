//! The nftables table: what it must say, what it says, and the transaction that makes the one the other.
//!
//! ```text
//! table ip viproute {
//!     set vips { type ipv4_addr; size 16384; elements = { 10.118.0.7, … } }
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         ip daddr @vips notrack accept
//!         ip saddr @vips notrack accept
//!     }
//!     chain output { … the same … }
//! }
//! ```
//!
//! Written in nft's own language and read as its JSON, by the program `nft`. A transaction is all or nothing. Changes of
//! the set alone leave the chains standing, so that no packet passes between an old chain and a new one.
//!
//! `accept` ends this chain alone, other tables' go on: what has matched is not looked up a second time. A set that tells
//! its size, here what the flow owner has room for, is the kernel's fixed hash table, faster than the one that grows
//! (`net/netfilter/nft_set_hash.c`).

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::bpf::ADDRESSES;

/// Before connection tracking looks at a packet (-200): `raw`.
const PRIORITY: i32 = -300;
/// Where packets from elsewhere (requests, and the replicas' replies) and the node's own pass.
const HOOKS: [&str; 2] = ["prerouting", "output"];
/// Requests, replies.
const FIELDS: [&str; 2] = ["daddr", "saddr"];

/// Why the table can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program.
    #[error("the program nft is not to be found in PATH (Debian's package nftables has it)")]
    NoProgram,
    /// The program could not be run.
    #[error("run nft")]
    Run(#[source] io::Error),
    /// The program refused.
    #[error("nft: {0}")]
    Refused(String),
    /// The program says what can't be understood.
    #[error("nft's list of the table is not JSON")]
    NotJson(#[source] serde_json::Error),
}

/// What is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No table.
    Nothing,
    /// A table that isn't as we make it.
    Wrong,
    /// The table, with these VIPs.
    Table(BTreeSet<Ipv4Addr>),
}

/// Reads the table.
pub fn read() -> Result<Found, Error> {
    let output = run(&["-j", "list", "table", "ip", "viproute"], "")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return if why.contains("No such file or directory") { Ok(Found::Nothing) } else { Err(refused(&why)) };
    }
    let listed: Value = serde_json::from_slice(&output.stdout).map_err(Error::NotJson)?;
    Ok(understand(&listed).map_or(Found::Wrong, Found::Table))
}

/// Has one transaction carried out.
pub fn write(transaction: &str) -> Result<(), Error> {
    let output = run(&["-f", "-"], transaction)?;
    if output.status.success() { Ok(()) } else { Err(refused(&String::from_utf8_lossy(&output.stderr))) }
}

/// The first line says it; the others repeat what was asked for.
fn refused(stderr: &str) -> Error {
    Error::Refused(stderr.lines().next().unwrap_or("no reason given").to_owned())
}

fn run(arguments: &[&str], input: &str) -> Result<Output, Error> {
    let mut nft = Command::new("nft");
    nft.args(arguments).env("LC_ALL", "C");
    nft.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = nft.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NoProgram,
        _ => Error::Run(error),
    })?;
    // It reads all of its input before it says anything. One that ends at once says why.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(Error::Run)?;
    match written {
        Err(error) if output.status.success() => Err(Error::Run(error)),
        _ => Ok(output),
    }
}

/// The transaction by which the table comes to have exactly these VIPs; without any it goes. `None`: it is right.
pub fn change(found: &Found, vips: &BTreeSet<Ipv4Addr>) -> Option<String> {
    match found {
        Found::Nothing if vips.is_empty() => None,
        _ if vips.is_empty() => Some("delete table ip viproute\n".to_owned()),
        Found::Table(have) if have == vips => None,
        Found::Table(have) => {
            let steps = [("add", vips - have), ("delete", have - vips)];
            let steps = steps.iter().filter(|(_, some)| !some.is_empty());
            let steps = steps.map(|(verb, some)| format!("{verb} element ip viproute vips {{ {} }}\n", listing(some)));
            Some(steps.collect::<Vec<_>>().concat())
        }
        Found::Nothing | Found::Wrong => Some(whole(vips)),
    }
}

/// Added before it is deleted: deleting one that isn't there would be refused.
fn whole(vips: &BTreeSet<Ipv4Addr>) -> String {
    let rules = FIELDS.map(|field| format!("  ip {field} @vips notrack accept\n")).concat();
    let chain =
        |hook| format!(" chain {hook} {{\n  type filter hook {hook} priority {PRIORITY}; policy accept;\n{rules} }}\n");
    let (vips, chains) = (listing(vips), HOOKS.map(chain).concat());
    format!(
        "add table ip viproute\ndelete table ip viproute\n\
         table ip viproute {{\n set vips {{ type ipv4_addr; size {ADDRESSES}; elements = {{ {vips} }}; }}\n{chains}}}\n"
    )
}

fn listing(vips: &BTreeSet<Ipv4Addr>) -> String {
    vips.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(", ")
}

/// The VIPs of a table that is as we make it; `None` where anything is missing, different or too much.
fn understand(listed: &Value) -> Option<BTreeSet<Ipv4Addr>> {
    let mut vips = None;
    let mut chains = Vec::new();
    let mut rules = Vec::new();
    for object in listed["nftables"].as_array()? {
        let (kind, object) = object.as_object()?.iter().next()?;
        match kind.as_str() {
            "metainfo" => {}
            "table" if object["flags"].is_null() => {}
            "set"
                if object["name"] == "vips"
                    && object["type"] == "ipv4_addr"
                    && object["flags"].is_null()
                    && object["size"] == ADDRESSES =>
            {
                vips = Some(elements(&object["elem"])?);
            }
            "chain" => chains.push(["name", "type", "hook", "prio", "policy"].map(|key| object[key].clone())),
            "rule" => rules.push([object["chain"].clone(), object["expr"].clone()]),
            _ => return None,
        }
    }
    let expected_chain = |hook: &str| [json!(hook), json!("filter"), json!(hook), json!(PRIORITY), json!("accept")];
    let expected_rule = |hook: &'static str| FIELDS.map(|field| [json!(hook), expression(field)]);
    let expected = (HOOKS.map(expected_chain).to_vec(), HOOKS.map(expected_rule).concat());
    vips.filter(|_| (chains, rules) == expected)
}

fn elements(listed: &Value) -> Option<BTreeSet<Ipv4Addr>> {
    match listed {
        Value::Null => Some(BTreeSet::new()),
        _ => listed.as_array()?.iter().map(|element| element.as_str()?.parse().ok()).collect(),
    }
}

/// `ip FIELD @vips notrack accept`
fn expression(field: &str) -> Value {
    let left = json!({ "payload": { "protocol": "ip", "field": field } });
    json!([{ "match": { "op": "==", "left": left, "right": "@vips" } }, { "notrack": null }, { "accept": null }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vips(last: &[u8]) -> BTreeSet<Ipv4Addr> {
        last.iter().map(|last| Ipv4Addr::new(10, 118, 0, *last)).collect()
    }

    /// `nft -j list table ip viproute`, nftables 1.0.6.
    fn listed() -> Value {
        let rule = |chain: &str, handle: u32, field: &str| {
            json!({ "rule": { "family": "ip", "table": "viproute", "chain": chain, "handle": handle, "expr": [
                { "match": { "op": "==", "left": { "payload": { "protocol": "ip", "field": field } }, "right": "@vips" } },
                { "notrack": null }, { "accept": null }
            ] } })
        };
        let chain = |name: &str, handle: u32| {
            json!({ "chain": { "family": "ip", "table": "viproute", "name": name, "handle": handle, "type": "filter",
                "hook": name, "prio": -300, "policy": "accept" } })
        };
        json!({ "nftables": [
            { "metainfo": { "version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1 } },
            { "table": { "family": "ip", "name": "viproute", "handle": 1 } },
            { "set": { "family": "ip", "name": "vips", "table": "viproute", "type": "ipv4_addr", "handle": 1, "size": 16384,
                "elem": ["10.118.0.1", "10.118.0.2"] } },
            chain("prerouting", 2),
            chain("output", 5),
            rule("prerouting", 3, "daddr"), rule("prerouting", 4, "saddr"),
            rule("output", 6, "daddr"), rule("output", 7, "saddr"),
        ] })
    }

    #[test]
    fn a_table_of_ours_is_known() {
        assert_eq!(understand(&listed()), Some(vips(&[1, 2])));
        let mut empty = listed();
        empty["nftables"][2]["set"].as_object_mut().unwrap().remove("elem");
        assert_eq!(understand(&empty), Some(vips(&[])));
    }

    #[test]
    fn whatever_is_different_is_seen() {
        for gone in 2..9 {
            let mut table = listed();
            table["nftables"].as_array_mut().unwrap().remove(gone);
            assert_eq!(understand(&table), None, "without {gone}");
        }
        let changes = [
            ("/nftables/3/chain/prio", json!(0)),
            ("/nftables/4/chain/policy", json!("drop")),
            ("/nftables/5/rule/expr/1", json!({ "accept": null })),
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
        let table = Found::Table(vips(&[1, 2]));
        assert_eq!(change(&table, &vips(&[1, 2])), None);
        assert_eq!(change(&Found::Nothing, &vips(&[])), None);
        let expected = "add element ip viproute vips { 10.118.0.3 }\ndelete element ip viproute vips { 10.118.0.1 }\n";
        assert_eq!(change(&table, &vips(&[2, 3])).as_deref(), Some(expected));
        assert_eq!(change(&table, &vips(&[])).as_deref(), Some("delete table ip viproute\n"));
        assert_eq!(change(&Found::Wrong, &vips(&[])).as_deref(), Some("delete table ip viproute\n"));
        assert_eq!(change(&Found::Nothing, &vips(&[1])), change(&Found::Wrong, &vips(&[1])));
    }
}
