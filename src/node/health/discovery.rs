//! Reads from the registry which replicas have a check.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{CheckSpec, PortMap, Probe, Recorded, Transport, VipKey};
use crate::registry::watch::{Update, View};
use crate::registry::{self, Netns, Registry, State, attachment_of};

/// A check and its target. While neither changes, earlier checks count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeTarget {
    /// The VIP's address.
    pub address: IpAddr,
    /// The check.
    pub check: CheckSpec,
    /// What it serves; empty: everything.
    pub ports: Vec<PortMap>,
    /// The pod's network namespace.
    pub netns: Netns,
    /// The host veth of its pair.
    pub device: String,
    /// The pod, for messages.
    pub pod: String,
}

impl ProbeTarget {
    /// How many connections its check asks for. `listen` makes none.
    pub fn connects_per_second(&self) -> f64 {
        let each = match self.check.probe {
            Probe::Listen => 0,
            Probe::Http { .. } => 1,
            Probe::Tcp => self.ports.iter().filter(|listed| listed.port.transport == Transport::Tcp).count(),
        };
        u32::try_from(each).map_or(f64::MAX, f64::from) / self.check.interval.as_secs_f64()
    }
}

/// A replica that has a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// What is to be checked.
    pub target: ProbeTarget,
    /// Its state.
    pub state: State,
    /// An operator has drained it: no status changes anything.
    pub drained: bool,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Batch {
    /// Replicas by attachment, VIP by VIP; none: the VIP has none that are checked. A VIP that isn't here is as it was.
    pub vips: BTreeMap<VipKey, BTreeMap<String, Discovery>>,
}

/// Reads the registry: a VIP's index each time, of each replica's own files each once.
#[derive(Debug)]
pub struct Reader {
    registry: Registry,
    /// By attachment and host veth: a name may come again, with another pair.
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

    /// The replicas of the VIPs that an update names.
    pub fn read(&mut self, update: &Update) -> Batch {
        let mut batch = Batch::default();
        let mut is_complete = update.full;
        for vip in update.keys() {
            match update.snapshot.vips.get(vip).map(|view| self.replicas(vip, view)) {
                None => drop(batch.vips.insert(vip.clone(), BTreeMap::new())),
                Some(Ok(replicas)) => drop(batch.vips.insert(vip.clone(), replicas)),
                Some(Err(error)) => {
                    tracing::warn!(%vip, error = &*error as &dyn std::error::Error, "health checks: registry not read");
                    is_complete = false;
                }
            }
        }
        if is_complete {
            let known: HashSet<&String> = batch.vips.values().flat_map(BTreeMap::keys).collect();
            self.places.retain(|(name, _), _| known.contains(name));
        }
        batch
    }

    fn replicas(&mut self, vip: &VipKey, view: &View) -> Result<BTreeMap<String, Discovery>, Arc<registry::Error>> {
        let Some(record) = view.record.as_ref().map_err(Arc::clone)? else { return Ok(BTreeMap::new()) };
        let mut replicas = BTreeMap::new();
        for (name, replica) in view.replicas.as_ref().map_err(Arc::clone)? {
            // `reconcile` logs a check that this version doesn't know.
            let Some(check) = replica.health.as_ref().and_then(Recorded::known) else { continue };
            if let Some(Place { netns, device, pod }) = self.place(vip, (name, replica.ifindex)) {
                let ports = replica.ports.iter().filter_map(Recorded::known).copied().collect();
                let target =
                    ProbeTarget { address: record.served_address(), check: check.clone(), ports, netns, device, pod };
                let (state, drained) = (replica.state, replica.drained);
                replicas.insert(name.clone(), Discovery { target, state, drained });
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
