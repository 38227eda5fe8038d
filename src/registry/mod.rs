//! The registry: which pods serve which VIPs. It is the truth; the kernel is a projection of it (`vip`).
//!
//! ```text
//! /var/lib/cni/viproute/
//!   boot-id                                    the boot this state belongs to
//!   lock                                       flock: boot check and slots; its text is the next slot
//!   vips/<namespace>_<name>/
//!     vip.json                                 address, slot
//!     lock                                     flock: this VIP
//!     endpoints/<containerID>@<ifname>.json    a replica
//!     index.json                               derived: the endpoints in short
//!   attachments/<containerID>@<ifname>.json    flock: this attachment; all that DEL needs
//! ```
//!
//! Locks are taken in the order attachment, VIP, global, one of each at most, so nobody waits for each other.
//! Nothing here outlives a boot (veth pairs and routes don't), so nothing is fsynced: after a power loss the boot id
//! differs and everything is discarded, torn files included. What must outlive a boot, the leases, is the allocator's.

mod attachment;
mod boot;
pub mod file;
mod key;
mod lock;
mod port;
pub mod record;
mod vip;
pub mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use attachment::{LockedAttachment, attachment_name, attachment_of};
pub use boot::{Boot, SlotsHeld};
pub use key::{BadKey, VipKey};
pub use lock::Attempt;
pub use port::{BadPort, Port, Transport};
pub use record::{AttachmentRecord, Endpoint, FormerAddress, Netns, State, VipRecord};
pub use vip::{LockedVip, Replica};

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
    #[error("{} has schema {schema}, newer than this version's {known}", path.display(), known = record::SCHEMA)]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        schema: u64,
    },
    /// The attachment exists.
    #[error("container {container_id} is attached by {ifname} already ({})", path.display())]
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

/// The registry of one node.
#[derive(Clone, Debug)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// The registry in that directory, which needn't exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
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

    /// A VIP's record as it stands, without a lock (files are replaced as a whole).
    pub fn vip_record(&self, key: &VipKey) -> Result<Option<VipRecord>> {
        file::read(&self.vip_dir(key).join(vip::RECORD))
    }

    /// A VIP's endpoints as they stand, without a lock, by attachment name. Damaged ones are errors in their place.
    pub fn endpoints(&self, key: &VipKey) -> Result<Vec<(String, Result<Endpoint>)>> {
        vip::read_endpoints(&self.vip_dir(key))
    }

    /// The names of a VIP's endpoints as they stand, without a lock, whatever their state.
    pub fn endpoint_names(&self, key: &VipKey) -> Result<Vec<String>> {
        vip::endpoint_names(&self.vip_dir(key))
    }

    /// A VIP's replicas that have their pair, by attachment name, as they stand, without a lock: one file is read, unless
    /// somebody is changing them.
    pub fn replicas(&self, key: &VipKey) -> Result<BTreeMap<String, Replica>> {
        let (replicas, _) = vip::read_replicas(&self.vip_dir(key))?;
        Ok(replicas)
    }

    /// One endpoint as it stands, without a lock.
    pub fn endpoint(&self, key: &VipKey, name: &str) -> Result<Option<Endpoint>> {
        file::read(&vip::endpoint_path(&self.vip_dir(key), name))
    }

    fn vip_dir(&self, key: &VipKey) -> PathBuf {
        self.vips_dir().join(key.dir_name())
    }

    fn attachments_dir(&self) -> PathBuf {
        self.dir.join("attachments")
    }
}

#[cfg(test)]
mod tests;
