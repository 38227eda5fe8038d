//! What a VIP's lease does to its routes: an address that is lost is withdrawn, another one takes its place.

use std::net::Ipv4Addr;

use crate::net::{Netns, NodeNet, PodNet};
use crate::registry::{Registry, VipKey, attachment_of};

use super::joined::Joined;
use super::pair::{self, PodEnd};
use super::{Result, drop_vip, owner, sync};

/// The VIP's address is no longer ours: nothing of it stays in the node's tables. The replicas stay recorded.
pub fn withdraw(node: &NodeNet, registry: &Registry, key: &VipKey) -> Result<()> {
    set(node, registry, key, |record| record.withdrawn = true)
}

/// The VIP is served under this address. Where it had another one, its replicas are renumbered.
pub fn serve(node: &NodeNet, registry: &Registry, key: &VipKey, address: Ipv4Addr) -> Result<()> {
    set(node, registry, key, |record| {
        record.withdrawn = false;
        record.address = address;
    })
}

fn set(
    node: &NodeNet,
    registry: &Registry,
    key: &VipKey,
    change: impl FnOnce(&mut crate::registry::VipRecord),
) -> Result<()> {
    // Before any lock: it looks at every VIP.
    if let Some(dir) = registry.vip_record(key)?.and_then(|record| record.flow_owner) {
        owner::ensure(node, registry, &dir)?;
    }
    let Some(mut vip) = registry.vip_if_present(key)? else { return Ok(()) };
    let Some(former) = vip.record.clone() else { return Ok(()) };
    let mut record = former.clone();
    change(&mut record);
    if record != former {
        if record.address != former.address {
            drop_vip(node, &former)?;
            for name in vip.names()? {
                if let Some(endpoint) = vip.endpoint(&name)? {
                    renumber(registry, key, &name, &endpoint.netns, record.address)?;
                }
            }
        }
        vip.write_record(record)?;
    }
    sync(node, vip).map(drop)
}

/// Gives one replica the VIP's new address in place of the old one.
fn renumber(registry: &Registry, key: &VipKey, name: &str, netns: &std::path::Path, address: Ipv4Addr) -> Result<()> {
    let Some(attachment) = attachment_of(name) else { return Ok(()) };
    let Some(netns) = Netns::open_if_alive(netns)? else { return Ok(()) };
    let Some(record) = registry.attachment_record(&attachment)? else { return Ok(()) };
    let mut joined = Joined::read(registry, &attachment, &record)?;
    for member in joined.vips.iter_mut().filter(|member| member.key == *key) {
        member.vip.address = address;
    }
    let pod = PodNet::open(netns)?;
    // A pod without its pair is beyond help, and one with another's pair is another pod.
    let end = PodEnd::read(&pod, &attachment.ifname)?.filter(|end| end.mac() == Some(joined.names.pod_mac));
    let Some(end) = end else { return Ok(()) };
    Ok(pair::apply(&pod, end.fixes(&joined.pod_want()))?)
}
