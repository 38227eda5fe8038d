//! GC: what no valid attachment of this network needs goes, and what nobody needs at all.

use crate::cni::Config;
use crate::cni::config::ConfigError;
use crate::cni::env::Attachment;
use crate::net::NodeNet;
use crate::registry::{self, LockedAttachment, Registry, attachment_name};
use crate::vip::sweep;

use super::detach::Detach;
use super::error::Error;
use super::report::Report;

/// Collects. Goes on behind a failure and reports all of them.
pub fn run(config: &Config, report: &mut Report) -> Result<(), Error> {
    // Without the list everything would be garbage.
    let valid = config.valid_attachments.as_ref().ok_or(ConfigError::Missing("cni.dev/valid-attachments"))?;
    let registry = Registry::new(&config.data_dir);
    if !registry.exists() {
        return Ok(());
    }
    report.is_ours(config, []);
    registry.begin()?;
    let net = NodeNet::open()?;
    let removal = Detach { net: &net, registry: &registry, allocator: Some(&config.allocator), netns: None };
    let mut errors = Vec::new();
    for attachment in registry.attachments()? {
        if valid.contains(&attachment) {
            continue;
        }
        match registry.attachment(&attachment) {
            Ok(Some(locked)) => match network(&registry, &attachment, &locked) {
                Some(network) if network != config.name => {}
                Some(_) => errors.extend(removal.run(&attachment, locked).err()),
                // Nobody's, as far as can be told: torn before anything was made for it. What a later version wrote is
                // left to the DEL of its container.
                None if matches!(locked.record, Err(registry::Error::Torn { .. })) => {
                    errors.extend(removal.run(&attachment, locked).err());
                }
                None => errors.extend(locked.record.err().map(Error::from)),
            },
            Ok(None) => {}
            Err(e) => errors.push(e.into()),
        }
    }
    errors.extend(sweep::everything(&net, &registry, &config.bpf_dir).err().map(Error::from));
    Error::several(errors)
}

/// The network an attachment was made by: its record says it; failing that, an endpoint of it.
fn network(registry: &Registry, attachment: &Attachment, locked: &LockedAttachment) -> Option<String> {
    if let Ok(record) = &locked.record {
        return Some(record.network.clone());
    }
    let name = attachment_name(attachment);
    let vips = registry.vips().unwrap_or_default();
    vips.iter().find_map(|key| registry.endpoint(key, &name).ok().flatten()).map(|endpoint| endpoint.network)
}
