//! The replicas that are checked, when each is due, and its checks' outcomes so far. Pure: time and outcomes come in,
//! what is to be done goes out.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::membership::admission::HealthStatus;
use crate::model::VipKey;
use crate::registry::State;

use super::discovery::{Batch, Discovery, ProbeTarget};
use super::hold_down::HoldDown;
use super::hysteresis::{Hysteresis, Outcome};
use super::transition::{Applied, HealthTransition};

/// All replicas that are checked.
#[derive(Debug, Default)]
pub struct Scheduler {
    vips: BTreeMap<VipKey, BTreeMap<String, u64>>,
    targets: HashMap<u64, Target>,
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    last_number: u64,
    /// Connections a second that the checks of a pod ask for, by its network namespace.
    connects: HashMap<(u64, u64), f64>,
}

/// Connections a second that the checks of one pod may make, over all its VIPs and ports. What asks for more is checked
/// less often: 64 ports of 8 VIPs, ten times a second each, took 41 % of a processor.
const MOST_CONNECTS: f64 = 100.0;

#[derive(Debug)]
struct Target {
    vip: VipKey,
    name: String,
    probe: Arc<ProbeTarget>,
    /// As far as is known.
    state: State,
    drained: bool,
    hysteresis: Hysteresis,
    hold_down: HoldDown,
    /// A check of it is under way.
    busy: bool,
    last: Last,
    /// Why the last check failed; empty: it didn't.
    why: String,
}

/// What became of the last status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// It is carried out, if there was one.
    Done,
    /// It is being carried out.
    UnderWay,
    /// It could not be carried out.
    Failed,
}

impl Scheduler {
    /// Takes over the registry's replicas. `random`, from 0 to 1, spreads first checks over the interval.
    pub fn update(&mut self, batch: Batch, now: Instant, mut random: impl FnMut() -> f64) {
        for (vip, replicas) in batch.vips {
            self.update_vip(&vip, replicas, now, &mut random);
        }
    }

    fn update_vip(
        &mut self,
        vip: &VipKey,
        replicas: BTreeMap<String, Discovery>,
        now: Instant,
        random: &mut impl FnMut() -> f64,
    ) {
        let mut old = self.vips.remove(vip).unwrap_or_default();
        let mut present = BTreeMap::new();
        for (name, Discovery { target, state, drained }) in replicas {
            let known = old.remove(&name);
            let number = match known.and_then(|number| self.targets.get_mut(&number).map(|known| (number, known))) {
                Some((number, known)) if *known.probe == target => {
                    (known.state, known.drained) = (state, drained);
                    number
                }
                other => {
                    let stale = other.map(|(number, _)| number);
                    if let Some(number) = stale {
                        self.remove(number);
                    }
                    // A pending replica is checked now: it gets no connections before.
                    let wait = if state == State::Pending { 0.0 } else { random() };
                    let due = now + target.check.interval.mul_f64(wait);
                    self.admit(Target::new((vip, &name), target, (state, drained)), due)
                }
            };
            present.insert(name, number);
        }
        for number in old.into_values() {
            self.remove(number);
        }
        if !present.is_empty() {
            self.vips.insert(vip.clone(), present);
        }
    }

    fn remove(&mut self, number: u64) {
        let Some(target) = self.targets.remove(&number) else { return };
        if let Entry::Occupied(mut connects) = self.connects.entry(target.probe.netns.identity()) {
            *connects.get_mut() -= target.probe.connects_per_second();
            if *connects.get() < f64::EPSILON {
                connects.remove();
            }
        }
    }

    fn admit(&mut self, target: Target, due: Instant) -> u64 {
        let connects = target.probe.connects_per_second();
        if connects > 0.0 {
            *self.connects.entry(target.probe.netns.identity()).or_default() += connects;
        }
        self.last_number += 1;
        self.targets.insert(self.last_number, target);
        self.due.push(Reverse((due, self.last_number)));
        self.last_number
    }

    /// When the next check is due.
    pub fn next(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// A target whose check is due, if there is one; it is under way until [`Scheduler::record`]. `random`, from 0 to 1,
    /// spreads checks that have become due at the same time.
    pub fn take(&mut self, now: Instant, mut random: impl FnMut() -> f64) -> Option<(u64, Arc<ProbeTarget>)> {
        while let Some(Reverse((_, number))) = self.due.peek().copied().filter(|Reverse((due, _))| *due <= now) {
            self.due.pop();
            let Some(target) = self.targets.get_mut(&number) else { continue }; // gone
            let asked = self.connects.get(&target.probe.netns.identity()).copied().unwrap_or_default();
            let interval = target.probe.check.interval.mul_f64((asked / MOST_CONNECTS).max(1.0));
            self.due.push(Reverse((now + stretch(interval, random()), number)));
            if !std::mem::replace(&mut target.busy, true) {
                return Some((number, target.probe.clone()));
            }
        }
        None
    }

    /// A check is done. Returns what is to be carried out now.
    pub fn record(&mut self, number: u64, outcome: &Outcome, now: Instant) -> Option<HealthTransition> {
        let target = self.targets.get_mut(&number)?;
        target.busy = false;
        target.note(outcome);
        let status = target.hysteresis.count(outcome)?;
        let changes = match status {
            HealthStatus::Up => target.state != State::Ready && !target.drained && target.hold_down.is_over(now),
            HealthStatus::Down => target.state == State::Ready,
        };
        match target.last {
            Last::UnderWay => return None,
            Last::Done if !changes => return None,
            Last::Done | Last::Failed => target.last = Last::UnderWay,
        }
        if status == HealthStatus::Down && changes {
            target.hold_down.went_down(now);
        }
        let Target { vip, name, probe, why, .. } = target;
        let (vip, name, pod, why) = (vip.clone(), name.clone(), probe.pod.clone(), why.clone());
        Some(HealthTransition { vip, name, status, pod, why })
    }

    /// Transitions were carried out, or could not be.
    pub fn applied(&mut self, applied: &Applied) {
        for name in &applied.names {
            let number = self.vips.get(&applied.vip).and_then(|replicas| replicas.get(name));
            let Some(target) = number.and_then(|number| self.targets.get_mut(number)) else { continue };
            target.last = if applied.states.is_some() { Last::Done } else { Last::Failed };
            if let Some(state) = applied.states.as_ref().and_then(|states| states.get(name)) {
                target.state = *state;
            }
        }
    }

    /// What is checked.
    pub fn targets(&self) -> impl Iterator<Item = &ProbeTarget> {
        self.targets.values().map(|target| &*target.probe)
    }
}

/// A tenth more or less.
fn stretch(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(0.9 + 0.2 * random)
}

impl Target {
    fn new((vip, name): (&VipKey, &str), target: ProbeTarget, (state, drained): (State, bool)) -> Self {
        let hysteresis = Hysteresis::new(&target.check);
        let (vip, name, probe) = (vip.clone(), name.to_owned(), Arc::new(target));
        Self {
            vip,
            name,
            probe,
            state,
            drained,
            hysteresis,
            hold_down: HoldDown::default(),
            busy: false,
            last: Last::Done,
            why: String::new(),
        }
    }

    /// Logs why a check failed, once for each reason.
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
        let (vip, replica) = (&self.vip, &self.probe.pod);
        match outcome {
            Outcome::Up => {}
            Outcome::Unknown(why) => tracing::warn!(%vip, replica, why, "can't be checked"),
            Outcome::Down(_) | Outcome::Gone => tracing::info!(%vip, replica, why, "check failed"),
        }
    }
}

#[cfg(test)]
mod tests;
