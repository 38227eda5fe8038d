//! Readiness: a replica that has a check gets connections while it passes.
//!
//! ```text
//! health       the scheduler: whose check is due, the status of checks in a row; makes `listen`  (discovery, scheduler, hysteresis, listen)
//! probes       `tcp` and `http`, many at a time                                               (probe)
//! transitions  writes a replica's new state and reconciles its VIP's routes                   (transition)
//! ```
//! A thread each. None has a state that the registry doesn't have: after a restart they go on from there.

mod discovery;
mod hold_down;
mod hysteresis;
mod listen;
mod probe;
mod scheduler;
mod transition;

use std::io;
use std::iter;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::model::check::Probe;
use crate::net::{self, NodeNet, Visitor, link};
use crate::registry::watch::Update;

use super::Context;
use super::subsystems::{HEALTH, PROBES, SubsystemGuard, TRANSITIONS};
use discovery::{ProbeTarget, Reader};
use hysteresis::Outcome;
use listen::Tables;
use scheduler::Scheduler;
use transition::{Applied, HealthTransition};

/// Checks that are due within this time are made together: waking up costs more than a check.
const TOGETHER: Duration = Duration::from_millis(50);

/// Why there can be no checks.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No thread, or nothing to watch the registry with.
    #[error("start the health checks")]
    Io(#[from] io::Error),
    /// No netlink socket.
    #[error(transparent)]
    Net(#[from] net::Error),
}

/// What comes to the thread that keeps the scheduler.
enum Event {
    Update(Update),
    Probed(u64, Outcome),
    Applied(Applied),
}

/// Starts the threads.
pub fn start(context: &Context) -> Result<(), Error> {
    allow_many_files();
    let (node, applying_node) = (NodeNet::open()?, NodeNet::open()?);
    let (events, inbox) = mpsc::channel();
    let (transitions, to_apply) = mpsc::channel();
    let (orders, to_probe) = tokio::sync::mpsc::unbounded_channel();

    let (tell, applying) = (events.clone(), context.clone());
    context.subsystems.spawn(&TRANSITIONS, move |guard| {
        let inbox = transition::Inbox { transitions: &to_apply, guard: &guard };
        transition::run(&applying_node, &applying, &inbox, |applied| tell.send(Event::Applied(applied)).is_ok());
    })?;

    let (tell, runtime, visitor) = (events.clone(), probe::runtime()?, Visitor::start()?);
    // Its reader is gone only while viprouted ends.
    let told = move |number, outcome| drop(tell.send(Event::Probed(number, outcome)));
    context.subsystems.spawn(&PROBES, move |guard| probe::run(&runtime, &guard, visitor, to_probe, told))?;

    context.watch.subscribe(move |update| events.send(Event::Update(update)).is_ok());
    let reader = Reader::new(context.registry.clone());
    let (scheduler, tables) = (Scheduler::default(), Tables::default());
    let mut health = Health { reader, scheduler, tables, node, transitions, orders };
    context.subsystems.spawn(&HEALTH, move |guard| health.run(&guard, &inbox))?;
    Ok(())
}

/// A pod with the check `listen` costs a descriptor. Where the limit can't be raised, some can't be checked; that is logged.
fn allow_many_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

struct Health {
    reader: Reader,
    scheduler: Scheduler,
    tables: Tables,
    /// Sees whether a replica's host veth is there.
    node: NodeNet,
    transitions: Sender<HealthTransition>,
    orders: tokio::sync::mpsc::UnboundedSender<probe::Order>,
}

impl Health {
    fn run(&mut self, guard: &SubsystemGuard, inbox: &Receiver<Event>) {
        loop {
            guard.turn();
            let due = self.scheduler.next().map(|due| due.saturating_duration_since(Instant::now()));
            let wait = due.unwrap_or_else(|| guard.period()).clamp(TOGETHER, guard.period());
            match inbox.recv_timeout(wait) {
                Ok(event) => {
                    for event in std::iter::once(event).chain(inbox.try_iter()) {
                        self.handle(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.check_due();
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Update(update) => {
                let batch = self.reader.read(&update);
                self.scheduler.update(batch, Instant::now(), rand::random);
                self.tables.keep(&self.scheduler.targets().map(|target| target.netns.identity()).collect());
            }
            Event::Probed(number, outcome) => self.record(number, &outcome),
            Event::Applied(applied) => self.scheduler.applied(&applied),
        }
    }

    fn check_due(&mut self) {
        let now = Instant::now();
        let due = iter::from_fn(|| self.scheduler.take(now, rand::random));
        let (listeners, others): (Vec<_>, Vec<_>) = due.partition(|(_, target)| target.check.probe == Probe::Listen);
        let known = self.tables.know(listeners.iter().map(|(_, target)| &**target));
        for ((number, target), listens) in listeners.into_iter().zip(known) {
            let outcome = if listens { Outcome::Up } else { self.look(&target) };
            self.record(number, &outcome);
        }
        for (number, target) in others {
            self.order(number, target);
        }
    }

    /// The outcome comes later, as an event.
    fn order(&mut self, number: u64, target: Arc<ProbeTarget>) {
        if target.netns.is_still_there() {
            // The thread that takes orders ends with the process.
            let _ = self.orders.send((number, target));
        } else {
            let outcome = self.without_netns(&target);
            self.record(number, &outcome);
        }
    }

    fn look(&mut self, target: &ProbeTarget) -> Outcome {
        let seen = self.tables.is_open(&target.netns).then(|| self.tables.check(&self.node, target));
        // A namespace where a socket listens exists: one system call less for replicas that are up, which is most.
        if seen == Some(Outcome::Up) {
            return Outcome::Up;
        }
        if !target.netns.is_still_there() {
            self.tables.forget(&target.netns);
            return self.without_netns(target);
        }
        seen.unwrap_or_else(|| self.tables.check(&self.node, target))
    }

    /// With the namespace goes its pair. While that is there, it is only its path that can't be seen from here.
    fn without_netns(&self, target: &ProbeTarget) -> Outcome {
        match link::by_name(&self.node, &target.device) {
            Ok(None) => Outcome::Gone,
            Ok(Some(_)) => Outcome::Unknown(format!("its network namespace isn't at {}", target.netns.path.display())),
            Err(error) => Outcome::Unknown(crate::with_causes(&error)),
        }
    }

    fn record(&mut self, number: u64, outcome: &Outcome) {
        if let Some(transition) = self.scheduler.record(number, outcome, Instant::now()) {
            // Likewise.
            let _ = self.transitions.send(transition);
        }
    }
}
