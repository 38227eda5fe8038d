//! The boot a registry belongs to. Routes and devices don't outlive a boot, so what is recorded of another one is
//! discarded before anything else is done.

use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::file::{self, Durability};
use super::lock::{Lock, Missing, of_dir};
use super::{Error, Registry, Result};

/// Slots are the lower 24 bits of a group's id.
const SLOTS: u32 = 1 << 24;

const BOOT_ID: &str = "boot-id";
/// The kernel's has 36 characters.
const MAX_BOOT_ID: u64 = 64;
/// Bytes of the lock file's text that are looked at.
const MAX_SLOT: u64 = 32;

/// What the file says.
#[derive(Debug, PartialEq, Eq)]
enum Recorded {
    /// There is none: a new registry.
    Nothing,
    /// A boot's id.
    Boot(String),
    /// Something else: nobody can tell which boot this is the state of.
    Unusable,
}

impl Recorded {
    fn of(text: &[u8]) -> Self {
        let text = text.trim_ascii();
        let is_id = text.len() == 36 && text.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-');
        if is_id { Self::Boot(String::from_utf8_lossy(text).into_owned()) } else { Self::Unusable }
    }
}

/// What [`Registry::begin`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// State of this boot.
    Same,
    /// State of another boot, discarded now; kernel objects it speaks of can only be there if it lied.
    Discarded,
}

/// While this is held nobody gets a slot, so no VIP is made that isn't there yet.
#[derive(Debug)]
pub struct SlotsHeld {
    _lock: Lock,
}

impl Registry {
    /// Waits for whoever is making a VIP, and keeps others from it. No other lock may be taken meanwhile.
    pub fn hold_slots(&self) -> Result<SlotsHeld> {
        Ok(SlotsHeld { _lock: self.lock()? })
    }

    /// Must come first: makes the directories, and discards the state of another boot.
    pub fn begin(&self) -> Result<Boot> {
        let boot = current_boot()?;
        if self.recorded_boot()? == Recorded::Boot(boot.clone()) {
            file::check_own_dir(&self.vips_dir())?;
            file::check_own_dir(&self.attachments_dir())?;
            return Ok(Boot::Same);
        }
        file::make_dir(self.dir())?;
        let _lock = self.lock()?;
        let recorded = self.recorded_boot()?; // another process may have been first
        if recorded == Recorded::Boot(boot.clone()) {
            return Ok(Boot::Same);
        }
        let path = self.dir().join(BOOT_ID);
        if recorded == Recorded::Unusable && self.has_living_pods()? {
            eprintln!("viproute: {} is damaged; pods recorded here are alive, so it is written anew", path.display());
            write_text(&path, &boot)?;
            return Ok(Boot::Same);
        }
        for dir in [self.vips_dir(), self.attachments_dir()] {
            file::remove_tree(&dir)?;
            file::make_dir(&dir)?;
        }
        // Last: a crash before this line and the next caller discards again.
        write_text(&path, &boot)?;
        Ok(if recorded == Recorded::Nothing { Boot::Same } else { Boot::Discarded })
    }

    /// Whether what is recorded is of this boot. Of another's nothing is left in the kernel, and the next call discards it.
    pub fn is_of_this_boot(&self) -> Result<bool> {
        Ok(self.recorded_boot()? == Recorded::Boot(current_boot()?))
    }

    /// Whether there is a registry at all.
    pub fn exists(&self) -> bool {
        self.dir().join(BOOT_ID).exists()
    }

    fn recorded_boot(&self) -> Result<Recorded> {
        let path = self.dir().join(BOOT_ID);
        let mut text = Vec::new();
        let read = file::open(&path).and_then(|file| file.take(MAX_BOOT_ID).read_to_end(&mut text));
        match read {
            Ok(_) => Ok(Recorded::of(&text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Recorded::Nothing),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    /// Whether any attachment's namespace is still the one that was recorded: then all this is of the current boot.
    fn has_living_pods(&self) -> Result<bool> {
        let records = self.attachments()?.into_iter().map(|attachment| self.attachment_record(&attachment));
        Ok(records.flatten().flatten().any(|record| record.netns.is_still_there()))
    }

    fn lock(&self) -> Result<Lock> {
        let path = of_dir(self.dir());
        Lock::take(&path, Missing::Create)?.ok_or_else(|| Error::io("lock", &path)(std::io::ErrorKind::NotFound.into()))
    }

    /// A slot no VIP of this node has. The lock file's text is the next one; where it can't be read, or all have been
    /// handed out once, the VIPs are asked.
    pub(super) fn take_slot(&self) -> Result<u32> {
        let lock = self.lock()?;
        let path = of_dir(self.dir());
        let mut file = lock.file();
        let mut text = Vec::new();
        file.take(MAX_SLOT).read_to_end(&mut text).map_err(Error::io("read", &path))?;
        let slot = match String::from_utf8_lossy(&text).trim().parse() {
            Ok(next) if (1..SLOTS).contains(&next) => next,
            _ => self.free_slot()?,
        };
        file.rewind().map_err(Error::io("write", &path))?;
        file.set_len(0).map_err(Error::io("write", &path))?;
        writeln!(file, "{}", slot + 1).map_err(Error::io("write", &path))?;
        Ok(slot)
    }

    fn free_slot(&self) -> Result<u32> {
        let mut taken = std::collections::BTreeSet::new();
        for key in self.vips()? {
            taken.extend(self.vip_record(&key)?.map(|record| record.slot));
        }
        (1..SLOTS).find(|slot| !taken.contains(slot)).ok_or(Error::NoSlot)
    }
}

fn current_boot() -> Result<String> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    Ok(text.trim().to_owned())
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    file::write_new(&temporary, format!("{text}\n").as_bytes(), Durability::Boot)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(Error::io("write", path))
}
