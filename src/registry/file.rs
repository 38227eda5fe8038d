//! JSON files: replaced as a whole, told apart when torn, foreign or newer.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Error, Result};

/// No file of ours comes near this; something that does is not read into memory.
const MAX_SIZE: u64 = 16 << 20;

/// A file's keys.
pub type Fields = serde_json::Map<String, Value>;

/// What a kind of file says, in the schema that this version has for it, and how it was said in the one before.
pub trait Form: Serialize + DeserializeOwned {
    /// The schema. Others below it are read, those above are not.
    const SCHEMA: u64;

    /// Rewrites the keys of the schema before. Nothing is checked here: what isn't as it must be then fails to decode.
    fn upgrade(_fields: &mut Fields) {}

    /// The reverse, for the version before. Error: what its schema can't say.
    fn downgrade(_fields: &mut Fields) -> std::result::Result<(), &'static str> {
        Ok(())
    }
}

/// Reads a record. `None`: there is no such file.
pub fn read<T: Form>(path: &Path) -> Result<Option<T>> {
    read_text(path)?.map(|text| decode(path, &text)).transpose()
}

/// Reads a file. `None`: there is no such file.
pub(super) fn read_text(path: &Path) -> Result<Option<Vec<u8>>> {
    let mut file = match open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path)(e)),
    };
    let size = file.metadata().map_err(Error::io("read", path))?.len().min(MAX_SIZE);
    let mut text = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 64); // room for the read that finds the end
    Read::by_ref(&mut file).take(MAX_SIZE).read_to_end(&mut text).map_err(Error::io("read", path))?;
    Ok(Some(text))
}

/// Decodes a record's text; `path` is for the error.
pub fn decode<T: Form>(path: &Path, text: &[u8]) -> Result<T> {
    let torn = |source| Error::Torn { path: path.to_owned(), source };
    // As this version writes it: an index of a thousand replicas isn't read twice.
    if text.starts_with(format!("{{\"schema\":{},", T::SCHEMA).as_bytes()) {
        return serde_json::from_slice(text).map_err(torn);
    }
    match serde_json::from_slice::<Schema>(text).map_err(torn)?.schema {
        None => Err(Error::Foreign { path: path.to_owned() }),
        Some(schema) if schema > T::SCHEMA => Err(Error::Newer { path: path.to_owned(), schema, known: T::SCHEMA }),
        Some(schema) if schema < T::SCHEMA => {
            let mut fields: Fields = serde_json::from_slice(text).map_err(torn)?;
            T::upgrade(&mut fields);
            fields.insert("schema".to_owned(), T::SCHEMA.into());
            serde_json::from_value(Value::Object(fields)).map_err(torn)
        }
        Some(_) => serde_json::from_slice(text).map_err(torn),
    }
}

/// As every file begins.
#[derive(serde::Deserialize)]
struct Schema {
    schema: Option<u64>,
}

/// The schema that a file says it has; `None`: there is none, or nothing that says so.
pub fn schema_of(path: &Path) -> Option<u64> {
    let mut text = Vec::new();
    open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut text)).ok()?;
    serde_json::from_slice::<Schema>(&text).ok()?.schema
}

/// A record's text in a schema: this version's, or the one before.
pub fn encode<T: Form>(path: &Path, record: &T, schema: u64) -> Result<Vec<u8>> {
    let torn = |source| Error::Torn { path: path.to_owned(), source };
    let mut text = if schema >= T::SCHEMA {
        serde_json::to_vec(record).map_err(torn)?
    } else {
        let Value::Object(mut fields) = serde_json::to_value(record).map_err(torn)? else {
            return Err(Error::Foreign { path: path.to_owned() });
        };
        T::downgrade(&mut fields).map_err(|what| Error::Older { path: path.to_owned(), schema, what })?;
        fields.insert("schema".to_owned(), schema.into());
        serde_json::to_vec(&fields).map_err(torn)?
    };
    text.push(b'\n');
    Ok(text)
}

/// Opens for reading; a symbolic link in a file's place is refused (`ELOOP`), and a FIFO isn't waited for.
pub(super) fn open(path: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Whether it must survive a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// No: it means nothing after a reboot.
    Boot,
    /// Yes: file and directory are synced before this returns.
    Disk,
}

/// Replaces a file as a whole: a reader sees the old text or the new one. The temporary file has a fixed name, so that
/// a crash leaves at most one, which the next write takes; the caller holds the lock that makes it the only writer.
pub fn write_atomic(path: &Path, text: &[u8], durability: Durability) -> Result<()> {
    let Some(dir) = path.parent() else {
        return Err(Error::io("write", path)(std::io::ErrorKind::InvalidInput.into()));
    };
    let temporary = temporary(path);
    let written = write_new(&temporary, text, durability)
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| if durability == Durability::Disk { File::open(dir)?.sync_all() } else { Ok(()) });
    written.map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        Error::io("write", path)(e)
    })
}

