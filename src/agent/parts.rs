//! Which of the agent's parts are at work. One that ends, for whatever reason, leaves the node without it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The parts of one process. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Parts(Arc<Mutex<BTreeSet<&'static str>>>);

impl Parts {
    /// A part begins: it holds what is returned for as long as it is at work.
    pub fn begin(&self, name: &'static str) -> AtWork {
        AtWork { name, parts: self.clone() }
    }

    /// The names of those that have ended.
    pub fn ended(&self) -> Vec<&'static str> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// A part at work; dropped, it has ended.
#[derive(Debug)]
pub struct AtWork {
    name: &'static str,
    parts: Parts,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        tracing::error!(part = self.name, "a part of the agent has ended");
        self.parts.0.lock().unwrap_or_else(PoisonError::into_inner).insert(self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_ends_is_told_also_by_a_panic() {
        let parts = Parts::default();
        let _lasting = parts.begin("lasting");
        let ending = parts.begin("ending");
        let thread = std::thread::spawn(move || {
            let _at_work = ending;
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert_eq!(parts.ended(), ["ending"]);
    }
}
