//! What a VIP's lease does to its routes: an address that is lost is withdrawn, another one takes its place.
//!
//! The address that was is delivered for a while to the connections that began with it: the node keeps its route, without
//! announcement, and the replicas keep the address.

use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::net::{Netns, NodeNet, PodNet};
use crate::registry::{FormerAddress, LockedVip, Registry, VipKey, VipRecord, attachment_of};

use super::joined::Joined;
use super::pair::{self, PodEnd};
use super::{Result, drop_former, owner, sync};

/// A former address is kept for so long, seconds, unless its last connection ends before.
const KEPT: u64 = 60;

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The VIP's address is no longer ours: nothing of it stays in the node's tables. The replicas stay recorded.
pub fn withdraw(node: &NodeNet, registry: &Registry, key: &VipKey) -> Result<()> {
    let Some((mut vip, former)) = begin(node, registry, key)? else { return Ok(()) };
    if !former.withdrawn {
        vip.write_record(VipRecord { withdrawn: true, ..former })?;
    }
    sync(node, vip).map(drop)
}

/// The VIP is served under this address. Where it had another one its replicas are renumbered, and that one is returned.
pub fn serve(node: &NodeNet, registry: &Registry, key: &VipKey, address: Ipv4Addr) -> Result<Option<Ipv4Addr>> {
    let Some((mut vip, before)) = begin(node, registry, key)? else { return Ok(None) };
    let mut record = VipRecord { withdrawn: false, address, ..before.clone() };
    let moved = (before.address != address).then_some(before.address);
    if let Some(left) = moved {
        record.former.retain(|former| former.address != address && former.address != left);
        record.former.push(FormerAddress { address: left, until: now() + KEPT });
        // Before it is recorded: what can't be finished now is begun anew by the next call.
        renumber_all(registry, &vip, &record)?;
    }
    if record != before {
        vip.write_record(record)?;
    }
    sync(node, vip)?;
    Ok(moved)
}

/// These addresses the VIP had are done with: they go from node and replicas. Returns those that were there.
pub fn retire(node: &NodeNet, registry: &Registry, key: &VipKey, addresses: &[Ipv4Addr]) -> Result<Vec<Ipv4Addr>> {
    let Some((mut vip, before)) = begin(node, registry, key)? else { return Ok(Vec::new()) };
    let gone: Vec<_> = before.former_addresses().filter(|address| addresses.contains(address)).collect();
    let mut record = before;
    record.former.retain(|former| !gone.contains(&former.address));
    for address in &gone {
        drop_former(node, &record, *address)?;
    }
    if !gone.is_empty() {
        renumber_all(registry, &vip, &record)?;
        vip.write_record(record)?;
    }
    Ok(gone)
}

/// The VIP under its lock, with its record.
fn begin(node: &NodeNet, registry: &Registry, key: &VipKey) -> Result<Option<(LockedVip, VipRecord)>> {
    // Before any lock: it looks at every VIP.
    if let Some(dir) = registry.vip_record(key)?.and_then(|record| record.flow_owner) {
        owner::ensure(node, registry, &dir)?;
    }
    let vip = registry.vip_if_present(key)?;
    Ok(vip.and_then(|vip| vip.record.clone().map(|record| (vip, record))))
}

/// Gives every replica the addresses that `record` has.
fn renumber_all(registry: &Registry, vip: &LockedVip, record: &VipRecord) -> Result<()> {
    for name in vip.names()? {
        if let Some(endpoint) = vip.endpoint(&name)? {
            renumber(registry, (vip.key(), record), &name, &endpoint.netns)?;
        }
    }
    Ok(())
}

/// Gives one replica the addresses that the VIP's `record` has and its other VIPs' records have.
fn renumber(
    registry: &Registry,
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
    // A pod without its pair is beyond help, and one with another's pair is another pod.
    let end = PodEnd::read(&pod, &attachment.ifname)?.filter(|end| end.mac() == Some(joined.names.pod_mac));
    let Some(end) = end else { return Ok(()) };
    Ok(pair::apply(&pod, end.fixes(&joined.pod_want()))?)
}
