//! The latest events of this node, for operators (`viproutectl events`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::model::VipKey;

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

/// The kinds of events, by which operators filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A VIP's address: granted, lost, changed.
    Lease,
    /// A replica's state: ready, draining, gone.
    Replica,
    /// Something that was missing or wrong was repaired.
    Repair,
    /// The runtime called the plugin.
    Call,
    /// Another node: joined, suspect, forgotten.
    Node,
    /// Something couldn't be done.
    Trouble,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Lease, Self::Replica, Self::Repair, Self::Call, Self::Node, Self::Trouble];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Replica => "replica",
            Self::Repair => "repair",
            Self::Call => "call",
            Self::Node => "node",
            Self::Trouble => "trouble",
        }
    }
}

/// The last thousand events, shared fairly: while there are more, the oldest one goes of the VIP that has most of them, in
/// the namespace that has most. So no tenant's flapping pod pushes out what others want to read. Clones are the same
/// journal.
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
            pages.drop_one();
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

impl Pages {
    fn drop_one(&mut self) {
        let mut namespaces: BTreeMap<Option<&str>, BTreeMap<Option<&VipKey>, usize>> = BTreeMap::new();
        for event in &self.events {
            let namespace = event.vip.as_ref().map(VipKey::namespace);
            *namespaces.entry(namespace).or_default().entry(event.vip.as_ref()).or_default() += 1;
        }
        let largest = namespaces.into_values().max_by_key(|vips| vips.values().sum::<usize>()).unwrap_or_default();
        let vip = largest.into_iter().max_by_key(|(_, count)| *count).and_then(|(vip, _)| vip.cloned());
        if let Some(at) = self.events.iter().position(|event| event.vip == vip) {
            self.events.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vip_with_many_events_pushes_out_its_own() {
        let journal = Journal::default();
        let [quiet, loud, also_loud] = ["shop/web", "evil/a", "evil/b"].map(|key| key.parse::<VipKey>().unwrap());
        journal.record(Kind::Lease, Some(&quiet), "granted");
        for number in 0..3 * KEPT {
            let vip = if number % 3 == 0 { &also_loud } else { &loud };
            journal.record(Kind::Replica, Some(vip), number.to_string());
        }
        let events = journal.events_after(0);
        assert_eq!(events.len(), KEPT);
        assert_eq!(events[0].text, "granted");
        assert_eq!(events[KEPT - 1].text, (3 * KEPT - 1).to_string());
        assert!(events.windows(2).all(|pair| pair[0].number < pair[1].number));
        let of = |vip: &VipKey| events.iter().filter(|event| event.vip.as_ref() == Some(vip)).count();
        assert!(of(&loud).abs_diff(of(&also_loud)) <= 1, "{} and {}", of(&loud), of(&also_loud));
    }

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
