//! No connection tracking for VIP traffic: an nftables table whose set follows the registry. What isn't tracked costs no
//! entry, and no masquerade rule can rewrite it. The plugin never touches it. It stays when viprouted ends, as traffic does,
//! and goes with the node's last VIP.
//!
//! ```text
//! table ip viproute {
//!     counter source_denied { packets 0 bytes 0 }
//!     set vips { type ipv4_addr; size 16384; elements = { 10.118.0.7, … } }
//!     set nodes { type ipv4_addr; size 64; elements = { 192.0.2.1 } }
//!     set pods { type ifname; size 4096; elements = { "cni0", … } }
//!     chain replies {
//!         iifname @pods counter name "source_denied" drop
//!         ip daddr @nodes accept
//!         notrack accept
//!     }
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         ip saddr @vips jump replies
//!         ip daddr @vips notrack accept
//!     }
//! }
//! ```
//!
//! The rules that say `notrack`, and the one before them, are there once anything of the node's is tracked, and stay then: a node that
//! tracks nothing has nothing to be kept out of, and each packet would pay for them. VIP traffic shows it too, so none is tracked
//! for longer than it takes to see.
//!
//! A VIP as the source of what comes from a pod's own interface is a raw socket's doing: a replica's answers leave by its
//! pair. Only what has a VIP as its source is asked for its device, so that all other packets pay nothing for it.
//!
//! The node's own connections to VIPs are tracked as ever: a stock firewall (ufw's, firewalld's) lets in what belongs to a
//! connection that it knows, and drops an answer that it can't tell.
//!
//! Written in nft's own language and read as its JSON, by the program `nft`. A transaction is all or nothing. Changes of
//! the sets alone leave the chains as they are, so that no packet passes between an old chain and a new one.
//!
//! `accept` ends this chain alone, other tables' go on: what has matched is not looked up a second time. A set that tells
//! its size, here what the flow owner has room for, is the kernel's fixed hash table, faster than the one that grows
//! (`net/netfilter/nft_set_hash.c`).

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::ebpf::ADDRESSES;
use crate::net::conntrack;
use crate::net::nftables::Generation;

use super::pod_links;

/// `raw`: before connection tracking (-200) sees a packet.
const PRIORITY: i32 = -300;
/// More addresses than a node has as sources of its VIPs' routes.
const NODES: u32 = 64;
/// The table's name.
pub const TABLE: &str = "viproute";
/// Its counter of what was dropped for its source.
pub const DENIED: &str = "source_denied";
/// The chain of what VIPs send.
const REPLIES: &str = "replies";
/// Where packets from elsewhere (requests, and the replicas' replies) pass.
const HOOK: &str = "prerouting";

/// How often a transaction is made anew when another program's came in between.
const TRIES: u32 = 4;
/// `nft` that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(10);

/// Why the table can't be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel.
    #[error("this kernel has no nftables for viprouted")]
    Kernel(#[source] crate::net::Error),
    /// There is no such program.
    #[error("the program nft is not to be found in PATH (Debian's package nftables has it)")]
    NoProgram,
    /// The program could not be run.
    #[error("run nft")]
    Run(#[source] io::Error),
    /// The program does not come to an end.
    #[error("nft was killed: it had not ended after {} s", LIMIT.as_secs())]
    Hung,
    /// The program refused.
    #[error("nft: {0}")]
    Refused(String),
    /// The program says what can't be understood.
    #[error("nft's list of the table is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// Changed by another program as often as it was repaired.
    #[error("the table is changed by another program again and again")]
    Contested,
}

/// The table of this network namespace, and whether it was changed since it was last reconciled.
#[derive(Debug, Default)]
pub struct Table {
    /// While it can be read.
    generation: Option<Generation>,
    /// The table was right at this generation of the kernel's rules; none: it has to be read.
    settled: Option<u32>,
    /// Packets are tracked on this node, or were.
    tracked: bool,
    /// Whether they are, as the last reconciliation has asked; none: it hasn't.
    asked: Option<bool>,
}

/// What was done to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: it is right.
    Right,
    /// It is made.
    Made,
    /// Its set follows the VIPs.
    Followed,
    /// Another program had removed it.
    WasGone,
    /// Another program had changed it.
    WasChanged,
    /// It is removed: there are no VIPs.
    Removed,
}

impl Table {
    /// It has the rules that keep packets from being tracked, as far as was seen last.
    pub fn keeps_out(&self) -> bool {
        self.tracked
    }

    /// Whether packets are tracked. The kernel is asked unless the reconciliation before has done so, which
    /// [`Table::forget`] ends.
    pub fn is_tracking(&self) -> bool {
        self.asked.unwrap_or_else(conntrack::is_tracking)
    }

