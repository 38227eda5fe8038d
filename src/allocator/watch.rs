//! Which VIPs have replicas on this node: read from the registry when it changes (inotify), and as a whole every 30 s in
//! case a change went unnoticed. On a thread of its own, because reading files blocks.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;

use super::state::Presence;
use crate::registry::{self, Registry, State, VipKey};

/// Between two readings of everything.
const FULL: Duration = Duration::from_secs(30);
/// Between two tries to watch a registry that isn't there yet.
const RETRY: Duration = Duration::from_secs(1);
/// After a change, more are waited for this long: an ADD writes several files.
const SETTLE: Duration = Duration::from_millis(5);

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Everything: a VIP that isn't in it has no replicas here.
    pub full: bool,
    /// What the registry says, VIP by VIP.
    pub vips: Vec<(VipKey, Presence)>,
}

/// Starts the thread; it ends when nobody listens any more.
pub fn start(registry: Registry) -> io::Result<mpsc::UnboundedReceiver<Batch>> {
    let (batches, receiver) = mpsc::unbounded_channel();
    let mut watcher = Watcher {
        inotify: Inotify::init()?,
        registry,
        root: None,
        above: HashSet::new(),
        dirs: HashMap::new(),
        warned: false,
    };
    let work = move || {
        let mut last = Instant::now();
        let mut batch = watcher.read_all();
        while batches.send(batch).is_ok() {
            batch = watcher.next(&mut last);
        }
    };
    thread::Builder::new().name("registry".into()).spawn(work)?;
    Ok(receiver)
}

struct Watcher {
    inotify: Inotify,
    registry: Registry,
    /// `vips/` itself.
    root: Option<WatchDescriptor>,
    /// While there is no `vips/`: the directories above in which it may come.
    above: HashSet<WatchDescriptor>,
    /// `vips/<x>/` and `vips/<x>/endpoints/`.
    dirs: HashMap<WatchDescriptor, VipKey>,
    warned: bool,
}

/// What events say has to be read again.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dirty {
    all: bool,
    vips: BTreeSet<VipKey>,
}

impl Watcher {
    /// Waits for the next thing worth telling.
    fn next(&mut self, last: &mut Instant) -> Batch {
        loop {
            let wait = if self.root.is_some() { FULL.saturating_sub(last.elapsed()) } else { RETRY };
            let dirty = self.wait(wait);
            let due = last.elapsed() >= FULL || (self.root.is_none() && self.watch_root());
            if dirty.all || due {
                *last = Instant::now();
                return self.read_all();
            }
            if !dirty.vips.is_empty() {
                let vips = dirty.vips.into_iter().filter_map(|vip| self.read(vip)).collect();
                return Batch { full: false, vips };
            }
        }
    }

    fn wait(&mut self, timeout: Duration) -> Dirty {
        let mut dirty = Dirty::default();
        if self.is_readable(timeout) {
            thread::sleep(SETTLE);
            while self.is_readable(Duration::ZERO) && self.collect(&mut dirty) {}
        }
        dirty
    }

    fn is_readable(&self, timeout: Duration) -> bool {
        let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        // Rounded up, so that the last millisecond isn't spent in a busy loop.
        let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        matches!(poll(&mut fds, timeout), Ok(1))
    }

    /// False: nothing more can be read now.
    fn collect(&mut self, dirty: &mut Dirty) -> bool {
        let mut buffer = [0; 16 * 1024];
        let Ok(events) = self.inotify.read_events(&mut buffer) else { return false };
        for event in events {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                dirty.all = true;
            } else if event.mask.contains(EventMask::IGNORED) {
                self.dirs.remove(&event.wd);
                if self.root.as_ref() == Some(&event.wd) {
                    self.root = None;
                    dirty.all = true;
                }
            } else if let Some(name) = event.name.and_then(|name| name.to_str()) {
                let in_root = self.root.as_ref() == Some(&event.wd);
                dirty.vips.extend(concerns(name, in_root, self.dirs.get(&event.wd)));
            }
        }
        true
    }

    fn read_all(&mut self) -> Batch {
        self.watch_root();
        match self.registry.vips() {
            Ok(vips) => {
                let all = vips.len();
                let vips: Vec<_> = vips.into_iter().filter_map(|vip| self.read(vip)).collect();
                // Nothing may be concluded about what could not be read.
                Batch { full: vips.len() == all, vips }
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "registry not read");
                Batch { full: false, vips: Vec::new() }
            }
        }
    }

    /// Watched first, then read: what changes in between is read again.
    fn read(&mut self, vip: VipKey) -> Option<(VipKey, Presence)> {
        let dir = self.registry.vips_dir().join(vip.dir_name());
        for path in [dir.join("endpoints"), dir] {
            if let Some(wd) = self.watch(&path) {
                self.dirs.insert(wd, vip.clone());
            }
        }
        match presence(&self.registry, &vip) {
            Ok(presence) => Some((vip, presence)),
            Err(error) => {
                tracing::warn!(%vip, error = &error as &dyn std::error::Error, "registry not read");
                None
            }
        }
    }

    /// True if it wasn't watched before and is now.
    fn watch_root(&mut self) -> bool {
        if self.root.is_some() {
            return false;
        }
        let path = self.registry.vips_dir();
        self.root = self.watch(&path);
        if self.root.is_none() {
            // Above first, then once more: it may have come in between. What slips through even so, `RETRY` finds.
            let found = path.ancestors().skip(1).find_map(|above| self.watch(above));
            self.above.extend(found);
            self.root = self.watch(&path);
        }
        if self.root.is_some() {
            for above in self.above.drain() {
                let _ = self.inotify.watches().remove(above); // gone, if its directory is
            }
        }
        self.root.is_some()
    }

    fn watch(&mut self, path: &Path) -> Option<WatchDescriptor> {
        // Files are replaced by renaming, so that writing to one is no news.
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::ONLYDIR;
        match self.inotify.watches().add(path, mask) {
            Ok(wd) => Some(wd),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                if !std::mem::replace(&mut self.warned, true) {
                    let path = path.display();
                    tracing::warn!(%path, error = %e, "not watched: changes are seen every 30 s only");
                }
                None
            }
        }
    }
}

/// The VIP that a changed file is about.
fn concerns(name: &str, in_root: bool, dir: Option<&VipKey>) -> Option<VipKey> {
    if in_root {
        return VipKey::from_dir_name(name);
    }
    // Hidden: temporary. The index follows the endpoints, which were seen to change.
    let noise = name.starts_with('.') || name == "lock" || name == "index.json";
    dir.filter(|_| !noise).cloned()
}

/// What the registry has of one VIP. A damaged endpoint is a replica all the same, just not a ready one.
pub fn presence(registry: &Registry, vip: &VipKey) -> registry::Result<Presence> {
    let record = match registry.vip_record(vip) {
        Err(error) if error.is_damage() => {
            tracing::warn!(%vip, error = &error as &dyn std::error::Error, "record passed over");
            None
        }
        other => other?,
    };
    let endpoints = registry.endpoints(vip)?;
    let is_ready = |(_, endpoint): &&(String, registry::Result<registry::Endpoint>)| {
        endpoint.as_ref().is_ok_and(|endpoint| endpoint.state == State::Ready)
    };
    Ok(Presence {
        address: record.filter(|record| !record.withdrawn).map(|record| record.address),
        endpoints: endpoints.len(),
        ready: endpoints.iter().filter(is_ready).count(),
    })
}

#[cfg(test)]
mod tests;
