//! The directory of the pins (`bpfDir`): where it may be, who may have made it, and what of it is ours.

use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::spec::{PROGRAMS, Parts, PinName, Variant};
use super::{Error, Result, VERSION, program, spec};

/// The pins' directory, locked: one at a time loads programs.
#[derive(Debug)]
pub struct PinDir {
    _lock: File,
    path: PathBuf,
}

impl PinDir {
    /// Makes the directory where it is missing, and waits for its lock.
    pub fn lock(path: &Path) -> Result<Self> {
        check_dir(path)?;
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::io("create", path))?;
        check_dir(path)?;
        let directory = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path);
        let directory = directory.map_err(Error::io("open", path))?;
        directory.lock().map_err(Error::io("lock", path))?;
        Ok(Self { _lock: directory, path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the pins of other builds: programs that no filter needs any more, maps of another form, or of the object that
    /// isn't in use. A file whose name
    /// has another form belongs to another program, and stays.
    pub fn remove_others(&self) -> Result<()> {
        let maps = Variant::pinned(&self.path).map(Variant::map_names).unwrap_or_default();
        for (name, path) in names(&self.path)? {
            let is_stale = match PinName::parse(&name) {
                Some(PinName::Program(_, version)) => version != VERSION,
                Some(PinName::Map) => !maps.contains(&name.as_str()),
                None => false,
            };
            if is_stale {
                remove_if_present(&path)?;
            }
        }
        Ok(())
    }
}

/// The files in it that may be pins, by name.
fn names(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        // A directory or a link is no pin, whatever it is called.
        if entry.file_type().is_ok_and(|kind| kind.is_file())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push((name, entry.path()));
        }
    }
    Ok(names)
}

/// The versions of other builds' programs that are pinned there.
pub fn other_versions(dir: &Path) -> Result<Vec<String>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let version = |(name, _): (String, PathBuf)| match PinName::parse(&name)? {
        PinName::Program(_, version) if version != VERSION && version != spec::NEW => Some(version.to_owned()),
        _ => None,
    };
    let mut versions: Vec<_> = names(dir)?.into_iter().filter_map(version).collect();
    versions.sort_unstable();
    versions.dedup();
    Ok(versions)
}

/// The parts of which programs are pinned there, of whatever build.
pub fn pinned_parts(dir: &Path) -> Result<Parts> {
    let names = if dir.exists() { names(dir)? } else { Vec::new() };
    let hooks = names.iter().filter_map(|(name, _)| match PinName::parse(name)? {
        PinName::Program(spec, _) => Some(spec.hook),
        PinName::Map => None,
    });
    Ok(hooks.fold(Parts::default(), Parts::and))
}

/// Whether all maps of one of this build's objects are pinned.
pub fn has_maps(dir: &Path) -> bool {
    Variant::pinned(dir).is_some_and(|variant| variant.map_names().iter().all(|name| dir.join(name).exists()))
}

/// A pin goes; it needn't be there.
pub(super) fn remove_if_present(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Whether programs can be pinned there: on a BPF filesystem, in a directory, which may not exist yet, that only root can
/// put anything into. Another user could otherwise attach a program to every host veth.
pub fn check_dir(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => match flaw(path, &found) {
            Some(flaw) => return Err(Error::UnsafeDir { path: path.to_owned(), flaw }),
            None => check_pins(path)?,
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("stat", path)(e)),
    }
    // The nearest directory that exists.
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    match existing.map(statfs) {
        Some(Ok(filesystem)) if filesystem.filesystem_type() == BPF_FS_MAGIC => Ok(()),
        _ => Err(Error::NotMounted(path.to_owned())),
    }
}

/// The root of a BPF filesystem that is mounted without options has mode 1777. With the sticky bit no other user can replace
/// what root has put there, and [`check_pins`] finds what others have put there.
fn flaw(path: &Path, found: &Metadata) -> Option<&'static str> {
    const OTHERS_WRITE: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    let mode = found.mode();
    if found.is_symlink() {
        Some("it is a symbolic link")
    } else if !found.is_dir() {
        Some("it is no directory")
    } else if found.uid() != 0 {
        Some("it doesn't belong to root")
    } else if mode & OTHERS_WRITE != 0 && !(mode & STICKY != 0 && is_mount_root(path, found)) {
        Some("others than root can write to it")
    } else {
        None
    }
}

fn is_mount_root(path: &Path, found: &Metadata) -> bool {
    let above = std::fs::metadata(path.join(".."));
    above.is_ok_and(|above| above.dev() != found.dev() || above.ino() == found.ino())
}

/// What has a name that we would open must be root's own file.
fn check_pins(dir: &Path) -> Result<()> {
    let own = PROGRAMS.iter().flat_map(|spec| [program::pin_of(dir, spec), program::new_pin_of(dir, spec)]);
    for path in own.chain(spec::map_names().into_iter().map(|name| dir.join(name))) {
        match std::fs::symlink_metadata(&path) {
            Ok(found) if !found.is_file() => {
                return Err(Error::UnsafeDir { path, flaw: "it is no file, as a pin is" });
            }
            Ok(found) if found.uid() != 0 => return Err(Error::UnsafeDir { path, flaw: "it doesn't belong to root" }),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("stat", &path)(e)),
        }
    }
    Ok(())
}
