//! What the watches have brought together, and whether it may be acted upon.
//!
//! Nothing follows from a list that isn't whole. Until each kind's list has come, what was known last stays in force; likewise where the
//! API is another cluster's, or has suddenly nothing of what every cluster has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::API_SERVICE;
use super::objects::{Key, Node, Objects, Pod, Service, Slice};
use super::policies::Policy;
use super::register::Entry;

/// More Services than that are left out, and named.
const MAX_SERVICES: usize = 5_000;
const MAX_SLICES: usize = 50_000;
const MAX_PODS: usize = 2_000;
const MAX_NODES: usize = 1_000;
const MAX_RANGES: usize = 100;
const MAX_POLICIES: usize = 50_000;
/// A watch that fails fails again within this time; one that works may have nothing to say.
const FAILS_FOR: Duration = Duration::from_secs(20);

/// A kind of object that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `services`
    Services,
    /// `endpointslices`
    Slices,
    /// `pods`
    Pods,
    /// `nodes`
    Nodes,
    /// `networkpolicies`
    Policies,
    /// `ipaddresses`, where the pool's register is there
    Addresses,
    /// `servicecidrs`, where the API has them (Kubernetes 1.33)
    Ranges,
}

impl Kind {
    /// Those that the store waits for: every API has them.
    pub const ALL: [Self; 5] = [Self::Services, Self::Slices, Self::Pods, Self::Nodes, Self::Policies];

    /// As rights name them.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Slices => "endpointslices.discovery.k8s.io",
            Self::Pods => "pods",
            Self::Nodes => "nodes",
            Self::Policies => "networkpolicies.networking.k8s.io",
            Self::Addresses => "ipaddresses.networking.k8s.io",
            Self::Ranges => "servicecidrs.networking.k8s.io",
        }
    }
}

/// What a watch brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// All objects there are.
    All(BTreeMap<Key, T>),
    /// One of them; `None`: it is gone, or is of no interest any more.
    One(Key, Option<T>),
}

/// What one of the watches has heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Services.
    Services(Box<Change<Service>>),
    /// Which cluster it is, and whether it has the API's own Service. Comes before each whole list.
    Cluster {
        /// The identity of the namespace kube-system.
        uid: String,
        /// Whether the Service of the API itself is listed.
        has_api: bool,
    },
    /// Slices.
    Slices(Change<Slice>),
    /// Pods of this node.
    Pods(Change<Pod>),
    /// Nodes.
    Nodes(Change<Node>),
    /// Policies that say who may reach pods.
    Policies(Change<Policy>),
    /// Services that nobody serves, for want of a class. They aren't the store's.
    Unclaimed(Change<()>),
    /// Addresses that Services of any type say are their own (`externalIPs`). They aren't the store's.
    External(Change<Vec<IpAddr>>),
    /// Addresses of the pool that are given out. They aren't the store's.
    Addresses(Change<Entry>),
    /// The ranges of Services' own addresses.
    Ranges(Change<Vec<String>>),
    /// A watch has failed, and is tried again.
    Failed(Kind, String),
}

/// All of it.
#[derive(Debug, Default)]
pub struct Store {
    /// What is in force.
    objects: Objects,
    /// The cluster that is of; `None`: none was known.
    cluster: Option<String>,
    /// What is heard meanwhile; `None`: it is in force.
    waiting: Option<Objects>,
    complete: BTreeSet<Kind>,
    /// Why what is heard isn't taken up.
    held: Option<String>,
    /// What was heard since then has to be heard anew.
    is_stale: bool,
    failing: BTreeMap<Kind, (String, Instant)>,
    /// Of these there are more than are kept.
    full: BTreeSet<Kind>,
}

impl Store {
    /// What was known of a cluster.
    pub fn new(cluster: Option<String>, objects: Objects) -> Self {
        Self { objects, cluster, waiting: Some(Objects::default()), ..Self::default() }
    }

    /// What is in force.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The cluster that is of.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// What is in force is what the API says, as far as the watches work.
    pub fn is_live(&self) -> bool {
        self.waiting.is_none()
    }

    /// What is heard isn't taken up, and has to be heard anew.
    pub fn is_held(&self) -> bool {
        self.held.is_some() || self.is_stale
    }

