//! The prefix that a `DHCPv6` server has delegated to this node, on disk: `prefix6.json`.

use std::path::PathBuf;

use ipnetwork::Ipv6Network;
use serde::{Deserialize, Serialize};

use super::{Error, SCHEMA, Store, Term};
use crate::lease::grant::Lease;
use crate::registry::file::{self, Durability};

/// A prefix that is delegated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegated {
    /// The prefix.
    pub network: Ipv6Network,
    /// For how long, and by whom; the address is the network's.
    pub lease: Lease,
}

/// The file's form; times as in a lease file.
#[derive(Debug, Serialize, Deserialize)]
struct Form {
    schema: u64,
    prefix: Ipv6Network,
    #[serde(flatten)]
    term: Term,
}

impl file::Form for Form {
    const SCHEMA: u64 = SCHEMA;
}

impl Store {
    /// Reads it; none if there is none.
    pub fn load_prefix(&self) -> Result<Option<Delegated>, Error> {
        let path = self.prefix_path();
        let Some(form) = file::read::<Form>(&path)? else { return Ok(None) };
        let lease = form.term.lease(form.prefix.network().into(), None, self.shift(&form.term));
        lease.map(|lease| Some(Delegated { network: form.prefix, lease })).ok_or(Error::Time { path })
    }

    /// Writes it, all of it or nothing; none: removes it. On disk when this returns.
    pub fn save_prefix(&self, prefix: Option<&Delegated>) -> Result<(), Error> {
        let path = self.prefix_path();
        let Some(Delegated { network, lease }) = prefix else {
            file::remove(&path)?;
            return Ok(());
        };
        let form = Form { schema: SCHEMA, prefix: *network, term: Term::of(lease, self.boot()) };
        Ok(file::write_atomic(&path, &file::encode(&path, &form, SCHEMA)?, Durability::Disk)?)
    }

    fn prefix_path(&self) -> PathBuf {
        self.state_dir.join("prefix6.json")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::lease::clock;

    #[test]
    fn it_is_read_as_it_was_written_and_gone_when_it_is_lost() {
        let dir = std::env::temp_dir().join(format!("viproute-prefix-{}", std::process::id()));
        let store = Store::open(&dir).unwrap();
        assert_eq!(store.load_prefix().unwrap(), None);
        let network: Ipv6Network = "2001:db8:1::/56".parse().unwrap();
        let granted = clock::now();
        let expires = Some(granted + Duration::from_secs(600));
        let server = "fe80::1".parse().ok();
        let lease = Lease { server, expires, ..Lease::permanent(network.network().into(), granted) };
        store.save_prefix(Some(&Delegated { network, lease: lease.clone() })).unwrap();
        let found = store.load_prefix().unwrap().unwrap();
        assert_eq!((found.network, found.lease.address, found.lease.server), (network, lease.address, lease.server));
        let left = found.lease.expires.unwrap().duration_since(granted).unwrap().as_secs();
        assert!((598..=601).contains(&left), "{left}");
        store.save_prefix(None).unwrap();
        assert_eq!(store.load_prefix().unwrap(), None);
        let mut file = std::fs::File::create(dir.join("prefix6.json")).unwrap();
        std::io::Write::write_all(&mut file, b"{\"schema\":1,\"prefix\":\"fd").unwrap();
        let error = store.load_prefix().unwrap_err().to_string();
        assert!(error.contains("prefix6.json"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
