//! What the registry says of replicas that have a check.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::health::Check;
use crate::registry::{self, Endpoint, Netns, Port, Registry, State, VipKey, attachment_of, watch};

/// What is checked, and with whom. As long as it stays the same, earlier checks count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The VIP's address.
    pub address: Ipv4Addr,
    /// The check.
    pub check: Check,
    /// What it serves; empty: everything.
    pub ports: Vec<Port>,
    /// Where.
    pub netns: Netns,
    /// The host end of its pair.
    pub device: String,
    /// The pod, for messages.
    pub pod: String,
}

/// A replica that has a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// What is to be checked.
    pub subject: Subject,
    /// Its state.
    pub state: State,
    /// Somebody has taken it out by hand: no verdict changes anything.
    pub drained: bool,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Batch {
    /// What isn't in it is gone.
    pub all: bool,
    /// Replicas by attachment, VIP by VIP; none: the VIP has none that are checked.
    pub vips: BTreeMap<VipKey, BTreeMap<String, Sighting>>,
    /// VIPs that couldn't be read: what was known of them holds.
    pub unread: Vec<VipKey>,
}

/// Reads what has changed.
pub fn read(registry: &Registry, changes: watch::Changes) -> Batch {
    let mut batch = Batch { all: changes.all, ..Batch::default() };
    for vip in changes.vips {
        match replicas(registry, &vip) {
            Ok(replicas) => drop(batch.vips.insert(vip, replicas)),
            Err(error) => {
                tracing::warn!(%vip, error = &error as &dyn std::error::Error, "health checks: registry not read");
                batch.unread.push(vip);
            }
        }
    }
    batch
}

fn replicas(registry: &Registry, vip: &VipKey) -> registry::Result<BTreeMap<String, Sighting>> {
    let Some(record) = registry.vip_record(vip)? else { return Ok(BTreeMap::new()) };
    let mut replicas = BTreeMap::new();
    for (name, endpoint) in registry.endpoints(vip)? {
        // A damaged one is told of by whoever looks at the VIP; one without its pair is an ADD's that is under way.
        let Ok(endpoint) = endpoint else { continue };
        if endpoint.ifindex.is_some()
            && let Some(text) = &endpoint.health
            && let Some(subject) = subject(registry, (&name, &endpoint), text, record.address)
        {
            let Endpoint { state, drained, .. } = endpoint;
            replicas.insert(name, Sighting { subject, state, drained });
        }
    }
    Ok(replicas)
}

/// `None`: it can't be checked, which is said.
fn subject(
    registry: &Registry,
    (name, endpoint): (&str, &Endpoint),
    check: &str,
    address: Ipv4Addr,
) -> Option<Subject> {
    let pod = endpoint.pod_name(name);
    let Ok(check) = check.parse() else {
        tracing::warn!(replica = pod, check, "not checked: this version has no such check");
        return None;
    };
    let netns = match registry.attachment_record(&attachment_of(name)?) {
        Ok(Some(attachment)) => attachment.netns,
        Ok(None) => return None, // just removed
        Err(error) => {
            tracing::warn!(replica = pod, error = &error as &dyn std::error::Error, "not checked");
            return None;
        }
    };
    let ports = endpoint.ports.iter().filter_map(|text| text.parse().ok()).collect();
    Some(Subject { address, check, ports, netns, device: endpoint.device.clone(), pod })
}
