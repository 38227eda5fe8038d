//! Keeps the node as the registry says: what somebody deletes by hand is back within a second, what belongs to nobody
//! goes. It hears of changes from the kernel (`net::monitor`) and from the registry; what no event tells of, it looks at
//! each second; and every minute, and when events were lost, at everything. A round that finds nothing is the end of it:
//! its own changes are heard of too, and found right.

mod known;
mod patience;
mod rounds;
mod teller;
mod todo;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use self::known::{Known, Vip};
use self::patience::{Patience, Thing};
use self::teller::Teller;
use self::todo::Todo;
use super::{Context, Error};
use crate::net::NodeNet;
use crate::net::monitor::{Change, Monitor};
use crate::registry::watch::{self, Changes};
use crate::registry::{Registry, VipKey};

/// Between two looks at what no event tells of.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks at everything.
const FULL: Duration = Duration::from_secs(60);
/// The same where events were lost: who makes so many shouldn't keep the node busy with looking.
const LOST: Duration = Duration::from_secs(2);
/// After an event more are waited for this long: who deletes one thing deletes several.
const SETTLE: Duration = Duration::from_millis(20);
/// From a sight of something that seems to be nobody's to the removal: an ADD may be recording whose it is.
const STRAY: Duration = Duration::from_millis(300);
/// Between two searches for what is nobody's.
const SWEEP: Duration = Duration::from_secs(5);
/// So many attachments of a look at everything are done before events are looked at again.
const SLICE: usize = 25;

/// Starts it.
pub fn start(context: &Context) -> Result<(), Error> {
    // Listening before anything is read: what changes in between is told again.
    let monitor = Monitor::open()?;
    let node = NodeNet::open()?;
    let failed = |source: nix::Error| Error::Io { op: "open an eventfd", source: source.into() };
    let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed)?;
    let (sender, news) = mpsc::channel();
    let wake = Arc::new(wake);
    let waker = Arc::clone(&wake);
    let tell = move |changes| sender.send(changes).is_ok() && waker.write(1).is_ok();
    watch::start(context.registry.clone(), tell).map_err(|source| Error::Io { op: "watch the registry", source })?;
    let now = Instant::now();
    let reconciler = Reconciler {
        node,
        monitor,
        wake,
        news,
        registry: context.registry.clone(),
        teller: Teller::new(context),
        known: Known::default(),
        todo: Todo::default(),
        patience: Patience::default(),
        backlog: Vec::new(),
        started: false,
        ensured: false,
        turn: 0,
        last_pod: String::new(),
        look: now + LOOK,
        full: now + FULL,
        begun: None,
        sweep: None,
        swept: None,
    };
    reconciler.teller.pods_are_heard(reconciler.monitor.hears_others());
    let at_work = context.parts.begin("reconcile");
    let work = move || {
        let _at_work = at_work;
        reconciler.run();
    };
    let thread = thread::Builder::new().name("reconcile".into()).spawn(work);
    thread.map(drop).map_err(|source| Error::Io { op: "start a thread", source })
}

struct Reconciler {
    node: NodeNet,
    monitor: Monitor,
    wake: Arc<EventFd>,
    news: mpsc::Receiver<Changes>,
    registry: Registry,
    teller: Teller,
    known: Known,
    todo: Todo,
    patience: Patience,
    /// Attachments of a look at everything that are still to be done.
    backlog: Vec<String>,
    /// The registry has told what there is.
    started: bool,
    /// This build's programs have been brought in.
    ensured: bool,
    /// Counts the looks, so that all entries of the maps have their turn.
    turn: usize,
    /// The attachment whose pod was asked last.
    last_pod: String,
    look: Instant,
    full: Instant,
    /// When the last look at everything began.
    begun: Option<Instant>,
    /// When what is nobody's is to be searched for.
    sweep: Option<Instant>,
    swept: Option<Instant>,
}

impl Reconciler {
    fn run(mut self) {
        loop {
            self.wait();
            self.hear();
            self.learn();
            let now = Instant::now();
            if now >= self.look {
                self.look_around();
                self.look = Instant::now() + LOOK;
            }
            self.work();
        }
    }

