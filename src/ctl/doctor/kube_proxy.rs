//! What kube-proxy has of VIPs on this node, in whichever mode it works. A Service's status says `ipMode: Proxy`, so that it leaves them alone.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::dataplane;
use crate::net::{address, link};
use crate::registry::VipRecord;

use super::firewall::{listed, saved};
use super::scene::Scene;
use super::{Finding, advice, vips};

/// The device on which kube-proxy in mode ipvs has the addresses of all Services.
const IPVS: &str = "kube-ipvs0";
/// kube-proxy's own table in mode nftables.
const TABLE: &str = "kube-proxy";
/// Its chain in mode iptables.
const CHAIN: &str = "-A KUBE-SERVICES ";

/// How kube-proxy works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Ipvs,
    Nftables,
    Iptables,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    if scene.vips.is_empty() {
        return Vec::new();
    }
    let is_vip = |address: &str| {
        let is_own = |record: &VipRecord| record.addresses.iter().any(|own| own.to_string() == address);
        let of = scene.vips.iter().find(|vip| is_own(&vip.record));
        of.map(|vip| format!("{} ({address})", vip.key))
    };
    let held = [
        (Mode::Ipvs, ipvs(scene).unwrap_or_default()),
        (Mode::Nftables, listed().map(|listed| nftables(&listed)).unwrap_or_default()),
        (Mode::Iptables, saved().iter().flat_map(|saved| iptables(saved)).collect()),
    ];
    let of_mode = |(mode, addresses): (Mode, BTreeSet<String>)| {
        let held: Vec<String> = addresses.iter().filter_map(|address| is_vip(address)).collect();
        (!held.is_empty()).then(|| told(mode, &held))
    };
    held.into_iter().filter_map(of_mode).collect()
}

fn told(mode: Mode, held: &[String]) -> Finding {
    let (have, them) = if held.len() == 1 { ("", "its address") } else { ("s", "their addresses") };
    let what = format!("kube-proxy (mode {}) serves the VIP{have} {}", mode.name(), vips(held));
    let cure = format!(
        "See that each address in the Service's status has \"ipMode\": \"Proxy\" (kubectl get service --output json), that no other controller \
         writes it, and that {them} is no externalIPs of a Service; kube-proxy 1.29 and later know ipMode."
    );
    match mode {
        Mode::Ipvs => {
            let why = "The address is one of the node's own (kube-ipvs0): packets for the VIP go to ipvs, and never reach a replica by viproute.";
            Finding::error(what, why, advice(cure))
        }
        Mode::Nftables | Mode::Iptables => {
            let why = "VIP traffic isn't tracked, so no rule of its translates it; what is tracked all the same (notrack = false) goes by \
                       kube-proxy and loses the client's address.";
            Finding::warning(what, why, advice(cure))
        }
    }
}

fn ipvs(scene: &Scene<'_>) -> dataplane::Result<BTreeSet<String>> {
    let Some(device) = link::by_name(&scene.net, IPVS)? else { return Ok(BTreeSet::new()) };
    let found = address::list(&scene.net, crate::model::Family::V4, Some(device.index))?;
    Ok(found.into_iter().map(|found| found.address.to_string()).collect())
}

/// The addresses of which its table's maps say where they lead.
fn nftables(listed: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for object in listed["nftables"].as_array().into_iter().flatten() {
        let map = &object["map"];
        if map["table"] == TABLE {
            for element in map["elem"].as_array().into_iter().flatten() {
                // `{"concat": [address, protocol, port]}`, and the verdict.
                let first = &element[0]["concat"][0];
                found.extend(first.as_str().map(str::to_owned));
            }
        }
    }
    found
}

/// The addresses that it has rules for.
fn iptables(saved: &str) -> BTreeSet<String> {
    let rules = saved.lines().filter_map(|line| line.strip_prefix(CHAIN));
    let destination = |rule: &str| {
        let mut words = rule.split(' ');
        words.find(|word| *word == "-d")?;
        Some(words.next()?.trim_end_matches("/32").to_owned())
    };
    rules.filter_map(destination).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kube-proxy 1.37 has them for a Service whose status has no `ipMode`.
    #[test]
    fn the_addresses_it_has_are_read() {
        let listed = serde_json::json!({ "nftables": [
            { "map": { "table": "kube-proxy", "name": "service-ips", "elem": [
                [{ "concat": ["10.96.0.10", "udp", 53] }, { "goto": { "target": "service-A" } }],
                [{ "concat": ["10.118.0.7", "tcp", 80] }, { "goto": { "target": "external-B" } }],
            ] } },
            { "map": { "table": "other", "elem": [[{ "concat": ["10.118.0.8", "tcp", 80] }, { "drop": null }]] } },
        ] });
        assert_eq!(nftables(&listed), ["10.118.0.7", "10.96.0.10"].map(str::to_owned).into());
        let saved = "*nat\n:KUBE-SERVICES - [0:0]\n\
            -A KUBE-SERVICES -d 10.118.0.7/32 -p tcp -m comment --comment \"default/web:http loadbalancer IP\" -m tcp --dport 80 -j KUBE-EXT-A\n\
            -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n-A OTHER -d 10.118.0.8/32 -j ACCEPT\n";
        assert_eq!(iptables(saved), ["10.118.0.7".to_owned()].into());
    }
}
