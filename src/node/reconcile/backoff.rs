//! When an object may be reconciled again: at once, unless the same repair was needed a moment ago, or has failed. A
//! program that undoes or blocks each repair must not keep the node busy. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::VipKey;

/// The first wait after a repair that was needed again.
const FIRST: Duration = Duration::from_millis(250);
/// The longest.
const LONGEST: Duration = Duration::from_secs(5);
/// After so long without it a repair counts as a new one.
const FORGET: Duration = Duration::from_secs(30);
/// The wait while a call of the plugin holds the object's lock.
const BUSY: Duration = Duration::from_secs(1);
/// After so many repeats of a repair the log says so, once.
const OFTEN: u32 = 4;

/// What is reconciled, each with a back-off of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectId {
    /// An attachment, by name.
    Attachment(String),
    /// A VIP.
    Vip(VipKey),
    /// All orphans.
    Orphans,
    /// One of the node's settings, or all programs of one directory, by name.
    Other(String),
}

/// What to log of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogDecision {
    /// That it was done.
    Done,
    /// That it is needed again and again, and is left for a while each time.
    Often,
    /// Nothing: the log has it.
    Nothing,
}

#[derive(Debug)]
struct Memory {
    /// The latest repairs: how often each was needed, and when it was last.
    repairs: BTreeMap<String, (u32, Instant)>,
    /// Why it couldn't be repaired, and how many times in a row.
    failure: Option<(String, u32)>,
    until: Instant,
    /// It is to be reconciled when the wait is over.
    asked: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Backoff(BTreeMap<ObjectId, Memory>);

impl Backoff {
    /// Whether it may be reconciled now; if not, it is due later.
    pub fn allows(&mut self, thing: &ObjectId, now: Instant) -> bool {
        match self.0.get_mut(thing) {
            Some(memory) if now < memory.until => {
                memory.asked = true;
                false
            }
            Some(memory) => {
                memory.asked = false;
                true
            }
            None => true,
        }
    }

    /// No difference was found.
    pub fn reset(&mut self, thing: &ObjectId, now: Instant) {
        let Some(memory) = self.0.get_mut(thing) else { return };
        memory.failure = None;
        memory.forget(now);
        if memory.repairs.is_empty() {
            self.0.remove(thing);
        }
    }

    /// It was repaired.
    pub fn repaired(&mut self, thing: ObjectId, what: &str, now: Instant) -> LogDecision {
        let memory = self.0.entry(thing).or_insert_with(|| Memory::new(now));
        memory.failure = None;
        memory.forget(now);
        let times = memory.repairs.get(what).map_or(0, |(times, _)| times + 1);
        memory.repairs.insert(what.to_owned(), (times, now));
        memory.until = if times == 0 { now } else { now + wait(times - 1) };
        match times {
            _ if times < OFTEN => LogDecision::Done,
            OFTEN => LogDecision::Often,
            _ => LogDecision::Nothing,
        }
    }

    /// The repair has failed and is tried again later. True: the cause is a new one.
    pub fn failed(&mut self, thing: ObjectId, why: &str, now: Instant) -> bool {
        let memory = self.0.entry(thing).or_insert_with(|| Memory::new(now));
        let same = memory.failure.take().filter(|(last, _)| last == why);
        let times = same.as_ref().map_or(0, |(_, times)| times + 1);
        memory.failure = Some((why.to_owned(), times));
        // Two steps on: a second for the first time.
        memory.put_off(now + wait(times.saturating_add(2)));
        same.is_none()
    }

    /// A call of the plugin holds its lock.
    pub fn busy(&mut self, thing: ObjectId, now: Instant) {
        self.0.entry(thing).or_insert_with(|| Memory::new(now)).put_off(now + BUSY);
    }

    /// Those whose wait is over, each returned once.
    pub fn due(&mut self, now: Instant) -> Vec<ObjectId> {
        let due = self.0.iter_mut().filter(|(_, memory)| memory.asked && memory.until <= now);
        due.map(|(thing, memory)| {
            memory.asked = false;
            thing.clone()
        })
        .collect()
    }

    /// When the next wait is over.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().filter(|memory| memory.asked).map(|memory| memory.until).min()
    }

    /// Keeps those for which `is_there` holds.
    pub fn retain(&mut self, is_there: impl Fn(&ObjectId) -> bool) {
        self.0.retain(|thing, _| is_there(thing));
    }
}

impl Memory {
    fn new(now: Instant) -> Self {
        Self { repairs: BTreeMap::new(), failure: None, until: now, asked: false }
    }

    fn forget(&mut self, now: Instant) {
        self.repairs.retain(|_, (_, last)| *last + FORGET >= now);
    }

    fn put_off(&mut self, until: Instant) {
        self.until = until;
        self.asked = true;
    }
}

fn wait(times: u32) -> Duration {
    FIRST.saturating_mul(1 << times.min(8)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> ObjectId {
        ObjectId::Attachment("web".into())
    }

    #[test]
    fn different_repairs_are_made_at_once() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        for what in ["route", "rule", "address", "neighbour"] {
            assert_eq!(backoff.repaired(web(), what, now), LogDecision::Done);
            assert!(backoff.allows(&web(), now));
        }
    }

    #[test]
    fn repairs_that_take_turns_wait_too() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        for what in ["route", "rule", "route"] {
            assert!(backoff.allows(&web(), now));
            backoff.repaired(web(), what, now);
        }
        assert!(!backoff.allows(&web(), now));
        assert_eq!(backoff.next(), Some(now + FIRST));
    }

    #[test]
    fn the_same_repair_again_and_again_waits_longer_each_time_and_is_told_once() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        let mut said = Vec::new();
        let mut waits = Vec::new();
        for _ in 0..9 {
            said.push(backoff.repaired(web(), "route", now));
            let before = now;
            if !backoff.allows(&web(), now) {
                now = backoff.next().unwrap();
                assert_eq!(backoff.due(now), [web()]);
                assert!(backoff.allows(&web(), now));
            }
            waits.push((now - before).as_millis());
        }
        assert_eq!(waits, [0, 250, 500, 1000, 2000, 4000, 5000, 5000, 5000]);
        let often = said.iter().position(|say| *say == LogDecision::Often);
        assert_eq!((often, said.iter().filter(|say| **say == LogDecision::Done).count()), (Some(4), 4));
        now += FORGET * 2;
        assert_eq!(backoff.repaired(web(), "route", now), LogDecision::Done);
    }

    #[test]
    fn what_cant_be_done_is_tried_again_and_told_once() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        assert!(backoff.failed(web(), "in the way", now));
        for _ in 0..5 {
            assert!(!backoff.allows(&web(), now));
            now = backoff.next().unwrap();
            assert_eq!(backoff.due(now), [web()]);
            assert!(backoff.allows(&web(), now));
            assert!(!backoff.failed(web(), "in the way", now));
        }
        assert!(backoff.failed(web(), "something else", now));
        backoff.reset(&web(), now);
        assert_eq!(backoff.next(), None);
        assert!(backoff.failed(web(), "in the way", now));
    }

    #[test]
    fn who_is_busy_is_left_for_a_second() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        backoff.busy(web(), now);
        assert!(!backoff.allows(&web(), now));
        assert_eq!(backoff.next(), Some(now + BUSY));
        assert!(backoff.allows(&web(), now + BUSY));
        backoff.reset(&web(), now + BUSY);
        assert_eq!(backoff.due(now + BUSY), []);
    }
}
