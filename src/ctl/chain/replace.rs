//! Replaces a file in one step. A runtime that watches the directory must see neither half a file nor another network.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Runtimes ignore names that end like this.
fn new_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".viproute-new");
    path.with_file_name(name)
}

/// Writes `text`, with the owner and mode that `like` has.
pub fn write(path: &Path, text: &str, like: &Metadata) -> io::Result<()> {
    let new = new_name(path);
    // What a killed one has left.
    let _ = fs::remove_file(&new);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = (|| {
        fchown(&file, Some(like.uid()), Some(like.gid()))?;
        file.set_permissions(fs::Permissions::from_mode(like.mode() & 0o7777))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&new);
        return written;
    }
    // The name too, as far as the filesystem can.
    let _ = path.parent().map(File::open).transpose()?.map(|dir| dir.sync_all());
    Ok(())
}

/// Removes what a killed one has left.
pub fn forget(path: &Path) {
    let _ = fs::remove_file(new_name(path));
}
