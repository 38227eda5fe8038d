//! The file of the nodes' shared keys: a line of 64 hexadecimal digits for each, at most two. The first signs, both verify: a key
//! is changed on one node after the other, without one of them being unheard.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// A file of two keys with comments is far smaller.
const MAX_SIZE: u64 = 4096;
const KEYS: usize = 2;

/// Octets of a datagram's authentication.
pub const TAG: usize = 32;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("{}: no such file: make a key by `viproutectl key new {}` on one node and copy it to the others", .0.display(), .0.display())]
    Missing(PathBuf),
    /// Others than root may read or replace it.
    #[error(
        "{} has mode {mode:04o} and owner {owner}: expected mode 0600 and root's: chown root:root {} && chmod 0600 {}",
        path.display(), path.display(), path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// Its owner's number.
        owner: u32,
    },
    /// It holds something else.
    #[error("{}, line {line}: expected a key of 64 hexadecimal digits, at most two of them, a line each", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// A key would be written over.
    #[error("{} exists: expected a new path (nodes that have the old key would no longer be heard)", .0.display())]
    Exists(PathBuf),
    /// The kernel refused.
    #[error("{op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// The keys of one file.
#[derive(Clone)]
pub struct Keys(Vec<[u8; 32]>);

impl std::fmt::Debug for Keys {
    /// What is logged must not hold them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

impl Keys {
    /// Of one key; the second, if any, only verifies.
    pub fn new(first: [u8; 32], second: Option<[u8; 32]>) -> Self {
        Self(std::iter::once(first).chain(second).collect())
    }

    /// Reads and checks the file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let io = |op| move |source| Error::Io { op, path: path.to_owned(), source };
        let options = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
        let file = options.map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::Missing(path.to_owned()),
            _ => io("open")(source),
        })?;
        let found = file.metadata().map_err(io("read"))?;
        let (mode, owner) = (found.mode() & 0o7777, found.uid());
        if !found.is_file() || mode & 0o177 != 0 || owner != 0 {
            return Err(Error::Open { path: path.to_owned(), mode, owner });
        }
        let mut text = String::new();
        file.take(MAX_SIZE).read_to_string(&mut text).map_err(io("read"))?;
        Self::parse(&text).map_err(|line| Error::Bad { path: path.to_owned(), line })
    }

    /// Error: the line that is no key.
    fn parse(text: &str) -> Result<Self, usize> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match decoded(line) {
                Some(key) if keys.len() < KEYS => keys.push(key),
                _ => return Err(number + 1),
            }
        }
        if keys.is_empty() { Err(text.lines().count().max(1)) } else { Ok(Self(keys)) }
    }

    /// What a datagram of these parts carries.
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; TAG] {
        self.0.first().map_or([0; TAG], |key| mac(key, parts).finalize().into_bytes().into())
    }

    /// Whether it carries what one of the keys gives; in constant time.
    pub fn verify(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        self.0.iter().fold(false, |fine, key| mac(key, parts).verify_slice(tag).is_ok() | fine)
    }

    /// A name that all nodes with this key derive alike, and that says nothing of it: 128 bits in hexadecimal.
    pub fn cluster(&self) -> String {
        let tag = self.sign(&[b"viproute cluster"]);
        hexadecimal(&Sha256::digest(tag)[..16])
    }
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> Hmac<Sha256> {
    // Filled up to a block of the hash with zeros, which is what HMAC does with a shorter key (RFC 2104 section 2).
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    for part in parts {
        mac.update(part);
    }
    mac
}

fn decoded(line: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if line.len() != 64 || !line.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (octet, digits) in key.iter_mut().zip(line.as_bytes().chunks(2)) {
        *octet = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(key)
}

/// Digits for octets.
pub fn hexadecimal(octets: &[u8]) -> String {
    octets.iter().fold(String::new(), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    })
}

/// A new random key, as a file has it.
pub fn new_text() -> String {
    format!(
        "# The key of viproute's nodes, the same on all of them. A second line of the same form is accepted, too, but signs \
         nothing.\n{}\n",
        hexadecimal(&rand::random::<[u8; 32]>())
    )
}

/// Writes a new random key to a file that doesn't exist yet, mode 0600.
pub fn write_new(path: &Path) -> Result<(), Error> {
    let io = |op| move |source| Error::Io { op, path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(io("make the directory of"))?;
    }
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => Error::Exists(path.to_owned()),
        _ => io("create")(source),
    })?;
    let written = file.write_all(new_text().as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|source| {
        // Half a key is worse than none.
        let _ = std::fs::remove_file(path);
        io("write")(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_one_key_or_two() {
        let (one, two) = ("11".repeat(32), "22".repeat(32));
        assert_eq!(Keys::parse(&format!("# a comment\n\n{one}\n")).unwrap().0, [[0x11; 32]]);
        assert_eq!(Keys::parse(&format!("{one}\n{two}")).unwrap().0, [[0x11; 32], [0x22; 32]]);
        assert_eq!(Keys::parse(&format!("{one}\n{two}\n{one}")).unwrap_err(), 3);
        assert_eq!(Keys::parse("").unwrap_err(), 1);
        assert_eq!(Keys::parse(&format!("\n{}g\n", &one[1..])).unwrap_err(), 2);
        assert_eq!(Keys::parse(&format!("+1{}", &one[2..])).unwrap_err(), 1, "what from_str_radix takes for a sign");
    }

    #[test]
    fn two_keys_verify_and_the_first_signs() {
        let (old, new) = ([1; 32], [2; 32]);
        let (only_old, both, only_new) = (Keys::new(old, None), Keys::new(new, Some(old)), Keys::new(new, None));
        let parts: [&[u8]; 2] = [b"a", b"bc"];
        assert!(both.verify(&parts, &only_old.sign(&parts)) && only_new.verify(&parts, &both.sign(&parts)));
        assert!(!only_old.verify(&parts, &both.sign(&parts)) && !both.verify(&[b"ab"], &both.sign(&parts)));
        assert!(!both.verify(&parts, &both.sign(&parts)[..31]));
        assert_ne!(only_old.cluster(), both.cluster());
        assert_eq!((both.cluster(), both.cluster().len()), (only_new.cluster(), 32));
        assert_eq!(format!("{both:?}"), "Keys(2)");
    }

    #[test]
    fn hmac_is_the_one_of_rfc_4231() {
        // Section 4.2: a key of 20 octets, here filled with zeros as HMAC does itself.
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        let tag = hexadecimal(&Keys::new(key, None).sign(&[b"Hi ", b"There"]));
        assert_eq!(tag, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let dir = std::env::temp_dir().join(format!("viproute-key-{}", std::process::id()));
        let path = dir.join("some/membership.key");
        assert!(matches!(Keys::read(&path), Err(Error::Missing(_))));
        write_new(&path).unwrap();
        Keys::read(&path).unwrap();
        assert!(matches!(write_new(&path), Err(Error::Exists(_))));
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        let error = Keys::read(&path).unwrap_err().to_string();
        assert!(error.contains("has mode 0640") && error.contains("chmod 0600"), "{error}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
