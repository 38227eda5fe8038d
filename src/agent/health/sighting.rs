//! What the registry says of replicas that have a check.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;

use crate::health::Check;
use crate::registry::{self, Netns, Port, Registry, State, VipKey, attachment_of, watch};

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

/// Reads the registry: a VIP's index each time, of each replica's own files each once.
#[derive(Debug)]
pub struct Reader {
    registry: Registry,
    /// By attachment and host end: a name may come again, with another pair.
    places: HashMap<(String, u32), Place>,
}

/// What never changes of a replica.
#[derive(Clone, Debug)]
struct Place {
    netns: Netns,
    device: String,
    pod: String,
}

impl Reader {
    /// Nothing is known so far.
    pub fn new(registry: Registry) -> Self {
        Self { registry, places: HashMap::new() }
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
            self.places.retain(|(name, _), _| known.contains(name));
        }
        batch
    }

    fn replicas(&mut self, vip: &VipKey) -> registry::Result<BTreeMap<String, Sighting>> {
        let Some(record) = self.registry.vip_record(vip)? else { return Ok(BTreeMap::new()) };
        let mut replicas = BTreeMap::new();
        for (name, replica) in self.registry.replicas(vip)? {
            let Some(text) = &replica.health else { continue };
            if let Some(Place { netns, device, pod }) = self.place(vip, (&name, replica.ifindex))
                && let Some(check) = check(&pod, text)
            {
                let ports = replica.ports.iter().filter_map(|text| text.parse().ok()).collect();
                let subject = Subject { address: record.address, check, ports, netns, device, pod };
                replicas.insert(name, Sighting { subject, state: replica.state, drained: replica.drained });
            }
        }
        Ok(replicas)
    }

    /// `None`: it has just been removed, or a record of it is damaged.
    fn place(&mut self, vip: &VipKey, (name, ifindex): (&str, u32)) -> Option<Place> {
        match self.places.entry((name.to_owned(), ifindex)) {
            Entry::Occupied(place) => Some(place.get().clone()),
            Entry::Vacant(free) => match read_place(&self.registry, vip, name) {
                Ok(place) => place.map(|place| free.insert(place).clone()),
                Err(error) => {
                    tracing::warn!(replica = name, error = &error as &dyn std::error::Error, "not checked");
                    None
                }
            },
        }
    }
}

fn read_place(registry: &Registry, vip: &VipKey, name: &str) -> registry::Result<Option<Place>> {
    let Some(attachment) = attachment_of(name) else { return Ok(None) };
    let Some(endpoint) = registry.endpoint(vip, name)? else { return Ok(None) };
    let pod = endpoint.pod_name(name);
    let attachment = registry.attachment_record(&attachment)?;
    Ok(attachment.map(|attachment| Place { netns: attachment.netns, device: endpoint.device, pod }))
}

/// `None`: a later version's.
fn check(pod: &str, text: &str) -> Option<Check> {
    let check = text.parse().ok();
    if check.is_none() {
        tracing::warn!(replica = pod, check = text, "not checked: this version has no such check");
    }
    check
}
