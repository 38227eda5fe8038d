//! Everything a call may change, as text that can be compared and read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;
use viproute::bpf::Maps;

use super::command::Run;
use super::netns::Netns;

/// Sections (`node link`, `p1 route`, `files`, …) and their lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, BTreeSet<String>>);

/// Per kind of object: `ip`'s arguments and the keys that say what it is. Counters, states the kernel changes by itself
/// and indexes are left out.
const OBJECTS: &[(&str, &str, &[&str])] = &[
    ("link", "link", &["ifname", "address", "mtu"]),
    ("addr", "-4 addr", &["ifname", "addr_info"]),
    ("rule", "-4 rule", &["priority", "src", "srclen", "iif", "ipproto", "sport", "table", "protocol"]),
    (
        "route",
        "-4 route show table all",
        &["type", "dst", "nhid", "gateway", "dev", "table", "protocol", "metric", "prefsrc"],
    ),
    ("nexthop", "nexthop", &["id", "gateway", "dev", "group", "type", "protocol"]),
    ("neigh", "-4 neigh show nud permanent", &["dst", "dev", "lladdr"]),
    ("proxy", "-4 neigh show proxy", &["dst", "dev"]),
];

const SYSCTLS: &[&str] = &[
    "net/ipv4/ip_forward",
    "net/ipv4/fib_multipath_hash_policy",
    "net/ipv4/fib_multipath_hash_fields",
    "net/ipv4/conf/eth0/arp_ignore",
    "net/ipv4/conf/eth0/arp_announce",
];

impl Snapshot {
    pub fn take(namespaces: &[(&str, &Netns)], directory: &Path, bpf_dir: &Path) -> Self {
        let mut sections = BTreeMap::new();
        for (name, ns) in namespaces {
            for (kind, arguments, keys) in OBJECTS {
                let lines = ns.ip_json(arguments).iter().map(|object| describe(object, keys)).collect();
                sections.insert(format!("{name} {kind}"), lines);
            }
            let sysctls = SYSCTLS.iter().map(|key| format!("{key} = {}", ns.sysctl(key))).collect();
            sections.insert(format!("{name} sysctl"), sysctls);
        }
        sections.insert("files".into(), files(directory).into_iter().collect());
        sections.insert("flow owner".into(), flow_owner(bpf_dir));
        Self(sections)
    }

    /// The lines that went (`-`) and came (`+`).
    pub fn changes(&self, later: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        let sections: BTreeSet<_> = self.0.keys().chain(later.0.keys()).collect();
        let changes = sections.into_iter().flat_map(|section| {
            let (old, new) = (self.0.get(section).unwrap_or(&none), later.0.get(section).unwrap_or(&none));
            let gone = old.difference(new).map(move |line| format!("- {section}: {line}"));
            gone.chain(new.difference(old).map(move |line| format!("+ {section}: {line}")))
        });
        changes.collect()
    }

    /// Fails the test unless `later` is the same; `what` says after what.
    pub fn assert_same(&self, later: &Self, what: &str) {
        let changes = self.changes(later);
        assert!(changes.is_empty(), "{what} left something changed:\n{}", changes.join("\n"));
    }
}

/// Whom the flow owner knows: the programs themselves stay until the next boot.
fn flow_owner(dir: &Path) -> BTreeSet<String> {
    let Some(maps) = Maps::open(dir).expect("open the flow owner's maps") else { return BTreeSet::new() };
    let vips = maps.vips().expect("list VIPs").into_iter().map(|vip| format!("vip {vip} {:?}", maps.members(vip)));
    let attached = maps.all_attached().expect("list attachments").into_iter();
    vips.chain(attached.map(|(link, vip)| format!("link {link} {vip} {:?}", maps.attached(link, vip)))).collect()
}

fn describe(object: &Value, keys: &[&str]) -> String {
    let parts = keys.iter().filter(|key| !object[**key].is_null()).map(|key| format!("{key} {}", object[*key]));
    parts.collect::<Vec<_>>().join(" ")
}

/// Every file below `directory` with its content, and every empty directory.
pub fn files(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut lines = vec![format!("{}/", directory.display())];
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            lines.extend(files(&path));
        } else if path.ends_with("lock") {
            // The registry's lock holds the last slot handed out, which never goes back.
            lines.push(path.display().to_string());
        } else {
            let content = fs::read(&path).unwrap_or_default();
            lines.push(format!("{}: {}", path.display(), String::from_utf8_lossy(&content).trim_end()));
        }
    }
    lines.sort();
    lines
}

/// For a failing test: what `ip` shows. Must not panic, as it runs in a panic.
pub fn dump(ns: &Netns, views: &[&str]) {
    for view in views {
        let finished = ns.cmd("ip").args(view.split_whitespace()).finish("");
        eprintln!("$ ip {view}\n{}", finished.stdout.trim_end());
    }
}

/// For a failing test: every log in `directory`.
pub fn logs(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "log") {
            eprintln!("--- {}\n{}", path.display(), fs::read_to_string(&path).unwrap_or_default());
        }
    }
}