const TEMPORARY: &str = ".tmp";

/// Where the text of a record is written before it takes the record's place.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{TEMPORARY}"))
}

/// Removes the temporary files that crashes have left in a directory. The caller holds the lock that makes it the only
/// writer there.
pub fn remove_temporaries(dir: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with('.') && name.to_string_lossy().ends_with(TEMPORARY) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Writes a file from its beginning.
pub(super) fn write_new(path: &Path, text: &[u8], durability: Durability) -> std::io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(text)?;
    if durability == Durability::Disk { file.sync_all() } else { Ok(()) }
}

/// Overwrites a file in place: a crash may tear it, because it can be derived again.
pub fn write_in_place(path: &Path, text: &[u8]) -> Result<()> {
    write_new(path, text, Durability::Boot).map_err(Error::io("write", path))
}

/// Empties a file; it needn't exist.
pub fn empty(path: &Path) -> Result<()> {
    match File::options().write(true).truncate(true).custom_flags(libc::O_NOFOLLOW).open(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("empty", path)(e)),
        _ => Ok(()),
    }
}

/// Whether a directory holds nothing but hidden (temporary) files, or doesn't exist.
pub fn is_empty_dir(path: &Path) -> Result<bool> {
    has_none(path, |_| true)
}

/// Whether no name in a directory is such a one, hidden (temporary) files left out; also where there is no directory.
pub(super) fn has_none(path: &Path, is_such: impl Fn(&str) -> bool) -> Result<bool> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(Error::io("list", path)(e)),
    };
    for entry in entries {
        let name = entry.map_err(Error::io("list", path))?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') && is_such(&name) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes a directory and its parents, 0700; it may exist.
pub fn make_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::io("create", path))
}

/// As [`make_dir`] for one that is ours alone: a symbolic link in its place is refused. Only the directory that the
/// configuration names may be one.
pub fn make_own_dir(path: &Path) -> Result<()> {
    make_dir(path)?;
    check_own_dir(path)
}

/// Refuses a symbolic link in the place of a directory of ours (`ENOTDIR`).
pub fn check_own_dir(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.is_dir() => {
            Err(Error::io("open directory", path)(std::io::ErrorKind::NotADirectory.into()))
        }
        Ok(_) => Ok(()),
        Err(e) => Err(Error::io("open directory", path)(e)),
    }
}

/// Removes a record, and what a crash in writing it has left; neither needs to be there.
pub fn remove_record(path: &Path) -> Result<()> {
    remove(&temporary(path))?;
    remove(path).map(drop)
}

/// Removes a file; false: there was none.
pub fn remove(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("remove", path)(e)),
    }
}

/// Removes a directory and all in it; it needn't exist, and others may be removing it too.
pub fn remove_tree(path: &Path) -> Result<()> {
    loop {
        match std::fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.exists() => {} // of something in it
            // Who looked the directory up before it was renamed can still make a file in it: its lock.
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io("remove", path)(e)),
        }
    }
}

/// The names in a directory, hidden ones (temporary files) left out; none where there is no directory.
pub fn list(path: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", path)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("list", path))?.file_name();
        names.extend(name.into_string().ok().filter(|name| !name.starts_with('.')));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Serialize, serde::Deserialize)]
    struct Any {
        schema: u64,
    }

    impl Form for Any {
        const SCHEMA: u64 = 1;
    }

    fn verdict(text: &str) -> std::result::Result<(), &'static str> {
        decode::<Any>(Path::new("/r/x.json"), text.as_bytes()).map(drop).map_err(|e| match e {
            Error::Torn { .. } => "torn",
            Error::Foreign { .. } => "foreign",
            Error::Newer { .. } => "newer",
            _ => "other",
        })
    }

    #[test]
    fn damage_is_told_apart() {
        assert_eq!(verdict(r#"{"schema":1,"a":"#), Err("torn"));
        assert_eq!(verdict(""), Err("torn"));
        assert_eq!(verdict(r#"{"a":1}"#), Err("foreign"));
        assert_eq!(verdict(r#"{"schema":2}"#), Err("newer"));
        assert!(verdict(r#"{"schema":1,"a":1}"#).is_ok());
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<super::super::Endpoint>(Path::new("/x"), &bytes);
            let _ = decode::<super::super::AttachmentRecord>(Path::new("/x"), &bytes);
        }
    }
}
