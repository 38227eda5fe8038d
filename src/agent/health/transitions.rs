//! How often replicas began or ceased to get connections, because a check said so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::registry::{State, VipKey};

/// Changes of a VIP's replicas since the agent's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// To ready.
    pub ready: u64,
    /// To draining.
    pub draining: u64,
}

/// The counts of all VIPs that have replicas with a check. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Transitions(Arc<Mutex<BTreeMap<VipKey, Count>>>);

impl Transitions {
    /// A replica's state has changed.
    pub fn record(&self, vip: &VipKey, state: State) {
        self.with(|counts| {
            let count = counts.entry(vip.clone()).or_default();
            match state {
                State::Ready => count.ready += 1,
                State::Draining => count.draining += 1,
                State::Pending => {}
            }
        });
    }

    /// Forgets the VIPs that aren't among these.
    pub fn keep(&self, is_there: impl Fn(&VipKey) -> bool) {
        self.with(|counts| counts.retain(|vip, _| is_there(vip)));
    }

    /// All counts.
    pub fn counts(&self) -> BTreeMap<VipKey, Count> {
        self.with(|counts| counts.clone())
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<VipKey, Count>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vip_and_direction_is_counted() {
        let (web, api) = (VipKey::new("a", "web").unwrap(), VipKey::new("a", "api").unwrap());
        let transitions = Transitions::default();
        for state in [State::Ready, State::Draining, State::Ready] {
            transitions.clone().record(&web, state);
        }
        transitions.record(&api, State::Draining);
        assert_eq!(transitions.counts()[&web], Count { ready: 2, draining: 1 });
        assert_eq!(transitions.counts()[&api], Count { ready: 0, draining: 1 });
        transitions.keep(|vip| *vip == api);
        assert_eq!(transitions.counts().len(), 1);
    }
}
