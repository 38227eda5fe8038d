//! Reconciles the node with the registry: VIPs, attachments and the node's own objects. An object that an operator deletes
//! is back within a second; orphans are removed. Events come from the kernel (`net::monitor`) and from the registry. What
//! causes no event is compared each second, everything once a minute and after a netlink overrun. The loop receives the
//! events of its own changes too: the comparison then finds no difference, and the round ends.

mod announcements;
mod backoff;
mod cache;
mod express;
mod link;
mod node;
mod notrack;
mod queue;
mod reporter;
mod rounds;
mod tunnel;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::model::VipKey;
use crate::net::NodeNet;
use crate::net::monitor::{Change, Monitor};
use crate::node::reconcile::backoff::{Backoff, ObjectId};
use crate::node::reconcile::cache::{Cache, Vip};
use crate::node::reconcile::queue::WorkQueue;
use crate::node::reconcile::reporter::RepairReporter;
use crate::registry::Registry;
use crate::registry::record::Unknown;
use crate::registry::watch::{Update, View};

use super::subsystems::{RECONCILE, SubsystemGuard};
use super::{Context, Error};

/// Between two comparisons of what causes no event.
const LOOK: Duration = Duration::from_secs(1);
/// Between two full resyncs.
const FULL: Duration = Duration::from_secs(60);
/// The same after overruns: a program that causes so many events must not keep the node busy with resyncs.
const LOST: Duration = Duration::from_secs(2);
/// After an event the loop waits this long for more: one command often changes several objects.
const SETTLE: Duration = Duration::from_millis(20);
/// From the event of a possible orphan to the search for orphans: an ADD may be about to record the object.
const ORPHAN_DELAY: Duration = Duration::from_millis(300);
/// Between two searches for orphans.
const SWEEP: Duration = Duration::from_secs(5);
/// So many attachments of a full resync are compared before events are read again.
const SLICE: usize = 25;

use express::Uplinks;
pub use link::LinkSettings;
use node::NodeObjects;
pub use node::{Advertised, Discarded, NodeSettings};
use tunnel::Tunnel;

/// Wakes the loop: the registry's watcher and the allocator write to it when they have an update.
pub fn waker() -> Result<Arc<EventFd>, Error> {
    let failed = |source: nix::Error| Error::Io { op: "open an eventfd", source: source.into() };
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map(Arc::new).map_err(failed)
}

