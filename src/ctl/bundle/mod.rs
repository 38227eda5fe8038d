//! `viproutectl bundle`: what a bug report needs of this node, in one tar, without secrets. It changes nothing.

mod gather;
mod secrets;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::net::{NodeNet, link};
use crate::node::config::Config;

use gather::{Found, Item, Source};
use secrets::Secrets;

/// Where to look.
#[derive(Debug)]
pub struct Places {
    /// The registry, where the command line names it.
    pub data_dir: Option<PathBuf>,
    /// viprouted's socket, likewise.
    pub allocator: Option<PathBuf>,
    /// The runtime's networks.
    pub conf_dir: PathBuf,
    /// viprouted's configuration.
    pub config: PathBuf,
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be made.
    #[error("write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

/// A bundle that was written.
#[derive(Debug)]
pub struct Written {
    /// The tar.
    pub path: PathBuf,
    /// How many files are in it.
    pub files: usize,
    /// How many things could not be had.
    pub missing: usize,
}

/// The directory in the tar.
const DIR: &str = "viproute-bundle";
/// What could not be had, one a line.
const MISSING: &str = "missing.txt";

/// Where runtimes look for networks, beside the one that is named.
const MORE_NETWORKS: [&str; 4] = [
    "/opt/cni/config",
    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    "/var/snap/microk8s/current/args/cni-network",
    "/etc/kubernetes/cni/net.d",
];

/// Gathers all and writes it to a new file: this one, or one named by the time.
pub fn write(places: &Places, file: Option<PathBuf>) -> Result<Written, Error> {
    let now = SystemTime::now();
    let path = file.unwrap_or_else(|| {
        let time = humantime::format_rfc3339_seconds(now).to_string();
        format!("{DIR}-{}.tar", time.replace([':', '-'], "")).into()
    });
    // Before anything is asked: it may be no place to write to. New, and root's alone: it says much of the node.
    let failed = |source| Error::Write(path.clone(), source);
    let file = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let found = blanked(gather::all(items(places)));
    let time = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    archive(file, &found, time).map_err(|source| {
        let _ = std::fs::remove_file(&path);
        failed(source)
    })?;
    Ok(Written { files: found.files.len(), missing: found.missing.len(), path })
}

fn archive(file: File, found: &Found, time: u64) -> io::Result<()> {
    let mut tar = tar::Builder::new(file);
    let mut put = |name: &str, text: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(time);
        tar.append_data(&mut header, format!("{DIR}/{name}"), text.as_bytes())
    };
    for (name, text) in &found.files {
        put(name, text)?;
    }
    let missing: Vec<_> = found.missing.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    put(MISSING, &if missing.is_empty() { "Nothing is missing.\n".to_owned() } else { missing.join("\n") + "\n" })?;
    tar.into_inner()?.sync_all()
}

/// All texts, and what is said of those that are missing, without secrets.
fn blanked(found: Found) -> Found {
    let mut secrets = Secrets::default();
    for (_, text) in found.files.iter().filter(|(name, _)| name.starts_with(NETWORKS) || name == CONFIGURATION) {
        secrets.learn(text);
    }
    let blank = |(name, text): (String, String)| (name, secrets.blank(&text));
    let line = |(name, why): (String, String)| (name, secrets.blank(&why).trim_end().to_owned());
    Found {
        files: found.files.into_iter().map(blank).collect(),
        missing: found.missing.into_iter().map(line).collect(),
    }
}

const NETWORKS: &str = "networks";
const CONFIGURATION: &str = "viprouted.toml";

fn items(places: &Places) -> Vec<Item> {
    let config = Config::load(&places.config).ok();
    let mut items = Vec::new();
    items.extend(own(places));
    items.extend(versions());
    items.extend(kernel_state());
    items.extend(machine());
    items.push(Item::new(CONFIGURATION, Source::File(places.config.clone())));
    items.push(Item::new(NETWORKS, Source::Tree(places.conf_dir.clone())));
    let more = MORE_NETWORKS.iter().map(Path::new).filter(|dir| dir.is_dir() && *dir != places.conf_dir);
    items.extend(
        more.enumerate()
            .map(|(number, dir)| Item::new(format!("{NETWORKS}-{}", number + 2), Source::Tree(dir.to_owned()))),
    );
    let data_dir = places.data_dir.clone().or_else(|| config.as_ref().map(|config| config.data_dir.clone()));
    let data_dir = data_dir.unwrap_or_else(|| crate::ctl::arguments::default::DATA_DIR.into());
    items.push(Item::new("registry", Source::Tree(data_dir)));
    if let Some(config) = config {
        items.push(Item::new("leases", Source::Tree(config.state_dir)));
        if let Some(socket) = config.metrics.socket {
            for (name, path) in [("metrics.txt", "/metrics"), ("healthz.txt", "/healthz"), ("readyz.txt", "/readyz")] {
                items.push(Item::new(name, Source::Page { socket: socket.clone(), path }));
            }
        }
    }
    items
}

fn command(name: &str, program: impl Into<PathBuf>, arguments: &[&str]) -> Item {
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let source = Source::Command { program: program.into(), arguments, statuses: &[], stdin: String::new() };
    Item::new(name, source)
}

