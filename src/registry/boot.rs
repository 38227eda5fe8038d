//! The boot a registry belongs to. Routes and devices don't outlive a boot, so what is recorded of another one is
//! discarded before anything else is done.

use std::io::{Read, Seek, Write};
use std::path::PathBuf;

use super::lock::{Lock, Missing, of_dir};
use super::{Error, Registry, Result, file};

/// Slots are the lower 24 bits of a group's id.
const SLOTS: u32 = 1 << 24;

/// What [`Registry::begin`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// State of this boot.
    Same,
    /// State of another boot, discarded now; kernel objects it speaks of can only be there if it lied.
    Discarded,
}

impl Registry {
    /// Must come first: makes the directories, and discards the state of another boot.
    pub fn begin(&self) -> Result<Boot> {
        let boot = current_boot()?;
        if self.recorded_boot()? == boot {
            return Ok(Boot::Same);
        }
        file::make_dir(self.dir())?;
        let _lock = self.lock()?;
        let recorded = self.recorded_boot()?; // another process may have been first
        if recorded == boot {
            return Ok(Boot::Same);
        }
        for dir in [self.vips_dir(), self.attachments_dir()] {
            file::remove_tree(&dir)?;
            file::make_dir(&dir)?;
        }
        // Last: a crash before this line and the next caller discards again.
        write_text(&self.dir().join("boot-id"), &boot)?;
        Ok(if recorded.is_empty() { Boot::Same } else { Boot::Discarded })
    }

    /// Whether there is a registry at all.
    pub fn exists(&self) -> bool {
        self.dir().join("boot-id").exists()
    }

    fn recorded_boot(&self) -> Result<String> {
        let path = self.dir().join("boot-id");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
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
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(Error::io("read", &path))?;
        let slot = match text.trim().parse() {
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

fn write_text(path: &std::path::Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        writeln!(file, "{text}")?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(Error::io("write", path))
}