/// Starts the loop's thread.
pub fn start(context: &Context, wake: Arc<EventFd>, settings: NodeSettings) -> Result<(), Error> {
    // Subscribed before anything is read: a change in between comes as an event.
    let monitor = Monitor::open()?;
    let node = NodeNet::open()?;
    let (sender, news) = mpsc::channel();
    let waker = Arc::clone(&wake);
    context.services.wakes(Arc::clone(&wake));
    context.watch.subscribe(move |update| sender.send(update).is_ok() && waker.write(1).is_ok());
    let (objects, uplinks) = (NodeObjects::new(context, settings), Uplinks::new(context));
    let now = Instant::now();
    let reconciler = Reconciler {
        node,
        monitor,
        wake,
        news,
        registry: context.registry.clone(),
        reporter: RepairReporter::new(context),
        objects,
        uplinks,
        tunnel: Tunnel::new(),
        cache: Cache::default(),
        queue: WorkQueue::default(),
        backoff: Backoff::default(),
        backlog: Vec::new(),
        vips_changed: false,
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
    reconciler.reporter.pods_are_heard(reconciler.monitor.hears_others());
    let started = context.subsystems.spawn(&RECONCILE, move |guard| reconciler.run(&guard));
    started.map_err(|source| Error::Io { op: "start a thread", source })
}

struct Reconciler {
    node: NodeNet,
    monitor: Monitor,
    wake: Arc<EventFd>,
    news: mpsc::Receiver<Update>,
    registry: Registry,
    reporter: RepairReporter,
    objects: NodeObjects,
    uplinks: Uplinks,
    tunnel: Tunnel,
    cache: Cache,
    queue: WorkQueue,
    backoff: Backoff,
    /// Attachments that the full resync under way has yet to compare.
    backlog: Vec<String>,
    /// Other addresses may be wanted in the nftables table.
    vips_changed: bool,
    /// The registry's first update has come.
    started: bool,
    /// This build's programs are loaded.
    ensured: bool,
    /// Counts the comparisons, so that all entries of the maps have their turn.
    turn: usize,
    /// The attachment whose pod's settings were read last.
    last_pod: String,
    look: Instant,
    full: Instant,
    /// When the last full resync began.
    begun: Option<Instant>,
    /// When orphans are to be searched for.
    sweep: Option<Instant>,
    swept: Option<Instant>,
}

impl Reconciler {
    fn run(mut self, guard: &SubsystemGuard) {
        loop {
            guard.turn();
            self.wait();
            self.on_event();
            self.refresh();
            self.hear_ipv6();
            let now = Instant::now();
            let is_full = self.queue.all || now >= self.full;
            let mut express_due = self.uplinks.heard(&self.queue, is_full) || self.vips_changed;
            if now >= self.look || self.queue.tunnel || self.vips_changed || is_full {
                self.tunnel(self.queue.tunnel || is_full);
            }
            if now >= self.look {
                self.look_around();
                self.look = Instant::now() + LOOK;
                express_due = true;
            }
            self.node_objects();
            self.work(guard);
            // Last: where rules have changed it runs a program.
            self.objects.notrack.reconcile();
            self.objects.notrack6.reconcile();
            if express_due {
                self.express();
            }
        }
    }

    /// Until an event comes or something is due.
    fn wait(&mut self) {
        let due = [Some(self.look), Some(self.full), self.sweep, self.backoff.next(), self.objects.next()];
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

    /// Reads the kernel's events.
    fn on_event(&mut self) {
        let Self { monitor, cache, queue, .. } = self;
        let result = monitor.read(|event| {
            if event.change == Change::Overrun {
                tracing::info!("netlink overrun: full resync");
            }
            queue.on_event(cache, &event);
        });
        if let Err(error) = result {
            self.reporter.trouble(None, "the kernel's events can't be read", &error);
            // A new socket receives later events; the full resync covers earlier ones.
            thread::sleep(LOOK);
            if let Ok(monitor) = Monitor::open() {
                self.monitor = monitor;
                self.queue.all = true;
            }
        }
    }

    /// What changes of IPv6 is heard from before the first comparison of a VIP that has such an address, of a tunnel over IPv6, or while the uplink
    /// isn't known, which may be that of a router advertisement to come.
    fn hear_ipv6(&mut self) {
        let is_under_tunnel = self.cache.cluster().is_some_and(|cluster| cluster.own.tunnel.is_ipv6());
        if (self.cache.has_ipv6() || is_under_tunnel || (self.started && self.objects.link().is_none()))
            && let Err(error) = self.monitor.hear_ipv6()
        {
            self.reporter.trouble(None, "the kernel's events of IPv6 can't be read", &error);
        }
    }

    /// Reads the registry's updates.
    fn refresh(&mut self) {
        let _ = self.wake.read();
        while let Ok(update) = self.news.try_recv() {
            for key in &update.changed {
                self.refresh_vip(key, update.snapshot.vips.get(key).map(|view| &**view));
            }
            if !std::mem::replace(&mut self.started, true) {
                self.queue.all = true;
            }
            self.vips_changed |= update.full || !update.changed.is_empty();
            self.uplinks.bump();
        }
    }

    /// Queues what has changed of a VIP: events from before it was cached were ignored.
    fn refresh_vip(&mut self, key: &VipKey, view: Option<&View>) {
        match view.map(|view| Vip::of(view, self.cache.cluster())) {
            None | Some(Ok(None)) => self.update_vip(key, None),
            Some(Ok(Some(vip))) => self.update_vip(key, Some(vip)),
            // Reconciling the VIP reports the error.
            Some(Err(_)) => drop(self.queue.vips.insert(key.clone())),
        }
    }

    fn update_vip(&mut self, key: &VipKey, vip: Option<Vip>) {
        let is_gone = vip.is_none();
        // The nexthop that led there may be no VIP's any more; its VIP's last event may have come while it still was.
        self.queue.orphans |= self.cache.loses_nodes(key, vip.as_ref());
        let changed = self.cache.update(key, vip);
        if changed.is_some() && !is_gone {
            self.queue.vips.insert(key.clone());
        }
        self.log_unknown(key, changed.iter().flatten());
        self.queue.attachments.extend(changed.into_iter().flatten());
    }

    /// What a later version wrote stays recorded and has no effect: the port isn't served, the check isn't made.
    fn log_unknown<'a>(&self, key: &VipKey, replicas: impl Iterator<Item = &'a String>) {
        let Some(vip) = self.cache.vips().get(key) else { return };
        for (name, replica) in replicas.filter_map(|name| Some((name, vip.replicas.get(name)?))) {
            for Unknown { what, text } in replica.unknown() {
                tracing::warn!(vip = %key, replica = name, what, text, "unknown to this version, left out");
            }
        }
    }

    fn work(&mut self, guard: &SubsystemGuard) {
        let now = Instant::now();
        let WorkQueue { mut attachments, mut vips, orphans, all, .. } = std::mem::take(&mut self.queue);
        if all {
            self.full = self.full.min(self.begun.map_or(now, |begun| begun + LOST));
        }
        if now >= self.full {
            self.begin_full_round();
        }
        for thing in self.backoff.due(now) {
            match thing {
                ObjectId::Attachment(name) => drop(attachments.insert(name)),
                ObjectId::Vip(key) => drop(vips.insert(key)),
                ObjectId::Orphans => self.sweep = Some(now),
                // Compared each second anyway.
                ObjectId::Other(_) => {}
            }
        }
        let slice = self.backlog.len().saturating_sub(SLICE);
        let ends_round = slice == 0 && !self.backlog.is_empty();
        attachments.extend(self.backlog.drain(slice..));
        if !attachments.is_empty() || !vips.is_empty() {
            self.uplinks.bump();
        }
        for name in attachments {
            guard.turn();
            if self.attachment(&name) {
                vips.extend(self.cache.vips_of(&name).cloned());
            }
        }
        for key in vips {
            guard.turn();
            self.vip(&key);
        }
        if let Some(begun) = self.begun.filter(|_| ends_round) {
            self.reporter.full_resync(begun.elapsed());
        }
        self.schedule_sweep(orphans);
    }

    fn schedule_sweep(&mut self, seen: bool) {
        let now = Instant::now();
        if seen {
            let soonest = self.swept.map_or(now + ORPHAN_DELAY, |swept| (swept + SWEEP).max(now + ORPHAN_DELAY));
            self.sweep.get_or_insert(soonest);
        }
        if self.sweep.is_some_and(|due| due <= now) {
            self.sweep_orphans();
        }
    }

    /// Drops the back-off of removed objects.
    fn evict_deleted(&mut self) {
        let Self { cache, backoff, .. } = self;
        let names: BTreeSet<&String> = cache.attachments().collect();
        backoff.retain(|thing| match thing {
            ObjectId::Attachment(name) => names.contains(name),
            ObjectId::Vip(key) => cache.vips().contains_key(key),
            ObjectId::Orphans | ObjectId::Other(_) => true,
        });
    }
}
