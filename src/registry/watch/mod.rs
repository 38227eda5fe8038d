//! The one watcher of the registry: it hears of changes by inotify, reads what has changed once, and hands every
//! subscriber a snapshot and the keys that differ. Where the kernel has no inotify instance or watch left it polls
//! modification times instead, and says which setting to raise.
//!
//! Everything is read again every 30 s in case a change went unnoticed.
//!
//! It hears of other directories too ([`Follower`]): a process of viproute's has one inotify instance, of the 128 that a user may have.

mod follow;
mod inotify;
mod poll;
mod snapshot;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::VipKey;

use super::Registry;
use follow::Followed;
use inotify::{Exhausted, Watches};
use poll::Times;

pub use follow::Follower;
pub use snapshot::{Read, Snapshot, Update, View};

/// Between two readings of everything.
const FULL: Duration = Duration::from_secs(30);
/// The longest wait: the watcher's thread shows at least this often that it is alive.
const TURN: Duration = Duration::from_secs(10);
/// Between two tries to leave polling for inotify again.
const RETRY: Duration = Duration::from_secs(300);

type Subscriber = Box<dyn FnMut(Update) -> bool + Send>;

/// Where a part subscribes. Clones are the same.
#[derive(Clone, Default)]
pub struct Watch(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    /// The last one published; none before the first reading.
    snapshot: Option<Arc<Snapshot>>,
    /// Everything was read at least once.
    complete: bool,
    subscribers: Vec<Subscriber>,
    /// Why the registry is polled.
    degraded: Option<String>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// Has `tell` called with all that is recorded, then with each change, until it returns false. It is called under
    /// a lock: it passes the update on by a channel and does no work of its own.
    pub fn subscribe(&self, mut tell: impl FnMut(Update) -> bool + Send + 'static) {
        let mut shared = self.shared();
        let full = shared.complete;
        let wants_more = shared.snapshot.clone().is_none_or(|snapshot| {
            let changed = snapshot.vips.keys().cloned().collect();
            tell(Update { snapshot, changed, full })
        });
        if wants_more {
            shared.subscribers.push(Box::new(tell));
        }
    }

    /// Why changes are polled for instead of heard: the kernel's limit, and how to raise it.
    pub fn degraded(&self) -> Option<String> {
        self.shared().degraded.clone()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads these VIPs and publishes those that differ from before.
    fn publish(&self, registry: &Registry, keys: BTreeSet<VipKey>) {
        let read: Vec<_> = keys.into_iter().map(|key| (View::read(registry, &key).map(Arc::new), key)).collect();
        self.tell(read, false);
    }

    /// Reads these VIPs and those that are gone.
    fn publish_all(&self, registry: &Registry, keys: Vec<VipKey>) {
        let known: Vec<VipKey> =
            self.shared().snapshot.iter().flat_map(|snapshot| snapshot.vips.keys().cloned()).collect();
        let keys: BTreeSet<VipKey> = keys.into_iter().chain(known).collect();
        let read = keys.into_iter().map(|key| (View::read(registry, &key).map(Arc::new), key)).collect();
        self.tell(read, true);
    }

    fn tell(&self, read: Vec<(Option<Arc<View>>, VipKey)>, full: bool) {
        let mut shared = self.shared();
        shared.complete |= full;
        let Shared { snapshot, subscribers, .. } = &mut *shared;
        // No copy is made unless a subscriber still holds the one before.
        let current = Arc::make_mut(snapshot.get_or_insert_default());
        let changed: BTreeSet<VipKey> =
            read.into_iter().filter_map(|(view, key)| current.set(&key, view).then_some(key)).collect();
        if changed.is_empty() && !full {
            return;
        }
        let Some(snapshot) = snapshot.clone() else { return };
        subscribers.retain_mut(|tell| tell(Update { snapshot: snapshot.clone(), changed: changed.clone(), full }));
    }

    /// A reading that failed: subscribers that wait for the first one go on without.
    fn publish_nothing(&self) {
        let mut shared = self.shared();
        if shared.snapshot.is_some() {
            return;
        }
        let snapshot = Arc::new(Snapshot::default());
        shared.snapshot = Some(snapshot.clone());
        let changed = BTreeSet::new();
        let update = Update { snapshot, changed, full: false };
        shared.subscribers.retain_mut(|tell| tell(update.clone()));
    }

    /// Said once for each reason.
    fn degrade(&self, why: &str) {
        let mut shared = self.shared();
        if shared.degraded.as_deref() != Some(why) {
            tracing::warn!("{why}");
            shared.degraded = Some(why.to_owned());
        }
    }

    fn recover(&self) {
        if self.shared().degraded.take().is_some() {
            tracing::info!("the registry is watched by inotify again");
        }
    }
}

/// What has to be read again.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    all: bool,
    vips: BTreeSet<VipKey>,
    /// In a directory that is followed.
    followed: bool,
}

