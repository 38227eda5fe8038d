//! The table of viprouted's subsystems: a thread each, with the period in which its loop must turn. One that ends, or no
//! longer turns, leaves the node without it: `/healthz` names it.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::lease::heartbeat::Heartbeat;

/// A loop is late when it has not turned for so many of its periods.
const PERIODS: u32 = 5;
/// A turn may take this long whatever the period: locks and programs that are waited for have limits below it.
const LONGEST_TURN: Duration = Duration::from_secs(15);

/// A subsystem.
#[derive(Debug, PartialEq, Eq)]
pub struct Subsystem {
    /// Its name in errors.
    pub name: &'static str,
    /// Its thread's name, at most 15 bytes.
    pub thread: &'static str,
    /// Its loop turns at least this often, with nothing to do.
    pub period: Duration,
}

const fn subsystem(name: &'static str, thread: &'static str, seconds: u64) -> Subsystem {
    Subsystem { name, thread, period: Duration::from_secs(seconds) }
}

/// Reads the registry and publishes what has changed.
pub const REGISTRY: Subsystem = subsystem("the registry's watcher", "registry", 10);
/// Keeps viproute in the networks that it has joined.
pub const CHAIN: Subsystem = subsystem("the keeper of the runtime's networks", "chain", 10);
/// Records what becomes of replicas in the journal.
pub const EVENTS: Subsystem = subsystem("the log of replicas' events", "events", 10);
/// Reconciles kernel objects with the registry: VIPs, attachments, the node's own.
pub const RECONCILE: Subsystem = subsystem("reconcile", "reconcile", 1);
/// Ends all leases of the express path whenever rules, routes or neighbours change.
pub const EXPRESS: Subsystem = subsystem("the express path's generation", "express", 10);
/// Retires the addresses that VIPs had.
pub const RETIREMENT: Subsystem = subsystem("address retirement", "retirement", 10);
/// Schedules health checks and makes those of kind `listen`.
pub const HEALTH: Subsystem = subsystem("health checks", "health", 10);
/// Makes the health checks that connect.
pub const PROBES: Subsystem = subsystem("health probes", "probes", 10);
/// Writes replicas' new states.
pub const TRANSITIONS: Subsystem = subsystem("health transitions", "transitions", 10);
/// Carries out what leases decide about routes.
pub const DATAPLANE: Subsystem = subsystem("the leases' routes", "dataplane", 10);
/// Reads and writes lease files.
pub const LEASES: Subsystem = subsystem("the lease files' writer", "leases", 10);
/// Reads routes for the search for address conflicts.
pub const ROUTES: Subsystem = subsystem("the reader of routes", "routes", 10);
/// Gossips with the other nodes.
pub const PEERS: Subsystem = subsystem("the gossip among nodes", "peers", 1);
/// Records what other nodes say.
pub const PEER_RECORDS: Subsystem = subsystem("the records of other nodes", "peer-records", 1);
/// Watches the Kubernetes API and writes to it.
pub const KUBERNETES: Subsystem = subsystem("the watch of Kubernetes", "kubernetes", 2);
/// Has Services' pods join their VIPs and leave them.
pub const SERVICES: Subsystem = subsystem("Services", "services", 5);
/// Serves metrics and samples traffic.
pub const METRICS: Subsystem = subsystem("metrics", "metrics", 15);

/// All of them; the main thread, which keeps leases and serves the socket, is asked by a question of its own.
#[cfg(test)]
const ALL: [&Subsystem; 17] = [
    &REGISTRY,
    &CHAIN,
    &EVENTS,
    &RECONCILE,
    &EXPRESS,
    &RETIREMENT,
    &HEALTH,
    &PROBES,
    &TRANSITIONS,
    &DATAPLANE,
    &LEASES,
    &ROUTES,
    &PEERS,
    &PEER_RECORDS,
    &KUBERNETES,
    &SERVICES,
    &METRICS,
];

/// The subsystems of one process. Clones are the same.
#[derive(Clone, Debug)]
pub struct Subsystems {
    begun: Instant,
    running: Arc<Mutex<BTreeMap<&'static str, Running>>>,
}

#[derive(Debug)]
struct Running {
    of: &'static Subsystem,
    /// Milliseconds from `begun` to its last turn.
    turned: Arc<AtomicU64>,
    dead: bool,
}

