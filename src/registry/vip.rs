//! One VIP's directory under its lock.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{
    Addresses, Backend, CheckSpec, Cluster, Egress, Family, FamilyChoice, Mac, Port, PortMap, Recorded, Served, VipKey,
};

use super::file::{self, Durability, Fields, Form};
use super::lock::{Attempt, Lock, Missing, Turn, of_dir};
use super::record::{self, Endpoint, SCHEMA, State, Unknown, VipRecord};
use super::schema1::Names;
use super::{Error, Registry, Result};

pub(super) const RECORD: &str = "vip.json";
const INDEX: &str = "index.json";
const ENDPOINTS: &str = "endpoints";
/// What the names of other nodes' endpoints are made of.
const PEER: &str = "node-";
const PEERS_DEVICE: &str = "@peer";
/// What the name of a directory under removal ends in.
const GONE: &str = ".gone";

/// An endpoint that has its pair, in short: what the kernel's tables and maps need of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The pod's addresses.
    pub addresses: Addresses,
    /// What the group's member leads to.
    #[serde(default, skip_serializing_if = "Backend::is_local")]
    pub backend: Backend,
    /// The index of the device that leads there: the host veth, or the tunnel's device.
    pub ifindex: u32,
    /// Whether it gets connections.
    pub state: State,
    /// Its share beside the others'.
    pub weight: u8,
    /// Its network namespace, as an id of the node's.
    pub netns_id: Option<u32>,
    /// The container veth's Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Recorded<Mac>>,
    /// What it serves; empty: everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Recorded<PortMap>>,
    /// Its UDP flows stay with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub udp_sticky: bool,
    /// What may leave it with the VIP as the source.
    #[serde(default, skip_serializing_if = "Recorded::<Egress>::is_default")]
    pub egress: Recorded<Egress>,
    /// The check that says when it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Recorded<CheckSpec>>,
    /// Taken out by hand.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
    /// By which families it wants the VIP to be served; `None`: by those of which that has an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub families: Option<Recorded<FamilyChoice>>,
    /// Of another node: which of its replicas' weight serves which port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<Recorded<Served>>,
}

impl Replica {
    /// Whether it serves its VIP's address of that family. A pod here serves both; of another node the record has an address of each
    /// family that it is reached for.
    pub fn serves(&self, family: Family) -> bool {
        self.backend.is_local() || self.addresses.iter().any(|address| Family::of(address) == family)
    }

    pub(super) fn of(endpoint: &Endpoint) -> Option<Self> {
        Some(Self {
            addresses: endpoint.addresses.clone(),
            backend: endpoint.backend,
            ifindex: endpoint.ifindex?,
            state: endpoint.state,
            weight: endpoint.weight,
            netns_id: endpoint.netns_id,
            mac: endpoint.mac.clone(),
            ports: endpoint.ports.clone(),
            udp_sticky: endpoint.udp_sticky,
            egress: endpoint.egress.clone(),
            health: endpoint.health.clone(),
            drained: endpoint.drained,
            families: endpoint.families.clone(),
            served: endpoint.served.clone(),
        })
    }

    /// The host veth's index; `None`: it is on another node.
    pub fn host_veth(&self) -> Option<u32> {
        self.backend.is_local().then_some(self.ifindex)
    }

    /// The VIP's ports that it lists, as far as this version knows them; none where it serves every port.
    pub fn listed(&self) -> impl Iterator<Item = Port> {
        self.ports.iter().filter_map(Recorded::known).map(|map| map.port)
    }

    /// What a later version wrote that this one doesn't understand.
    pub fn unknown(&self) -> Vec<Unknown> {
        record::unknown(self.mac.as_ref(), &self.ports, &self.egress, self.health.as_ref())
    }
}

