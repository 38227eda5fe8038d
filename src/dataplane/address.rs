//! What a VIP's lease does to its routes: a lost address is withdrawn, another one replaces it.
//!
//! The previous address is still delivered for a while, for the connections that began with it: the node keeps its route,
//! without advertising it, and the replicas keep the address.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::ebpf::Parts;
use crate::model::{Addresses, VipKey};
use crate::net::{Netns, NodeNet, PodNet};
use crate::registry::{LockedVip, PreviousAddress, Registry, VipRecord, attachment_of};

use super::attachment::{self, ContainerVeth, Families, HostVeth};
use super::joined::Joined;
use super::node::{settings, source};
use super::{Result, drop_previous, owner, reconcile_vip};

/// Seconds for which a previous address is still delivered, unless its last connection ends before.
const KEPT: u64 = 60;

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The VIP's address is no longer ours: nothing of it stays in the node's tables. The replicas stay recorded.
pub fn withdraw(node: &NodeNet, registry: &Registry, key: &VipKey) -> Result<()> {
    let Some((mut vip, before)) = begin(node, registry, key, None)? else { return Ok(()) };
    if !before.withdrawn {
        vip.write_record(VipRecord { withdrawn: true, ..before })?;
    }
    reconcile_vip(node, vip, None).map(drop)
}

/// The VIP is served under these addresses. Where it had others its replicas are renumbered, and those are returned.
pub fn serve(node: &NodeNet, registry: &Registry, key: &VipKey, addresses: &Addresses) -> Result<Vec<IpAddr>> {
    let Some(begun) = begin(node, registry, key, Some(addresses))? else { return Ok(Vec::new()) };
    let (_, moved) = change((node, registry), begun, addresses)?;
    Ok(moved)
}

/// The same of a VIP that only other nodes have replicas of. That is asked under its lock: one that a pod is just joining here has the
/// addresses that the pod was given. Returns whether it had others.
pub fn serve_for_others(
    node: &NodeNet,
    registry: &Registry,
    key: &VipKey,
    addresses: &Addresses,
) -> Result<(Option<LockedVip>, bool)> {
    let Some((vip, before)) = begin(node, registry, key, Some(addresses))? else { return Ok((None, false)) };
    if before.addresses == *addresses || !vip.is_unused_here()? || vip.is_unused()? {
        return Ok((Some(vip), false));
    }
    let (vip, _) = change((node, registry), (vip, before), addresses)?;
    Ok((vip, true))
}

/// Serves the VIP under these addresses; gives the lock back while the VIP exists, and the addresses that it had.
fn change(
    (node, registry): (&NodeNet, &Registry),
    (mut vip, before): (LockedVip, VipRecord),
    addresses: &Addresses,
) -> Result<(Option<LockedVip>, Vec<IpAddr>)> {
    let moved: Vec<IpAddr> = before.addresses.iter().filter(|address| !addresses.contains(*address)).collect();
    let mut record = VipRecord { withdrawn: false, addresses: addresses.clone(), ..before.clone() };
    if record.addresses != before.addresses {
        record
            .previous_addresses
            .retain(|previous| !addresses.contains(previous.address) && !moved.contains(&previous.address));
        let until = now() + KEPT;
        record.previous_addresses.extend(moved.iter().map(|address| PreviousAddress { address: *address, until }));
        // Before it is recorded: what can't be finished now is begun anew by the next call.
        renumber_all((node, registry), &vip, &record)?;
    }
    if record != before {
        vip.write_record(record)?;
    }
    Ok((reconcile_vip(node, vip, None)?.vip, moved))
}

/// The node has these addresses now: where the VIP's routes have another source they get the best one, and what went with it
/// comes back. Returns what was repaired.
pub fn follow(node: &NodeNet, registry: &Registry, key: &VipKey, have: &source::Have) -> Result<Vec<String>> {
    let Some((mut vip, before)) = begin(node, registry, key, None)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    if let Some(address) = source::difference(before.node, have) {
        found.push(format!(
            "source of the VIP's routes: want {address}, found {}, which the node no longer has",
            before.node
        ));
        vip.write_record(VipRecord { node: address, ..before })?;
    }
    found.extend(reconcile_vip(node, vip, None)?.repairs);
    Ok(found)
}