    /// What was asked is of another moment.
    pub fn forget(&mut self) {
        self.asked = None;
    }

    /// Other VIPs than before are wanted.
    pub fn want_changed(&mut self) {
        self.settled = None;
    }

    /// Makes the table have exactly these addresses; without VIPs there is none. While no rules have changed since, it asks the kernel
    /// for their generation, and whether anything is tracked, and nothing else.
    pub fn reconcile(&mut self, want: &Want) -> Result<Outcome, Error> {
        let generation = self.generation.take().map_or_else(Generation::open, Ok).map_err(Error::Kernel)?;
        let outcome = self.reconcile_by(&generation, want)?;
        self.generation = Some(generation);
        Ok(outcome)
    }

    fn reconcile_by(&mut self, generation: &Generation, want: &Want) -> Result<Outcome, Error> {
        if !self.tracked && !want.vips.is_empty() {
            self.tracked = *self.asked.insert(conntrack::is_tracking());
            self.settled = self.settled.filter(|_| !self.tracked);
        }
        if self.settled.is_some_and(|settled| generation.get().is_ok_and(|now| now == settled)) {
            return Ok(Outcome::Right);
        }
        let was_right = self.settled.take().is_some();
        let mut outcome = Outcome::Right;
        for _ in 0..TRIES {
            // Before the table is read: after a change in between it is read again.
            let now = generation.get().map_err(Error::Kernel)?;
            let have = read()?;
            // They may be there from before, and be all that keeps packets from being tracked.
            self.tracked |= matches!(have, Have::Table { tracked: true, .. });
            let Some(transaction) = difference(&have, want, self.tracked) else {
                self.settled = Some(now);
                return Ok(outcome);
            };
            match write(&transaction) {
                Ok(()) => outcome = outcome_of(&have, want, was_right),
                // Perhaps it was made for a table that another program has changed since.
                Err(Error::Refused(_)) if generation.get().is_ok_and(|later| later != now) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Contested)
    }
}

/// `was_right`: it was, for the same VIPs, so that another program has changed it.
fn outcome_of(have: &Have, want: &Want, was_right: bool) -> Outcome {
    match have {
        Have::Nothing if was_right => Outcome::WasGone,
        _ if was_right => Outcome::WasChanged,
        _ if want.vips.is_empty() => Outcome::Removed,
        Have::Table { .. } => Outcome::Followed,
        Have::Nothing | Have::Wrong => Outcome::Made,
    }
}

/// What is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Have {
    /// No table.
    Nothing,
    /// A table that isn't as we make it.
    Wrong,
    /// The table.
    Table {
        /// What its sets have.
        elements: Want,
        /// It has the rules that keep packets from being tracked.
        tracked: bool,
    },
}

/// The elements of the table's sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The VIPs; without any there is no table.
    pub vips: BTreeSet<Ipv4Addr>,
    /// The addresses that the node's own connections to VIPs come from.
    pub nodes: BTreeSet<Ipv4Addr>,
    /// The devices by which packets of the replicas' own interfaces come in.
    pub pods: BTreeSet<String>,
}

fn read() -> Result<Have, Error> {
    let output = run(&["-j", "list", "table", "ip", "viproute"], "")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return if why.contains("No such file or directory") { Ok(Have::Nothing) } else { Err(refused(&why)) };
    }
    let listed: Value = serde_json::from_slice(&output.stdout).map_err(Error::NotJson)?;
    Ok(understand(&listed).unwrap_or(Have::Wrong))
}

/// Has one transaction carried out.
fn write(transaction: &str) -> Result<(), Error> {
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
    let pid = Pid::from_raw(child.id().try_into().unwrap_or_default());
    let (done, ended) = mpsc::channel::<()>();
    let (written, output, hung) = thread::scope(|scope| {
        let watchdog = scope.spawn(move || {
            let hung = ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout);
            if hung {
                // Not waited for yet, so its id is no other process's.
                let _ = kill(pid, Signal::SIGKILL);
            }
            hung
        });
        // It reads all of its input before it says anything. One that ends at once says why.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output();
        drop(done);
        (written, output, watchdog.join().unwrap_or_default())
    });
    let output = output.map_err(Error::Run)?;
    match written {
        _ if hung && !output.status.success() => Err(Error::Hung),
        Err(error) if output.status.success() => Err(Error::Run(error)),
        _ => Ok(output),
    }
}

