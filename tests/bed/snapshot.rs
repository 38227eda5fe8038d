//! Everything a call may change, as text that can be compared and read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;
use viproute::internals::ebpf::{Known, Maps};

use super::command::Run;
use super::netns::Netns;

/// Sections (`node link`, `p1 route`, `files`, …) and their lines.
type Sections = BTreeMap<String, BTreeSet<String>>;

#[derive(Debug, Clone)]
pub struct Snapshot {
    sections: Sections,
    /// The node's devices by index.
    devices: BTreeMap<u64, Device>,
}

#[derive(Debug, Clone)]
struct Device {
    name: String,
    /// The id that the node has for its peer's namespace.
    netns_id: Option<u64>,
}

/// Per kind of object: `ip`'s arguments and the keys that say what it is. Counters, states the kernel changes by itself
/// and devices' indexes are left out.
const OBJECTS: &[(&str, &str, &[&str])] = &[
    ("link", "link show", &["ifname", "address", "mtu"]),
    ("addr", "addr show", &["ifname", "addr_info"]),
    ("rule", "rule show", &["priority", "src", "srclen", "iif", "ipproto", "sport", "table", "protocol"]),
    (
        "route",
        "route show table all",
        &["type", "dst", "nhid", "gateway", "dev", "table", "protocol", "metric", "prefsrc"],
    ),
    ("nexthop", "nexthop show", &["id", "gateway", "dev", "group", "type", "protocol"]),
    ("neigh", "neigh show nud permanent", &["dst", "dev", "lladdr"]),
    ("proxy", "neigh show proxy", &["dst", "dev"]),
];

const SYSCTLS: &[&str] = &[
    "net/ipv4/ip_nonlocal_bind",
    "net/ipv4/ip_forward",
    "net/ipv4/fib_multipath_hash_policy",
    "net/ipv4/fib_multipath_hash_fields",
    "net/ipv4/conf/eth0/arp_ignore",
    "net/ipv4/conf/eth0/arp_announce",
    "net/ipv6/conf/eth0/use_oif_addrs_only",
];

/// The same of each device whose name begins with `vip`.
const DEVICE_SYSCTLS: &[&str] = &["rp_filter", "forwarding", "accept_local"];

impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        self.sections == other.sections
    }
}

impl Snapshot {
    /// The first of the namespaces is the node's.
    pub fn take(namespaces: &[(&str, &Netns)], directory: &Path, bpf_dir: &Path) -> Self {
        let mut sections = Sections::new();
        let mut devices = BTreeMap::new();
        for (name, ns) in namespaces {
            let views: Vec<_> = OBJECTS.iter().map(|(_, view, _)| (*view).to_owned()).collect();
            let objects = ns.batch("ip", &["-4", "-j"], &views).expect("tables of all devices");
            for ((kind, _, keys), found) in OBJECTS.iter().zip(&objects) {
                let mut lines: BTreeSet<_> = found.iter().map(|object| describe(object, keys)).collect();
                if *kind == "link" {
                    lines.extend(found.iter().filter_map(up));
                }
                sections.insert(format!("{name} {kind}"), lines);
            }
            let ours: Vec<_> = objects[0].iter().filter_map(|link| link["ifname"].as_str()).collect();
            let ours: Vec<_> = ours.into_iter().filter(|device| device.starts_with("vip")).collect();
            sections.insert(format!("{name} sysctl"), sysctls(ns, &ours));
            sections.insert(format!("{name} tc"), filters(ns, &ours));
            if devices.is_empty() {
                devices = objects[0].iter().map(device).collect();
            }
        }
        sections.insert("files".into(), files(directory).into_iter().collect());
        sections.insert("flow owner".into(), flow_owner(bpf_dir));
        Self { sections, devices }
    }

    /// One more section.
    pub fn with(mut self, section: &str, lines: impl IntoIterator<Item = String>) -> Self {
        self.sections.insert(section.into(), lines.into_iter().collect());
        self
    }

