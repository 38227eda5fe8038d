//! Replaces a file in one step. A runtime that watches the directory must see neither half a file nor another network, and what somebody
//! else writes at the same moment must not get lost.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// More than any network has. What is longer is refused.
const LONGEST: u64 = 1 << 20;
/// So many writers at the same moment are put right.
const TRIES: usize = 8;

/// A file as it was read.
#[derive(Debug)]
pub struct Seen {
    /// Its text.
    pub text: String,
    /// Whose it is, and who may read it.
    pub like: Metadata,
}

/// What became of a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in place.
    Done,
    /// Somebody has written the file since it was read: it is as that one left it.
    Changed,
}

/// Runtimes ignore names that end like this.
fn new_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".viproute-new");
    path.with_file_name(name)
}

/// Reads a file, its text and its owner belonging together. A link is not followed (ELOOP).
pub fn read(path: &Path) -> io::Result<Seen> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let like = file.metadata()?;
    if like.len() > LONGEST {
        return Err(Errno::EFBIG.into());
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok(Seen { text, like })
}

/// Writes `text`, with the owner and mode that `like` has, whatever the file is now.
pub fn write(path: &Path, text: &str, like: &Metadata) -> io::Result<()> {
    let new = prepare(path, text, like)?;
    removed_where_failed(&new, fs::rename(&new, path))?;
    sync_name(path);
    Ok(())
}

/// Writes `text` in place of what was seen there, with its owner and mode.
pub fn replace(path: &Path, seen: &Seen, text: &str) -> io::Result<Outcome> {
    let new = prepare(path, text, &seen.like)?;
    let own = fs::metadata(&new)?.ino();
    match exchange(&new, path) {
        Ok(()) => {}
        // Somebody has removed it.
        Err(Errno::ENOENT) => return fs::remove_file(&new).map(|()| Outcome::Changed),
        // The filesystem can't exchange.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            removed_where_failed(&new, fs::rename(&new, path))?;
            sync_name(path);
            return Ok(Outcome::Done);
        }
        Err(errno) => return removed_where_failed(&new, Err(errno.into())),
    }
    // What has come out. One that still writes there has not come to its end, and its text differs.
    if read(&new).is_ok_and(|out| out.text == seen.text) {
        fs::remove_file(&new)?;
        sync_name(path);
        return Ok(Outcome::Done);
    }
    put_back(&new, path, own).map(|()| Outcome::Changed)
}

/// Puts another's file back into its place. `own` was put there, and is what should come out; where it is another's again, that one is
/// the newer.
fn put_back(new: &Path, path: &Path, mut own: u64) -> io::Result<()> {
    for _ in 0..TRIES {
        let theirs = fs::metadata(new)?.ino();
        match exchange(new, path) {
            Ok(()) if fs::metadata(new)?.ino() == own => break,
            Ok(()) => own = theirs,
            Err(Errno::ENOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    fs::remove_file(new)
}

/// What one that was killed has left beside the file: its own text, whole or not, or what it had just taken out of its place (see
/// [`replace`]), which is put back.
pub fn recover(path: &Path, own: &[&str]) -> io::Result<()> {
    let new = new_name(path);
    match read(&new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(left) if !own.iter().any(|own| own.starts_with(&left.text)) => fs::rename(new, path),
        Ok(_) | Err(_) => fs::remove_file(new),
    }
}

fn exchange(new: &Path, path: &Path) -> nix::Result<()> {
    renameat2(AT_FDCWD, new, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE)
}

/// The text on the disk, beside the file.
fn prepare(path: &Path, text: &str, like: &Metadata) -> io::Result<PathBuf> {
    let new = new_name(path);
    // What a killed one has left.
    let _ = fs::remove_file(&new);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = (|| {
        fchown(&file, Some(like.uid()), Some(like.gid()))?;
        file.set_permissions(fs::Permissions::from_mode(like.mode() & 0o7777))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    })();
    removed_where_failed(&new, written)?;
    Ok(new)
}

fn removed_where_failed<T>(new: &Path, result: io::Result<T>) -> io::Result<T> {
    if result.is_err() {
        let _ = fs::remove_file(new);
    }
    result
}

/// The name too, as far as the filesystem can.
fn sync_name(path: &Path) {
    let _ = path.parent().and_then(|dir| File::open(dir).ok()).map(|dir| dir.sync_all());
}

/// Removes what a killed one has left.
pub fn forget(path: &Path) {
    let _ = fs::remove_file(new_name(path));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In place, as another program does it.
    fn put(path: impl AsRef<Path>, text: &str) -> io::Result<()> {
        File::create(path)?.write_all(text.as_bytes())
    }

    /// A directory with a network in it.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("viproute-replace-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            put(dir.join("10-n.conflist"), "before").unwrap();
            Self(dir)
        }

        fn path(&self) -> PathBuf {
            self.0.join("10-n.conflist")
        }

        fn files(&self) -> Vec<String> {
            let names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_somebody_has_written_meanwhile_stays() {
        let dir = Dir::new("meanwhile");
        let path = dir.path();
        let seen = read(&path).unwrap();
        // By renaming, and in place.
        put(dir.0.join("new"), "theirs").unwrap();
        fs::rename(dir.0.join("new"), &path).unwrap();
        assert_eq!(replace(&path, &seen, "ours").unwrap(), Outcome::Changed);
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), dir.files().len()), ("theirs", 1));
        let seen = read(&path).unwrap();
        put(&path, "half of it, th").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        assert_eq!(replace(&path, &seen, "ours").unwrap(), Outcome::Changed);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "who writes on writes to what is in its place");
        let seen = read(&path).unwrap();
        assert_eq!(replace(&path, &seen, "ours").unwrap(), Outcome::Done);
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), dir.files().len()), ("ours", 1));
        fs::remove_file(&path).unwrap();
        assert_eq!(replace(&path, &seen, "ours").unwrap(), Outcome::Changed);
        assert_eq!(dir.files(), Vec::<String>::new());
    }

    #[test]
    fn what_a_killed_one_had_taken_out_is_put_back() {
        let dir = Dir::new("killed");
        let path = dir.path();
        let own = ["before", "before, and viproute"];
        for (left, now) in [("before, and vip", "before"), ("", "before"), ("theirs", "theirs")] {
            put(&path, "before").unwrap();
            put(new_name(&path), left).unwrap();
            recover(&path, &own).unwrap();
            assert_eq!((fs::read_to_string(&path).unwrap().as_str(), dir.files().len()), (now, 1), "{left}");
        }
    }
}
