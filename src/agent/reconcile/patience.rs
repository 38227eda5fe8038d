//! How soon a thing may be looked at again: at once, unless the same repair was needed a moment ago, or it can't be done.
//! Somebody who undoes each repair, or stands in the way, must not keep the node busy. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::registry::VipKey;

/// The first wait after a repair that was needed again.
const FIRST: Duration = Duration::from_millis(250);
/// The longest.
const LONGEST: Duration = Duration::from_secs(5);
/// After so long without it a repair counts as a new one.
const FORGET: Duration = Duration::from_secs(30);
/// Until somebody who was busy with it is done.
const BUSY: Duration = Duration::from_secs(1);
/// From so many times on it is "again and again".
const OFTEN: u32 = 4;

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// An attachment, by name.
    Attachment(String),
    /// A VIP.
    Vip(VipKey),
    /// What is nobody's.
    Strays,
    /// One of the node's settings, or all programs of one directory, by name.
    Other(String),
}

/// What is to be said of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// That it was done.
    Done,
    /// That it is needed again and again, and is left for a while each time.
    Often,
    /// Nothing: it has been said.
    Nothing,
}

#[derive(Debug)]
struct Memory {
    /// The repairs of late: how often each was needed, and when it was last.
    repairs: BTreeMap<String, (u32, Instant)>,
    /// Why it couldn't be put right, and how many times in a row.
    failure: Option<(String, u32)>,
    until: Instant,
    /// Somebody asked for a look since.
    asked: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Patience(BTreeMap<Thing, Memory>);

impl Patience {
    /// Whether it may be looked at now; if not, it is due later.
    pub fn allows(&mut self, thing: &Thing, now: Instant) -> bool {
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

    /// Nothing was amiss.
    pub fn well(&mut self, thing: &Thing, now: Instant) {
        let Some(memory) = self.0.get_mut(thing) else { return };
        memory.failure = None;
        memory.forget(now);
        if memory.repairs.is_empty() {
            self.0.remove(thing);
        }
    }

    /// It was put right.
    pub fn repaired(&mut self, thing: Thing, what: &str, now: Instant) -> Say {
        let memory = self.0.entry(thing).or_insert_with(|| Memory::new(now));
        memory.failure = None;
        memory.forget(now);
        let times = memory.repairs.get(what).map_or(0, |(times, _)| times + 1);
        memory.repairs.insert(what.to_owned(), (times, now));
        memory.until = if times == 0 { now } else { now + wait(times - 1) };
        match times {
            _ if times < OFTEN => Say::Done,
            OFTEN => Say::Often,
            _ => Say::Nothing,
        }
    }

    /// It can't be put right; that is tried again. True: it is news.
    pub fn failed(&mut self, thing: Thing, why: &str, now: Instant) -> bool {
        let memory = self.0.entry(thing).or_insert_with(|| Memory::new(now));
        let former = memory.failure.take().filter(|(former, _)| former == why);
        let times = former.as_ref().map_or(0, |(_, times)| times + 1);
        memory.failure = Some((why.to_owned(), times));
        // Two steps on: a second for the first time.
        memory.put_off(now + wait(times.saturating_add(2)));
        former.is_none()
    }

    /// Somebody else is at it.
    pub fn busy(&mut self, thing: Thing, now: Instant) {
        self.0.entry(thing).or_insert_with(|| Memory::new(now)).put_off(now + BUSY);
    }

    /// Whose time has come. Said once.
    pub fn due(&mut self, now: Instant) -> Vec<Thing> {
        let due = self.0.iter_mut().filter(|(_, memory)| memory.asked && memory.until <= now);
        due.map(|(thing, memory)| {
            memory.asked = false;
            thing.clone()
        })
        .collect()
    }

    /// When the next one's time comes.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().filter(|memory| memory.asked).map(|memory| memory.until).min()
    }

    /// Those that are gone need none.
    pub fn retain(&mut self, is_there: impl Fn(&Thing) -> bool) {
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

    fn web() -> Thing {
        Thing::Attachment("web".into())
    }

    #[test]
    fn different_repairs_are_made_at_once() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        for what in ["route", "rule", "address", "neighbour"] {
            assert_eq!(patience.repaired(web(), what, now), Say::Done);
            assert!(patience.allows(&web(), now));
        }
    }

    #[test]
    fn repairs_that_take_turns_wait_too() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        for what in ["route", "rule", "route"] {
            assert!(patience.allows(&web(), now));
            patience.repaired(web(), what, now);
        }
        assert!(!patience.allows(&web(), now));
        assert_eq!(patience.next(), Some(now + FIRST));
    }

    #[test]
    fn the_same_repair_again_and_again_waits_longer_each_time_and_is_told_once() {
        let (mut patience, mut now) = (Patience::default(), Instant::now());
        let mut said = Vec::new();
        let mut waits = Vec::new();
        for _ in 0..9 {
            said.push(patience.repaired(web(), "route", now));
            let before = now;
            if !patience.allows(&web(), now) {
                now = patience.next().unwrap();
                assert_eq!(patience.due(now), [web()]);
                assert!(patience.allows(&web(), now));
            }
            waits.push((now - before).as_millis());
        }
        assert_eq!(waits, [0, 250, 500, 1000, 2000, 4000, 5000, 5000, 5000]);
        let often = said.iter().position(|say| *say == Say::Often);
        assert_eq!((often, said.iter().filter(|say| **say == Say::Done).count()), (Some(4), 4));
        now += FORGET * 2;
        assert_eq!(patience.repaired(web(), "route", now), Say::Done);
    }

    #[test]
    fn what_cant_be_done_is_tried_again_and_told_once() {
        let (mut patience, mut now) = (Patience::default(), Instant::now());
        assert!(patience.failed(web(), "in the way", now));
        for _ in 0..5 {
            assert!(!patience.allows(&web(), now));
            now = patience.next().unwrap();
            assert_eq!(patience.due(now), [web()]);
            assert!(patience.allows(&web(), now));
            assert!(!patience.failed(web(), "in the way", now));
        }
        assert!(patience.failed(web(), "something else", now));
        patience.well(&web(), now);
        assert_eq!(patience.next(), None);
        assert!(patience.failed(web(), "in the way", now));
    }

    #[test]
    fn who_is_busy_is_left_for_a_second() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        patience.busy(web(), now);
        assert!(!patience.allows(&web(), now));
        assert_eq!(patience.next(), Some(now + BUSY));
        assert!(patience.allows(&web(), now + BUSY));
        patience.well(&web(), now + BUSY);
        assert_eq!(patience.due(now + BUSY), []);
    }
}