/// The transaction by which the table comes to have exactly these addresses, and where packets are tracked the rules against that;
/// without VIPs it goes. `None`: it is right.
fn difference(have: &Have, want: &Want, is_tracked: bool) -> Option<String> {
    match have {
        Have::Nothing if want.vips.is_empty() => None,
        _ if want.vips.is_empty() => Some("delete table ip viproute\n".to_owned()),
        Have::Table { elements, tracked } if *tracked == is_tracked && elements == want => None,
        Have::Table { elements: have, tracked } if *tracked <= is_tracked => {
            let addresses = steps("vips", &have.vips, &want.vips) + &steps("nodes", &have.nodes, &want.nodes);
            let addresses = addresses + &steps("pods", &quoted(&have.pods), &quoted(&want.pods));
            let rules = UNTRACKED.map(|(chain, rule)| format!("add rule ip viproute {chain} {rule}\n"));
            Some(if *tracked == is_tracked { addresses } else { addresses + &rules.concat() })
        }
        Have::Nothing | Have::Wrong | Have::Table { .. } => Some(whole(want, is_tracked)),
    }
}

/// The rules that keep packets from being tracked: each is its chain's last.
const UNTRACKED: [(&str, &str); 3] =
    [(REPLIES, "ip daddr @nodes accept"), (REPLIES, "notrack accept"), (HOOK, "ip daddr @vips notrack accept")];

fn steps<T: Ord + Clone + Display>(set: &str, have: &BTreeSet<T>, want: &BTreeSet<T>) -> String {
    let steps = [("add", want - have), ("delete", have - want)];
    let steps = steps.iter().filter(|(_, some)| !some.is_empty());
    let steps = steps.map(|(verb, some)| format!("{verb} element ip viproute {set} {{ {} }}\n", listing(some)));
    steps.collect::<Vec<_>>().concat()
}

/// Added before it is deleted: deleting one that isn't there would be refused.
fn whole(want: &Want, is_tracked: bool) -> String {
    let set = |name, of, size, elements| {
        let elements = match elements {
            none if String::is_empty(&none) => none,
            some => format!(" elements = {{ {some} }};"),
        };
        format!(" set {name} {{ type {of}; size {size};{elements} }}\n")
    };
    let vips = set("vips", "ipv4_addr", ADDRESSES, listing(&want.vips));
    let nodes = set("nodes", "ipv4_addr", NODES, listing(&want.nodes));
    let pods = set("pods", "ifname", pod_links::MOST, listing(&quoted(&want.pods)));
    let untracked = |of: &str| {
        let rules = UNTRACKED.iter().filter(|(chain, _)| is_tracked && *chain == of);
        rules.map(|(_, rule)| format!("  {rule}\n")).collect::<Vec<_>>().concat()
    };
    let (replies, requests) = (untracked(REPLIES), untracked(HOOK));
    format!(
        "add table ip viproute\ndelete table ip viproute\n\
         table ip viproute {{\n counter {DENIED} {{ }}\n{vips}{nodes}{pods} \
         chain {REPLIES} {{\n  iifname @pods counter name \"{DENIED}\" drop\n{replies} }}\n \
         chain {HOOK} {{\n  type filter hook {HOOK} priority {PRIORITY}; policy accept;\n  \
         ip saddr @vips jump {REPLIES}\n{requests} }}\n}}\n"
    )
}

