//! GC: what no valid attachment of this network needs goes, and what nobody needs at all.

use crate::cni::Config;
use crate::cni::config::ConfigError;
use crate::net::NodeNet;
use crate::registry::Registry;

use super::detach::{self, Detach};
use super::error::Error;

/// Collects. Goes on behind a failure and reports all of them.
pub fn run(config: &Config) -> Result<(), Error> {
    // Without the list everything would be garbage.
    let valid = config.valid_attachments.as_ref().ok_or(ConfigError::Missing("cni.dev/valid-attachments"))?;
    let registry = Registry::new(&config.data_dir);
    if !registry.exists() {
        return Ok(());
    }
    registry.begin()?;
    let net = NodeNet::open()?;
    let removal = Detach { net: &net, registry: &registry, allocator: Some(&config.allocator), netns: None };
    let mut errors = Vec::new();
    for attachment in registry.attachments()? {
        if valid.contains(&attachment) {
            continue;
        }
        match registry.attachment(&attachment) {
            Ok(Some(locked)) => {
                // A damaged record names no network: left to the DEL of its container, which needs none.
                if locked.record.as_ref().is_ok_and(|record| record.network == config.name) {
                    errors.extend(removal.run(&attachment, locked).err());
                } else {
                    errors.extend(locked.record.err().map(Error::from));
                }
            }
            Ok(None) => {}
            Err(e) => errors.push(e.into()),
        }
    }
    errors.extend(detach::sweep(&net, &registry).err());
    Error::several(errors)
}