/// `index.json`: the endpoints in short, so that a VIP of 1,000 replicas is one file to read. Derived: it is
/// emptied before one of them changes and written afterwards, so where it says anything it is right.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    schema: u64,
    replicas: BTreeMap<String, Replica>,
    /// The flow owner's maps had all of them when this was written ([`LockedVip::only_changed`]).
    #[serde(default)]
    reconciled: bool,
}

impl Form for Index {
    const SCHEMA: u64 = SCHEMA;

    fn upgrade(fields: &mut Fields) {
        for replica in replicas_of(fields) {
            REPLICA.upgrade(replica);
        }
    }

    fn downgrade(fields: &mut Fields) -> std::result::Result<(), &'static str> {
        replicas_of(fields).try_for_each(|replica| REPLICA.downgrade(replica))
    }
}

const REPLICA: Names = Names { renamed: &[], has_address: true };

fn replicas_of(fields: &mut Fields) -> impl Iterator<Item = &mut Fields> {
    let replicas = fields.get_mut("replicas").and_then(serde_json::Value::as_object_mut);
    replicas.into_iter().flat_map(Fields::values_mut).filter_map(serde_json::Value::as_object_mut)
}

/// A VIP and the lock on it.
#[derive(Debug)]
pub struct LockedVip {
    pub(super) registry: Registry,
    key: VipKey,
    pub(super) dir: PathBuf,
    _lock: Lock,
    /// What its files are written in.
    schema: u64,
    /// Its record, if it has one.
    pub record: Option<VipRecord>,
    pub(super) record_damage: Option<Error>,
    /// The endpoints that have their pair; `None`: not read so far.
    replicas: Option<BTreeMap<String, Replica>>,
    /// Host veths of endpoints that were removed, or got another one, by this holder of the lock.
    removed: Vec<u32>,
    /// Host veths of endpoints that were recorded, new or changed, by this holder of the lock.
    written: Vec<u32>,
    /// The index was emptied and must be written again.
    index_is_due: bool,
    /// The index said that the flow owner's maps had all that was recorded, and the VIP's record is still the one of then.
    was_reconciled: bool,
    /// The flow owner's maps have all that is recorded now.
    is_reconciled: bool,
    /// The nodes that this one knows, once they were asked for.
    pub(super) cluster: OnceCell<Option<Cluster>>,
    /// Files of intents that are recorded, and that the kernel doesn't have yet.
    pub(super) intents: Vec<String>,
}

