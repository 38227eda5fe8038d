//! Directories beside the registry that the same watcher hears of.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::inotify::{Covered, Exhausted};
use super::{By, Source, TURN};

/// Between two tries to watch a directory that isn't there.
const RETRY: Duration = Duration::from_secs(1);

/// Who wants to hear of changes in other directories than the registry's.
pub struct Follower {
    /// Which. It is asked again after each change in one of them, and every 10 s.
    pub dirs: Box<dyn FnMut() -> BTreeSet<PathBuf> + Send>,
    /// A file in one of them may have changed. It does no work of its own.
    pub tell: Box<dyn FnMut() + Send>,
}

/// What is followed now.
pub struct Followed {
    follower: Follower,
    dirs: BTreeSet<PathBuf>,
    /// When to ask again.
    due: Instant,
    /// One of them can't be watched: it isn't there.
    incomplete: bool,
}

impl Followed {
    pub fn new(follower: Follower) -> Self {
        Self { follower, dirs: BTreeSet::new(), due: Instant::now(), incomplete: true }
    }

    /// How long may be waited for changes.
    pub fn at_most(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }

    /// A file has changed, and with it perhaps the directories.
    pub fn changed(&mut self) {
        (self.follower.tell)();
        self.due = Instant::now();
    }
}

impl Source {
    /// Watches the directories that are followed, where it is time to ask for them. What has changed in one before it was watched is
    /// told of now.
    pub(super) fn follow(&mut self, followed: &mut Followed) {
        if !followed.at_most().is_zero() {
            return;
        }
        followed.dirs = (followed.follower.dirs)();
        let covered = match &mut self.by {
            By::Inotify(watches) => watches.follow(&followed.dirs),
            By::Polling(..) => Ok(Covered::default()),
        };
        match covered {
            Ok(covered) => {
                followed.incomplete = covered.incomplete;
                if covered.more {
                    (followed.follower.tell)();
                }
            }
            Err(why) => self.lose_inotify(&why),
        }
        followed.due = Instant::now() + if followed.incomplete { RETRY } else { TURN };
    }

    fn lose_inotify(&mut self, why: &Exhausted) {
        self.poll(why);
        self.cover_all();
    }
}
