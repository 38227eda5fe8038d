//! `viproutectl import`: another load balancer's configuration as viprouted's, to standard output. What has no counterpart is named.

mod metallb;
mod objects;

use std::io::Read;
use std::path::{Path, PathBuf};

use super::arguments::{Import, ImportFrom};

/// More than that is no configuration.
const MOST: u64 = 8 << 20;

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("{}", file.display())]
    Unreadable {
        /// Its name, or `-`.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no YAML.
    #[error("{}: expected YAML, as kubectl get -o yaml prints it", file.display())]
    Yaml {
        /// Its name, or `-`.
        file: PathBuf,
        /// What the parser makes of it.
        source: Box<serde_saphyr::Error>,
    },
    /// A value that the objects' own API would refuse.
    #[error("{}: {object}: {key} = {value}: expected {expected}", file.display())]
    Value {
        /// Its name, or `-`.
        file: PathBuf,
        /// Kind and name.
        object: String,
        /// Below `spec`.
        key: &'static str,
        /// As it is there.
        value: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// Nothing that says where addresses come from.
    #[error("{}: no {expected} with IPv4 addresses is in it{}", file.display(), because(left))]
    Nothing {
        /// Its name, or `-`.
        file: PathBuf,
        /// A kind of object.
        expected: &'static str,
        /// What is in it, and has no counterpart.
        left: Vec<String>,
    },
}

fn because(left: &[String]) -> String {
    if left.is_empty() { String::new() } else { format!(": {}", left.join("; ")) }
}

/// What became of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// viprouted.toml, or a part of it.
    pub toml: String,
    /// What has no counterpart, a sentence each.
    pub left: Vec<String>,
}

/// What the file says.
pub fn import(order: &Import) -> Result<Imported, Error> {
    let text = read(&order.file)?;
    match order.from {
        ImportFrom::Metallb => metallb::import(&order.file, &text),
    }
}

fn read(file: &Path) -> Result<String, Error> {
    let unreadable = |source| Error::Unreadable { file: file.to_owned(), source };
    let mut text = String::new();
    let size = if file == Path::new("-") {
        std::io::stdin().lock().take(MOST + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|open| open.take(MOST + 1).read_to_string(&mut text))
    };
    let size = size.map_err(unreadable)?;
    if u64::try_from(size).is_ok_and(|size| size <= MOST) {
        return Ok(text);
    }
    Err(unreadable(std::io::Error::other("expected 8 MiB at most")))
}
