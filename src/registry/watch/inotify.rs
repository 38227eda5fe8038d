//! Changes as the kernel tells them (inotify(7)).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::model::VipKey;
use crate::registry::Registry;

use super::Changes;

/// Between two tries to watch a registry that isn't there yet.
const RETRY: Duration = Duration::from_secs(1);
/// After a change, more are waited for this long: an ADD writes several files.
const SETTLE: Duration = Duration::from_millis(5);

/// Why changes can't be heard of by inotify.
#[derive(Debug)]
pub enum Exhausted {
    /// `inotify_init1` fails by EMFILE, and other files can be opened.
    Instances,
    /// `inotify_add_watch` fails by ENOSPC.
    Watches,
    /// The process has no descriptor left.
    Files,
    /// Something else.
    Other(io::Error),
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = match self {
            Self::Instances => "max_user_instances",
            Self::Watches => "max_user_watches",
            Self::Files => {
                return f.write_str(
                    "no file descriptor is left for inotify: the registry is polled every second; raise LimitNOFILE",
                );
            }
            Self::Other(error) => {
                return write!(f, "no inotify: {error}; the registry is polled every second");
            }
        };
        let name = format!("fs.inotify.{limit}");
        let value = std::fs::read_to_string(format!("/proc/sys/fs/inotify/{limit}")).unwrap_or_default();
        let value: u64 = value.trim().parse().unwrap_or_default();
        write!(
            f,
            "{name} ({value}) is used up: the registry is polled every second; raise it: sysctl -w {name}={}",
            value.saturating_mul(2)
        )
    }
}

/// The registry's directories, watched.
pub struct Watches {
    inotify: Inotify,
    /// `vips/` itself.
    root: Option<WatchDescriptor>,
    /// While there is no `vips/`: the directories above in which it may come.
    above: HashSet<WatchDescriptor>,
    /// `vips/<x>/` and `vips/<x>/endpoints/`.
    dirs: HashMap<WatchDescriptor, VipKey>,
    /// The directories that are followed.
    followed: HashMap<WatchDescriptor, PathBuf>,
}

/// What came of following directories.
#[derive(Clone, Copy, Debug, Default)]
pub struct Covered {
    /// One of them is watched that wasn't.
    pub more: bool,
    /// One of them isn't there.
    pub incomplete: bool,
}

impl Watches {
    /// Watches nothing so far.
    pub fn open() -> Result<Self, Exhausted> {
        let inotify = Inotify::init().map_err(init_failed)?;
        Ok(Self { inotify, root: None, above: HashSet::new(), dirs: HashMap::new(), followed: HashMap::new() })
    }

    /// Until something has changed, at most so long.
    pub fn wait(&mut self, registry: &Registry, at_most: Duration) -> Result<Changes, Exhausted> {
        let mut changes = Changes::default();
        if self.is_readable(if self.root.is_some() { at_most } else { at_most.min(RETRY) }) {
            thread::sleep(SETTLE);
            while self.is_readable(Duration::ZERO) && self.collect(&mut changes) {}
        }
        // It has come: what is in it was made before it was watched.
        changes.all |= self.root.is_none() && self.cover_root(registry)?;
        Ok(changes)
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
                changes.followed = true;
            } else if self.followed.contains_key(&event.wd) {
                changes.followed = true;
                if event.mask.contains(EventMask::IGNORED) {
                    self.followed.remove(&event.wd);
                }
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

    /// Watches a VIP's directories, as far as they exist.
    pub fn cover(&mut self, registry: &Registry, vip: &VipKey) -> Result<(), Exhausted> {
        let dir = registry.vip_dir(vip);
        for path in [dir.join("endpoints"), dir] {
            if let Some(wd) = self.watch(&path, WatchMask::empty())? {
                self.dirs.insert(wd, vip.clone());
            }
        }
        Ok(())
    }

    /// Watches `vips/`. True if it wasn't watched before and is now.
    pub fn cover_root(&mut self, registry: &Registry) -> Result<bool, Exhausted> {
        if self.root.is_some() {
            return Ok(false);
        }
        let path = registry.vips_dir();
        self.root = self.watch(&path, WatchMask::empty())?;
        if self.root.is_none() {
            // Above first, then once more: it may have come in between. What slips through even so, `RETRY` finds.
            for above in path.ancestors().skip(1) {
                if let Some(wd) = self.watch(above, WatchMask::empty())? {
                    self.above.insert(wd);
                    break;
                }
            }
            self.root = self.watch(&path, WatchMask::empty())?;
        }
        if self.root.is_some() {
            for above in self.above.drain() {
                let _ = self.inotify.watches().remove(above); // gone, if its directory is
            }
        }
        Ok(self.root.is_some())
    }

    /// Follows these directories and no others. A path that leads to another directory than before is followed there.
    pub fn follow(&mut self, dirs: &BTreeSet<PathBuf>) -> Result<Covered, Exhausted> {
        let mut now = HashMap::new();
        let mut covered = Covered::default();
        for dir in dirs {
            // Others write files in place.
            match self.watch(dir, WatchMask::CLOSE_WRITE)? {
                Some(wd) => drop(now.insert(wd, dir.clone())),
                None => covered.incomplete = true,
            }
        }
        covered.more = now.keys().any(|wd| !self.followed.contains_key(wd));
        for wd in std::mem::take(&mut self.followed).into_keys().filter(|wd| !now.contains_key(wd)) {
            let _ = self.inotify.watches().remove(wd); // gone, if its directory is
        }
        self.followed = now;
        Ok(covered)
    }

    /// `None`: there is no such directory.
    fn watch(&mut self, path: &Path, more: WatchMask) -> Result<Option<WatchDescriptor>, Exhausted> {
        // The registry's files are replaced by renaming, so that writing to one is no news.
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::ONLYDIR | more;
        match self.inotify.watches().add(path, mask) {
            Ok(wd) => Ok(Some(wd)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) if is(&e, Errno::ENOSPC) => Err(Exhausted::Watches),
            Err(e) => Err(Exhausted::Other(e)),
        }
    }
}

/// EMFILE has two causes (`inotify_init(2)`): only with one of them other files can't be opened either.
fn init_failed(error: io::Error) -> Exhausted {
    if !is(&error, Errno::EMFILE) {
        return Exhausted::Other(error);
    }
    match File::open("/dev/null") {
        Err(e) if is(&e, Errno::EMFILE) => Exhausted::Files,
        _ => Exhausted::Instances,
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
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

    #[test]
    fn the_limit_is_named_with_its_value() {
        let text = Exhausted::Instances.to_string();
        assert!(text.contains("fs.inotify.max_user_instances (") && text.contains("sysctl -w fs.inotify."), "{text}");
        assert!(Exhausted::Watches.to_string().contains("fs.inotify.max_user_watches ("));
    }
}