    /// The lines that went (`-`) and came (`+`).
    pub fn changes(&self, later: &Self) -> Vec<String> {
        changes(&self.sections, &later.sections)
    }

    /// The same where a device that was made anew is the same device: its index, the id of its nexthop, which follows from
    /// that, and the id of its peer's namespace count as its name.
    pub fn changes_but_indexes(&self, later: &Self) -> Vec<String> {
        changes(&self.named(), &later.named())
    }

    /// Fails the test unless `later` is the same; `what` says after what.
    pub fn assert_same(&self, later: &Self, what: &str) {
        let changes = self.changes(later);
        assert!(changes.is_empty(), "{what} left something changed:\n{}", changes.join("\n"));
    }

    fn named(&self) -> Sections {
        let named = |lines: &BTreeSet<String>| lines.iter().map(|line| self.with_names(line)).collect();
        self.sections.iter().map(|(section, lines)| (section.clone(), named(lines))).collect()
    }

    /// `line` with devices' names where their numbers are.
    fn with_names(&self, line: &str) -> String {
        /// What is in front of an index: in `ip`'s JSON and in records, and in the flow owner's section.
        const INDEX: &[&str] = &["\"ifindex\":", "\"ifindex\": ", "ifindex: ", "link "];
        const NETNS: &[&str] = &["\"netns_id\":", "\"netns_id\": ", "netns: "];
        /// A replica's nexthop: this and its device's index.
        const NEXTHOP: u64 = 0x7600_0000;
        let after = |text: &str, keys: &[&str]| keys.iter().any(|key| text.ends_with(key));
        let (mut named, mut rest) = (String::new(), line);
        while let Some(start) = rest.find(|letter: char| letter.is_ascii_digit()) {
            named.push_str(&rest[..start]);
            rest = &rest[start..];
            let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
            let (digits, after_them) = rest.split_at(end);
            rest = after_them;
            let number = digits.parse::<u64>().ok();
            let device = number.and_then(|number| match number.checked_sub(NEXTHOP) {
                Some(index) => self.devices.get(&index),
                None if after(&named, INDEX) => self.devices.get(&number),
                None if after(&named, NETNS) => self.devices.values().find(|device| device.netns_id == Some(number)),
                None => None,
            });
            named.push_str(device.map_or(digits, |device| &device.name));
        }
        named + rest
    }
}

fn changes(old: &Sections, new: &Sections) -> Vec<String> {
    let none = BTreeSet::new();
    let sections: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let changes = sections.into_iter().flat_map(|section| {
        let (old, new) = (old.get(section).unwrap_or(&none), new.get(section).unwrap_or(&none));
        let gone = old.difference(new).map(move |line| format!("- {section}: {line}"));
        gone.chain(new.difference(old).map(move |line| format!("+ {section}: {line}")))
    });
    changes.collect()
}

fn device(link: &Value) -> (u64, Device) {
    let name = link["ifname"].as_str().expect("a device's name").to_owned();
    (link["ifindex"].as_u64().expect("a device's index"), Device { name, netns_id: link["link_netnsid"].as_u64() })
}

/// Whether it is up by its own setting; whether its link works is the kernel's affair.
fn up(link: &Value) -> Option<String> {
    let flags = link["flags"].as_array().expect("a device's flags");
    flags.contains(&"UP".into()).then(|| format!("{} is up", link["ifname"]))
}

fn sysctls(ns: &Netns, devices: &[&str]) -> BTreeSet<String> {
    let of_devices =
        devices.iter().flat_map(|device| DEVICE_SYSCTLS.iter().map(move |key| format!("net/ipv4/conf/{device}/{key}")));
    let keys: Vec<_> = SYSCTLS.iter().map(|key| (*key).to_owned()).chain(of_devices).collect();
    let values = ns.sysctls(&keys);
    keys.iter().zip(values).map(|(key, value)| format!("{key} = {}", value.as_deref().unwrap_or("absent"))).collect()
}

