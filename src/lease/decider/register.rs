//! The register: which VIP has which address of the pool, and on which nodes. Kept by one node, on its disk: what is not in it is
//! free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::VipKey;
use crate::model::node::NodeId;
use crate::registry::file::Durability;
use crate::registry::{self, file};

/// The file's.
const SCHEMA: u64 = 1;

/// A VIP's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The address.
    pub address: Ipv4Addr,
    /// The nodes that were granted it.
    pub nodes: BTreeSet<NodeId>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register(pub BTreeMap<VipKey, Entry>);

#[derive(Serialize, Deserialize)]
struct Form {
    schema: u64,
    vips: BTreeMap<String, Entry>,
}

impl file::Form for Form {
    const SCHEMA: u64 = SCHEMA;
}

/// Why there is no register.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read, written or understood.
    #[error(transparent)]
    File(#[from] registry::Error),
    /// What it says can't be.
    #[error("{}: expected VIPs with an address each, found {what}", path.display())]
    Impossible {
        /// The file.
        path: PathBuf,
        /// What it says.
        what: String,
    },
}

impl Register {
    /// The one in `state_dir`; an empty one where there is none yet.
    pub fn load(state_dir: &Path) -> Result<Self, Error> {
        let path = path(state_dir);
        let form = file::read::<Form>(&path)?;
        let mut register = Self::default();
        for (name, entry) in form.map(|form| form.vips).unwrap_or_default() {
            let impossible = |what| Error::Impossible { path: path.clone(), what };
            let vip = name.parse().map_err(|_| impossible(format!("{name:?}")))?;
            if let Some(other) = register.of(entry.address) {
                return Err(impossible(format!("{} for {other} and {name}", entry.address)));
            }
            register.0.insert(vip, entry);
        }
        Ok(register)
    }

    /// Writes it: all of it or nothing, on disk when this returns.
    pub fn save(&self, state_dir: &Path) -> Result<(), Error> {
        let path = path(state_dir);
        let vips = self.0.iter().map(|(vip, entry)| (vip.to_string(), entry.clone())).collect();
        let text = file::encode(&path, &Form { schema: SCHEMA, vips }, SCHEMA)?;
        Ok(file::write_atomic(&path, &text, Durability::Disk)?)
    }

    /// The VIP that has an address.
    pub fn of(&self, address: Ipv4Addr) -> Option<&VipKey> {
        self.0.iter().find(|(_, entry)| entry.address == address).map(|(vip, _)| vip)
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("pool.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_no_address_twice() {
        let dir = std::env::temp_dir().join(format!("viproute-register-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(Register::load(&dir).unwrap(), Register::default());
        let nodes = [NodeId([192, 0, 2, 1].into())].into();
        let entry = Entry { address: [10, 118, 0, 1].into(), nodes };
        let register = Register([("shop/web".parse().unwrap(), entry)].into());
        register.save(&dir).unwrap();
        assert_eq!(Register::load(&dir).unwrap(), register);
        let text = std::fs::read_to_string(path(&dir)).unwrap();
        let twice = text.replace("\"vips\":{", "\"vips\":{\"shop/api\":{\"address\":\"10.118.0.1\",\"nodes\":[]},");
        file::write_atomic(&path(&dir), twice.as_bytes(), Durability::Boot).unwrap();
        let error = Register::load(&dir).unwrap_err().to_string();
        assert!(error.contains("10.118.0.1 for shop/api and shop/web"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
