//! What has happened on this node lately, for people to look at (`viproutectl events`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::registry::VipKey;

/// So many events are kept.
const KEPT: usize = 1000;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// What kind of thing it is.
    pub kind: Kind,
    /// The VIP it is about, if it is about one.
    pub vip: Option<VipKey>,
    /// One sentence.
    pub text: String,
}

/// The kinds of events, as people filter by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A VIP's address: granted, lost, changed.
    Lease,
    /// A replica's state: ready, draining, gone.
    Replica,
    /// Something that was missing or wrong was put right.
    Repair,
    /// The runtime called the plugin.
    Call,
    /// Something couldn't be done.
    Trouble,
}

/// The last thousand events. Clones are the same journal.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<VecDeque<Event>>>);

impl Journal {
    /// Something happened just now.
    pub fn record(&self, kind: Kind, vip: Option<&VipKey>, text: impl Into<String>) {
        let event = Event { at: SystemTime::now(), kind, vip: vip.cloned(), text: text.into() };
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// All that is kept, the oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let journal = Journal::default();
        for number in 0..=KEPT {
            journal.clone().record(Kind::Repair, None, number.to_string());
        }
        let texts: Vec<String> = journal.events().into_iter().map(|event| event.text).collect();
        assert_eq!(texts.len(), KEPT);
        assert_eq!((&*texts[0], &*texts[KEPT - 1]), ("1", "1000"));
    }
}
