//! What has happened on this node lately, for people to look at (`viproutectl events`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::registry::VipKey;

/// So many events are kept.
const KEPT: usize = 1000;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Higher than that of any event before. They begin at the time of the journal's start in microseconds, so that this
    /// holds over restarts too.
    pub number: u64,
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

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Lease, Self::Replica, Self::Repair, Self::Call, Self::Trouble];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Replica => "replica",
            Self::Repair => "repair",
            Self::Call => "call",
            Self::Trouble => "trouble",
        }
    }
}

/// The last thousand events. Clones are the same journal.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Mutex<Pages>>);

#[derive(Debug)]
struct Pages {
    events: VecDeque<Event>,
    /// Of the last event.
    number: u64,
    /// How many there were, by [`Kind`].
    counts: [u64; Kind::ALL.len()],
}

impl Default for Journal {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let number = u64::try_from(since.as_micros()).unwrap_or_default();
        Self(Arc::new(Mutex::new(Pages { events: VecDeque::new(), number, counts: Default::default() })))
    }
}

impl Journal {
    /// Something happened just now.
    pub fn record(&self, kind: Kind, vip: Option<&VipKey>, text: impl Into<String>) {
        let (vip, text) = (vip.cloned(), text.into());
        let mut pages = self.pages();
        pages.number += 1;
        pages.counts[kind as usize] += 1;
        if pages.events.len() == KEPT {
            pages.events.pop_front();
        }
        let number = pages.number;
        pages.events.push_back(Event { number, at: SystemTime::now(), kind, vip, text });
    }

    /// What is kept of those with a higher number, the oldest first.
    pub fn events_after(&self, number: u64) -> Vec<Event> {
        self.pages().events.iter().filter(|event| event.number > number).cloned().collect()
    }

    /// How many events of each kind there were since the start.
    pub fn counts(&self) -> [(Kind, u64); Kind::ALL.len()] {
        let counts = self.pages().counts;
        Kind::ALL.map(|kind| (kind, counts[kind as usize]))
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let events = journal.events_after(0);
        assert_eq!(events.len(), KEPT);
        assert_eq!((&*events[0].text, &*events[KEPT - 1].text), ("1", "1000"));
        assert_eq!(journal.counts()[2], (Kind::Repair, 1001));
    }

    #[test]
    fn who_follows_is_told_of_each_once_also_over_a_restart() {
        let journal = Journal::default();
        journal.record(Kind::Lease, None, "first");
        let last = journal.events_after(0)[0].number;
        assert_eq!(journal.events_after(last), []);
        journal.record(Kind::Lease, None, "second");
        assert_eq!(journal.events_after(last)[0].text, "second");
        std::thread::sleep(std::time::Duration::from_millis(1));
        let restarted = Journal::default();
        restarted.record(Kind::Call, None, "third");
        assert_eq!(restarted.events_after(last + 1).len(), 1);
    }
}
