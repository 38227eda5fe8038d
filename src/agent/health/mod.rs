//! Readiness: who has asked for a check gets connections while that says so.
//!
//! ```text
//! registry  reads what the registry says of replicas with a check, whenever that changes      (sighting)
//! health    the roster: when is whose check due, what do checks in a row say; `listen` itself  (roster, tally, listen)
//! probes    `tcp` and `http`, many at a time                                                   (probe)
//! verdicts  writes a replica's new state and lets its VIP's routes follow                      (judge)
//! ```
//! A thread each. None has a state that the registry doesn't have: after a restart they go on from there.

mod judge;
mod listen;
mod probe;
mod roster;
mod sighting;
mod tally;

use std::io;
use std::iter;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::health::Probe;
use crate::net::{self, NodeNet, link};
use crate::registry::watch;

use super::Context;
use judge::{Judged, Sentence};
use listen::Tables;
use roster::Roster;
use sighting::{Batch, Reader, Subject};
use tally::Outcome;

/// Checks that are due within this time are made together: waking up costs more than a check.
const TOGETHER: Duration = Duration::from_millis(50);
/// Without anything to check.
const IDLE: Duration = Duration::from_secs(60);

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

/// What comes to the thread that keeps the roster.
enum Event {
    Read(Batch),
    Probed(u64, Outcome),
    Judged(Judged),
}

/// Starts the threads.
pub fn start(context: &Context) -> Result<(), Error> {
    allow_many_files();
    let (node, judges_node) = (NodeNet::open()?, NodeNet::open()?);
    let (events, inbox) = mpsc::channel();
    let (sentences, to_judge) = mpsc::channel();
    let (orders, to_probe) = tokio::sync::mpsc::unbounded_channel();

    let (tell, judges) = (events.clone(), context.clone());
    let work = move || judge::run(&judges_node, &judges, &to_judge, |judged| tell.send(Event::Judged(judged)).is_ok());
    thread::Builder::new().name("verdicts".into()).spawn(work)?;

    let (tell, runtime) = (events.clone(), probe::runtime()?);
    // Its reader is gone only while viprouted ends.
    let told = move |number, outcome| drop(tell.send(Event::Probed(number, outcome)));
    thread::Builder::new().name("probes".into()).spawn(move || probe::run(&runtime, to_probe, told))?;

    let (tell, mut reader) = (events, Reader::new(context.registry.clone()));
    let read = move |changes| tell.send(Event::Read(reader.read(changes))).is_ok();
    watch::start(context.registry.clone(), read)?;

    let mut health = Health { roster: Roster::default(), tables: Tables::default(), node, sentences, orders };
    let at_work = context.parts.begin("health checks");
    let work = move || {
        let _at_work = at_work;
        health.run(&inbox);
    };
    thread::Builder::new().name("health".into()).spawn(work)?;
    Ok(())
}

/// A pod with the check `listen` costs a descriptor. Where the limit can't be raised, some can't be checked, which is said.
fn allow_many_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

struct Health {
    roster: Roster,
    tables: Tables,
    /// Sees whether a replica's host end is there.
    node: NodeNet,
    sentences: Sender<Sentence>,
    orders: tokio::sync::mpsc::UnboundedSender<probe::Order>,
}

impl Health {
    fn run(&mut self, inbox: &Receiver<Event>) {
        loop {
            let next = self.roster.next().map_or(IDLE, |due| due.saturating_duration_since(Instant::now()));
            match inbox.recv_timeout(next.max(TOGETHER)) {
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
            Event::Read(batch) => {
                self.roster.update(batch, Instant::now(), rand::random);
                self.tables.keep(&self.roster.subjects().map(|subject| subject.netns.identity()).collect());
            }
            Event::Probed(number, outcome) => self.record(number, &outcome),
            Event::Judged(judged) => self.roster.judged(&judged),
        }
    }

    fn check_due(&mut self) {
        let now = Instant::now();
        let due = iter::from_fn(|| self.roster.take(now, rand::random));
        let (listeners, others): (Vec<_>, Vec<_>) = due.partition(|(_, subject)| subject.check.probe == Probe::Listen);
        let known = self.tables.know(listeners.iter().map(|(_, subject)| &**subject));
        for ((number, subject), listens) in listeners.into_iter().zip(known) {
            let outcome = if listens { Outcome::Up } else { self.look(&subject) };
            self.record(number, &outcome);
        }
        for (number, subject) in others {
            self.order(number, subject);
        }
    }

    /// What comes of it is told later.
    fn order(&mut self, number: u64, subject: Arc<Subject>) {
        if subject.netns.is_still_there() {
            // The thread that takes orders ends with the process.
            let _ = self.orders.send((number, subject));
        } else {
            let outcome = self.without_netns(&subject);
            self.record(number, &outcome);
        }
    }

    fn look(&mut self, subject: &Subject) -> Outcome {
        let seen = self.tables.is_open(&subject.netns).then(|| self.tables.check(&self.node, subject));
        // Where somebody listens there is a namespace: one look less for those that are up, which is most.
        if seen == Some(Outcome::Up) {
            return Outcome::Up;
        }
        if !subject.netns.is_still_there() {
            self.tables.forget(&subject.netns);
            return self.without_netns(subject);
        }
        seen.unwrap_or_else(|| self.tables.check(&self.node, subject))
    }

    /// With the namespace goes its pair. While that is there, it is only its path that can't be seen from here.
    fn without_netns(&self, subject: &Subject) -> Outcome {
        match link::by_name(&self.node, &subject.device) {
            Ok(None) => Outcome::Gone,
            Ok(Some(_)) => Outcome::Unknown(format!("its network namespace isn't at {}", subject.netns.path.display())),
            Err(error) => Outcome::Unknown(crate::with_causes(&error)),
        }
    }

    fn record(&mut self, number: u64, outcome: &Outcome) {
        if let Some(sentence) = self.roster.record(number, outcome) {
            // Likewise.
            let _ = self.sentences.send(sentence);
        }
    }
}