/// The programs at these devices; each by its tag, which is a hash of its instructions.
fn filters(ns: &Netns, devices: &[&str]) -> BTreeSet<String> {
    if devices.is_empty() {
        return BTreeSet::new();
    }
    let views = devices.iter().flat_map(|device| {
        ["qdisc show dev", "filter show egress dev", "filter show ingress dev"].map(|view| format!("{view} {device}"))
    });
    let views: Vec<_> = views.collect();
    let Some(objects) = ns.batch("tc", &["-j"], &views) else {
        return BTreeSet::from(["a device was removed meanwhile".to_owned()]);
    };
    let describe = |view: &String, object: &Value| {
        let program = &object["options"]["prog"];
        let (kind, pref, options) = (&object["kind"], &object["pref"], &object["options"]["direct-action"]);
        format!("{view}: {kind} pref {pref} direct-action {options} {} {}", program["name"], program["tag"])
    };
    let lines = views.iter().zip(&objects);
    lines.flat_map(|(view, objects)| objects.iter().map(move |object| describe(view, object))).collect()
}

/// Whom the flow owner knows: the programs themselves stay until the next boot.
fn flow_owner(dir: &Path) -> BTreeSet<String> {
    let Some(maps) = Maps::open(dir).expect("open the flow owner's maps") else { return BTreeSet::new() };
    // In which order a VIP's replicas are asked for a flow follows from their indexes.
    let vips = maps.vips().expect("list VIPs").into_iter().flat_map(|vip| {
        let known = maps.known(vip).expect("list members").into_iter();
        let line = move |known: Known| {
            let members = known.members.into_iter().map(move |member| format!("vip {vip} {member:?}"));
            members.chain([format!("vip {vip} {:?}", known.ring)])
        };
        known.flat_map(line)
    });
    let attached = maps.all_attached().expect("list attachments").into_iter();
    vips.chain(attached.map(|(link, vip)| format!("link {link} {vip} {:?}", maps.attached(link, vip)))).collect()
}

fn describe(object: &Value, keys: &[&str]) -> String {
    let parts = keys.iter().filter(|key| !object[**key].is_null()).map(|key| format!("{key} {}", object[*key]));
    parts.collect::<Vec<_>>().join(" ")
}

/// Every file below `directory` with its content, and every empty directory. What can't be read is a line that says so: this
/// runs in panics too.
pub fn files(directory: &Path) -> Vec<String> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![format!("{}: {error}", directory.display())],
    };
    let mut lines = vec![format!("{}/", directory.display())];
    for entry in entries {
        match entry {
            Ok(entry) if entry.path().is_dir() => lines.extend(files(&entry.path())),
            Ok(entry) => lines.extend(file(&entry.path())),
            Err(error) => lines.push(format!("{}: {error}", directory.display())),
        }
    }
    lines.sort();
    lines
}

/// `None`: it is no longer there.
fn file(path: &Path) -> Option<String> {
    if path.ends_with("lock") {
        // The registry's lock holds the last slot handed out, which never goes back.
        return Some(path.display().to_string());
    }
    match fs::read(path) {
        Ok(content) => Some(format!("{}: {}", path.display(), String::from_utf8_lossy(&content).trim_end())),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => Some(format!("{}: {error}", path.display())),
    }
}

/// For a failing test: what `ip` shows. Must not panic, as it runs in a panic.
pub fn dump(ns: &Netns, views: &[&str]) {
    for view in views {
        let finished = ns.cmd("ip").args(view.split_whitespace()).finish("");
        eprintln!("$ ip {view}\n{}{}", finished.stdout.trim_end(), finished.stderr);
    }
}

/// For a failing test: every log in `directory`.
pub fn logs(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return eprintln!("no logs in {}", directory.display()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = fs::read(&path).map(|text| String::from_utf8_lossy(&text).into_owned());
            eprintln!("--- {}\n{}", path.display(), text.unwrap_or_else(|error| error.to_string()));
        }
    }
}