    /// Until something happens, or is due.
    fn wait(&mut self) {
        let due = [Some(self.look), Some(self.full), self.sweep, self.patience.next()];
        let due = due.into_iter().flatten().min().unwrap_or(self.look);
        let mut timeout = due.saturating_duration_since(Instant::now());
        if !self.backlog.is_empty() {
            timeout = Duration::ZERO;
        }
        // Rounded up, so that the last millisecond isn't spent in a busy loop.
        let timeout = PollTimeout::try_from(timeout.as_millis() + u128::from(!timeout.is_zero()));
        let mut fds =
            [PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN), PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        if matches!(poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)), Ok(ready) if ready > 0) {
            thread::sleep(SETTLE);
        }
    }

    /// What the kernel tells.
    fn hear(&mut self) {
        let Self { monitor, known, todo, .. } = self;
        let result = monitor.read(|event| {
            if event.change == Change::Overrun {
                tracing::info!("more changes than could be heard: everything is looked at");
            }
            todo.hear(known, &event);
        });
        if let Err(error) = result {
            self.teller.trouble(None, "the kernel's changes aren't heard", &error);
            // A new one hears of what comes; what was is looked at.
            thread::sleep(LOOK);
            if let Ok(monitor) = Monitor::open() {
                self.monitor = monitor;
                self.todo.all = true;
            }
        }
    }

    /// What the registry tells.
    fn learn(&mut self) {
        let _ = self.wake.read();
        while let Ok(changes) = self.news.try_recv() {
            if changes.all {
                let gone: Vec<VipKey> =
                    self.known.vips().keys().filter(|key| !changes.vips.contains(key)).cloned().collect();
                for key in gone {
                    self.known.update(&key, None);
                }
            }
            for key in &changes.vips {
                self.learn_vip(key);
            }
            if !std::mem::replace(&mut self.started, true) {
                self.todo.all = true;
            }
        }
    }

    /// What is new of a VIP is looked at: what happened to it before it was known, went by unnoticed.
    fn learn_vip(&mut self, key: &VipKey) {
        match Vip::read(&self.registry, key) {
            Ok(vip) => {
                let changed = self.known.update(key, vip);
                if changed.is_some() {
                    self.todo.vips.insert(key.clone());
                }
                self.todo.attachments.extend(changed.into_iter().flatten());
            }
            // Told with the VIP, when that is looked at.
            Err(_) => drop(self.todo.vips.insert(key.clone())),
        }
    }

    fn work(&mut self) {
        let now = Instant::now();
        let Todo { mut attachments, mut vips, strays, all } = std::mem::take(&mut self.todo);
        if all {
            self.full = self.full.min(self.begun.map_or(now, |begun| begun + LOST));
        }
        if now >= self.full {
            self.begin_full_round();
        }
        for thing in self.patience.due(now) {
            match thing {
                Thing::Attachment(name) => drop(attachments.insert(name)),
                Thing::Vip(key) => drop(vips.insert(key)),
                Thing::Strays => self.sweep = Some(now),
                // Looked at each second anyway.
                Thing::Other(_) => {}
            }
        }
        let slice = self.backlog.len().saturating_sub(SLICE);
        let ends_round = slice == 0 && !self.backlog.is_empty();
        attachments.extend(self.backlog.drain(slice..));
        for name in attachments {
            if self.attachment(&name) {
                vips.extend(self.known.vips_of(&name).cloned());
            }
        }
        for key in vips {
            self.vip(&key);
        }
        if let Some(begun) = self.begun.filter(|_| ends_round) {
            self.teller.looked_at_everything(begun.elapsed());
        }
        self.mind_strays(strays);
    }

    fn mind_strays(&mut self, seen: bool) {
        let now = Instant::now();
        if seen {
            let soonest = self.swept.map_or(now + STRAY, |swept| (swept + SWEEP).max(now + STRAY));
            self.sweep.get_or_insert(soonest);
        }
        if self.sweep.is_some_and(|due| due <= now) {
            self.sweep_strays();
        }
    }

    /// What is gone needs no memory.
    fn forget_the_gone(&mut self) {
        let Self { known, patience, .. } = self;
        let names: BTreeSet<&String> = known.attachments().collect();
        patience.retain(|thing| match thing {
            Thing::Attachment(name) => names.contains(name),
            Thing::Vip(key) => known.vips().contains_key(key),
            Thing::Strays | Thing::Other(_) => true,
        });
    }
}
