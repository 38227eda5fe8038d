//! A directory that two programs may see at different paths.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A directory, and which one it is: a container may have it at another path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Its path where viprouted runs.
    pub path: PathBuf,
    /// The numbers of its filesystem and inode; none while it doesn't exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<(u64, u64)>,
}

impl Directory {
    /// The directory at a path, as it is now.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path) }
    }

    /// Whether it is the one at this path. Two that don't exist yet are told apart by their paths.
    pub fn is_at(&self, path: &Path) -> bool {
        match (self.identity, identity(path)) {
            (None, None) => self.path == path,
            (theirs, ours) => theirs == ours,
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
