//! The registry: which pods serve which VIPs. It is the truth; the kernel is a projection of it (`vip`).
//!
//! ```text
//! /var/lib/cni/viproute/
//!   boot-id                                    the boot this state belongs to
//!   lock                                       flock: boot check and slots; its text is where the next search begins
//!   slots                                      derived: which slots are taken (`taken`)
//!   schema                                     the schema to write, and the boot in which a viprouted of it has run
//!   vips/<namespace>_<name>/
//!     vip.json                                 address, slot
//!     lock                                     flock: this VIP
//!     endpoints/<containerID>@<ifname>.json    a replica
//!     index.json                               derived: the endpoints in short
//!     .intents/                                changes that wait for the lock (`intent`)
//!   nodes.json                                 this node and the others (`nodes`)
//!   attachments/<containerID>@<ifname>.json    flock: this attachment; all that DEL needs
//! ```
//!
//! Locks are taken in the order attachment, VIP, global, one of each at most, so two callers never wait for each other.
//! Nothing here outlives a boot (veth pairs and routes don't), so nothing is fsynced: after a power loss the boot id
//! differs and everything is discarded, torn files included. What must outlive a boot, the leases, is the allocator's.

mod attachment;
mod boot;
pub mod families;
pub mod file;
mod intent;
mod lock;
pub mod nodes;
pub mod record;
mod schema;
mod schema1;
mod slots;
mod taken;
mod vip;
#[cfg(feature = "node")]
pub mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::model::VipKey;

pub use attachment::{LockedAttachment, attachment_name, attachment_of};
pub use boot::Boot;
pub use intent::Intent;
pub use lock::{Attempt, Turn, WaitLimit};
pub use record::{AttachmentRecord, Endpoint, Netns, PreviousAddress, State, VipRecord};
pub use vip::{LockedVip, Replica, is_peer_endpoint, peer_endpoint};

/// What went wrong with a file of the registry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be read, written, created or locked.
    #[error("{op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It isn't JSON, or not all of it.
    #[error("{} is damaged", path.display())]
    Torn {
        /// Which file.
        path: PathBuf,
        /// Where it stops making sense.
        #[source]
        source: serde_json::Error,
    },
    /// It is JSON, and not ours.
    #[error("{} is not a file of viproute's: it has no \"schema\"", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// A later version wrote it.
    #[error("{} has schema {schema}, newer than this version's {known}", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        schema: u64,
        /// This version's for such a file.
        known: u64,
    },
    /// The node's daemon is of an earlier version, whose files can't say it.
    #[error("{} can't say {what} in schema {schema}, which the viprouted running here reads: upgrade that first", path.display())]
    Older {
        /// Which file.
        path: PathBuf,
        /// The schema to be written.
        schema: u64,
        /// What it can't say.
        what: &'static str,
    },
    /// Another process holds a lock, and was waited for as long as is sensible.
    #[error("{} is locked by {}, waited for {} s", path.display(), holder.as_ref().map_or_else(|| "a process that /proc/locks doesn't show".to_owned(), ToString::to_string), waited.as_secs())]
    Locked {
        /// The lock's file.
        path: PathBuf,
        /// Who holds it.
        holder: Option<lock::Holder>,
        /// For so long.
        waited: std::time::Duration,
    },
    /// The attachment exists.
    #[error(
        "container {container_id} is attached by {ifname} already ({}): delete its pod; where the runtime doesn't know it any \
         more, call the plugin with CNI_COMMAND=DEL CNI_CONTAINERID={container_id} CNI_IFNAME={ifname} and this configuration",
        path.display()
    )]
    AlreadyAttached {
        /// Whose.
        container_id: String,
        /// By which interface.
        ifname: String,
        /// Its record.
        path: PathBuf,
    },
    /// 16 million VIPs on one node.
    #[error("no slot is left for another VIP")]
    NoSlot,
}

impl Error {
    fn io(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { op, path, source }
    }

    /// The file is there but can't be used.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Torn { .. } | Self::Foreign { .. } | Self::Newer { .. })
    }
}

/// What a call on the registry gives.
pub type Result<T> = std::result::Result<T, Error>;

/// For so long a call waits for locks, all of them together. Runtimes wait for minutes, and hold others up meanwhile.
const CALL_WAITS: std::time::Duration = std::time::Duration::from_secs(8);

/// The registry of one node.
#[derive(Clone, Debug)]
pub struct Registry {
    dir: PathBuf,
    waits: WaitLimit,
}

impl Registry {
    /// The registry in that directory, which needn't exist yet, for one call: its waits for locks have an end together.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), waits: WaitLimit::together(CALL_WAITS) }
    }

    /// The same for a process that lives on: each wait has an end.
    pub fn for_daemon(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), waits: WaitLimit::Each(CALL_WAITS) }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the VIPs are.
    pub fn vips_dir(&self) -> PathBuf {
        self.dir.join("vips")
    }

    /// The VIPs that have anything recorded on this node.
    pub fn vips(&self) -> Result<Vec<VipKey>> {
        let names = file::list(&self.vips_dir())?;
        Ok(names.iter().filter_map(|name| VipKey::from_dir_name(name)).collect())
    }

    /// Reads a VIP's record without a lock (files are replaced as a whole).
    pub fn vip_record(&self, key: &VipKey) -> Result<Option<VipRecord>> {
        file::read(&self.vip_dir(key).join(vip::RECORD))
    }

    /// Reads a VIP's endpoints without a lock, by attachment name. Damaged ones are errors in their place.
    pub fn endpoints(&self, key: &VipKey) -> Result<Vec<(String, Result<Endpoint>)>> {
        vip::read_endpoints(&self.vip_dir(key))
    }

    /// Reads the names of a VIP's endpoints without a lock, whatever their state.
    pub fn endpoint_names(&self, key: &VipKey) -> Result<Vec<String>> {
        vip::endpoint_names(&self.vip_dir(key))
    }

    /// Whether no endpoint of this node's is recorded for a VIP, usable or not; without a lock.
    pub fn is_unused_here(&self, key: &VipKey) -> Result<bool> {
        vip::is_unused_here(&self.vip_dir(key))
    }

    /// Reads a VIP's replicas that have their pair without a lock, by attachment name: one file is read, unless
    /// a call is changing them.
    pub fn replicas(&self, key: &VipKey) -> Result<BTreeMap<String, Replica>> {
        let (replicas, _) = vip::read_replicas(&self.vip_dir(key))?;
        Ok(replicas)
    }

    /// Reads one endpoint without a lock.
    pub fn endpoint(&self, key: &VipKey, name: &str) -> Result<Option<Endpoint>> {
        file::read(&vip::endpoint_path(&self.vip_dir(key), name))
    }

    pub(crate) fn vip_dir(&self, key: &VipKey) -> PathBuf {
        self.vips_dir().join(key.dir_name())
    }

    fn attachments_dir(&self) -> PathBuf {
        self.dir.join("attachments")
    }
}

#[cfg(test)]
mod tests;
