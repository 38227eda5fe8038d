//! What is published: the VIPs as they are recorded, and which of them are other than before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::VipKey;
use crate::registry::{Error, Registry, Replica, Result, VipRecord};

/// What was read, or why it could not be.
pub type Read<T> = std::result::Result<T, Arc<Error>>;

/// A VIP as it is recorded.
#[derive(Clone, Debug)]
pub struct View {
    /// Its record; none: its first ADD is under way.
    pub record: Read<Option<VipRecord>>,
    /// Its replicas that have their veth pair, by attachment name.
    pub replicas: Read<BTreeMap<String, Replica>>,
    /// How many endpoints it has, those that are damaged or without a pair included.
    pub endpoints: Read<usize>,
}

impl View {
    /// As the files are now; none: there is no such VIP.
    pub fn read(registry: &Registry, key: &VipKey) -> Option<Self> {
        if !registry.vip_dir(key).is_dir() {
            return None;
        }
        Some(Self {
            record: shared(registry.vip_record(key)),
            replicas: shared(registry.replicas(key)),
            endpoints: shared(registry.endpoint_names(key).map(|names| names.len())),
        })
    }

    /// What could not be read always differs.
    fn is_same(&self, other: &Self) -> bool {
        fn same<T: PartialEq>(one: &Read<T>, other: &Read<T>) -> bool {
            matches!((one, other), (Ok(one), Ok(other)) if one == other)
        }
        same(&self.record, &other.record)
            && same(&self.replicas, &other.replicas)
            && same(&self.endpoints, &other.endpoints)
    }
}

fn shared<T>(read: Result<T>) -> Read<T> {
    read.map_err(Arc::new)
}

/// All VIPs of the node at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By key.
    pub vips: BTreeMap<VipKey, Arc<View>>,
}

impl Snapshot {
    /// A VIP is like this now; none: it is gone. True: that differs from before.
    pub(super) fn set(&mut self, key: &VipKey, view: Option<Arc<View>>) -> bool {
        let Some(view) = view else { return self.vips.remove(key).is_some() };
        if self.vips.get(key).is_some_and(|before| before.is_same(&view)) {
            return false;
        }
        self.vips.insert(key.clone(), view);
        true
    }
}

/// What a subscriber gets.
#[derive(Clone, Debug)]
pub struct Update {
    /// Everything. Let go of soon: the next change copies one that is still held.
    pub snapshot: Arc<Snapshot>,
    /// The VIPs that are other than in the update before; those that aren't in the snapshot are gone.
    pub changed: BTreeSet<VipKey>,
    /// Everything was read for it: a subscriber that keeps something which an update can't show must check all VIPs.
    pub full: bool,
}

impl Update {
    /// The VIPs to check: all of them where everything was read.
    pub fn keys(&self) -> BTreeSet<&VipKey> {
        let all = self.snapshot.vips.keys().filter(|_| self.full);
        self.changed.iter().chain(all).collect()
    }

    /// Two updates as one; `later` came behind `self`.
    #[must_use]
    pub fn followed_by(mut self, later: Self) -> Self {
        self.changed.extend(later.changed);
        Self { snapshot: later.snapshot, changed: self.changed, full: self.full || later.full }
    }
}