/// These addresses the VIP had are done with: they go from node and replicas. Returns those that were there.
pub fn retire(node: &NodeNet, registry: &Registry, key: &VipKey, addresses: &[IpAddr]) -> Result<Vec<IpAddr>> {
    let Some((mut vip, before)) = begin(node, registry, key, None)? else { return Ok(Vec::new()) };
    let gone: Vec<_> = before.previous_addresses().filter(|address| addresses.contains(address)).collect();
    let mut record = before;
    record.previous_addresses.retain(|previous| !gone.contains(&previous.address));
    for address in &gone {
        drop_previous(node, &record, *address)?;
    }
    if !gone.is_empty() {
        renumber_all((node, registry), &vip, &record)?;
        vip.write_record(record)?;
    }
    Ok(gone)
}

/// The VIP under its lock, with its record. `addresses`: those that it is about to get.
fn begin(
    node: &NodeNet,
    registry: &Registry,
    key: &VipKey,
    addresses: Option<&Addresses>,
) -> Result<Option<(LockedVip, VipRecord)>> {
    // Before any lock: it may reconcile every VIP.
    if let Some(record) = registry.vip_record(key)?
        && let Some(dir) = &record.flow_owner
    {
        let gets_ipv6 = addresses.is_some_and(|addresses| addresses.ipv6().is_some());
        owner::ensure(node, registry, dir, Parts::ipv6(gets_ipv6 || record.has_ipv6()))?;
    }
    let vip = registry.vip_if_present(key)?;
    Ok(vip.and_then(|vip| vip.record.clone().map(|record| (vip, record))))
}

/// Gives every replica the addresses that `record` has.
fn renumber_all((node, registry): (&NodeNet, &Registry), vip: &LockedVip, record: &VipRecord) -> Result<()> {
    if record.has_ipv6() {
        settings::configure_ipv6(node)?;
    }
    for name in vip.names()? {
        if let Some(endpoint) = vip.endpoint(&name)?.filter(|endpoint| endpoint.backend.is_local()) {
            renumber((node, registry), (vip.key(), record), &name, &endpoint.netns)?;
        }
    }
    Ok(())
}

/// Gives one replica the addresses that the VIP's `record` has and its other VIPs' records have.
fn renumber(
    (node, registry): (&NodeNet, &Registry),
    (key, record): (&VipKey, &VipRecord),
    name: &str,
    netns: &std::path::Path,
) -> Result<()> {
    let Some(attachment) = attachment_of(name) else { return Ok(()) };
    let Some(netns) = Netns::open_if_alive(netns)? else { return Ok(()) };
    let Some(attached) = registry.attachment_record(&attachment)? else { return Ok(()) };
    let mut joined = Joined::read(registry, &attachment, &attached)?;
    for member in joined.vips.iter_mut().filter(|member| member.key == *key) {
        member.vip = record.clone();
    }
    let pod = PodNet::open(netns)?;
    // A pod without its veth pair can't be repaired here, and one with another pair is another pod.
    let end = ContainerVeth::read(&pod, &attachment.ifname, Families::Both)?
        .filter(|end| end.mac() == Some(joined.names.pod_mac));
    let Some(end) = end else { return Ok(()) };
    attachment::apply(&pod, end.fixes(&joined.pod_want()))?;
    if joined.has_ipv6() { carry_ipv6(node, &joined) } else { Ok(()) }
}

/// A pair carries IPv6 from now on, if it didn't.
fn carry_ipv6(node: &NodeNet, joined: &Joined) -> Result<()> {
    let Some(gateway) = joined.gateway() else { return Ok(()) };
    let Some(host_veth) = HostVeth::read(node, &joined.names, Some(gateway))? else { return Ok(()) };
    attachment::apply(node, host_veth.fixes(&joined.names, gateway))?;
    let status = |dir| owner::status(dir, host_veth.parts());
    let Some(programs) = joined.flow_owner().map(status).transpose()?.flatten() else { return Ok(()) };
    Ok(attachment::apply(node, host_veth.filter_fixes(&programs)?)?)
}
