//! The boot a registry belongs to. Routes and devices don't outlive a boot, so what is recorded of another one is
//! discarded before anything else is done.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use super::file::{self, Durability};
use super::lock::{Lock, Missing, of_dir};
use super::{Error, Registry, Result, nodes, schema, taken};

const BOOT_ID: &str = "boot-id";
/// The kernel's has 36 characters.
const MAX_BOOT_ID: u64 = 64;

/// What the file says.
#[derive(Debug, PartialEq, Eq)]
enum Recorded {
    /// There is none: a new registry.
    Nothing,
    /// A boot's id.
    Boot(String),
    /// Something else: it doesn't say which boot this is the state of.
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

/// While this is held no call gets a slot, so none makes a VIP that isn't there yet.
#[derive(Debug)]
pub struct SlotsHeld {
    _lock: Lock,
}

impl Registry {
    /// Waits for a call that is making a VIP, and keeps others from it. The caller may take no other lock meanwhile.
    pub fn hold_slots(&self) -> Result<SlotsHeld> {
        Ok(SlotsHeld { _lock: self.lock()? })
    }

    /// Takes the directory from all but its owner, where it is this user's and holds nothing but a registry: what makes it before
    /// viproute does (Kubernetes' `DirectoryOrCreate`) lets everybody read it. Whether that was so.
    pub fn close_to_others(&self) -> Result<bool> {
        let failed = |e| Error::io("restrict", self.dir())(e);
        let dir = match File::options().read(true).custom_flags(libc::O_DIRECTORY).open(self.dir()) {
            Ok(dir) => dir,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(failed(e)),
        };
        let metadata = dir.metadata().map_err(failed)?;
        // A directory of others' files is no registry, whatever the configuration says.
        let ours = [BOOT_ID, "lock", schema::FILE, nodes::FILE, taken::FILE, "vips", "attachments"];
        let is_registry = || Ok::<_, Error>(file::list(self.dir())?.iter().all(|name| ours.contains(&name.as_str())));
        if metadata.uid() != Uid::effective().as_raw() || metadata.mode().trailing_zeros() >= 6 || !is_registry()? {
            return Ok(false);
        }
        dir.set_permissions(Permissions::from_mode(0o700)).map_err(failed)?;
        Ok(true)
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
        if recorded != Recorded::Nothing && self.has_living_pods()? {
            return self.keep(&recorded, &boot);
        }
        let (attachments, vips) = (self.attachments()?.len(), self.vips()?.len());
        for dir in [self.vips_dir(), self.attachments_dir()] {
            file::remove_tree(&dir)?;
            file::make_dir(&dir)?;
        }
        nodes::store(self, None)?;
        // Last: a crash before this line and the next caller discards again.
        write_text(&self.dir().join(BOOT_ID), &boot)?;
        if recorded == Recorded::Nothing {
            return Ok(Boot::Same);
        }
        let dir = self.dir().display();
        tracing::warn!(%dir, attachments, vips, ?recorded, boot, "the registry of another boot is discarded");
        Ok(Boot::Discarded)
    }

    /// A network namespace doesn't outlive a boot. What differs is the id that is shown: a service manager in a system container
    /// may see another one than the runtime. It stays as it was recorded, so that the two don't take turns in writing it.
    fn keep(&self, recorded: &Recorded, boot: &str) -> Result<Boot> {
        let path = self.dir().join(BOOT_ID);
        let text = path.display();
        tracing::warn!(path = %text, ?recorded, boot, "not the boot id seen here, but pods recorded here are alive: the registry is kept");
        if *recorded == Recorded::Unusable {
            write_text(&path, boot)?;
        }
        Ok(Boot::Same)
    }

    /// Whether what is recorded is of this boot. Of another's nothing is left in the kernel, and the next call discards it.
    pub fn is_of_this_boot(&self) -> Result<bool> {
        Ok(self.recorded_boot()? == Recorded::Boot(current_boot()?) || self.has_living_pods()?)
    }

    /// The boot id that is recorded and the one seen here, where they differ.
    pub fn other_boot(&self) -> Result<Option<(String, String)>> {
        let boot = current_boot()?;
        Ok(match self.recorded_boot()? {
            Recorded::Boot(recorded) if recorded != boot => Some((recorded, boot)),
            _ => None,
        })
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

    pub(super) fn lock(&self) -> Result<Lock> {
        let path = of_dir(self.dir());
        Lock::take(&path, Missing::Create, &self.waits)?
            .ok_or_else(|| Error::io("lock", &path)(std::io::ErrorKind::NotFound.into()))
    }
}

pub(super) fn current_boot() -> Result<String> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    Ok(text.trim().to_owned())
}

pub(super) fn write_text(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    file::write_new(&temporary, format!("{text}\n").as_bytes(), Durability::Boot)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(Error::io("write", path))
}
