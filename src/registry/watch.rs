//! Notices what changes in the registry (inotify), and says "everything" every 30 s in case a change went unnoticed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Registry, VipKey};

/// Between two looks at everything.
const FULL: Duration = Duration::from_secs(30);
/// Between two tries to watch a registry that isn't there yet.
const RETRY: Duration = Duration::from_secs(1);
/// After a change, more are waited for this long: an ADD writes several files.
const SETTLE: Duration = Duration::from_millis(5);

/// What has to be read again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Everything, VIPs that are gone included.
    pub all: bool,
    /// These VIPs; all that there are where `all` is set.
    pub vips: BTreeSet<VipKey>,
}

/// Hands changes to `tell` until that returns false, the first ones at once (everything). On a thread of its own: reading
/// files blocks.
pub fn start(registry: Registry, mut tell: impl FnMut(Changes) -> bool + Send + 'static) -> io::Result<()> {
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
        let mut changes = watcher.everything();
        while tell(changes) {
            changes = watcher.next(&mut last);
        }
    };
    thread::Builder::new().name("registry".into()).spawn(work).map(drop)
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

impl Watcher {
    /// Waits for the next thing worth telling.
    fn next(&mut self, last: &mut Instant) -> Changes {
        loop {
            let wait = if self.root.is_some() { FULL.saturating_sub(last.elapsed()) } else { RETRY };
            let changes = self.wait(wait);
            let due = last.elapsed() >= FULL || (self.root.is_none() && self.watch_root());
            if changes.all || due {
                *last = Instant::now();
                return self.everything();
            }
            if !changes.vips.is_empty() {
                for vip in &changes.vips {
                    self.watch_vip(vip);
                }
                return changes;
            }
        }
    }

    fn wait(&mut self, timeout: Duration) -> Changes {
        let mut changes = Changes::default();
        if self.is_readable(timeout) {
            thread::sleep(SETTLE);
            while self.is_readable(Duration::ZERO) && self.collect(&mut changes) {}
        }
        changes
    }

    fn is_readable(&self, timeout: Duration) -> bool {
        let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        // Rounded up, so that the last millisecond isn't spent in a busy loop.
        let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        matches!(poll(&mut fds, timeout), Ok(1))
    }

    /// False: nothing more can be read now.
    fn collect(&mut self, changes: &mut Changes) -> bool {
        let mut buffer = [0; 16 * 1024];
        let Ok(events) = self.inotify.read_events(&mut buffer) else { return false };
        for event in events {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                changes.all = true;
            } else if event.mask.contains(EventMask::IGNORED) {
                self.dirs.remove(&event.wd);
                if self.root.as_ref() == Some(&event.wd) {
                    self.root = None;
                    changes.all = true;
                }
            } else if let Some(name) = event.name.and_then(|name| name.to_str()) {
                let in_root = self.root.as_ref() == Some(&event.wd);
                changes.vips.extend(concerns(name, in_root, self.dirs.get(&event.wd)));
            }
        }
        true
    }

    fn everything(&mut self) -> Changes {
        self.watch_root();
        match self.registry.vips() {
            Ok(vips) => {
                for vip in &vips {
                    self.watch_vip(vip);
                }
                Changes { all: true, vips: vips.into_iter().collect() }
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "registry not read");
                Changes::default()
            }
        }
    }

    /// Before it is read: what changes in between is told again.
    fn watch_vip(&mut self, vip: &VipKey) {
        let dir = self.registry.vips_dir().join(vip.dir_name());
        for path in [dir.join("endpoints"), dir] {
            if let Some(wd) = self.watch(&path) {
                self.dirs.insert(wd, vip.clone());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_and_locks_are_no_news() {
        let key = VipKey::new("a", "b").unwrap();
        for noise in [".vip.json.tmp", "lock", "index.json"] {
            assert_eq!(concerns(noise, false, Some(&key)), None, "{noise}");
        }
        assert_eq!(concerns("c@eth0.json", false, Some(&key)), Some(key.clone()));
        assert_eq!(concerns("a_b", true, None), Some(key));
        assert_eq!(concerns(".a_b.1.gone", true, None), None);
    }
}
