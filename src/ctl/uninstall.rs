//! `viproutectl node uninstall`: takes pods out of their VIPs, and viproute off this machine.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::chain;
use crate::dataplane::node::notrack::{self, Outcome, Table};
use crate::dataplane::node::proxy;
use crate::dataplane::{self, gc};
use crate::membership::{Detach, detach};
use crate::model::{DEFAULT_BPF_DIR, Family};
use crate::net::{self, NodeNet};
use crate::registry::{self, Registry, attachment_name};

use super::unload;

/// Where viprouted keeps leases, unless its configuration says otherwise.
const STATE_DIR: &str = "/var/lib/viproute";
/// What is kept of networks, and viprouted's configuration.
const SETTINGS: &str = "/etc/viproute";
/// Between two looks at whether viprouted has ended.
const LOOK: Duration = Duration::from_millis(100);

/// Where things are, as the machine names them.
#[derive(Debug)]
pub struct Places {
    /// In place of /: the process changes into it.
    pub root: PathBuf,
    /// The runtime's networks.
    pub conf_dir: PathBuf,
    /// The plugin's directory.
    pub bin_dir: PathBuf,
    /// The registry.
    pub data_dir: PathBuf,
    /// viprouted's socket.
    pub socket: PathBuf,
}

/// Why something is left. What was done before stays done; the next call does the rest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It would make anew what is removed.
    #[error("viprouted runs: it answers at {}. End it first", .0.display())]
    Runs(PathBuf),
    /// A pod would keep what leads nowhere.
    #[error("{pod} can't be taken out of its VIPs")]
    Pod {
        /// Its attachment.
        pod: String,
        /// Why.
        source: Box<dataplane::Error>,
    },
    /// The runtime's network.
    #[error(transparent)]
    Chain(#[from] chain::Error),
    /// The nftables table.
    #[error("the nftables table viproute can't be removed")]
    Table(#[from] notrack::Error),
    /// Records.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// Routes, nexthops, maps.
    #[error(transparent)]
    Dataplane(#[from] dataplane::Error),
    /// Other objects of the kernel's.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// A file.
    #[error("{op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

/// Does it; what was done, a sentence each. `wait`: for viprouted's end.
pub fn uninstall(places: &Places, wait: Option<Duration>) -> Result<Vec<String>, Error> {
    ended(&below(&places.root, &places.socket), wait)?;
    // By the program nft, which is this root's.
    let tables = Family::ALL.into_iter().map(remove_table).collect::<Result<Vec<_>, _>>()?;
    let mut said: Vec<String> = tables.into_iter().flatten().collect();
    enter(&places.root)?;
    let networks = chain::Places { root: "/".into(), conf_dir: places.conf_dir.clone() };
    // First: with the chain gone nobody calls the plugin any more.
    said.extend(networks.leave()?);
    let (net, registry) = (NodeNet::open()?, Registry::new(places.data_dir.clone()));
    said.extend(detach_all(&net, &registry)?);
    said.extend(remove_objects(&net, &registry)?);
    said.extend(networks.remove_plugin(&places.bin_dir)?);
    let run = places.socket.parent().unwrap_or(&places.socket);
    for dir in [places.data_dir.as_path(), Path::new(STATE_DIR), run, Path::new(DEFAULT_BPF_DIR)] {
        said.extend(removed(dir, fs::remove_dir_all(dir))?);
    }
    // What somebody else has there, or viproute keeps of a network that others have changed, stays.
    said.extend(removed(Path::new(SETTINGS), fs::remove_dir(SETTINGS))?);
    Ok(said)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Until nobody answers at viprouted's socket.
fn ended(socket: &Path, wait: Option<Duration>) -> Result<(), Error> {
    let begin = Instant::now();
    while UnixStream::connect(socket).is_ok() {
        if begin.elapsed() >= wait.unwrap_or_default() {
            return Err(Error::Runs(socket.to_owned()));
        }
        sleep(LOOK);
    }
    Ok(())
}

fn remove_table(family: Family) -> Result<Option<String>, Error> {
    match Table::of(family).reconcile(&notrack::Want::default()) {
        Ok(Outcome::Removed) if family == Family::V4 => Ok(Some("Removed: the nftables table viproute".to_owned())),
        Ok(Outcome::Removed) => Ok(Some("Removed: the nftables table viproute of IPv6".to_owned())),
        // Without the program viprouted can't have made it either.
        Ok(_) | Err(notrack::Error::NoProgram) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Recorded paths of pods' namespaces are the machine's own, as are its links (`/var/run`).
fn enter(root: &Path) -> Result<(), Error> {
    if root == Path::new("/") {
        return Ok(());
    }
    let failed = |source| Error::Io { op: "change into", path: root.to_owned(), source };
    std::os::unix::fs::chroot(root).map_err(failed)?;
    std::env::set_current_dir("/").map_err(failed)
}

/// As each pod's DEL would; it lives on.
fn detach_all(net: &NodeNet, registry: &Registry) -> Result<Vec<String>, Error> {
    if !registry.exists() {
        return Ok(Vec::new());
    }
    registry.begin()?;
    let with = Detach { net, registry, allocator: None, netns: None };
    let mut said = Vec::new();
    for attachment in registry.attachments()? {
        let Some(locked) = registry.attachment(&attachment)? else { continue };
        let pod = locked.record.as_ref().ok().and_then(|record| record.pod.label());
        let pod = pod.unwrap_or_else(|| attachment_name(&attachment));
        detach(&with, &attachment, locked).map_err(|error| Error::Pod { pod: pod.clone(), source: error.into() })?;
        said.push(format!("Detached: {pod}"));
    }
    Ok(said)
}

/// All that no record explains, once there are no records: also what leads to other nodes' pods.
fn remove_objects(net: &NodeNet, registry: &Registry) -> Result<Vec<String>, Error> {
    forget(registry.dir())?;
    let mut said = gc::objects(net, registry, [Path::new(DEFAULT_BPF_DIR)])?;
    let proxies = proxy::orphans(&proxy::entries(net)?, &[]);
    proxy::apply(net, &proxies)??;
    said.extend(proxies.iter().map(proxy::Op::finding));
    let removed = unload::unload()?;
    let said = said.into_iter().chain(removed);
    Ok(said.map(|what| format!("Removed: {}", what.trim_end_matches(" is an orphan"))).collect())
}

/// The registry has no records, and there is a place for its lock.
fn forget(dir: &Path) -> Result<(), Error> {
    removed(dir, fs::remove_dir_all(dir))?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| Error::Io { op: "make", path: dir.to_owned(), source })
}

/// What is there no more needn't be removed.
fn removed(dir: &Path, result: io::Result<()>) -> Result<Option<String>, Error> {
    match result {
        Ok(()) => Ok(Some(format!("Removed: {}", dir.display()))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => Ok(None),
        Err(source) => Err(Error::Io { op: "remove", path: dir.to_owned(), source }),
    }
}
