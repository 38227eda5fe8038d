//! Which VIPs have replicas on this node, by the registry's updates.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::lease::state::LocalUsage;
use crate::model::VipKey;
use crate::registry::watch::{Update, View};
use crate::registry::{self, Registry, State, VipRecord};

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Everything: a VIP that isn't in it has no replicas here.
    pub full: bool,
    /// The registry's replicas, VIP by VIP.
    pub vips: Vec<(VipKey, LocalUsage)>,
    /// The addresses of those that are served here beside the first.
    pub others: BTreeMap<VipKey, Vec<IpAddr>>,
}

impl Batch {
    /// From an update. Nothing may be concluded about what could not be read.
    pub fn of(update: &Update) -> Self {
        let keys = update.keys();
        let count = keys.len();
        let usage = |key: &VipKey| match update.snapshot.vips.get(key) {
            Some(view) => of_view(key, view),
            None => Ok(LocalUsage::default()),
        };
        let read = |key: &VipKey| match usage(key) {
            Ok(usage) => Some((key.clone(), usage)),
            Err(error) => {
                tracing::warn!(vip = %key, error = &*error as &dyn std::error::Error, "registry not read");
                None
            }
        };
        let vips: Vec<_> = keys.into_iter().filter_map(read).collect();
        let others = vips.iter().filter(|(_, usage)| usage.address.is_some()).filter_map(|(key, _)| {
            let record = update.snapshot.vips.get(key)?.record.as_ref().ok()?.as_ref()?;
            Some((key.clone(), record.addresses.iter().skip(1).collect()))
        });
        Self { full: update.full && vips.len() == count, others: others.collect(), vips }
    }
}

impl Batch {
    /// What there is of the VIP's IPv6 address.
    pub fn beside(&self, vip: &VipKey, usage: &LocalUsage) -> LocalUsage {
        let address = self.others.get(vip).into_iter().flatten().copied().find(IpAddr::is_ipv6);
        LocalUsage {
            address,
            previous: usage.previous.iter().copied().filter(IpAddr::is_ipv6).collect(),
            ..usage.clone()
        }
    }

    /// Whether what it doesn't have of the VIP isn't there.
    pub fn is_over(&self, vip: &VipKey) -> bool {
        self.full || self.vips.iter().any(|(known, _)| known == vip)
    }

    /// The VIPs that are served here, and have not beside the address that they lease what they are to have: the configuration was another one
    /// when they came.
    pub fn unlike(&self, beside: impl Fn(&VipKey, IpAddr) -> Option<IpAddr>) -> Vec<(VipKey, IpAddr)> {
        let served = self.vips.iter().filter(|(_, usage)| usage.endpoints > 0);
        let served = served.filter_map(|(vip, usage)| Some((vip, usage.address?, self.others.get(vip)?)));
        let unlike = served.filter(|(vip, address, others)| !beside(vip, *address).iter().eq(others.iter()));
        unlike.map(|(vip, address, _)| (vip.clone(), address)).collect()
    }
}

/// What the registry has of one VIP's IPv6 address, whose replicas are known.
pub fn read_beside(registry: &Registry, vip: &VipKey, usage: &LocalUsage) -> LocalUsage {
    let record = registry.vip_record(vip).ok().flatten();
    let others = record.filter(|record| !record.withdrawn).map(|record| record.addresses.iter().skip(1).collect());
    let others = others.into_iter().map(|others| (vip.clone(), others)).collect();
    Batch { full: false, vips: Vec::new(), others }.beside(vip, usage)
}

/// What the registry has of one VIP now.
pub fn read_usage(registry: &Registry, vip: &VipKey) -> Result<LocalUsage, Arc<registry::Error>> {
    View::read(registry, vip).map_or_else(|| Ok(LocalUsage::default()), |view| of_view(vip, &view))
}

/// A damaged endpoint is a replica all the same, just not a ready one.
fn of_view(vip: &VipKey, view: &View) -> Result<LocalUsage, Arc<registry::Error>> {
    let record = match &view.record {
        Ok(record) => record.as_ref(),
        Err(error) if error.is_damage() => {
            tracing::warn!(%vip, error = &**error as &dyn std::error::Error, "skipping unreadable record");
            None
        }
        Err(error) => return Err(Arc::clone(error)),
    };
    let replicas = view.replicas.as_ref().map_err(Arc::clone)?;
    let (local, remote): (Vec<_>, Vec<_>) = replicas.values().partition(|replica| replica.backend.is_local());
    let endpoints = *view.endpoints.as_ref().map_err(Arc::clone)?;
    Ok(LocalUsage {
        address: record.filter(|record| !record.withdrawn).map(VipRecord::address),
        endpoints: endpoints.saturating_sub(remote.len()),
        ready: local.iter().filter(|replica| replica.state == State::Ready).count(),
        previous: record.into_iter().flat_map(VipRecord::previous_addresses).collect(),
    })
}

#[cfg(test)]
mod tests;
