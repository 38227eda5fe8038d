//! The replicas that are checked, when each is due, and what its checks say so far. Pure: time and outcomes come in,
//! what is to be done goes out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::registry::{State, VipKey};
use crate::vip::admission::Verdict;

use super::judge::{Judged, Sentence};
use super::sighting::{Batch, Sighting, Subject};
use super::tally::{Outcome, Tally};

/// All replicas that are checked.
#[derive(Debug, Default)]
pub struct Roster {
    vips: BTreeMap<VipKey, BTreeMap<String, u64>>,
    patients: HashMap<u64, Patient>,
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    last_number: u64,
}

#[derive(Debug)]
struct Patient {
    vip: VipKey,
    name: String,
    subject: Arc<Subject>,
    /// As far as is known.
    state: State,
    drained: bool,
    tally: Tally,
    /// A check of it is under way.
    busy: bool,
    last: Last,
    /// Why the last check failed; empty: it didn't.
    why: String,
}

/// What became of the last verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// It is carried out, if there was one.
    Done,
    /// It is being carried out.
    UnderWay,
    /// It could not be carried out.
    Failed,
}

impl Roster {
    /// Takes over what the registry says. `random`, from 0 to 1, spreads first checks over the interval.
    pub fn update(&mut self, batch: Batch, now: Instant, mut random: impl FnMut() -> f64) {
        if batch.all {
            let here: BTreeSet<&VipKey> = batch.vips.keys().chain(&batch.unread).collect();
            let gone: Vec<VipKey> = self.vips.keys().filter(|vip| !here.contains(vip)).cloned().collect();
            for vip in gone {
                self.update_vip(&vip, BTreeMap::new(), now, &mut random);
            }
        }
        for (vip, replicas) in batch.vips {
            self.update_vip(&vip, replicas, now, &mut random);
        }
    }

    fn update_vip(
        &mut self,
        vip: &VipKey,
        replicas: BTreeMap<String, Sighting>,
        now: Instant,
        random: &mut impl FnMut() -> f64,
    ) {
        let mut former = self.vips.remove(vip).unwrap_or_default();
        let mut present = BTreeMap::new();
        for (name, Sighting { subject, state, drained }) in replicas {
            let known = former.remove(&name);
            let number = match known.and_then(|number| self.patients.get_mut(&number).map(|known| (number, known))) {
                Some((number, patient)) if *patient.subject == subject => {
                    (patient.state, patient.drained) = (state, drained);
                    number
                }
                other => {
                    let stale = other.map(|(number, _)| number);
                    stale.map(|number| self.patients.remove(&number));
                    // Whoever waits for it is looked at now.
                    let wait = if state == State::Pending { 0.0 } else { random() };
                    let due = now + subject.check.interval.mul_f64(wait);
                    self.admit(Patient::new((vip, &name), subject, (state, drained)), due)
                }
            };
            present.insert(name, number);
        }
        for number in former.into_values() {
            self.patients.remove(&number);
        }
        if !present.is_empty() {
            self.vips.insert(vip.clone(), present);
        }
    }

    fn admit(&mut self, patient: Patient, due: Instant) -> u64 {
        self.last_number += 1;
        self.patients.insert(self.last_number, patient);
        self.due.push(Reverse((due, self.last_number)));
        self.last_number
    }

    /// When the next check is due.
    pub fn next(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// Somebody whose check is due, if anybody's is; that is under way until [`Roster::record`]. `random`, from 0 to 1,
    /// keeps checks that have come together from staying so.
    pub fn take(&mut self, now: Instant, mut random: impl FnMut() -> f64) -> Option<(u64, Arc<Subject>)> {
        while let Some(Reverse((_, number))) = self.due.peek().copied().filter(|Reverse((due, _))| *due <= now) {
            self.due.pop();
            let Some(patient) = self.patients.get_mut(&number) else { continue }; // gone
            self.due.push(Reverse((now + stretch(patient.subject.check.interval, random()), number)));
            if !std::mem::replace(&mut patient.busy, true) {
                return Some((number, patient.subject.clone()));
            }
        }
        None
    }

    /// A check is done. Returns what is to be carried out now.
    pub fn record(&mut self, number: u64, outcome: &Outcome) -> Option<Sentence> {
        let patient = self.patients.get_mut(&number)?;
        patient.busy = false;
        patient.note(outcome);
        let verdict = patient.tally.count(outcome)?;
        let changes = match verdict {
            Verdict::Up => patient.state != State::Ready && !patient.drained,
            Verdict::Down => patient.state == State::Ready,
        };
        match patient.last {
            Last::UnderWay => return None,
            Last::Done if !changes => return None,
            Last::Done | Last::Failed => patient.last = Last::UnderWay,
        }
        let Patient { vip, name, subject, why, .. } = patient;
        let (vip, name, pod, why) = (vip.clone(), name.clone(), subject.pod.clone(), why.clone());
        Some(Sentence { vip, name, verdict, pod, why })
    }

    /// Sentences were carried out, or could not be.
    pub fn judged(&mut self, judged: &Judged) {
        for name in &judged.names {
            let number = self.vips.get(&judged.vip).and_then(|replicas| replicas.get(name));
            let Some(patient) = number.and_then(|number| self.patients.get_mut(number)) else { continue };
            patient.last = if judged.states.is_some() { Last::Done } else { Last::Failed };
            if let Some(state) = judged.states.as_ref().and_then(|states| states.get(name)) {
                patient.state = *state;
            }
        }
    }

    /// What is checked.
    pub fn subjects(&self) -> impl Iterator<Item = &Subject> {
        self.patients.values().map(|patient| &*patient.subject)
    }
}

/// A tenth more or less.
fn stretch(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(0.9 + 0.2 * random)
}

impl Patient {
    fn new((vip, name): (&VipKey, &str), subject: Subject, (state, drained): (State, bool)) -> Self {
        let tally = Tally::new(&subject.check);
        let (vip, name, subject) = (vip.clone(), name.to_owned(), Arc::new(subject));
        Self { vip, name, subject, state, drained, tally, busy: false, last: Last::Done, why: String::new() }
    }

    /// Says why a check failed, once for each reason.
    fn note(&mut self, outcome: &Outcome) {
        let why = match outcome {
            Outcome::Up => "",
            Outcome::Gone => "its network namespace is gone",
            Outcome::Down(why) | Outcome::Unknown(why) => why,
        };
        if why == self.why {
            return;
        }
        why.clone_into(&mut self.why);
        let (vip, replica) = (&self.vip, &self.subject.pod);
        match outcome {
            Outcome::Up => {}
            Outcome::Unknown(why) => tracing::warn!(%vip, replica, why, "can't be checked"),
            Outcome::Down(_) | Outcome::Gone => tracing::info!(%vip, replica, why, "check failed"),
        }
    }
}

#[cfg(test)]
mod tests;
