//! GC removes what no valid attachment of this network needs, and the orphans of all networks.

use crate::cni::protocol::Config;
use crate::cni::protocol::config::ConfigError;
use crate::membership::Detach;
use crate::membership::gc::{self, Collection};
use crate::net::NodeNet;
use crate::registry::Registry;

use super::error::Error;
use super::report::Report;

/// Removes garbage. Continues after a failure and reports all of them.
pub fn run(config: &Config, report: &mut Report) -> Result<(), Error> {
    // Without the list everything would be garbage.
    let valid = config.valid_attachments.as_ref().ok_or(ConfigError::Missing("cni.dev/valid-attachments"))?;
    if config.name.is_empty() {
        return Err(ConfigError::Missing("name").into());
    }
    let registry = Registry::new(&config.data_dir);
    if !registry.exists() {
        return Ok(());
    }
    report.is_ours(config, []);
    registry.begin()?;
    let net = NodeNet::open()?;
    let with = Detach { net: &net, registry: &registry, allocator: Some(&config.allocator), netns: None };
    Ok(gc::collect(&with, &Collection { network: &config.name, valid, bpf_dir: &config.bpf_dir })?)
}
