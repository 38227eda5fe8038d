//! DEL: a pod leaves its VIPs. Needs neither its namespace nor prevResult nor the allocator.

use crate::cni::{Call, Config};
use crate::net::NodeNet;
use crate::registry::{AttachmentRecord, Boot, Registry};
use crate::vip::sweep;

use super::detach::Detach;
use super::error::Error;
use super::report::Report;

/// Detaches the pod; one that was never attached is detached already.
pub fn run(call: &Call, config: &Config, report: &mut Report) -> Result<(), Error> {
    let Some(attachment) = &call.attachment else { return Ok(()) };
    let registry = Registry::new(&config.data_dir);
    // Also the way of every pod that names no VIP: one look for a file.
    if !registry.exists() {
        return Ok(());
    }
    if registry.begin()? == Boot::Discarded {
        report.is_ours(config, []);
        return Ok(sweep::everything(&NodeNet::open()?, &registry, &config.bpf_dir)?);
    }
    let Some(locked) = registry.attachment(attachment)? else { return Ok(()) };
    report.is_ours(config, locked.record.iter().flat_map(AttachmentRecord::keys));
    let net = NodeNet::open()?;
    let removal =
        Detach { net: &net, registry: &registry, allocator: Some(&config.allocator), netns: call.netns.as_deref() };
    removal.run(attachment, locked)
}
