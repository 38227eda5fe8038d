//! Garbage collection of replicas: attachments that no runtime wants any more, what calls that died have left, endpoints
//! without attachment, VIPs without endpoints; and of what no record explains in the kernel.

use std::path::Path;

use crate::dataplane::{Error, Result, Tables, gc, reconcile_vip};
use crate::model::{AttachmentId, VipKey};
use crate::net::NodeNet;
use crate::registry::{self, Attempt, Endpoint, LockedAttachment, Registry, attachment_name};

use super::detach::{Detach, detach};
use super::set_vips::abandon;

/// What a runtime's GC is about.
#[derive(Clone, Copy, Debug)]
pub struct Collection<'a> {
    /// Which network's attachments.
    pub network: &'a str,
    /// Those of them that it still has.
    pub valid: &'a [AttachmentId],
    /// Where programs and maps are pinned.
    pub bpf_dir: &'a Path,
}

/// Removes the network's attachments that aren't valid, and all that is garbage whatever the network. Continues after
/// a failure and reports all of them.
pub fn collect(with: &Detach<'_>, collection: &Collection<'_>) -> Result<()> {
    let mut errors = Vec::new();
    for attachment in with.registry.attachments()? {
        let result = if is_valid(with.registry, collection, &attachment) {
            finish(with, &attachment)
        } else {
            remove(with, collection, &attachment)
        };
        errors.extend(result.err());
    }
    errors.extend(everything(with.net, with.registry, collection.bpf_dir).err());
    Error::several(errors)
}

/// What no runtime knows is wanted as long as its pod lives.
fn is_valid(registry: &Registry, collection: &Collection<'_>, attachment: &AttachmentId) -> bool {
    if !attachment.is_by_netns() {
        return collection.valid.contains(attachment);
    }
    let record = registry.attachment_record(attachment).ok().flatten();
    record.is_some_and(|record| record.netns.is_still_there())
}

/// What a call that died has left of a pod that lives on. One that is at work isn't waited for.
fn finish(with: &Detach<'_>, attachment: &AttachmentId) -> Result<()> {
    let record = with.registry.attachment_record(attachment).ok().flatten();
    if record.is_none_or(|record| record.changing.is_empty()) {
        return Ok(());
    }
    match with.registry.try_attachment(attachment)? {
        Attempt::Taken(locked) => abandon(with, attachment, locked).map(drop),
        Attempt::Busy | Attempt::Absent => Ok(()),
    }
}

fn remove(with: &Detach<'_>, collection: &Collection<'_>, attachment: &AttachmentId) -> Result<()> {
    let Some(locked) = with.registry.attachment(attachment)? else { return Ok(()) };
    match network(with.registry, attachment, &locked) {
        Some(network) if network != collection.network && !attachment.is_by_netns() => Ok(()),
        Some(_) => detach(with, attachment, locked),
        // An orphan, as far as can be known: torn before anything was made for it. What a later version wrote is left to
        // the DEL of its container.
        None if matches!(locked.record, Err(registry::Error::Torn { .. })) => detach(with, attachment, locked),
        None => locked.record.map(drop).map_err(Error::from),
    }
}

/// The network an attachment was made by: its record says it; failing that, an endpoint of it.
fn network(registry: &Registry, attachment: &AttachmentId, locked: &LockedAttachment) -> Option<String> {
    if let Ok(record) = &locked.record {
        return Some(record.network.clone());
    }
    let name = attachment_name(attachment);
    let vips = registry.vips().unwrap_or_default();
    vips.iter().find_map(|key| registry.endpoint(key, &name).ok().flatten()).map(|endpoint| endpoint.network)
}

/// Removes orphans, and reconciles every VIP. Continues after a failure and reports all of them.
pub fn everything(node: &NodeNet, registry: &Registry, bpf_dir: &Path) -> Result<()> {
    let mut errors = Vec::new();
    registry.sweep_removed_vips().unwrap_or_else(|e| errors.push(e.into()));
    errors.extend(vips(node, registry).err());
    errors.extend(gc::objects(node, registry, [bpf_dir]).err());
    Error::several(errors)
}

fn vips(node: &NodeNet, registry: &Registry) -> Result<()> {
    let tables = Tables::read(node, registry)?;
    let keys = registry.vips()?;
    Error::several(keys.iter().filter_map(|key| vip(node, registry, key, &tables).err()).collect())
}

/// Removes a VIP's orphans, and reconciles the VIP; `tables` were read a moment ago. Returns what was amiss.
pub fn vip(node: &NodeNet, registry: &Registry, key: &VipKey, tables: &Tables) -> Result<Vec<String>> {
    let Some(mut vip) = registry.vip_if_present(key)? else { return Ok(Vec::new()) };
    vip.remove_temporaries()?;
    // Read under the VIP's lock: a call that makes a replica records its attachment before its endpoint.
    let names = vip.names()?;
    let orphans: Vec<String> = names.into_iter().filter(|name| is_orphan(registry, key, name)).collect();
    for name in &orphans {
        vip.remove_endpoint(name)?;
    }
    let mut found: Vec<String> = orphans.iter().map(|name| format!("endpoint {name} has no attachment")).collect();
    let reconciled = reconcile_vip(node, vip, Some(tables))?;
    found.extend(reconciled.repairs);
    if let Some(vip) = reconciled.vip {
        Error::several(vip.damage()?.into_iter().map(Error::from).collect())?;
    }
    Ok(found)
}

/// A replica without attachment is one if its source would have made an attachment for it, or can't be known.
pub fn is_orphan(registry: &Registry, key: &VipKey, name: &str) -> bool {
    let needs_attachment = |endpoint: Endpoint| endpoint.backend.is_local() && endpoint.source.has_attachment();
    !registry.is_attached(name) && registry.endpoint(key, name).ok().flatten().is_none_or(needs_attachment)
}
