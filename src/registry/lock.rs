//! Locks by flock(2): released by the kernel when their holder dies.

use std::fs::{File, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Error, Result};

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
    /// Give up: who needs the lock needs what it guards.
    GiveUp,
}

/// A lock that isn't waited for.
#[derive(Debug)]
pub enum Attempt<T> {
    /// It was free.
    Taken(T),
    /// Somebody holds it.
    Busy,
    /// The file doesn't exist.
    Absent,
}

impl Lock {
    /// Takes the lock of `path` if nobody holds it.
    pub fn attempt(path: &Path) -> Result<Attempt<Self>> {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
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
        Ok(if lock.is_still_at(path) { Attempt::Taken(lock) } else { Attempt::Absent })
    }

    /// Waits for the lock of `path`. `None`: the file (or its directory) doesn't exist, now or since the wait.
    pub fn take(path: &Path, missing: Missing) -> Result<Option<Self>> {
        let mut options = File::options();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.create(missing == Missing::Create);
        loop {
            let file = match options.open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(Error::io("open", path)(e)),
            };
            let lock = Self::wait(file, path)?;
            // Whoever held it may have removed the file; then this lock guards nothing.
            if lock.is_still_at(path) {
                return Ok(Some(lock));
            }
        }
    }

    /// Creates the file, which must not exist, and locks it. `None`: it exists.
    pub fn create_new(path: &Path) -> Result<Option<Self>> {
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        loop {
            let file = match options.open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(None),
                Err(e) => return Err(Error::io("create", path)(e)),
            };
            // Between the two calls a DEL may have taken the empty file for a torn one, and removed it.
            let lock = Self::wait(file, path).inspect_err(|_| drop(std::fs::remove_file(path)))?;
            if lock.is_still_at(path) {
                return Ok(Some(lock));
            }
        }
    }

    fn wait(file: File, path: &Path) -> Result<Self> {
        loop {
            match file.lock() {
                Ok(()) => return Ok(Self { file }),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("lock", path)(e)),
            }
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
