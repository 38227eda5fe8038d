//! Changes of a VIP's replicas that wait for its lock. The next holder of the lock makes all of them at once, so that a
//! thousand replicas that leave together are a few changes of the group and not a thousand.
//!
//! ```text
//! vips/<namespace>_<name>/.intents/<attachment>.json      it joins: the endpoint as it is to be recorded
//! vips/<namespace>_<name>/.intents/<attachment>.leave     it leaves
//! ```
//! An intent goes once the kernel has it ([`LockedVip::intents_done`]). A call that has handed one in and no longer finds it
//! therefore has nothing left to do, provided that the records say so too: a VIP's directory may have been removed and made
//! anew meanwhile. What a crash leaves is carried out by the next holder of the lock: a call was made, and a later one of
//! the same attachment replaces it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::VipKey;

use super::file::{self, Durability, Form};
use super::lock::{Attempt, Turn, of_dir};
use super::record::{Endpoint, SCHEMA};
use super::vip::LockedVip;
use super::{Registry, Result};

const DIR: &str = ".intents";
const JOINS: &str = ".json";
const LEAVES: &str = ".leave";

/// The file of one that joins.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Joins {
    schema: u64,
    /// The VIP's addresses that the pod was given. A VIP that has others by now is its ADD's to deal with.
    addresses: Vec<IpAddr>,
    endpoint: Endpoint,
}

impl Form for Joins {
    const SCHEMA: u64 = SCHEMA;
}

/// What is to become of one replica.
#[derive(Clone, Debug)]
pub enum Intent<'a> {
    /// Its endpoint is to be recorded; the pod has these addresses of the VIP.
    Join(&'a Endpoint, Vec<IpAddr>),
    /// Its endpoint is to be removed.
    Leave,
}

impl Registry {
    /// Locks a VIP for a change of one of its replicas. Where another call holds the lock the change is handed in, and the lock
    /// waited for until that or another call has made it.
    pub fn vip_for(&self, key: &VipKey, name: &str, intent: &Intent<'_>) -> Result<Turn<LockedVip>> {
        if let Attempt::Taken(vip) = self.try_vip(key)? {
            vip.withdraw_intent(name)?;
            return Ok(Turn::Taken(vip));
        }
        if !self.hand_in(key, name, intent) {
            return Ok(self.vip_if_present(key)?.map_or(Turn::Absent, Turn::Taken));
        }
        let turn = self.vip_unless(key, || self.is_made(key, name, intent))?;
        if matches!(turn, Turn::Taken(_)) && self.is_made(key, name, intent) {
            return Ok(Turn::Needless); // by the call that had the lock
        }
        Ok(turn)
    }

    /// Whether a change that was handed in is in the records and the kernel: a VIP's directory may have been removed and made anew
    /// meanwhile.
    fn is_made(&self, key: &VipKey, name: &str, intent: &Intent<'_>) -> bool {
        if has_intent(&self.vip_dir(key).join(DIR), name) {
            return false;
        }
        let endpoint = self.endpoint(key, name);
        match intent {
            Intent::Join(..) => {
                endpoint.is_ok_and(|endpoint| endpoint.is_some_and(|endpoint| endpoint.ifindex.is_some()))
            }
            Intent::Leave => endpoint.is_ok_and(|endpoint| endpoint.is_none()),
        }
    }

    /// Hands in a change before the VIP's lock is waited for. False: it couldn't be (a full disk, no such VIP), and is to be
    /// made under the lock like any other.
    pub(super) fn hand_in(&self, key: &VipKey, name: &str, intent: &Intent<'_>) -> bool {
        // Without its lock file the VIP isn't whole: who takes the lock needs what room is left on the disk first.
        of_dir(&self.vip_dir(key)).exists() && self.write_intent(key, name, intent).is_ok()
    }

    fn write_intent(&self, key: &VipKey, name: &str, intent: &Intent<'_>) -> Result<()> {
        let vip = self.vip_dir(key);
        file::check_own_dir(&vip)?;
        let dir = vip.join(DIR);
        let (joins, leaves) = (dir.join(format!("{name}{JOINS}")), dir.join(format!("{name}{LEAVES}")));
        file::make_own_dir(&dir)?;
        match intent {
            Intent::Join(endpoint, addresses) => {
                file::remove(&leaves)?;
                let intent = Joins { schema: SCHEMA, addresses: addresses.clone(), endpoint: (*endpoint).clone() };
                file::write_atomic(&joins, &file::encode(&joins, &intent, SCHEMA)?, Durability::Boot)
            }
            Intent::Leave => {
                file::write_atomic(&leaves, b"", Durability::Boot)?;
                // An ADD that was killed while it handed in its own may have left half of it.
                file::remove(&file::temporary(&joins))?;
                file::remove(&joins).map(drop)
            }
        }
    }
}

/// Whether a change of that attachment was handed in and isn't made yet.
fn has_intent(dir: &Path, name: &str) -> bool {
    [JOINS, LEAVES].iter().any(|end| dir.join(format!("{name}{end}")).exists())
}

impl LockedVip {
    /// Whether a change of that attachment was handed in and isn't made yet.
    #[cfg(test)]
    pub fn has_intent(&self, name: &str) -> bool {
        has_intent(&self.intents_dir(), name)
    }

    /// Records all changes that were handed in. The caller reconciles the VIP before it lets go of the lock.
    pub fn carry_out_intents(&mut self) -> Result<()> {
        let dir = self.intents_dir();
        for file in file::list(&dir)? {
            if let Some(leaving) = file.strip_suffix(LEAVES) {
                self.remove_endpoint(leaving)?;
                self.intents.push(file.clone());
            } else if let Some(joining) = file.strip_suffix(JOINS)
                && let Ok(Some(intent)) = file::read::<Joins>(&dir.join(&file))
                && self.has_addresses(&intent.addresses)
            {
                self.join(joining, &intent.endpoint)?;
                self.intents.push(file.clone());
            }
        }
        Ok(())
    }

    /// What a call that was killed has handed in for that attachment: the present one knows better.
    fn withdraw_intent(&self, name: &str) -> Result<()> {
        let dir = self.intents_dir();
        if !dir.exists() {
            return Ok(());
        }
        let joins = dir.join(format!("{name}{JOINS}"));
        file::remove_record(&joins)?;
        file::remove(&dir.join(format!("{name}{LEAVES}"))).map(drop)
    }

    /// Records an endpoint with its pair, unless it is recorded with one already: what checks and operators have said of it
    /// since then stays.
    pub fn join(&mut self, name: &str, endpoint: &Endpoint) -> Result<()> {
        if self.has_pair(name) { Ok(()) } else { self.write_endpoint(name, endpoint) }
    }

    /// Whether an endpoint is recorded with its pair. A damaged record isn't.
    pub fn has_pair(&self, name: &str) -> bool {
        self.endpoint(name).is_ok_and(|endpoint| endpoint.is_some_and(|endpoint| endpoint.ifindex.is_some()))
    }

    /// The kernel has what was recorded by [`LockedVip::carry_out_intents`]: those who wait need do nothing more.
    pub(super) fn intents_done(&mut self) {
        let dir = self.intents_dir();
        for file in std::mem::take(&mut self.intents) {
            // One that stays is carried out once more, which changes nothing.
            let _ = file::remove(&dir.join(file));
        }
    }

    fn has_addresses(&self, addresses: &[IpAddr]) -> bool {
        self.record.as_ref().is_some_and(|record| record.all_addresses().eq(addresses.iter().copied()))
    }

    pub(super) fn intents_dir(&self) -> PathBuf {
        self.dir.join(DIR)
    }
}
