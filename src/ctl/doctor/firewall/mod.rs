//! Findings about packet filters: what drops packets of VIPs, and what rewrites the source of a pod that calls one.
//!
//! Each chain is asked what becomes of a packet to a VIP and of one from it. Where that depends on more than is known
//! (sets, ports, other machines' addresses), nothing is said.

mod iptables;
mod nft;
mod ruleset;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::model::address::ipv4;
use crate::node::config::Config;

use super::scene::Scene;
use super::{Cure, Finding, advice, command};
use ruleset::{Chain, Fate, Hook, Packet, Place, Table};

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let tables = tables(&mut findings);
    // Ours keeps conntrack, and with it all translation, away from VIPs.
    let untracked = tables.iter().any(|table| is_ours(&table.place));
    let ends = Ends::of(scene, untracked);
    for table in &tables {
        for (name, chain) in &table.chains {
            match chain.hook {
                Some(Hook::Forward) => findings.extend(forwarding(scene, &ends, (table, name, chain))),
                Some(Hook::SourceNat) if !untracked => findings.extend(masquerade(scene, &ends, (table, name))),
                _ => {}
            }
        }
    }
    if !untracked && !scene.vips.is_empty() {
        findings.extend(conntrack(&tables));
    }
    findings
}

fn is_ours(place: &Place) -> bool {
    matches!(place, Place::Nft { family, name } if family == "ip" && name == "viproute")
}

/// Both ends of a packet's way through the node.
struct Ends<'a> {
    uplink: Option<&'a str>,
    host_veth: &'a str,
    vip: Option<std::net::Ipv4Addr>,
    untracked: bool,
}

impl<'a> Ends<'a> {
    /// Of the first VIP; where there is none yet, of one as it would be.
    fn of(scene: &'a Scene<'_>, untracked: bool) -> Self {
        let vip = scene.vips.iter().find(|vip| !vip.endpoints.is_empty());
        let host_veth = vip.and_then(|vip| vip.endpoints.first()).map(|(_, endpoint)| endpoint.device.as_str());
        Self {
            uplink: scene.uplink.as_deref(),
            host_veth: host_veth.unwrap_or("vip00000000000"),
            vip: vip.and_then(|vip| ipv4(vip.record.address())),
            untracked,
        }
    }

