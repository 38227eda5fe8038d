//! Pods whose own rules lead what comes for a VIP to a socket of another port: a mesh's proxy takes all connections so. The socket of such a
//! connection has that port, and by the packets' own no look-up finds it.

use std::collections::{BTreeMap, BTreeSet};

use crate::dataplane::ids::POD_DEVICE;
use crate::model::address::ipv4;
use crate::model::{Port, PortMap, Recorded, Transport};
use crate::net::Netns;
use crate::net::nftables::Generation;
use crate::registry::{Endpoint, attachment_of};

use super::super::scene::{Scene, Vip};
use super::super::{Finding, advice, vips};
use super::read::all_tables;
use super::ruleset::{Fate, Hook, Packet, Table};

/// More pods than that with rules of their own are not read: each costs some programs' runs.
const MOST: usize = 100;
/// The kernel's number of a namespace's rules while there were never any.
const UNTOUCHED: u32 = 1;

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let mut known: BTreeMap<(u64, u64), Vec<Table>> = BTreeMap::new();
    let (mut pods, mut names, mut first) = (BTreeSet::new(), BTreeSet::new(), None);
    for vip in &scene.vips {
        for (name, endpoint) in vip.endpoints.iter().filter(|(_, endpoint)| endpoint.backend.is_local()) {
            let Some(netns) = netns(scene, name) else { continue };
            let Ok(identity) = netns.identity() else { continue };
            if !known.contains_key(&identity) && known.values().filter(|tables| !tables.is_empty()).count() < MOST {
                known.insert(identity, tables(&netns));
            }
            let tables = known.get(&identity).map_or(&[][..], Vec::as_slice);
            if let Some(port) = redirected(vip, endpoint, tables) {
                first.get_or_insert_with(|| format!("{} ({port})", endpoint.pod_name(name)));
                pods.insert(name.clone());
                names.insert(vip.key.to_string());
            }
        }
    }
    first.map(|first| told(&first, pods.len(), &names.into_iter().collect::<Vec<_>>())).into_iter().collect()
}

fn told(first: &str, pods: usize, names: &[String]) -> Finding {
    let others = match pods {
        1 => String::new(),
        pods => format!(" and {} other pods", pods - 1),
    };
    let what = format!("rules in {first}{others} lead what comes for {} to a socket of another port", vips(names));
    let why = "No look-up finds the connections of such a socket: their packets are searched for at a limited rate, and they break when the VIP's \
               replicas change.";
    let cure = "Take vip0 out of the mesh. Istio: the pod's annotation traffic.sidecar.istio.io/excludeInterfaces: vip0. Linkerd: \
                config.linkerd.io/skip-inbound-ports with the ports of the VIP.";
    Finding::warning(what, why, advice(cure))
}

fn netns(scene: &Scene<'_>, name: &str) -> Option<Netns> {
    let record = scene.places.registry.attachment_record(&attachment_of(name)?).ok()??;
    if record.netns.is_still_there() { Netns::open(&record.netns.path).ok() } else { None }
}

/// Those of a pod; most have none, and no program is run for them.
fn tables(netns: &Netns) -> Vec<Table> {
    let read = || {
        let has_nft = Generation::open().and_then(|rules| rules.get()).is_ok_and(|number| number > UNTOUCHED);
        let legacy = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
        if has_nft || !legacy.trim().is_empty() { all_tables() } else { Vec::new() }
    };
    netns.run(read).unwrap_or_default()
}

/// The first of the pod's ports of which that is certain.
fn redirected(vip: &Vip, endpoint: &Endpoint, tables: &[Table]) -> Option<Port> {
    let served: Vec<Port> = endpoint.ports.iter().filter_map(Recorded::known).copied().map(PortMap::at_pod).collect();
    // One that serves everything is asked about by a port that no rule names.
    let any = [Port { number: u16::MAX, transport: Transport::Tcp }];
    let ports = if served.is_empty() { &any[..] } else { &served };
    ports.iter().copied().find(|port| tables.iter().any(|table| redirects(table, vip, *port)))
}

fn redirects(table: &Table, vip: &Vip, port: Port) -> bool {
    let protocol = match port.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    let packet = Packet {
        input: Some(POD_DEVICE),
        destination: ipv4(vip.record.address()).map(Into::into),
        port: Some(port.number),
        address_type: Some("local"),
        mark: Some(0),
        ..Packet::of(protocol, "new")
    };
    let mut entries = table.chains.iter().filter(|(_, chain)| chain.hook == Some(Hook::Prerouting));
    entries.any(|(name, _)| table.fate(name, &packet) == Fate::Redirected)
}