/// Watches for as long as the process lives; `each_turn` is called at least every 10 s.
pub fn run(registry: &Registry, watch: &Watch, follower: Follower, mut each_turn: impl FnMut()) {
    let mut source = Source::open(registry.clone(), watch.clone());
    let mut beside = Followed::new(follower);
    let mut due = Instant::now();
    loop {
        each_turn();
        source.follow(&mut beside);
        let at_most = due.saturating_duration_since(Instant::now()).min(TURN).min(beside.at_most());
        let changes = source.wait(at_most);
        if changes.followed {
            beside.changed();
        }
        if changes.all || Instant::now() >= due {
            due = Instant::now() + FULL;
            source.read_all();
        } else if !changes.vips.is_empty() {
            changes.vips.iter().for_each(|vip| source.cover(vip));
            watch.publish(registry, changes.vips);
        }
    }
}

/// Where reports of changes come from.
struct Source {
    registry: Registry,
    watch: Watch,
    by: By,
}

enum By {
    Inotify(Watches),
    /// And when inotify is to be tried again.
    Polling(Times, Instant),
}

impl Source {
    fn open(registry: Registry, watch: Watch) -> Self {
        let mut source = Self { registry, watch, by: By::Polling(Times::default(), Instant::now()) };
        source.try_inotify();
        source
    }

    /// Polls from now on where inotify can't be had.
    fn try_inotify(&mut self) {
        match Watches::open() {
            Ok(watches) => self.by = By::Inotify(watches),
            Err(why) => self.poll(&why),
        }
    }

    fn poll(&mut self, why: &Exhausted) {
        self.watch.degrade(&why.to_string());
        self.by = By::Polling(Times::default(), Instant::now() + RETRY);
    }

    fn wait(&mut self, at_most: Duration) -> Changes {
        match &mut self.by {
            By::Inotify(watches) => match watches.wait(&self.registry, at_most) {
                Ok(changes) => changes,
                Err(why) => {
                    self.poll(&why);
                    Changes { all: true, ..Changes::default() }
                }
            },
            By::Polling(times, _) => times.wait(&self.registry, at_most),
        }
    }

    /// Watches that VIP from now on. Called before the VIP is read: a change in between is reported again.
    fn cover(&mut self, vip: &VipKey) {
        match &mut self.by {
            By::Inotify(watches) => {
                if let Err(why) = watches.cover(&self.registry, vip) {
                    self.poll(&why);
                    self.cover_all();
                }
            }
            By::Polling(times, _) => times.cover(&self.registry, vip),
        }
    }

    fn cover_all(&mut self) {
        for vip in self.registry.vips().unwrap_or_default() {
            self.cover(&vip);
        }
    }

    fn read_all(&mut self) {
        if let By::Polling(_, again) = self.by
            && again <= Instant::now()
        {
            self.try_inotify();
        }
        if let By::Inotify(watches) = &mut self.by
            && let Err(why) = watches.cover_root(&self.registry)
        {
            self.poll(&why);
        }
        match self.registry.vips() {
            Ok(vips) => {
                for vip in &vips {
                    self.cover(vip);
                }
                if matches!(self.by, By::Inotify(_)) {
                    self.watch.recover();
                }
                self.watch.publish_all(&self.registry, vips);
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "registry not read");
                self.watch.publish_nothing();
            }
        }
    }
}
