//! What is kept of a network that viproute has joined, in `/etc/viproute`: outside of the directory in which a runtime would take it for a
//! network.
//!
//! | file | holds |
//! |---|---|
//! | `NAME.orig` | the network as it was |
//! | `NAME.joined` | as it became: who has worked on it since has made it another. While there is this file, viproute is to stay in the network |
//! | `NAME.left` | the same, once viproute is not to stay there any more |
//! | `NAME.network` | a link to the network |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::replace::{self, Seen};

/// The files that are kept of one network.
#[derive(Debug)]
pub struct Kept {
    dir: PathBuf,
    /// The network's file's.
    name: String,
}

impl Kept {
    /// Those of a network.
    pub fn of(dir: &Path, network: &Path) -> Self {
        let name = network.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { dir: dir.to_owned(), name }
    }

    /// Those of all networks, by name.
    pub fn all(dir: &Path) -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(dir)? {
            let file = entry?.file_name();
            if let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".orig")) {
                all.push(Self { dir: dir.to_owned(), name: name.to_owned() });
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.dir.join(format!("{}.{ending}", self.name))
    }

    /// The network's path on the machine; without the link, the one of that name in `conf_dir`.
    pub fn network(&self, conf_dir: &Path) -> PathBuf {
        fs::read_link(self.file("network")).unwrap_or_else(|_| conf_dir.join(&self.name))
    }

    /// The network as it was.
    pub fn original(&self) -> PathBuf {
        self.file("orig")
    }

    /// viproute is to stay in the network.
    pub fn stays(&self) -> bool {
        self.file("joined").exists()
    }

    /// The network as it was, and as it became. Empty where it isn't known: that is no network's text.
    pub fn texts(&self) -> [String; 2] {
        let read = |ending| fs::read_to_string(self.file(ending));
        [read("orig").unwrap_or_default(), read("joined").or_else(|_| read("left")).unwrap_or_default()]
    }

    /// Keeps both texts, with the owner and mode of the network, which may hold a token. With the last step viproute is to stay there.
    pub fn keep(&self, network: &Path, seen: &Seen, joined: &str) -> io::Result<()> {
        if self.stays() && self.texts() == [seen.text.as_str(), joined] {
            return Ok(());
        }
        replace::write(&self.original(), &seen.text, &seen.like)?;
        let link = self.file("network");
        if fs::read_link(&link).ok().as_deref() != Some(network) {
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(network, &link)?;
        }
        replace::write(&self.file("joined"), joined, &seen.like)?;
        let _ = fs::remove_file(self.file("left"));
        Ok(())
    }

    /// viproute is not to stay in the network.
    pub fn leave(&self) -> io::Result<()> {
        absent_will_do(fs::rename(self.file("joined"), self.file("left")))
    }

    /// It is to stay there again.
    pub fn stay(&self) -> io::Result<()> {
        absent_will_do(fs::rename(self.file("left"), self.file("joined")))
    }

    /// The original last: with it the rest is found again.
    pub fn forget(&self) {
        for path in ["joined", "left", "network", "orig"].map(|ending| self.file(ending)) {
            let _ = fs::remove_file(&path);
            replace::forget(&path);
        }
    }
}

fn absent_will_do(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
