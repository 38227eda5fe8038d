//! Keeps viproute in the networks that it has joined: base CNIs write theirs anew when they start or are configured.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::kept::Kept;
use super::{Entered, Error, Places, Wrong, edit, io, replace};

/// What Cilium appends to the names of others' networks where its `cni.exclusive` is on.
const SET_ASIDE: &str = ".cilium_bak";

/// How a network is that viproute is to stay in.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// viproute is in it.
    In,
    /// Somebody has taken it out.
    Out,
    /// It can't be joined as it is now; it may be about to be written.
    Wrong(Wrong),
    /// There is no such file any more. Cilium has given it this name, if it has.
    Gone(Option<PathBuf>),
}

/// What became of a try to put viproute back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejoined {
    /// It is in the network.
    Done,
    /// There is nothing to do any more.
    Needless,
    /// Somebody else is at it at this moment.
    Busy,
}

impl Places {
    /// The networks that viproute has joined and is to stay in.
    pub fn joined(&self) -> Result<BTreeSet<PathBuf>, Error> {
        let stays = self.kept()?.into_iter().filter(Kept::stays);
        Ok(stays.map(|kept| self.below(&kept.network(&self.conf_dir))).collect())
    }

    /// The directories whose files tell of a change: of those networks and of what is kept of them. Only those that are there.
    pub fn watched(&self) -> BTreeSet<PathBuf> {
        let settings = self.settings();
        if !settings.is_dir() {
            return BTreeSet::new();
        }
        let networks = self.joined().unwrap_or_default();
        networks.iter().filter_map(|network| network.parent().map(Path::to_owned)).chain([settings]).collect()
    }

    /// How such a network is.
    pub fn standing(&self, network: &Path) -> Result<Standing, Error> {
        match replace::read(network) {
            Ok(seen) => Ok(match edit::with_viproute(&seen.text, false) {
                Ok(None) => Standing::In,
                Ok(Some(_)) => Standing::Out,
                Err(wrong) => Standing::Wrong(wrong),
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Standing::Gone(set_aside(network))),
            Err(_) if network.is_symlink() => Ok(Standing::Wrong(Wrong::Link)),
            Err(error) => io("read", network, Err(error)),
        }
    }

    /// Puts viproute back into such a network. What the network is now is its original from now on.
    pub fn rejoin(&self, network: &Path) -> Result<Rejoined, Error> {
        let Some(_lock) = self.try_lock()? else { return Ok(Rejoined::Busy) };
        // Somebody may have ended it meanwhile.
        if !self.joined()?.contains(network) {
            return Ok(Rejoined::Needless);
        }
        Ok(match self.enter(network, false)? {
            Entered::Joined(_) => Rejoined::Done,
            Entered::Has => Rejoined::Needless,
            Entered::Changed => Rejoined::Busy,
        })
    }
}

/// The name that Cilium has given a network, where there is such a file.
fn set_aside(network: &Path) -> Option<PathBuf> {
    let mut name = network.as_os_str().to_owned();
    name.push(SET_ASIDE);
    Some(PathBuf::from(name)).filter(|path| path.exists())
}

/// The networks of a directory that have viproute and that Cilium has set aside.
pub fn all_set_aside(conf_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(conf_dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.filter(|path| path.to_string_lossy().ends_with(SET_ASIDE)).collect();
    found.retain(|path| replace::read(path).is_ok_and(|seen| seen.text.contains("\"viproute\"")));
    found.sort();
    found
}
