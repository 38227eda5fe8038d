//! What is wrong with the node for the time being, one sentence a part: logged when it comes and goes, shown by
//! `viproutectl status` and `doctor`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::journal::{Journal, Kind};

/// Under what name the problem of the link to the gateways is kept.
pub const UPLINK: &str = "uplink";
/// The same for another link by which IPv6 addresses are leased and answered for.
pub const UPLINK6: &str = "uplink of IPv6 addresses";
/// The same for leases that were granted on another link.
pub const OTHER_LINK: &str = "leases of another link";
/// The same for the gossip among nodes.
pub const MEMBERSHIP: &str = "membership";
/// The same for the Kubernetes API.
pub const KUBERNETES: &str = "kubernetes";
/// The same for the tunnel to other nodes: its device, and what is on it.
pub const TUNNEL: &str = "tunnel";
/// The same for the proxy neighbour entries on the link to the gateways.
pub const PROXIES: &str = "proxy neighbours";
/// The same for those on another link of IPv6 addresses.
pub const PROXIES6: &str = "proxy neighbours of IPv6 addresses";
/// The same for the prefix that is delegated.
pub const PREFIX: &str = "delegated prefix";
/// The same for the runtime's networks.
pub const CHAIN: &str = "networks";

/// The problems there are. Clones are the same.
#[derive(Clone, Debug)]
pub struct Problems {
    journal: Journal,
    known: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Problems {
    /// None so far.
    pub fn new(journal: Journal) -> Self {
        Self { journal, known: Arc::default() }
    }

    /// What is wrong with `part` now; none: nothing.
    pub fn set(&self, part: &'static str, problem: Option<String>) {
        let before = match &problem {
            Some(text) => self.known().insert(part, text.clone()),
            None => self.known().remove(part),
        };
        match (before, problem) {
            (before, Some(text)) if before.as_ref() != Some(&text) => {
                tracing::warn!(part, "{text}");
                self.journal.record(Kind::Trouble, None, text);
            }
            (Some(before), None) => tracing::info!(part, before, "that is over"),
            _ => {}
        }
    }

    /// What is wrong with `part`.
    pub fn of(&self, part: &str) -> Option<String> {
        self.known().get(part).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<String> {
        self.known().values().cloned().collect()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
