//! Which VIPs have replicas on this node, as the registry says it whenever that changes.

use std::io;

use tokio::sync::mpsc;

use super::state::Presence;
use crate::registry::{self, Registry, State, VipKey, VipRecord, watch};

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Everything: a VIP that isn't in it has no replicas here.
    pub full: bool,
    /// What the registry says, VIP by VIP.
    pub vips: Vec<(VipKey, Presence)>,
}

/// Starts reading; it ends when nobody listens any more.
pub fn start(registry: Registry) -> io::Result<mpsc::UnboundedReceiver<Batch>> {
    let (batches, receiver) = mpsc::unbounded_channel();
    let source = registry.clone();
    watch::start(source, move |changes| batches.send(read(&registry, changes)).is_ok())?;
    Ok(receiver)
}

fn read(registry: &Registry, changes: watch::Changes) -> Batch {
    let told = changes.vips.len();
    let vips: Vec<_> = changes.vips.into_iter().filter_map(|vip| read_vip(registry, vip)).collect();
    // Nothing may be concluded about what could not be read.
    Batch { full: changes.all && vips.len() == told, vips }
}

fn read_vip(registry: &Registry, vip: VipKey) -> Option<(VipKey, Presence)> {
    match presence(registry, &vip) {
        Ok(presence) => Some((vip, presence)),
        Err(error) => {
            tracing::warn!(%vip, error = &error as &dyn std::error::Error, "registry not read");
            None
        }
    }
}

/// What the registry has of one VIP. A damaged endpoint is a replica all the same, just not a ready one.
pub fn presence(registry: &Registry, vip: &VipKey) -> registry::Result<Presence> {
    let record = match registry.vip_record(vip) {
        Err(error) if error.is_damage() => {
            tracing::warn!(%vip, error = &error as &dyn std::error::Error, "record passed over");
            None
        }
        other => other?,
    };
    let former = record.iter().flat_map(VipRecord::former_addresses).collect();
    let ready = registry.replicas(vip)?.values().filter(|replica| replica.state == State::Ready).count();
    Ok(Presence {
        address: record.filter(|record| !record.withdrawn).map(|record| record.address),
        endpoints: registry.endpoint_names(vip)?.len(),
        ready,
        former,
    })
}

#[cfg(test)]
mod tests;