/// What viproutectl itself says, as a process each: whatever it waits for, its time is limited.
fn own(places: &Places) -> Vec<Item> {
    // The file may have been replaced.
    let program = PathBuf::from("/proc/self/exe");
    let text = |path: &Path| path.display().to_string();
    let mut global = Vec::new();
    for (option, path) in [("--data-dir", &places.data_dir), ("--allocator", &places.allocator)] {
        if let Some(path) = path {
            global.extend([option.to_owned(), text(path)]);
        }
    }
    let (conf_dir, config) = (text(&places.conf_dir), text(&places.config));
    let verbs: [(&str, &[&str]); 5] = [
        ("version.txt", &["--version"]),
        ("status.txt", &["status"]),
        ("status.json", &["status", "--output", "json"]),
        ("events.txt", &["events"]),
        ("doctor.txt", &["doctor", "--conf-dir", &conf_dir, "--config", &config]),
    ];
    let item = |(name, verb): (&str, &[&str])| {
        let arguments = global.iter().cloned().chain(verb.iter().map(|&word| word.to_owned())).collect();
        // doctor's, where it finds something.
        let statuses: &[i32] = if name == "doctor.txt" { &[3, 4] } else { &[] };
        Item::new(name, Source::Command { program: program.clone(), arguments, statuses, stdin: String::new() })
    };
    verbs.map(item).into()
}

/// Of the plugins that runtimes find, and of the viprouted that is installed beside viproutectl.
fn versions() -> Vec<Item> {
    let runtimes = crate::chain::runtimes::find(Path::new("/"));
    let mut dirs: Vec<PathBuf> = runtimes.into_iter().flat_map(|runtime| runtime.plugin_dirs).collect();
    dirs.extend(["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from));
    dirs.sort();
    dirs.dedup();
    let plugins = dirs.into_iter().map(|dir| dir.join("viproute")).filter(|path| path.exists());
    let daemon = std::env::current_exe().ok().map(|own| own.with_file_name("viprouted"));
    let programs: Vec<PathBuf> = plugins.chain(daemon).collect();
    let name =
        |path: &Path| format!("versions/{}.txt", path.display().to_string().trim_start_matches('/').replace('/', "-"));
    programs.into_iter().map(|path| command(&name(&path), &path, &["--version"])).collect()
}

fn kernel_state() -> Vec<Item> {
    let commands: [(&str, &str, &[&str]); 11] = [
        ("ip/links.txt", "ip", &["-d", "-s", "link", "show"]),
        ("ip/addresses.txt", "ip", &["address", "show"]),
        ("ip/routes.txt", "ip", &["-d", "-4", "route", "show", "table", "all"]),
        ("ip/routes6.txt", "ip", &["-d", "-6", "route", "show", "table", "all"]),
        ("ip/rules.txt", "ip", &["rule", "show"]),
        ("ip/nexthops.txt", "ip", &["-d", "nexthop", "show"]),
        ("ip/buckets.txt", "ip", &["nexthop", "bucket", "show"]),
        ("ip/neighbours.txt", "ip", &["-s", "neigh", "show"]),
        ("ip/proxies.txt", "ip", &["neigh", "show", "proxy"]),
        ("nft.txt", "nft", &["-a", "list", "ruleset"]),
        ("iptables.txt", "iptables-save", &["-c"]),
    ];
    let mut items: Vec<Item> = commands.map(|(name, program, arguments)| command(name, program, arguments)).into();
    items.push(command("tc/qdiscs.txt", "tc", &["-s", "qdisc", "show"]));
    let source = Source::Command {
        program: "tc".into(),
        arguments: ["-s", "-force", "-batch", "-"].map(str::to_owned).into(),
        statuses: &[],
        stdin: filters(),
    };
    items.push(Item::new("tc/filters.txt", source));
    items
}

/// A question to tc for the filters of each device, in both directions. All of them fit into a pipe (pipe(7): 64 KiB).
fn filters() -> String {
    const MOST: usize = 400;
    let links = NodeNet::open().and_then(|net| link::list(&net)).unwrap_or_default();
    let names = links.iter().filter(|link| !link.loopback).map(|link| &link.name).take(MOST);
    let ask = |name: &String| format!("filter show dev {name} ingress\nfilter show dev {name} egress\n");
    names.map(ask).collect()
}

fn machine() -> Vec<Item> {
    let files = [
        ("kernel/version.txt", "/proc/version"),
        ("kernel/cmdline.txt", "/proc/cmdline"),
        ("kernel/modules.txt", "/proc/modules"),
        ("kernel/os-release.txt", "/etc/os-release"),
        ("kernel/ip_forward.txt", "/proc/sys/net/ipv4/ip_forward"),
        ("kernel/fib_multipath_hash_policy.txt", "/proc/sys/net/ipv4/fib_multipath_hash_policy"),
        ("kernel/nexthop_compat_mode.txt", "/proc/sys/net/ipv4/nexthop_compat_mode"),
        ("kernel/unprivileged_bpf_disabled.txt", "/proc/sys/kernel/unprivileged_bpf_disabled"),
        ("kernel/mounts.txt", "/proc/self/mounts"),
        ("lsm/active.txt", "/sys/kernel/security/lsm"),
        ("lsm/lockdown.txt", "/sys/kernel/security/lockdown"),
        ("lsm/own-label.txt", "/proc/self/attr/current"),
        ("lsm/apparmor.txt", "/sys/kernel/security/apparmor/profiles"),
        ("lsm/selinux-enforce.txt", "/sys/fs/selinux/enforce"),
    ];
    let mut items: Vec<Item> = files.map(|(name, path)| Item::new(name, Source::File(path.into()))).into();
    let log = ["-u", "viprouted", "-n", "5000", "--no-pager", "-o", "short-precise"];
    items.push(command("log.txt", "journalctl", &log));
    items
}
