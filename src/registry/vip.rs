//! One VIP's directory under its lock.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::file::{self, Durability};
use super::lock::{Lock, Missing, of_dir};
use super::record::{Endpoint, SCHEMA, State, VipRecord};
use super::{Error, Registry, Result, VipKey};

pub(super) const RECORD: &str = "vip.json";
const INDEX: &str = "index.json";
const ENDPOINTS: &str = "endpoints";
/// What the name of a directory under removal ends in.
const GONE: &str = ".gone";

/// An endpoint in short: what the VIP's route needs of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The host end's index; `None` until the pair exists.
    pub ifindex: Option<u32>,
    /// Whether it gets connections.
    pub state: State,
    /// Its share beside the others'.
    pub weight: u8,
}

impl From<&Endpoint> for Member {
    fn from(endpoint: &Endpoint) -> Self {
        Self { address: endpoint.address, ifindex: endpoint.ifindex, state: endpoint.state, weight: endpoint.weight }
    }
}

/// `index.json`: the endpoints in short, so that a VIP of 1,000 replicas is one file to read. Derived: it is removed
/// before an endpoint changes and written afterwards, so where it exists it is right.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    schema: u64,
    members: BTreeMap<String, Member>,
}

/// A VIP and the lock on it.
#[derive(Debug)]
pub struct LockedVip {
    registry: Registry,
    key: VipKey,
    dir: PathBuf,
    _lock: Lock,
    /// Its record, if it has one.
    pub record: Option<VipRecord>,
    record_damage: Option<Error>,
    members: BTreeMap<String, Member>,
    damaged: Vec<Error>,
    indexed: bool,
}

impl Registry {
    /// Locks a VIP, new or not.
    pub fn vip(&self, key: &VipKey) -> Result<LockedVip> {
        loop {
            file::make_dir(&self.vip_dir(key).join(ENDPOINTS))?;
            // `None`: the last holder has just removed the directory.
            if let Some(vip) = self.lock_vip(key, Missing::Create)? {
                return Ok(vip);
            }
        }
    }

    /// Locks a VIP, if anything is recorded of it.
    pub fn vip_if_present(&self, key: &VipKey) -> Result<Option<LockedVip>> {
        // A directory without its lock file is what a crash between the two leaves.
        if !self.vip_dir(key).exists() {
            return Ok(None);
        }
        self.lock_vip(key, Missing::Create)
    }

    /// Removes what a crash left of VIPs under removal.
    pub fn sweep_removed_vips(&self) -> Result<()> {
        let dir = self.vips_dir();
        let Ok(entries) = std::fs::read_dir(&dir) else { return Ok(()) };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().ends_with(GONE) {
                // Its remover may be alive and faster.
                match std::fs::remove_dir_all(entry.path()) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &dir)(e)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn lock_vip(&self, key: &VipKey, missing: Missing) -> Result<Option<LockedVip>> {
        let dir = self.vip_dir(key);
        let Some(lock) = Lock::take(&of_dir(&dir), missing)? else {
            return Ok(None);
        };
        let (record, record_damage) = match file::read(&dir.join(RECORD)) {
            Ok(record) => (record, None),
            Err(e) if e.is_damage() => (None, Some(e)),
            Err(e) => return Err(e),
        };
        let mut vip = LockedVip {
            registry: self.clone(),
            key: key.clone(),
            dir,
            _lock: lock,
            record,
            record_damage,
            members: BTreeMap::new(),
            damaged: Vec::new(),
            indexed: false,
        };
        vip.load_members()?;
        Ok(Some(vip))
    }
}

/// The endpoints of a VIP's directory, by attachment name.
pub(super) fn read_endpoints(dir: &Path) -> Result<Vec<(String, Result<Endpoint>)>> {
    let dir = dir.join(ENDPOINTS);
    let mut endpoints = Vec::new();
    for name in file::list(&dir)? {
        let Some(stem) = name.strip_suffix(".json") else { continue };
        match file::read(&dir.join(&name)) {
            Ok(None) => {} // removed since the listing
            Ok(Some(endpoint)) => endpoints.push((stem.to_owned(), Ok(endpoint))),
            Err(e) => endpoints.push((stem.to_owned(), Err(e))),
        }
    }
    Ok(endpoints)
}

impl LockedVip {
    fn load_members(&mut self) -> Result<()> {
        if let Ok(Some(Index { members, .. })) = file::read(&self.dir.join(INDEX)) {
            self.members = members;
            self.indexed = true;
            return Ok(());
        }
        for (name, endpoint) in read_endpoints(&self.dir)? {
            match endpoint {
                Ok(endpoint) => drop(self.members.insert(name, Member::from(&endpoint))),
                Err(e) => self.damaged.push(e),
            }
        }
        Ok(())
    }

