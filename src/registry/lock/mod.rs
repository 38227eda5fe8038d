//! Locks by flock(2): released by the kernel when their holder dies. None is waited for without an end.

mod holder;
mod timed;

use std::fs::{File, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Error, Result};

pub use holder::Holder;

/// How long a caller waits for locks: the holder of one may have been stopped, or hang.
#[derive(Clone, Debug)]
pub enum WaitLimit {
    /// Each for so long: a process that lives on comes back to what it could not do.
    Each(Duration),
    /// All together for so long: a call that its caller waits for.
    Together {
        /// At first.
        limit: Duration,
        /// What is left of it.
        left: Arc<Mutex<Duration>>,
    },
}

impl WaitLimit {
    /// All locks of one call together.
    pub fn together(limit: Duration) -> Self {
        Self::Together { limit, left: Arc::new(Mutex::new(limit)) }
    }

    /// What it was at first.
    fn whole(&self) -> Duration {
        match self {
            Self::Each(limit) | Self::Together { limit, .. } => *limit,
        }
    }

    fn left(&self) -> Duration {
        match self {
            Self::Each(limit) => *limit,
            Self::Together { left, .. } => *left.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn spend(&self, waited: Duration) {
        if let Self::Together { left, .. } = self {
            let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
            *left = left.saturating_sub(waited);
        }
    }
}

/// A held lock; closing the file lets go of it.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// What to do where there is no lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Make one.
    Create,
    /// Give up: without the file there is nothing to guard.
    GiveUp,
}

/// What came of waiting for a lock that may become needless meanwhile.
#[derive(Debug)]
pub enum Turn<T> {
    /// The lock is had.
    Taken(T),
    /// There is nothing left to take it for.
    Needless,
    /// The file doesn't exist.
    Absent,
}

/// Between two tries, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

/// A lock that isn't waited for.
#[derive(Debug)]
pub enum Attempt<T> {
    /// It was free.
    Taken(T),
    /// Another caller holds it.
    Busy,
    /// The file doesn't exist.
    Absent,
}

impl Lock {
    /// Takes the lock of `path` if it is free.
    pub fn attempt(path: &Path) -> Result<Attempt<Self>> {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
        loop {
            let file = match options.open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Attempt::Absent),
                Err(e) => return Err(Error::io("open", path)(e)),
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Attempt::Busy),
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
            }
            let lock = Self { file };
            // Removed meanwhile, or replaced by another.
            if lock.is_still_at(path) {
                return Ok(Attempt::Taken(lock));
            }
        }
    }

    /// Tries to take the lock of `path` again and again, unless it becomes needless: a thousand callers whose work one of them has
    /// done needn't have the lock one after the other.
    pub fn take_unless(path: &Path, is_needless: impl Fn() -> bool, limit: &WaitLimit) -> Result<Turn<Self>> {
        let begun = Instant::now();
        let (left, mut pause) = (limit.left(), FIRST_PAUSE);
        let turn = loop {
            match Self::attempt(path)? {
                Attempt::Taken(lock) => break Turn::Taken(lock),
                Attempt::Absent => break Turn::Absent,
                Attempt::Busy if is_needless() => break Turn::Needless,
                Attempt::Busy => {}
            }
            if begun.elapsed() >= left {
                limit.spend(begun.elapsed());
                let holder = File::open(path).ok().and_then(|file| Holder::of(&file));
                return Err(Error::Locked { path: path.to_owned(), holder, waited: limit.whole() });
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(LONGEST_PAUSE);
        };
        limit.spend(begun.elapsed());
        Ok(turn)
    }

    /// Waits for the lock of `path`. `None`: the file (or its directory) doesn't exist, now or since the wait.
    pub fn take(path: &Path, missing: Missing, limit: &WaitLimit) -> Result<Option<Self>> {
        let mut options = File::options();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.create(missing == Missing::Create);
        loop {
            let file = match options.open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(Error::io("open", path)(e)),
            };
            let lock = Self::wait(file, path, limit)?;
            // The previous holder may have removed the file; then this lock guards nothing.
            if lock.is_still_at(path) {
                return Ok(Some(lock));
            }
        }
    }

    /// Creates the file, which must not exist, and locks it. `None`: it exists.
    pub fn create_new(path: &Path, limit: &WaitLimit) -> Result<Option<Self>> {
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        loop {
            let file = match options.open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(None),
                Err(e) => return Err(Error::io("create", path)(e)),
            };
            // Between the two calls a DEL may have taken the empty file for a torn one, and removed it.
            let lock = Self::wait(file, path, limit).inspect_err(|_| drop(std::fs::remove_file(path)))?;
            if lock.is_still_at(path) {
                return Ok(Some(lock));
            }
        }
    }

    fn wait(file: File, path: &Path, limit: &WaitLimit) -> Result<Self> {
        match file.try_lock() {
            Ok(()) => return Ok(Self { file }),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
        }
        let begun = Instant::now();
        let again = file.try_clone().map_err(Error::io("lock", path))?;
        let locked = timed::lock_within(again, limit.left());
        limit.spend(begun.elapsed());
        match locked.map_err(Error::io("lock", path))? {
            Some(file) => Ok(Self { file }),
            None => Err(Error::Locked { path: path.to_owned(), holder: Holder::of(&file), waited: limit.whole() }),
        }
    }

    fn is_still_at(&self, path: &Path) -> bool {
        let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
        let (here, there) = (self.file.metadata().map(identity), std::fs::symlink_metadata(path).map(identity));
        matches!((here, there), (Ok(here), Ok(there)) if here == there)
    }

    /// The locked file itself.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// A lock's path and the path of what it guards, for messages.
pub fn of_dir(dir: &Path) -> PathBuf {
    dir.join("lock")
}
