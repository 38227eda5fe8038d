//! Slots: the lower bits of VIPs' group ids. Two VIPs with one slot would have one group, and each other's traffic, so what is
//! free is what no record has, whatever else says otherwise.

use std::io::Read;
use std::os::unix::fs::FileExt;

use serde::Deserialize;

use super::file;
use super::lock::of_dir;
use super::vip::RECORD;
use super::{Error, LockedVip, Registry, Result, VipRecord};
use crate::model::VipKey;

/// Slots are the lower 23 bits of a group's id: the bit above them is the group's of this node's replicas alone.
const SLOTS: u32 = 1 << 23;
/// Bytes of the lock file's text that are read.
const MAX_HINT: u64 = 32;

impl LockedVip {
    /// Records the VIP, new or anew, as `make` has it for its slot: the one it has, or one that no other VIP's record names
    /// and that is free otherwise, too (`is_free`). A damaged record is not written over.
    ///
    /// Between the choice and the record no other call chooses. The lock file's text is where the search begins, so that a
    /// slot is not used again soon; it is checked like any other number, and nothing is lost with it.
    pub fn record_in_slot<E: From<Error>>(
        &mut self,
        mut is_free: impl FnMut(u32) -> std::result::Result<bool, E>,
        make: impl FnOnce(u32) -> VipRecord,
    ) -> std::result::Result<(), E> {
        if let Some(damage) = self.record_damage.take() {
            return Err(damage.into());
        }
        let lock = self.registry.lock()?;
        let noted = self.registry.taken()?;
        let taken = noted.by_others(self.key());
        let own = self.record.as_ref().map(|record| record.slot).filter(|slot| *slot < SLOTS && !taken.contains(slot));
        if let Some(slot) = own {
            noted.note(self.key(), slot)?;
            return Ok(self.write_record(make(slot))?);
        }
        let mut text = Vec::new();
        let path = of_dir(self.registry.dir());
        lock.file().take(MAX_HINT).read_to_end(&mut text).map_err(Error::io("read", &path))?;
        let first = hint(&text);
        for slot in (first..SLOTS).chain(1..first).filter(|slot| !taken.contains(slot)) {
            if is_free(slot)? {
                noted.note(self.key(), slot)?;
                self.write_record(make(slot))?;
                // Written over where it is, never emptied before.
                let next = format!("{:<8}\n", slot + 1);
                let written = lock.file().write_all_at(next.as_bytes(), 0);
                if let Err(error) = written.and_then(|()| lock.file().set_len(next.len() as u64)) {
                    tracing::debug!(%error, "the next slot isn't noted");
                }
                return Ok(());
            }
        }
        Err(Error::NoSlot.into())
    }

    /// Another VIP whose record has this slot.
    pub fn other_in_slot(&self, slot: u32) -> Result<Option<VipKey>> {
        for key in self.registry.vips()?.into_iter().filter(|key| key != self.key()) {
            if self.registry.slot(&key)? == Some(slot) {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }
}

impl Registry {
    /// A VIP's slot, also of a record that a later version wrote. `None`: it has none, or one that can't be read.
    pub(super) fn slot(&self, key: &VipKey) -> Result<Option<u32>> {
        #[derive(Deserialize)]
        struct Only {
            slot: u32,
        }
        let text = file::read_text(&self.vip_dir(key).join(RECORD))?;
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()).map(|Only { slot }| slot))
    }
}

/// Where the search for a slot begins, whatever the lock file says.
fn hint(text: &[u8]) -> u32 {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok());
    number.filter(|number| (1..SLOTS).contains(number)).unwrap_or(1)
}