impl Registry {
    /// Locks a VIP, new or not.
    pub fn vip(&self, key: &VipKey) -> Result<LockedVip> {
        loop {
            let dir = self.vip_dir(key);
            match file::make_dir(&dir) {
                // The last holder has just removed the directory, here or below (`None`): what mkdir(2) found a moment
                // ago is gone.
                Err(Error::Io { source, .. }) if is_fleeting(&source) && !dir.is_file() => continue,
                other => other?,
            }
            if let Some(vip) = self.lock_vip(key, Missing::Create)? {
                file::make_dir(&dir.join(ENDPOINTS))?;
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
                file::remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Locks a VIP, if anything is recorded of it and its lock is free.
    pub(super) fn try_vip(&self, key: &VipKey) -> Result<Attempt<LockedVip>> {
        let dir = self.vip_dir(key);
        check_dirs(&dir)?;
        Ok(match Lock::attempt(&of_dir(&dir))? {
            Attempt::Taken(lock) => Attempt::Taken(self.locked_vip(key, dir, lock)?),
            Attempt::Busy => Attempt::Busy,
            Attempt::Absent => Attempt::Absent,
        })
    }

    /// Locks a VIP, if anything is recorded of it, unless that becomes needless before its lock is free.
    pub(super) fn vip_unless(&self, key: &VipKey, is_needless: impl Fn() -> bool) -> Result<Turn<LockedVip>> {
        let dir = self.vip_dir(key);
        check_dirs(&dir)?;
        Ok(match Lock::take_unless(&of_dir(&dir), is_needless, &self.waits)? {
            Turn::Taken(lock) => Turn::Taken(self.locked_vip(key, dir, lock)?),
            Turn::Needless => Turn::Needless,
            Turn::Absent => Turn::Absent,
        })
    }

    fn lock_vip(&self, key: &VipKey, missing: Missing) -> Result<Option<LockedVip>> {
        let dir = self.vip_dir(key);
        check_dirs(&dir)?;
        let lock = Lock::take(&of_dir(&dir), missing, &self.waits)?;
        lock.map(|lock| self.locked_vip(key, dir, lock)).transpose()
    }

    fn locked_vip(&self, key: &VipKey, dir: PathBuf, lock: Lock) -> Result<LockedVip> {
        let (record, record_damage) = match file::read(&dir.join(RECORD)) {
            Ok(record) => (record, None),
            Err(e) if e.is_damage() => (None, Some(e)),
            Err(e) => return Err(e),
        };
        Ok(LockedVip {
            registry: self.clone(),
            key: key.clone(),
            dir,
            _lock: lock,
            schema: self.schema()?,
            record,
            record_damage,
            replicas: None,
            removed: Vec::new(),
            written: Vec::new(),
            index_is_due: false,
            was_reconciled: false,
            is_reconciled: false,
            cluster: OnceCell::new(),
            intents: Vec::new(),
        })
    }
}

/// Refuses symbolic links in the places of a VIP's directories.
fn check_dirs(dir: &Path) -> Result<()> {
    for own in [dir, &dir.join(ENDPOINTS)] {
        match file::check_own_dir(own) {
            // To be made, or just removed by another.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn is_fleeting(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::AlreadyExists)
}

/// The file of an endpoint in a VIP's directory.
pub(super) fn endpoint_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(ENDPOINTS).join(format!("{name}.json"))
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

/// The names of all endpoints of a VIP's directory.
pub(super) fn endpoint_names(dir: &Path) -> Result<Vec<String>> {
    let files = file::list(&dir.join(ENDPOINTS))?;
    Ok(files.iter().filter_map(|name| name.strip_suffix(".json").map(str::to_owned)).collect())
}

/// No endpoint of this node is recorded in a VIP's directory, usable or not. Ends at the first one.
pub(super) fn is_unused_here(dir: &Path) -> Result<bool> {
    file::has_none(&dir.join(ENDPOINTS), |name| name.strip_suffix(".json").is_some_and(|name| !is_peer_endpoint(name)))
}

/// The name of the endpoint that stands for another node's replicas.
pub fn peer_endpoint(number: u32) -> String {
    format!("{PEER}{number}{PEERS_DEVICE}")
}

/// Whether an endpoint's name is such a one.
pub fn is_peer_endpoint(name: &str) -> bool {
    let number = name.strip_prefix(PEER).and_then(|rest| rest.strip_suffix(PEERS_DEVICE));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// The replicas of a VIP's directory by attachment name, and where they are from.
pub(super) fn read_replicas(dir: &Path) -> Result<(BTreeMap<String, Replica>, Origin)> {
    if let Ok(Some(Index { replicas, reconciled, .. })) = file::read(&dir.join(INDEX)) {
        return Ok((replicas, Origin::Index { reconciled }));
    }
    let endpoints = read_endpoints(dir)?;
    let whole = endpoints.iter().all(|(_, endpoint)| endpoint.is_ok());
    let replica = |(name, endpoint): (String, Result<Endpoint>)| Some((name, Replica::of(&endpoint.ok()?)?));
    Ok((endpoints.into_iter().filter_map(replica).collect(), Origin::Endpoints { whole }))
}

/// Where a VIP's replicas were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Its index, and whether the kernel had all of them when that was written.
    Index { reconciled: bool },
    /// Its endpoints' files; `whole`: none of them is damaged, so that an index can be made of them.
    Endpoints { whole: bool },
}

impl LockedVip {
    /// The VIP's name.
    pub fn key(&self) -> &VipKey {
        &self.key
    }

    /// The endpoints that have their pair, by attachment name. One whose file is damaged is left out.
    pub fn replicas(&mut self) -> Result<&BTreeMap<String, Replica>> {
        let replicas = match self.replicas.take() {
            Some(replicas) => replicas,
            None => self.read_replicas()?,
        };
        Ok(self.replicas.insert(replicas))
    }

    /// Host veths of endpoints that were removed, or got another one, since the lock was taken.
    pub fn removed(&self) -> &[u32] {
        &self.removed
    }

    /// Host veths of all endpoints that this holder of the lock has removed or recorded; `None`: the flow owner's maps may differ
    /// from the registry in others too. They had all of them when the index was written, which each change of the registry empties.
    pub fn only_changed(&mut self) -> Result<Option<BTreeSet<u32>>> {
        self.replicas()?;
        Ok(self.was_reconciled.then(|| self.removed.iter().chain(&self.written).copied().collect()))
    }

    /// The kernel has what is recorded. Those whose intents were carried out need do nothing more.
    pub fn reconciled(&mut self) {
        self.is_reconciled = true;
        self.intents_done();
    }

    fn read_replicas(&mut self) -> Result<BTreeMap<String, Replica>> {
        let (replicas, origin) = read_replicas(&self.dir)?;
        match origin {
            Origin::Index { reconciled } => self.was_reconciled = reconciled,
            Origin::Endpoints { whole } => self.index_is_due |= whole,
        }
        Ok(replicas)
    }

    /// The names of all its endpoints, whatever their state.
    pub fn names(&self) -> Result<Vec<String>> {
        endpoint_names(&self.dir)
    }

    /// No endpoint of this node is recorded, usable or not.
    pub fn is_unused_here(&self) -> Result<bool> {
        is_unused_here(&self.dir)
    }

    /// No endpoint is recorded, usable or not.
    pub fn is_unused(&self) -> Result<bool> {
        if self.replicas.as_ref().is_some_and(|replicas| !replicas.is_empty()) {
            return Ok(false);
        }
        file::is_empty_dir(&self.dir.join(ENDPOINTS))
    }

    /// Files of the VIP that can't be used. A replica whose file it is, is left out.
    pub fn damage(&self) -> Result<Vec<Error>> {
        let mut damage = Vec::new();
        damage.extend(file::read::<VipRecord>(&self.dir.join(RECORD)).err());
        damage.extend(read_endpoints(&self.dir)?.into_iter().filter_map(|(_, endpoint)| endpoint.err()));
        Ok(damage)
    }

    /// Writes the VIP's record.
    pub fn write_record(&mut self, record: VipRecord) -> Result<()> {
        match self.record {
            Some(_) => self.before_change()?,
            None => file::empty(&self.dir.join(INDEX))?, // of a record that was taken away by hand
        }
        self.was_reconciled = false;
        self.write(&self.dir.join(RECORD), &record)?;
        self.record = Some(record);
        Ok(())
    }

    /// One endpoint in full.
    pub fn endpoint(&self, name: &str) -> Result<Option<Endpoint>> {
        file::read(&self.endpoint_path(name))
    }

    /// Records an endpoint that isn't there yet and gets no connections yet: nothing the index says changes.
    pub fn insert_pending(&mut self, name: &str, endpoint: &Endpoint) -> Result<()> {
        self.write(&self.endpoint_path(name), endpoint)
    }

    /// Records an endpoint, new or changed.
    pub fn write_endpoint(&mut self, name: &str, endpoint: &Endpoint) -> Result<()> {
        self.before_change()?;
        self.write(&self.endpoint_path(name), endpoint)?;
        let replicas = self.replicas.get_or_insert_default();
        let before = match Replica::of(endpoint) {
            Some(replica) => replicas.insert(name.to_owned(), replica),
            None => replicas.remove(name),
        };
        let left = before.filter(|before| Some(before.ifindex) != endpoint.ifindex);
        self.removed.extend(left.and_then(|before| before.host_veth()));
        self.written.extend(endpoint.ifindex.filter(|_| endpoint.backend.is_local()));
        Ok(())
    }

    /// Removes an endpoint, usable or not; it needn't exist.
    pub fn remove_endpoint(&mut self, name: &str) -> Result<()> {
        self.before_change()?;
        file::remove_record(&self.endpoint_path(name))?;
        let removed = self.replicas.get_or_insert_default().remove(name);
        self.removed.extend(removed.and_then(|replica| replica.host_veth()));
        Ok(())
    }

    /// Removes what crashes in writing have left.
    pub fn remove_temporaries(&self) -> Result<()> {
        file::remove_temporaries(&self.dir)?;
        file::remove_temporaries(&self.dir.join(ENDPOINTS))?;
        file::remove_temporaries(&self.intents_dir())
    }

    /// Writes what of it is still in an earlier schema in this version's. The VIP's record first: from then on the version
    /// before leaves all of the VIP alone, instead of taking its other files for all there are. What is damaged stays.
    pub fn rewrite(&mut self) -> Result<()> {
        let known = self.schema;
        let is_earlier = |path: &Path| file::schema_of(path).is_some_and(|schema| schema < known);
        if is_earlier(&self.dir.join(RECORD))
            && let Some(record) = self.record.clone()
        {
            self.write_record(record)?;
        }
        let names = self.names()?;
        let earlier: Vec<String> = names.into_iter().filter(|name| is_earlier(&self.endpoint_path(name))).collect();
        if !earlier.is_empty() || is_earlier(&self.dir.join(INDEX)) {
            self.before_change()?;
        }
        for name in earlier {
            match self.endpoint(&name) {
                Ok(Some(endpoint)) => self.write(&self.endpoint_path(&name), &endpoint)?,
                Ok(None) => {}
                Err(e) if e.is_damage() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write(&self, path: &Path, record: &impl Form) -> Result<()> {
        file::write_atomic(path, &file::encode(path, record, self.schema)?, Durability::Boot)
    }

    fn before_change(&mut self) -> Result<()> {
        self.replicas()?;
        self.is_reconciled = false;
        if !self.index_is_due {
            file::empty(&self.dir.join(INDEX))?;
            self.index_is_due = true;
        }
        Ok(())
    }

    /// Removes the VIP's directory and all in it, its slot with it. Renamed first, so that a call that waits for the lock, or
    /// makes the VIP anew, never works in a directory that is being emptied.
    pub fn remove(mut self) -> Result<()> {
        self.index_is_due = false;
        if let Some(damage) = &self.record_damage {
            let path = self.dir.join(RECORD);
            let path = path.display();
            tracing::warn!(%path, error = damage as &dyn std::error::Error, "removing an unusable record");
        }
        // By its inode, since several removed ones may exist.
        let inode = std::fs::metadata(&self.dir).map_err(Error::io("remove", &self.dir))?.ino();
        let gone = self.registry.vips_dir().join(format!(".{}.{inode}{GONE}", self.key.dir_name()));
        std::fs::rename(&self.dir, &gone).map_err(Error::io("remove", &self.dir))?;
        file::remove_tree(&gone)
    }

    fn endpoint_path(&self, name: &str) -> PathBuf {
        endpoint_path(&self.dir, name)
    }
}

impl Drop for LockedVip {
    /// The index is a convenience: where it can't be written, the next reader reads the endpoints. Written by every
    /// holder of the lock who changed something, also on the way out of a failure.
    fn drop(&mut self) {
        if let Some(replicas) = self.replicas.take().filter(|_| self.index_is_due) {
            let index = Index { schema: SCHEMA, replicas, reconciled: self.is_reconciled };
            let path = self.dir.join(INDEX);
            let _ = file::encode(&path, &index, self.schema).and_then(|text| file::write_in_place(&path, &text));
        }
    }
}
