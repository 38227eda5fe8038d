//! What the registry says of replicas that have a check.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
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

/// Reads the registry; a pod's namespace stands in another file, which is read once.
#[derive(Debug)]
pub struct Reader {
    registry: Registry,
    /// By attachment and host end: a name may come again, with another pair.
    namespaces: HashMap<(String, u32), Netns>,
}

impl Reader {
    /// Nothing is known so far.
    pub fn new(registry: Registry) -> Self {
        Self { registry, namespaces: HashMap::new() }
    }

    /// Reads what has changed.
    pub fn read(&mut self, changes: watch::Changes) -> Batch {
        let mut batch = Batch { all: changes.all, ..Batch::default() };
        for vip in changes.vips {
            match self.replicas(&vip) {
                Ok(replicas) => drop(batch.vips.insert(vip, replicas)),
                Err(error) => {
                    tracing::warn!(%vip, error = &error as &dyn std::error::Error, "health checks: registry not read");
                    batch.unread.push(vip);
                }
            }
        }
        if batch.all && batch.unread.is_empty() {
            let known: HashSet<&String> = batch.vips.values().flat_map(BTreeMap::keys).collect();
            self.namespaces.retain(|(name, _), _| known.contains(name));
        }
        batch
    }

    fn replicas(&mut self, vip: &VipKey) -> registry::Result<BTreeMap<String, Sighting>> {
        let Some(record) = self.registry.vip_record(vip)? else { return Ok(BTreeMap::new()) };
        let mut replicas = BTreeMap::new();
        for (name, endpoint) in self.registry.endpoints(vip)? {
            // A damaged one is told of by whoever looks at the VIP; one without its pair is an ADD's that is under way.
            let Ok(endpoint) = endpoint else { continue };
            if let (Some(text), Some(ifindex)) = (&endpoint.health, endpoint.ifindex)
                && let Some(check) = check(&endpoint.pod_name(&name), text)
                && let Some(netns) = self.netns((&name, ifindex))
            {
                let ports = endpoint.ports.iter().filter_map(|text| text.parse().ok()).collect();
                let pod = endpoint.pod_name(&name);
                let Endpoint { state, drained, device, .. } = endpoint;
                let subject = Subject { address: record.address, check, ports, netns, device, pod };
                replicas.insert(name, Sighting { subject, state, drained });
            }
        }
        Ok(replicas)
    }

    /// `None`: it has just been removed, or its record is damaged.
    fn netns(&mut self, (name, ifindex): (&str, u32)) -> Option<Netns> {
        match self.namespaces.entry((name.to_owned(), ifindex)) {
            Entry::Occupied(netns) => Some(netns.get().clone()),
            Entry::Vacant(place) => match self.registry.attachment_record(&attachment_of(name)?) {
                Ok(attachment) => attachment.map(|attachment| place.insert(attachment.netns).clone()),
                Err(error) => {
                    tracing::warn!(replica = name, error = &error as &dyn std::error::Error, "not checked");
                    None
                }
            },
        }
    }
}

/// `None`: a later version's.
fn check(pod: &str, text: &str) -> Option<Check> {
    let check = text.parse().ok();
    if check.is_none() {
        tracing::warn!(replica = pod, check = text, "not checked: this version has no such check");
    }
    check
}