fn listing<T: Display>(elements: &BTreeSet<T>) -> String {
    elements.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// Names may begin with a digit, or be words of nft's.
fn quoted(names: &BTreeSet<String>) -> BTreeSet<String> {
    names.iter().map(|name| format!("\"{name}\"")).collect()
}

/// A table that is as we make it; `None` where anything is missing, different or too much.
fn understand(listed: &Value) -> Option<Have> {
    let (mut vips, mut nodes, mut pods) = (None, None, None);
    let mut counters = Vec::new();
    let mut chains = Vec::new();
    let mut rules = Vec::new();
    for object in listed["nftables"].as_array()? {
        let (kind, object) = object.as_object()?.iter().next()?;
        match kind.as_str() {
            "metainfo" => {}
            "table" if object["flags"].is_null() => {}
            "set" if object["flags"].is_null() => match object["name"].as_str()? {
                "vips" => vips = Some(elements(object, "ipv4_addr", ADDRESSES)?),
                "nodes" => nodes = Some(elements(object, "ipv4_addr", NODES)?),
                "pods" => pods = Some(elements(object, "ifname", pod_links::MOST)?),
                _ => return None,
            },
            "counter" => counters.push(object["name"].clone()),
            "chain" => chains.push(["name", "type", "hook", "prio", "policy"].map(|key| object[key].clone())),
            "rule" => rules.push([object["chain"].clone(), object["expr"].clone()]),
            _ => return None,
        }
    }
    let elements = Want { vips: vips?, nodes: nodes?, pods: pods? };
    let tracked = [true, false].into_iter().find(|tracked| rules == expected_rules(*tracked))?;
    let expected = (vec![json!(DENIED)], expected_chains());
    ((counters, chains) == expected).then_some(Have::Table { elements, tracked })
}

fn expected_chains() -> Vec<[Value; 5]> {
    let replies = [json!(REPLIES), Value::Null, Value::Null, Value::Null, Value::Null];
    vec![replies, [json!(HOOK), json!("filter"), json!(HOOK), json!(PRIORITY), json!("accept")]]
}

fn expected_rules(is_tracked: bool) -> Vec<[Value; 2]> {
    let [notrack, accept, drop] = ["notrack", "accept", "drop"].map(|word| json!({ word: null }));
    let device = json!({ "match": { "op": "==", "left": { "meta": { "key": "iifname" } }, "right": "@pods" } });
    let jump = json!({ "jump": { "target": REPLIES } });
    let checked = [json!(REPLIES), json!([device, { "counter": DENIED }, drop])];
    let replies = [json!(HOOK), json!([matches("saddr", "@vips"), jump])];
    if !is_tracked {
        return vec![checked, replies];
    }
    vec![
        checked,
        [json!(REPLIES), json!([matches("daddr", "@nodes"), accept])],
        [json!(REPLIES), json!([notrack, accept])],
        replies,
        [json!(HOOK), json!([matches("daddr", "@vips"), notrack, accept])],
    ]
}

/// Of a set of that type and size.
fn elements<T: Ord + FromStr>(set: &Value, of: &str, size: u32) -> Option<BTreeSet<T>> {
    match &set["elem"] {
        _ if set["type"] != of || set["size"] != size => None,
        Value::Null => Some(BTreeSet::new()),
        listed => listed.as_array()?.iter().map(|element| element.as_str()?.parse().ok()).collect(),
    }
}

/// `ip FIELD SET`
fn matches(field: &str, set: &str) -> Value {
    let left = json!({ "payload": { "protocol": "ip", "field": field } });
    json!({ "match": { "op": "==", "left": left, "right": set } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(last: &[u8]) -> BTreeSet<Ipv4Addr> {
        last.iter().map(|last| Ipv4Addr::new(10, 118, 0, *last)).collect()
    }

    fn vips(last: &[u8]) -> Want {
        Want { vips: addresses(last), nodes: addresses(&[200]), pods: ["cni0".to_owned()].into() }
    }

    fn table(last: &[u8]) -> Have {
        Have::Table { elements: vips(last), tracked: true }
    }

    /// `nft -j list table ip viproute`, nftables 1.0.6.
    fn listed() -> Value {
        let of =
            |name: &str, handle: u32| json!({ "family": "ip", "table": "viproute", "name": name, "handle": handle });
        let set = |name: &str, of_type: &str, size: u32, elem: Value| {
            let mut set = of(name, size);
            (set["type"], set["size"], set["elem"]) = (json!(of_type), json!(size), elem);
            json!({ "set": set })
        };
        let hook = json!({ "family": "ip", "table": "viproute", "name": HOOK, "handle": 4, "type": "filter",
            "hook": HOOK, "prio": -300, "policy": "accept" });
        let rule = |[chain, expr]: [Value; 2]| json!({ "rule": { "family": "ip", "table": "viproute", "chain": chain, "handle": 5, "expr": expr } });
        let mut objects = vec![
            json!({ "metainfo": { "version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1 } }),
            json!({ "table": { "family": "ip", "name": "viproute", "handle": 1 } }),
            set("vips", "ipv4_addr", 16384, json!(["10.118.0.1", "10.118.0.2"])),
            set("nodes", "ipv4_addr", 64, json!(["10.118.0.200"])),
            set("pods", "ifname", 4096, json!(["cni0"])),
            json!({ "counter": { "family": "ip", "table": "viproute", "name": DENIED, "handle": 9, "packets": 7, "bytes": 588 } }),
            json!({ "chain": of(REPLIES, 3) }),
            json!({ "chain": hook }),
        ];
        objects.extend(expected_rules(true).into_iter().map(rule));
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
        assert_eq!(understand(&bare), Some(Have::Table { elements: vips(&[1, 2]), tracked: false }));
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
        let bare = Have::Table { elements: vips(&[1]), tracked: false };
        assert_eq!(difference(&bare, &vips(&[1]), false), None);
        let expected = "add rule ip viproute replies ip daddr @nodes accept\nadd rule ip viproute replies notrack accept\n\
            add rule ip viproute prerouting ip daddr @vips notrack accept\n";
        assert_eq!(difference(&bare, &vips(&[1]), true).as_deref(), Some(expected));
        let made = difference(&Have::Nothing, &vips(&[1]), false).unwrap();
        assert!(made.contains("source_denied\" drop") && !made.contains("notrack"), "{made}");
    }
}
