//! Leases on disk, so that a VIP has its address again after a restart or a reboot.
//!
//! ```text
//! <state_dir>/
//!   lock                          flock: one viprouted at a time
//!   pool.json                     on the node that gives out the pool's addresses: the register of them
//!   leases/<namespace>_<name>.json
//!   leases6/                      the same of IPv6 addresses that are leased by themselves
//!   prefix6.json                  the prefix that a DHCPv6 server has delegated
//! ```
//!
//! A file that can't be understood (torn, of a newer version, about another VIP) is reported by path and left alone:
//! its address may be in use, and only the administrator can know.

mod prefix;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::model::{Family, VipKey};
use crate::registry;
use crate::registry::file::{self, Durability};

use super::clock;
use super::decider::register::{self, Register};
use super::grant::{Lease, from_unix, unix};

pub use prefix::Delegated;

/// What can go wrong with a lease file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read, written or understood.
    #[error(transparent)]
    File(#[from] registry::Error),
    /// The state directory can't be locked.
    #[error("can't lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another process has the state directory.
    #[error("{} is in use by another viprouted", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Its name and its content disagree.
    #[error("{} is about {vip:?}", path.display())]
    Misplaced {
        /// The file.
        path: PathBuf,
        /// The VIP it is about.
        vip: String,
    },
    /// A time in it that no clock can show.
    #[error("{}: a time is out of range", path.display())]
    Time {
        /// The file.
        path: PathBuf,
    },
}

/// The version of a lease file's form. It is none of the registry's: those files come and go with a boot.
pub const SCHEMA: u64 = 1;

/// What is kept of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its address.
    pub lease: Lease,
    /// When its last replica on this node left; none while there is one.
    pub left: Option<SystemTime>,
    /// A Service wants it, whether it has replicas here or not.
    pub service: bool,
}

/// The file's form. Times are seconds since 1970, by the wall clock as it was when it was written.
#[derive(Debug, Serialize, Deserialize)]
struct Form {
    schema: u64,
    vip: String,
    address: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<String>,
    #[serde(flatten)]
    term: Term,
    left: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    service: bool,
    /// What a later version may have added survives being rewritten by this one.
    #[serde(flatten)]
    more: serde_json::Map<String, serde_json::Value>,
}

/// By whom an address or a prefix is lent, and for how long.
#[derive(Debug, Serialize, Deserialize)]
struct Term {
    server: Option<IpAddr>,
    granted: u64,
    renew: Option<u64>,
    rebind: Option<u64>,
    expires: Option<u64>,
    /// What sets a file's times right when the wall clock was set since, as long as the machine is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<Boot>,
}

impl Term {
    fn of(lease: &Lease, boot: Option<Boot>) -> Self {
        Self {
            server: lease.server,
            granted: wall(lease.granted),
            renew: lease.renew.map(wall),
            rebind: lease.rebind.map(wall),
            expires: lease.expires.map(wall),
            boot,
        }
    }

    /// With all times shifted by so many seconds. None: one is out of range.
    fn lease(&self, address: IpAddr, link: Option<String>, shift: i64) -> Option<Lease> {
        let time = |seconds: Option<u64>| seconds.map_or(Some(None), |seconds| shifted(seconds, shift).map(Some));
        Some(Lease {
            address,
            server: self.server,
            link,
            granted: shifted(self.granted, shift)?,
            renew: time(self.renew)?,
            rebind: time(self.rebind)?,
            expires: time(self.expires)?,
        })
    }
}

impl file::Form for Form {
    const SCHEMA: u64 = SCHEMA;
}

/// The machine's start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Boot {
    /// Which one: `/proc/sys/kernel/random/boot_id`.
    id: String,
    /// When it was, by the wall clock as it was when the file was written: seconds since 1970.
    at: i64,
}

/// What a look through the directory finds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Every VIP that has a file, with what it says.
    pub records: BTreeMap<VipKey, Result<Record, Error>>,
    /// Files that belong to no VIP.
    pub strangers: Vec<PathBuf>,
}

/// The lease directory, locked.
#[derive(Debug)]
pub struct Store {
    state_dir: PathBuf,
    /// Of this boot; none where the kernel doesn't say.
    boot_id: Option<String>,
    /// Closing it lets go of the lock.
    _lock: File,
}

/// One that was killed has the lock until what it was just starting has become its program.
fn lock(file: &File) -> Result<(), TryLockError> {
    const LET_GO: Duration = Duration::from_secs(1);
    let end = Instant::now() + LET_GO;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(Duration::from_millis(20)),
            other => return other,
        }
    }
}

