//! DEL: a pod leaves its VIPs. Needs neither its namespace nor prevResult nor the allocator.

use crate::cni::protocol::{Call, Config};
use crate::membership::{Detach, detach, find, gc};
use crate::net::NodeNet;
use crate::registry::{AttachmentRecord, Boot, Registry};

use super::error::Error;
use super::report::Report;

/// Detaches the pod; one that was never attached is detached already.
pub fn run(call: &Call, config: &Config, report: &mut Report) -> Result<(), Error> {
    let Some(attachment) = &call.attachment else { return Ok(()) };
    let registry = Registry::new(&config.data_dir);
    // Every pod that names no VIP takes this path: one lookup of a file.
    if !registry.exists() {
        return Ok(());
    }
    if registry.begin()? == Boot::Discarded {
        report.is_ours(config, []);
        return Ok(gc::everything(&NodeNet::open()?, &registry, &config.bpf_dir)?);
    }
    let mut errors = Vec::new();
    for attachment in find::attachments(&registry, attachment, call.netns.as_deref())? {
        let Some(locked) = registry.attachment(&attachment)? else { continue };
        if locked.record.as_ref().is_ok_and(AttachmentRecord::is_idle) {
            locked.remove()?; // recorded, and in no VIP: nothing was made for it
            continue;
        }
        report.is_ours(config, locked.record.iter().flat_map(AttachmentRecord::keys));
        let net = NodeNet::open()?;
        let (allocator, netns) = (Some(config.allocator.as_path()), call.netns.as_deref());
        let with = Detach { net: &net, registry: &registry, allocator, netns };
        errors.extend(detach(&with, &attachment, locked).err().map(Error::from));
    }
    Error::several(errors)
}