impl Default for Subsystems {
    fn default() -> Self {
        Self { begun: Instant::now(), running: Arc::default() }
    }
}

impl Subsystems {
    /// Runs `work` on the subsystem's thread. It turns by [`SubsystemGuard::turn`]; when it ends, the subsystem is dead.
    pub fn spawn(
        &self,
        subsystem: &'static Subsystem,
        work: impl FnOnce(SubsystemGuard) + Send + 'static,
    ) -> io::Result<()> {
        let guard = self.begin(subsystem);
        thread::Builder::new().name(subsystem.thread.into()).spawn(move || work(guard)).map(drop)
    }

    /// The same for a thread that is made elsewhere. A subsystem that begins again takes the place of the one before.
    pub fn begin(&self, subsystem: &'static Subsystem) -> SubsystemGuard {
        let turned = Arc::new(AtomicU64::new(millis(self.begun.elapsed())));
        let running = Running { of: subsystem, turned: turned.clone(), dead: false };
        self.running().insert(subsystem.thread, running);
        SubsystemGuard { of: subsystem, subsystems: self.clone(), turned, finished: false }
    }

    /// What is wrong with them, a sentence each.
    pub fn errors(&self) -> Vec<String> {
        self.errors_at(self.begun.elapsed())
    }

    fn errors_at(&self, now: Duration) -> Vec<String> {
        let error = |running: &Running| {
            let Subsystem { name, period, .. } = running.of;
            if running.dead {
                return Some(format!("{name} has ended"));
            }
            let silent = now.saturating_sub(Duration::from_millis(running.turned.load(Ordering::Relaxed)));
            let late = silent > (*period * PERIODS).max(LONGEST_TURN);
            late.then(|| {
                format!("{name} has not turned for {} s, which it does every {} s", silent.as_secs(), period.as_secs())
            })
        };
        self.running().values().filter_map(error).collect()
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<&'static str, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by a subsystem for as long as it works; dropped, it is dead.
#[derive(Debug)]
pub struct SubsystemGuard {
    of: &'static Subsystem,
    subsystems: Subsystems,
    turned: Arc<AtomicU64>,
    finished: bool,
}

impl SubsystemGuard {
    /// It ends in order: viprouted does.
    pub fn finish(mut self) {
        self.finished = true;
    }

    /// The loop turns.
    pub fn turn(&self) {
        self.turned.store(millis(self.subsystems.begun.elapsed()), Ordering::Relaxed);
    }

    /// The queue's next item; the loop turns meanwhile. `None`: all senders are dropped.
    pub fn receive<T>(&self, queue: &Receiver<T>) -> Option<T> {
        loop {
            self.turn();
            match queue.recv_timeout(self.period()) {
                Ok(next) => return Some(next),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// How long the loop may wait for something to do.
    pub fn period(&self) -> Duration {
        self.of.period
    }
}

impl Heartbeat for SubsystemGuard {
    fn receive<T>(&self, queue: &Receiver<T>) -> Option<T> {
        Self::receive(self, queue)
    }

    fn finish(self) {
        Self::finish(self);
    }
}

impl Drop for SubsystemGuard {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        tracing::error!(subsystem = self.of.name, "a subsystem has ended");
        if let Some(running) = self.subsystems.running().get_mut(self.of.thread) {
            running.dead = true;
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const FAST: Subsystem = subsystem("fast", "fast", 1);
    const SLOW: Subsystem = subsystem("slow", "slow", 60);

    #[test]
    fn a_loop_that_ends_or_no_longer_turns_is_named() {
        let subsystems = Subsystems::default();
        let (fast, _slow) = (subsystems.begin(&FAST), subsystems.begin(&SLOW));
        let at = |seconds| subsystems.errors_at(Duration::from_secs(seconds));
        assert_eq!(at(14), Vec::<String>::new());
        assert_eq!(at(16), ["fast has not turned for 16 s, which it does every 1 s"]);
        assert_eq!(at(301).len(), 2);
        drop(fast);
        assert_eq!(at(14), ["fast has ended"]);
    }

    #[test]
    fn threads_have_names_of_their_own_that_the_kernel_keeps() {
        let threads: BTreeSet<_> = ALL.iter().map(|subsystem| subsystem.thread).collect();
        assert_eq!(threads.len(), ALL.len());
        assert!(threads.iter().all(|thread| thread.len() <= 15), "{threads:?}");
    }
}
