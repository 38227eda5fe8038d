//! The name that sets this node's VIPs, or those of all nodes of a cluster, apart from other clients of a DHCP server.
//!
//! There is no constant default: two nodes on one LAN that know nothing of each other would ask as the same client, and
//! take each other's VIPs. Where the configuration names none, one is made once at random, and kept.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::registry;
use crate::registry::file::{self, Durability};

/// What every node was called that had no name, up to version 0.1: who has leases under it keeps it.
const UNNAMED: &str = "default";

/// The file's.
const SCHEMA: u64 = 1;

/// Why there is no name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read, written or understood.
    #[error(transparent)]
    File(#[from] registry::Error),
    /// The nodes of a cluster have to have the same.
    #[error(
        "cluster is missing: expected a name of 1 to 253 bytes, the same on all nodes, because peers names other nodes \
         (nodes set up without one by version 0.1 are \"{UNNAMED}\")"
    )]
    Unnamed,
}

/// The name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The name itself.
    pub name: String,
    /// Whether it is certain that no other node has it.
    pub own: bool,
}

#[derive(Serialize, Deserialize)]
struct Form {
    schema: u64,
    cluster: String,
}

impl file::Form for Form {
    const SCHEMA: u64 = SCHEMA;
}

/// What is known of other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Others {
    /// There are none.
    None,
    /// `peers` lists them.
    Listed,
    /// They have a key in common, from which all of them derive this name.
    Keyed(String),
}

/// The name in the configuration, else the one kept in `state_dir`, else one made now. `leases`: whether there are any of
/// before: they keep the name that they have.
pub fn find(configured: Option<&str>, state_dir: &Path, leases: bool, others: Others) -> Result<Cluster, Error> {
    if let Some(name) = configured {
        return Ok(Cluster { name: name.into(), own: false });
    }
    let path = path(state_dir);
    let alone = others == Others::None;
    let kept = file::read::<Form>(&path)?.map(|form| form.cluster);
    if let Some(name) = kept.clone().filter(|_| leases || !matches!(others, Others::Keyed(_))) {
        let own = name != UNNAMED && alone;
        return Ok(Cluster { name, own });
    }
    let name = match (leases, others) {
        (true, _) => UNNAMED.to_owned(),
        (false, Others::Keyed(name)) => name,
        (false, Others::Listed) => return Err(Error::Unnamed),
        (false, Others::None) => random(),
    };
    let form = Form { schema: SCHEMA, cluster: name.clone() };
    if kept.as_ref() == Some(&name) {
        return Ok(Cluster { name, own: false });
    }
    file::write_atomic(&path, &file::encode(&path, &form, SCHEMA)?, Durability::Disk)?;
    Ok(Cluster { name, own: !leases && alone })
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("cluster.json")
}

/// 128 bits, in hexadecimal.
fn random() -> String {
    rand::random::<[u8; 16]>().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own for each test, removed with it.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("viproute-cluster-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn find(&self, leases: bool, peers: bool) -> Result<Cluster, Error> {
            find(None, &self.0, leases, if peers { Others::Listed } else { Others::None })
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_name_is_made_once_and_kept() {
        let (one, other) = (Place::new("one"), Place::new("other"));
        let made = one.find(false, false).unwrap();
        assert!(made.own && made.name.len() == 32, "{made:?}");
        assert_eq!(one.find(true, false).unwrap(), made, "with leases under it by now");
        assert_ne!(other.find(false, false).unwrap().name, made.name);
        let named = find(Some("blue"), &one.0, true, Others::None).unwrap();
        assert_eq!(named, Cluster { name: "blue".into(), own: false }, "another node may have it too");
    }

    #[test]
    fn leases_of_before_keep_the_name_they_have() {
        let place = Place::new("before");
        let kept = Cluster { name: "default".into(), own: false };
        assert_eq!(place.find(true, true).unwrap(), kept);
        assert_eq!(place.find(false, true).unwrap(), kept, "also when those leases are gone");
    }

    #[test]
    fn nodes_that_have_peers_must_agree_on_one() {
        let place = Place::new("peers");
        let error = place.find(false, true).unwrap_err();
        assert!(error.to_string().starts_with("cluster is missing: expected a name"), "{error}");
        assert!(!path(&place.0).exists());
    }

    #[test]
    fn nodes_with_a_common_key_have_the_name_that_it_gives_unless_leases_have_another() {
        let (new, before) = (Place::new("keyed"), Place::new("keyed-before"));
        let keyed = |place: &Place, leases| find(None, &place.0, leases, Others::Keyed("k".into())).unwrap();
        let shared = Cluster { name: "k".into(), own: false };
        assert_eq!(keyed(&new, false), shared);
        assert_eq!(keyed(&new, true), shared, "with leases under it by now");
        assert_eq!(find(None, &new.0, true, Others::Keyed("other key".into())).unwrap(), shared, "the key was changed");
        let own = before.find(false, false).unwrap();
        assert_eq!(keyed(&before, true), Cluster { own: false, ..own });
        assert_eq!(keyed(&before, false), shared, "those leases are gone");
    }

    #[test]
    fn a_damaged_file_is_named_and_left() {
        let place = Place::new("damaged");
        let mut file = std::fs::File::create(path(&place.0)).unwrap();
        std::io::Write::write_all(&mut file, b"{\"schema\":1,\"clu").unwrap();
        let error = place.find(false, false).unwrap_err();
        assert!(error.to_string().contains("cluster.json"), "{error}");
    }
}