    fn request(&self, state: &'static str) -> Packet<'_> {
        let (input, output) = (self.uplink, Some(self.host_veth));
        Packet { input, output, destination: self.vip, state: self.state(state), ..Packet::default() }
    }

    fn reply(&self, state: &'static str) -> Packet<'_> {
        let (input, output) = (Some(self.host_veth), self.uplink);
        Packet { input, output, source: self.vip, state: self.state(state), ..Packet::default() }
    }

    fn state(&self, tracked: &'static str) -> &'static str {
        if self.untracked { "untracked" } else { tracked }
    }
}

fn forwarding(scene: &Scene<'_>, ends: &Ends<'_>, (table, name, chain): (&Table, &str, &Chain)) -> Option<Finding> {
    let drops = |packet: Packet<'_>| table.fate(name, &packet) == Fate::Dropped;
    let cure = table.place.exempt(name, &["iifname", "oifname"]);
    let place = format!("{}, chain {name}", table.place.shown());
    let policy = if chain.drops { " (its policy is drop)" } else { "" };
    let direction = match (drops(ends.request("new")), drops(ends.reply("established"))) {
        (true, true) => "to and from VIPs",
        (true, false) => "to VIPs",
        (false, true) => "from VIPs",
        (false, false) => return invalid(scene, &place, drops(ends.request("invalid")), cure),
    };
    let what = format!("{place} drops packets {direction}{policy}");
    Some(Finding::error(what, "Connections to VIPs from other machines never come about.", cure))
}

/// Between nodes a connection's packets may go one way only, which conntrack takes to be wrong.
fn invalid(scene: &Scene<'_>, place: &str, drops: bool, cure: Cure) -> Option<Finding> {
    if !drops {
        return None;
    }
    let what = format!("{place} drops packets to VIPs that conntrack calls invalid");
    let why = "When a router sends a live connection's packets by another node, this one drops them.";
    let several = scene.good_config().is_some_and(|config: &Config| config.lease.peers.len() > 1);
    Some(if several { Finding::warning(what, why, cure) } else { Finding::hint(what, why, cure) })
}

fn masquerade(scene: &Scene<'_>, ends: &Ends<'_>, (table, name): (&Table, &str)) -> Option<Finding> {
    let rewritten = scene.endpoints().find(|(_, endpoint)| {
        let (output, source) = (Some(ends.host_veth), ipv4(endpoint.address()));
        // What isn't a service's of kube-proxy has no mark.
        let (destination, mark) = (ends.vip, Some(0));
        let packet = Packet { input: None, output, source, destination, state: "new", mark };
        table.fate(name, &packet) == Fate::Rewritten
    });
    let (_, endpoint) = rewritten?;
    let what = format!(
        "{}, chain {name}, rewrites the source of a pod ({}) that calls a VIP",
        table.place.shown(),
        endpoint.address()
    );
    let why = "The replica sees the node's address in place of the pod's, and each call takes a conntrack entry.";
    Some(Finding::warning(what, why, table.place.exempt(name, &["oifname"])))
}

/// Something on the node makes conntrack track every packet.
fn conntrack(tables: &[Table]) -> Option<Finding> {
    let uses = |table: &&Table| table.chains.values().any(Chain::needs_conntrack);
    let table = tables.iter().find(uses)?;
    let what = format!("conntrack follows the connections to VIPs ({} needs it)", table.place.shown());
    let why = "Each takes an entry of a limited table and costs time. viprouted exempts them, by the nftables table viproute.";
    let cure = if program("nft").is_some() {
        super::restart()
    } else {
        command("apt-get install nftables && systemctl restart viprouted")
    };
    Some(Finding::hint(what, why, cure))
}

impl Place {
    /// As people know it.
    fn shown(&self) -> String {
        match self {
            Self::Nft { family, name } => format!("nftables' table {family} {name}"),
            Self::Iptables { name } => format!("iptables-nft's table {name}"),
        }
    }

    /// Accepts what comes from or goes to host veths before anything else is asked. No address is named, so that it is as
    /// good for the next VIP.
    fn exempt(&self, chain: &str, directions: &[&str]) -> Cure {
        let one = |direction: &&str| match self {
            Self::Nft { family, name } => {
                format!("nft insert rule {family} {name} {chain} {direction} '\"vip*\"' accept")
            }
            Self::Iptables { name } => {
                let option = if *direction == "iifname" { "-i" } else { "-o" };
                format!("iptables-nft -t {name} -I {chain} {option} vip+ -j ACCEPT")
            }
        };
        command(directions.iter().map(one).collect::<Vec<_>>().join(" && "))
    }
}

/// What is on this node. The tables of `iptables-nft` are read by itself, which understands its extensions.
fn tables(findings: &mut Vec<Finding>) -> Vec<Table> {
    let saved = |save: &str| program(save).and_then(|save| output(&save, &[]));
    findings.extend(saved("iptables-legacy-save").as_deref().and_then(legacy));
    let mut tables = saved("iptables-nft-save").map(|text| iptables::parse(&text)).unwrap_or_default();
    let known: Vec<String> = tables.iter().filter_map(|table| table.place.shadow()).collect();
    let listed = program("nft").and_then(|nft| output(&nft, &["--json", "list", "ruleset"]));
    match listed.map(|text| nft::parse(&text)) {
        Some(Ok(theirs)) => {
            let is_known = |table: &Table| matches!(&table.place, Place::Nft { family, name } if family == "ip" && known.contains(name));
            tables.extend(theirs.into_iter().filter(|table| !is_known(table)));
        }
        // A kernel without nftables has no such tables.
        _ if !Path::new("/sys/module/nf_tables").exists() => {}
        _ => {
            let why = "What the firewall does to VIPs is not known.";
            let cure = if program("nft").is_some() {
                advice("Run `nft --json list ruleset`: it fails.")
            } else {
                command("apt-get install nftables")
            };
            findings.push(Finding::hint("nftables' rules can't be read", why, cure));
        }
    }
    tables
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

fn output(program: &Path, arguments: &[&str]) -> Option<String> {
    let finished = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    finished.status.success().then(|| String::from_utf8_lossy(&finished.stdout).into_owned())
}

/// The program's path: administrators' programs aren't on every root's `PATH`.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir: PathBuf| dir.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests;