    /// All watches fail.
    pub fn is_silent(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.failing.contains_key(kind))
    }

    /// The watches begin anew.
    pub fn restart(&mut self) {
        if self.is_live() {
            self.waiting = Some(self.objects.clone());
        }
        self.complete.clear();
        self.is_stale = false;
    }

    /// A watch that has not failed for a while works.
    pub fn forget_failures(&mut self, now: Instant) {
        self.failing.retain(|_, (_, at)| now.saturating_duration_since(*at) < FAILS_FOR);
    }

    /// Takes up what was heard. True: what is in force has changed.
    pub fn hear(&mut self, heard: Heard) -> bool {
        let into = self.waiting.as_mut().unwrap_or(&mut self.objects);
        let (kind, changed) = match heard {
            Heard::Failed(kind, why) => {
                self.failing.insert(kind, (why, Instant::now()));
                return false;
            }
            Heard::Cluster { uid, has_api } => {
                self.identify(&uid, has_api);
                return false;
            }
            Heard::Addresses(_) => {
                self.failing.remove(&Kind::Addresses);
                return false;
            }
            Heard::Unclaimed(_) | Heard::External(_) => return false,
            Heard::Services(change) => (Kind::Services, Taken::of(&mut into.services, *change, MAX_SERVICES)),
            Heard::Slices(change) => (Kind::Slices, Taken::of(&mut into.slices, change, MAX_SLICES)),
            Heard::Pods(change) => (Kind::Pods, Taken::of(&mut into.pods, change, MAX_PODS)),
            Heard::Nodes(change) => (Kind::Nodes, Taken::of(&mut into.nodes, change, MAX_NODES)),
            Heard::Ranges(change) => (Kind::Ranges, Taken::of(&mut into.ranges, change, MAX_RANGES)),
            Heard::Policies(change) => (Kind::Policies, Taken::of(&mut into.policies, change, MAX_POLICIES)),
        };
        self.failing.remove(&kind);
        if changed.is_full {
            self.full.insert(kind);
        } else if changed.is_all {
            self.full.remove(&kind);
        }
        if changed.is_all {
            self.complete.insert(kind);
        }
        let was_live = self.is_live();
        self.take_up();
        if was_live { changed.is_other } else { self.is_live() }
    }

    /// Puts what was heard in force, once it is whole.
    fn take_up(&mut self) {
        let is_whole = Kind::ALL.iter().all(|kind| self.complete.contains(kind)) && !self.is_held();
        if is_whole && let Some(objects) = self.waiting.take() {
            self.objects = objects;
        }
    }

    /// A whole list comes next.
    fn identify(&mut self, uid: &str, has_api: bool) {
        self.held = match &self.cluster {
            Some(known) if known != uid => Some(format!(
                "the Kubernetes API is another cluster's (kube-system is {uid}, was {known}): what was known of the cluster before stays in \
                 force; where this is meant, stop viprouted, remove {} from its state_dir and start it",
                super::remembered::FILE
            )),
            _ if !has_api => Some(format!(
                "the Kubernetes API has not even the Service {API_SERVICE}: it is empty, or shows not everything; what was known before stays \
                 in force"
            )),
            _ => None,
        };
        if self.held.is_none() {
            self.cluster = Some(uid.to_owned());
            return;
        }
        self.is_stale = true;
        if self.is_live() {
            self.waiting = Some(self.objects.clone());
        }
    }

    /// What is wrong, in one sentence.
    pub fn problem(&self) -> Option<String> {
        if let Some(held) = &self.held {
            return Some(held.clone());
        }
        if let Some((kind, (why, _))) = self.failing.iter().next() {
            let others = self.failing.len() - 1;
            let others = if others == 0 { String::new() } else { format!(", nor {others} other kinds") };
            return Some(format!(
                "Kubernetes' {} can't be watched{others}: {why}; what was known stays in force",
                kind.resource()
            ));
        }
        let full = self.full.iter().next()?;
        Some(format!("Kubernetes has more {} than viprouted keeps: some are left out", full.resource()))
    }
}

/// What has become of a change.
struct Taken {
    is_all: bool,
    is_other: bool,
    is_full: bool,
}

impl Taken {
    fn of<T: PartialEq>(known: &mut BTreeMap<Key, T>, change: Change<T>, most: usize) -> Self {
        match change {
            Change::All(mut all) => {
                let is_full = all.len() > most;
                while all.len() > most {
                    all.pop_last();
                }
                let is_other = *known != all;
                *known = all;
                Self { is_all: true, is_other, is_full }
            }
            Change::One(key, None) => Self { is_all: false, is_other: known.remove(&key).is_some(), is_full: false },
            Change::One(key, Some(object)) => {
                if known.len() >= most && !known.contains_key(&key) {
                    return Self { is_all: false, is_other: false, is_full: true };
                }
                let is_other = known.get(&key) != Some(&object);
                if is_other {
                    known.insert(key, object);
                }
                Self { is_all: false, is_other, is_full: false }
            }
        }
    }
}

#[cfg(test)]
mod tests;
