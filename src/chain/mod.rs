//! The runtimes' networks and viproute's place in them: `viproutectl node`, and what viprouted does to keep it.
//!
//! A wrong edit takes the node's network away: what isn't understood is refused before anything is changed, the file is replaced in one step,
//! and all of it that is not viproute's stays as it was, to the letter.

mod edit;
mod install;
mod kept;
pub mod networks;
mod replace;
pub mod runtimes;
mod stay;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use kept::Kept;
use networks::Content;
use replace::Outcome;

pub use edit::Wrong;
pub use install::{Plugin, Step};
pub use stay::{Rejoined, Standing, all_set_aside};

/// The network that is installed where there is none.
const OWN: &str = include_str!("../../conf/10-viproute.conflist");

/// Where runtimes look for networks.
pub const CONF_DIR: &str = "/etc/cni/net.d";

/// Where things are, below another root than / for packaging.
#[derive(Clone, Debug)]
pub struct Places {
    /// In place of /.
    pub root: PathBuf,
    /// The runtime's networks; below that root.
    pub conf_dir: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { root: "/".into(), conf_dir: CONF_DIR.into() }
    }
}

/// Where records of networks are kept.
const SETTINGS: &str = "etc/viproute";

/// A network that others write all the time is left to them after so many tries.
const TRIES: usize = 3;

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
    /// Neither there nor where runtimes look.
    #[error("there is no plugin {}, and none where a runtime looks for it", .0.display())]
    NoPlugin(PathBuf),
    /// A runtime couldn't run it either.
    #[error("the plugin can't be run there: {}: {why}", path.display())]
    Unusable {
        /// Where it is.
        path: PathBuf,
        /// The kernel's word, or what it answered.
        why: String,
    },
    /// Others write the network all the time.
    #[error("{} is being changed by another program: try it again", .0.display())]
    Changing(PathBuf),
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
        networks::files(&self.conf_dir()).into_iter().next().filter(|path| is_loopback(path))
    }

    /// What a join would do. containerd and CRI-O use the first network by name; a loopback is none.
    pub fn plan(&self) -> Result<Plan, Error> {
        let runtimes = runtimes::find(&self.root);
        if !runtimes.is_empty() && runtimes.iter().all(|runtime| runtime.name == "podman") {
            return Ok(Plan::Podman);
        }
        let networks = networks::files(&self.conf_dir());
        let Some(path) = networks.into_iter().find(|path| !is_loopback(path)) else {
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
        match edit::with_viproute(&text, false).map_err(wrong)? {
            Some(_) => Ok(Plan::Join(path)),
            None => Ok(Plan::Has(path)),
        }
    }

    /// Joins it; what was done, in a sentence. The last step is the one that counts: until then the network is as it was. `register`: pods
    /// that name no VIP are recorded too, where viproute wasn't there already.
    pub fn join(&self, register: bool) -> Result<String, Error> {
        let path = match self.plan()? {
            Plan::Join(path) => path,
            Plan::Has(path) => {
                let kept = Kept::of(&self.settings(), &path);
                io("write", &kept.original(), kept.stay())?;
                return Ok(format!("Nothing was done: {} has viproute.", path.display()));
            }
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
        self.give_up_those_gone()?;
        for _ in 0..TRIES {
            match self.enter(&path, register)? {
                Entered::Joined(kept) => {
                    return Ok(format!("Joined: {}. As it was: {}", path.display(), kept.original().display()));
                }
                Entered::Has => return Ok(format!("Nothing was done: {} has viproute.", path.display())),
                Entered::Changed => {}
            }
        }
        Err(Error::Changing(path))
    }

    /// Makes viproute a network's last plugin, and keeps what is needed to take it out again. Its entry is the one that it had there, if
    /// it had one.
    fn enter(&self, path: &Path, register: bool) -> Result<Entered, Error> {
        let kept = Kept::of(&self.settings(), path);
        let texts = kept.texts();
        io("put right", path, replace::recover(path, &[&texts[0], &texts[1]]))?;
        let seen = io("read", path, replace::read(path))?;
        let register = register || edit::registers(&texts[1]);
        let joined =
            edit::with_viproute(&seen.text, register).map_err(|wrong| Error::Wrong { path: path.to_owned(), wrong })?;
        let Some(joined) = joined else { return Ok(Entered::Has) };
        io("keep a copy of", path, kept.keep(&self.above(path), &seen, &joined))?;
        Ok(match io("write", path, replace::replace(path, &seen, &joined))? {
            Outcome::Done => Entered::Joined(kept),
            Outcome::Changed => Entered::Changed,
        })
    }

    /// Another network takes the place of those that are no more.
    fn give_up_those_gone(&self) -> Result<(), Error> {
        for kept in self.kept()?.into_iter().filter(Kept::stays) {
            if !self.below(&kept.network(&self.conf_dir)).exists() {
                io("write", &kept.original(), kept.leave())?;
            }
        }
        Ok(())
    }

    /// Takes viproute out of the networks it joined, unless somebody has worked on them since; what was done, a sentence each. From its
    /// first step on nobody puts viproute back there.
    pub fn leave(&self) -> Result<Vec<String>, Error> {
        if !self.settings().is_dir() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        let kept = self.kept()?;
        for kept in &kept {
            io("write", &kept.original(), kept.leave())?;
        }
        kept.iter().filter_map(|kept| self.leave_network(kept).transpose()).collect()
    }

    fn leave_network(&self, kept: &Kept) -> Result<Option<String>, Error> {
        let network = self.below(&kept.network(&self.conf_dir));
        let [before, joined] = kept.texts();
        io("put right", &network, replace::recover(&network, &[&before, &joined]))?;
        for _ in 0..TRIES {
            let seen = replace::read(&network).ok();
            let said = match seen {
                Some(seen) if seen.text == joined => {
                    if io("write", &network, replace::replace(&network, &seen, &before))? == Outcome::Changed {
                        continue;
                    }
                    Some(format!("Restored: {}", network.display()))
                }
                Some(seen) if !seen.text.contains("\"viproute\"") => None,
                _ => {
                    return Ok(Some(format!(
                        "Kept, as it was changed: {}. As it was before viproute joined: {}",
                        network.display(),
                        kept.original().display()
                    )));
                }
            };
            kept.forget();
            return Ok(said);
        }
        Err(Error::Changing(network))
    }

    /// What is kept of the networks that viproute has joined.
    fn kept(&self) -> Result<Vec<Kept>, Error> {
        let settings = self.settings();
        if !settings.is_dir() {
            return Ok(Vec::new());
        }
        io("read", &settings, Kept::all(&settings))
    }

    /// The path that a file below the root has on the machine.
    fn above(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).map_or_else(|_| path.to_owned(), |path| Path::new("/").join(path))
    }

    /// One at a time.
    fn lock(&self) -> Result<Flock<File>, Error> {
        self.locked_by(FlockArg::LockExclusive).map_err(|errno| Error::Io {
            what: "lock",
            path: self.settings(),
            source: errno.into(),
        })
    }

    /// The same; none where another has it.
    fn try_lock(&self) -> Result<Option<Flock<File>>, Error> {
        match self.locked_by(FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(Error::Io { what: "lock", path: self.settings(), source: errno.into() }),
        }
    }

    fn locked_by(&self, how: FlockArg) -> nix::Result<Flock<File>> {
        let dir =
            File::open(self.settings()).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
        Flock::lock(dir, how).map_err(|(_, errno)| errno)
    }
}

/// What became of a try to join a network.
enum Entered {
    /// Of this one that is kept.
    Joined(Kept),
    /// It has viproute already.
    Has,
    /// Somebody wrote it at the same moment.
    Changed,
}

fn is_loopback(path: &Path) -> bool {
    Content::read(path).is_ok_and(|content| content.is_loopback())
}