impl Store {
    /// Opens (and creates) the directory, and locks it for this process.
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        for family in Family::ALL {
            file::make_own_dir(&state_dir.join(directory(family)))?;
        }
        let path = state_dir.join("lock");
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let opened = options.open(&path);
        let opened = opened.map_err(|source| Error::Lock { path: path.clone(), source })?;
        lock(&opened).map_err(|error| match error {
            TryLockError::WouldBlock => Error::InUse { path: state_dir.into() },
            TryLockError::Error(source) => Error::Lock { path, source },
        })?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned());
        Ok(Self { state_dir: state_dir.into(), boot_id, _lock: opened })
    }

    /// Reads everything of a family.
    pub fn load_all(&self, family: Family) -> Result<Contents, Error> {
        let mut contents = Contents::default();
        let leases = self.state_dir.join(directory(family));
        for name in file::list(&leases)? {
            let Some(vip) = name.strip_suffix(".json").and_then(VipKey::from_dir_name) else {
                contents.strangers.push(leases.join(name));
                continue;
            };
            if let Some(found) = self.load(family, &vip).transpose() {
                contents.records.insert(vip, found);
            }
        }
        Ok(contents)
    }

    /// Reads one VIP's file; none if there is none.
    pub fn load(&self, family: Family, vip: &VipKey) -> Result<Option<Record>, Error> {
        let path = self.path(family, vip);
        let Some(form) = read(&path, vip)? else { return Ok(None) };
        record(&form, self.shift(&form.term)).map(Some).ok_or(Error::Time { path })
    }

    /// Writes one VIP's file: all of it or nothing, on disk when this returns.
    pub fn save(&self, vip: &VipKey, record: &Record) -> Result<(), Error> {
        let lease = &record.lease;
        let path = self.path(Family::of(lease.address), vip);
        let form = Form {
            schema: SCHEMA,
            vip: vip.to_string(),
            address: lease.address,
            link: lease.link.clone(),
            term: Term::of(lease, self.boot()),
            left: record.left.map(wall),
            service: record.service,
            more: read(&path, vip)?.map(|old| old.more).unwrap_or_default(),
        };
        Ok(file::write_atomic(&path, &file::encode(&path, &form, SCHEMA)?, Durability::Disk)?)
    }

    /// Writes the register of the pool.
    pub fn save_register(&self, register: &Register) -> Result<(), register::Error> {
        register.save(&self.state_dir)
    }

    /// Removes one VIP's file; one that can't be understood stays.
    pub fn remove(&self, family: Family, vip: &VipKey) -> Result<(), Error> {
        let path = self.path(family, vip);
        if read(&path, vip)?.is_some() {
            file::remove(&path)?;
        }
        Ok(())
    }

    /// How far the file's times are from the clock of leases, in seconds. A file of this boot was written
    /// by a wall clock that showed this boot's start as it says; what another boot's clock was worth can't be known, except
    /// that a lease isn't granted in the future.
    fn shift(&self, term: &Term) -> i64 {
        match &term.boot {
            Some(boot) if Some(&boot.id) == self.boot_id.as_ref() => clock::at_boot().saturating_sub(boot.at),
            _ => {
                let signed = |seconds| i64::try_from(seconds).unwrap_or(i64::MAX);
                signed(unix(clock::now())).saturating_sub(signed(term.granted)).min(0)
            }
        }
    }

    /// What a file says of this boot.
    fn boot(&self) -> Option<Boot> {
        self.boot_id.clone().map(|id| Boot { id, at: clock::wall_at_boot() })
    }

    fn path(&self, family: Family, vip: &VipKey) -> PathBuf {
        self.state_dir.join(directory(family)).join(vip.dir_name() + ".json")
    }
}

/// Where leases of a family are.
const fn directory(family: Family) -> &'static str {
    match family {
        Family::V4 => "leases",
        Family::V6 => "leases6",
    }
}

/// Decodes a lease file's text; `path` is for the error.
pub fn decode(path: &Path, text: &[u8]) -> Result<Record, Error> {
    let form: Form = file::decode(path, text)?;
    record(&form, 0).ok_or(Error::Time { path: path.into() })
}

/// The file at `path`, which has to be about `vip`.
fn read(path: &Path, vip: &VipKey) -> Result<Option<Form>, Error> {
    match file::read::<Form>(path)? {
        Some(form) if form.vip != vip.to_string() => Err(Error::Misplaced { path: path.into(), vip: form.vip }),
        other => Ok(other),
    }
}

/// A time of a file, as many seconds later. None: it is out of range.
fn shifted(seconds: u64, by: i64) -> Option<SystemTime> {
    from_unix(clock::shifted(seconds, by))
}

/// A time as a file has it: by the wall clock.
fn wall(time: SystemTime) -> u64 {
    clock::to_wall(unix(time))
}

/// With all times shifted by so many seconds. None: one is out of range.
fn record(form: &Form, shift: i64) -> Option<Record> {
    let lease = form.term.lease(form.address, form.link.clone(), shift)?;
    let left = form.left.map_or(Some(None), |left| shifted(left, shift).map(Some))?;
    Some(Record { lease, left, service: form.service })
}

#[cfg(test)]
mod tests;