    /// The VIP's name.
    pub fn key(&self) -> &VipKey {
        &self.key
    }

    /// Its endpoints in short, by attachment name.
    pub fn members(&self) -> &BTreeMap<String, Member> {
        &self.members
    }

    /// Files of the VIP that can't be used. A replica whose file it is, is left out.
    pub fn damaged(&self) -> impl Iterator<Item = &Error> {
        self.record_damage.iter().chain(&self.damaged)
    }

    /// As [`LockedVip::damaged`].
    pub fn take_damaged(&mut self) -> Vec<Error> {
        self.record_damage.take().into_iter().chain(self.damaged.drain(..)).collect()
    }

    /// No endpoint is recorded, usable or not.
    pub fn is_unused(&self) -> bool {
        self.members.is_empty() && self.damaged.is_empty()
    }

    /// A slot for a record to be written. A damaged record is not written over.
    pub fn slot(&mut self) -> Result<u32> {
        match (&self.record, self.record_damage.take()) {
            (Some(record), _) => Ok(record.slot),
            (None, Some(damage)) => Err(damage),
            (None, None) => self.registry.take_slot(),
        }
    }

    /// Writes the VIP's record.
    pub fn write_record(&mut self, record: VipRecord) -> Result<()> {
        file::write_atomic(&self.dir.join(RECORD), &record, Durability::Boot)?;
        self.record = Some(record);
        Ok(())
    }

    /// One endpoint in full.
    pub fn endpoint(&self, name: &str) -> Result<Option<Endpoint>> {
        file::read(&self.endpoint_path(name))
    }

    /// Records an endpoint, new or changed.
    pub fn write_endpoint(&mut self, name: &str, endpoint: &Endpoint) -> Result<()> {
        self.drop_index()?;
        file::write_atomic(&self.endpoint_path(name), endpoint, Durability::Boot)?;
        self.members.insert(name.to_owned(), Member::from(endpoint));
        Ok(())
    }

    /// Removes an endpoint, usable or not; it needn't exist.
    pub fn remove_endpoint(&mut self, name: &str) -> Result<()> {
        let path = self.endpoint_path(name);
        self.drop_index()?;
        file::remove(&path)?;
        self.members.remove(name);
        self.damaged.retain(|e| !matches!(e, Error::Torn { path: p, .. } | Error::Foreign { path: p } | Error::Newer { path: p, .. } if *p == path));
        Ok(())
    }

    /// Writes the index anew. It is a convenience: where it can't be written, the next reader reads the endpoints.
    pub fn write_index(&mut self) {
        if self.indexed || !self.damaged.is_empty() {
            return;
        }
        let index = Index { schema: SCHEMA, members: std::mem::take(&mut self.members) };
        self.indexed = file::write_atomic(&self.dir.join(INDEX), &index, Durability::Boot).is_ok();
        self.members = index.members;
    }

    fn drop_index(&mut self) -> Result<()> {
        file::remove(&self.dir.join(INDEX))?;
        self.indexed = false;
        Ok(())
    }

    /// Removes the VIP's directory and all in it, its slot with it. Renamed first, so that who waits for the lock, or
    /// makes the VIP anew, never works in a directory that is being emptied.
    pub fn remove(self) -> Result<()> {
        let gone = self.registry.vips_dir().join(format!(".{}.{}{GONE}", self.key.dir_name(), std::process::id()));
        std::fs::rename(&self.dir, &gone).map_err(Error::io("remove", &self.dir))?;
        std::fs::remove_dir_all(&gone).map_err(Error::io("remove", &gone))
    }

    fn endpoint_path(&self, name: &str) -> PathBuf {
        self.dir.join(ENDPOINTS).join(format!("{name}.json"))
    }
}
