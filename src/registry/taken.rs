//! Which slots are taken, noted in one file, so that a new VIP beside a thousand others reads that and not a thousand records.
//!
//! Only a note: what it says of a VIP counts where the VIP's directory is still the one of then, by its inode; of any other VIP the
//! record is read. Each record of a VIP that is made, or made anew, is noted first, under the registry's lock. A file that isn't
//! whole says nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::DirEntryExt;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::{Error, Registry, Result, file};
use crate::model::VipKey;

/// The file: a digest of all that follows, and for each VIP a line of its directory's inode, its slot, its directory's name.
pub(super) const FILE: &str = "slots";
/// Beside so few VIPs their records are read, and nothing is noted.
const FEW: usize = 32;

/// What is taken, by the VIPs' directories.
#[derive(Debug)]
pub(super) struct Taken {
    path: PathBuf,
    /// Inodes and slots.
    slots: BTreeMap<String, (u64, Option<u32>)>,
}

impl Registry {
    /// What VIPs have for slots. The caller holds the registry's lock.
    pub(super) fn taken(&self) -> Result<Taken> {
        let vips = self.vips_by_inode()?;
        let path = self.dir().join(FILE);
        let known = if vips.len() > FEW { read(&path) } else { BTreeMap::new() };
        let mut slots = BTreeMap::new();
        for (key, inode) in vips {
            let name = key.dir_name();
            let slot = match known.get(&name) {
                Some((noted, slot)) if *noted == inode => Some(*slot),
                _ => self.slot(&key)?,
            };
            slots.insert(name, (inode, slot));
        }
        Ok(Taken { path, slots })
    }

    fn vips_by_inode(&self) -> Result<Vec<(VipKey, u64)>> {
        let dir = self.vips_dir();
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let entry = entry.map_err(Error::io("list", &dir))?;
            let key = entry.file_name().to_str().and_then(VipKey::from_dir_name);
            found.extend(key.map(|key| (key, entry.ino())));
        }
        Ok(found)
    }
}

impl Taken {
    /// Whether a VIP other than this one has the slot.
    pub(super) fn by_others(&self, key: &VipKey) -> std::collections::BTreeSet<u32> {
        let own = key.dir_name();
        let others = self.slots.iter().filter(|(name, _)| **name != own);
        others.filter_map(|(_, (_, slot))| *slot).collect()
    }

    /// Notes that a VIP is about to be recorded in this slot. Where that isn't possible nothing stays noted.
    pub(super) fn note(mut self, key: &VipKey, slot: u32) -> Result<()> {
        if self.slots.len() <= FEW {
            return file::remove(&self.path).map(drop);
        }
        if let Some((_, noted)) = self.slots.get_mut(&key.dir_name()) {
            *noted = Some(slot);
        }
        match file::write_in_place(&self.path, text(&self.slots).as_bytes()) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::debug!(%error, "slots aren't noted");
                file::remove(&self.path).map(drop)
            }
        }
    }
}

fn text(slots: &BTreeMap<String, (u64, Option<u32>)>) -> String {
    let line = |(name, (inode, slot)): (&String, &(u64, Option<u32>))| Some(format!("{inode} {} {name}\n", (*slot)?));
    let lines: String = slots.iter().filter_map(line).collect();
    format!("{}\n{lines}", digest(&lines))
}

fn digest(lines: &str) -> String {
    let hash = Sha256::digest(lines);
    let half = hash.first_chunk::<16>().map_or(0, |half| u128::from_be_bytes(*half));
    format!("{half:032x}")
}

/// Inodes and slots by directory; none where the file isn't whole.
fn read(path: &std::path::Path) -> BTreeMap<String, (u64, u32)> {
    let text = file::read_text(path).ok().flatten().and_then(|text| String::from_utf8(text).ok());
    let lines = text.as_deref().and_then(|text| text.split_once('\n')).filter(|(found, lines)| *found == digest(lines));
    let line = |line: &str| {
        let (inode, rest) = line.split_once(' ')?;
        let (slot, name) = rest.split_once(' ')?;
        Some((name.to_owned(), (inode.parse().ok()?, slot.parse().ok()?)))
    };
    lines.map_or_else(BTreeMap::new, |(_, lines)| lines.lines().filter_map(line).collect())
}
