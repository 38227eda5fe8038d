//! `viproutectl node join` and `leave`: viproute becomes the last plugin of the network that this machine's runtime uses, and ceases to be.
//!
//! A wrong edit takes the node's network away: what isn't understood is refused before anything is changed, the file is replaced in one step,
//! and all of it that is not viproute's stays as it was, to the letter.

mod edit;
mod replace;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::ctl::networks::Network;
use crate::ctl::runtimes;

pub use edit::Wrong;

/// The network that is installed where there is none.
const OWN: &str = include_str!("../../../conf/10-viproute.conflist");

/// Where things are, below another root than / for packaging.
#[derive(Debug)]
pub struct Places {
    /// In place of /.
    pub root: PathBuf,
    /// The runtime's networks; below that root.
    pub conf_dir: PathBuf,
}

/// Where the original is kept: outside of the directory in which a runtime would take it for a network.
const SETTINGS: &str = "etc/viproute";

/// Why it can't be done. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network that the runtime uses can't be joined.
    #[error("{}: {wrong}", path.display())]
    Wrong {
        /// The network.
        path: PathBuf,
        /// Why.
        wrong: Wrong,
    },
    /// A file.
    #[error("{what} {}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

fn io<T>(what: &'static str, path: &Path, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Io { what, path: path.to_owned(), source })
}

/// What there is to join.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// This network.
    Join(PathBuf),
    /// This network has viproute already.
    Has(PathBuf),
    /// There is no network, or viproute's own.
    NoNetwork,
    /// podman is the only runtime: its containers join by a network's name, and its package's network is the package's.
    Podman,
}

/// A line for install.sh.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join(path) => write!(f, "join {}", path.display()),
            Self::Has(path) => write!(f, "has {}", path.display()),
            Self::NoNetwork => f.write_str("no-network"),
            Self::Podman => f.write_str("podman"),
        }
    }
}

impl Places {
    /// A path below the root.
    fn below(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn conf_dir(&self) -> PathBuf {
        self.below(&self.conf_dir)
    }

    fn settings(&self) -> PathBuf {
        self.root.join(SETTINGS)
    }

    /// The network that comes first, where a runtime takes it and it is a loopback.
    pub fn first_is_loopback(&self) -> Option<PathBuf> {
        let first = Network::read_all(&self.conf_dir()).into_iter().next()?;
        first.is_loopback().then_some(first.path)
    }

    /// What a join would do. containerd and CRI-O use the first network by name; a loopback is none.
    pub fn plan(&self) -> Result<Plan, Error> {
        let runtimes = runtimes::find(&self.root);
        if !runtimes.is_empty() && runtimes.iter().all(|runtime| runtime.name == "podman") {
            return Ok(Plan::Podman);
        }
        let networks = Network::read_all(&self.conf_dir());
        let Some(Network { path, .. }) = networks.into_iter().find(|network| !network.is_loopback()) else {
            return Ok(Plan::NoNetwork);
        };
        let wrong = |wrong| Error::Wrong { path: path.clone(), wrong };
        if path.is_symlink() {
            return Err(wrong(Wrong::Link));
        }
        let text = io("read", &path, fs::read_to_string(&path))?;
        if text == OWN {
            return Ok(Plan::NoNetwork);
        }
        if path.extension().is_none_or(|ending| ending != "conflist") {
            return Err(wrong(Wrong::NoList));
        }
        match edit::with_viproute(&text).map_err(wrong)? {
            Some(_) => Ok(Plan::Join(path)),
            None => Ok(Plan::Has(path)),
        }
    }

    /// Joins it; what was done, in a sentence. The last step is the one that counts: until then the network is as it was.
    pub fn join(&self) -> Result<String, Error> {
        let path = match self.plan()? {
            Plan::Join(path) => path,
            Plan::Has(path) => return Ok(format!("Nothing was done: {} has viproute.", path.display())),
            Plan::NoNetwork => return Ok(format!("Nothing was done: {} has no network.", self.conf_dir().display())),
            Plan::Podman => {
                let why =
                    "podman is the only runtime here, and its containers join by the name of a network with \"vips\"";
                return Ok(format!("Nothing was done: {why}."));
            }
        };
        let settings = self.settings();
        io("make", &settings, fs::create_dir_all(&settings))?;
        let _lock = self.lock()?;
        let text = io("read", &path, fs::read_to_string(&path))?;
        let joined = edit::with_viproute(&text).map_err(|wrong| Error::Wrong { path: path.clone(), wrong })?;
        let Some(joined) = joined else { return Ok(format!("Nothing was done: {} has viproute.", path.display())) };
        let kept = Kept::of(&settings, &path);
        let like = io("look at", &path, fs::metadata(&path))?;
        // Both with the owner and mode of the network, which may hold a token.
        io("write", &kept.original, replace::write(&kept.original, &text, &like))?;
        io("write", &kept.joined, replace::write(&kept.joined, &joined, &like))?;
        io("write", &path, replace::write(&path, &joined, &like))?;
        Ok(format!("Joined: {}. As it was: {}", path.display(), kept.original.display()))
    }

    /// Takes viproute out of the networks it joined, unless somebody has worked on them since; what was done, a sentence each.
    pub fn leave(&self) -> Result<Vec<String>, Error> {
        let settings = self.settings();
        let mut said = Vec::new();
        if !settings.is_dir() {
            return Ok(said);
        }
        let _lock = self.lock()?;
        let entries = io("read", &settings, fs::read_dir(&settings))?;
        let mut originals: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        originals.retain(|path| path.extension().is_some_and(|ending| ending == "orig"));
        originals.sort();
        for original in originals {
            let Some(name) = original.file_stem() else { continue };
            let network = self.conf_dir().join(name);
            let kept = Kept::of(&settings, &network);
            let (text, joined) = (fs::read_to_string(&network).ok(), fs::read_to_string(&kept.joined).ok());
            if text.is_some() && text == joined {
                let before = io("read", &original, fs::read_to_string(&original))?;
                let like = io("look at", &network, fs::metadata(&network))?;
                io("write", &network, replace::write(&network, &before, &like))?;
                said.push(format!("Restored: {}", network.display()));
            } else if text.is_none_or(|text| text.contains("\"viproute\"")) {
                said.push(format!(
                    "Kept, as it was changed: {}. As it was before viproute joined: {}",
                    network.display(),
                    original.display()
                ));
                continue;
            }
            kept.forget();
            replace::forget(&network);
        }
        Ok(said)
    }

    /// One at a time.
    fn lock(&self) -> Result<Flock<File>, Error> {
        let settings = self.settings();
        let dir = io("open", &settings, File::open(&settings))?;
        Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, errno)| Error::Io {
            what: "lock",
            path: settings,
            source: errno.into(),
        })
    }
}

/// What is kept of a network that was joined.
struct Kept {
    /// As it was.
    original: PathBuf,
    /// As it became: who has worked on it since has made it another.
    joined: PathBuf,
}

impl Kept {
    fn of(settings: &Path, network: &Path) -> Self {
        let name = network.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kept = |ending: &str| settings.join(format!("{name}.{ending}"));
        Self { original: kept("orig"), joined: kept("joined") }
    }

    /// The original last: with it the rest is found again.
    fn forget(&self) {
        for path in [&self.joined, &self.original] {
            let _ = fs::remove_file(path);
            replace::forget(path);
        }
    }
}
