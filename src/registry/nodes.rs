//! `nodes.json`: this node and the others that serve its VIPs. viprouted writes it, where nodes know of each other; what makes
//! routes reads it. Without the file a node stands alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::Cluster;

use super::file::{self, Durability, Form};
use super::record::SCHEMA;
use super::{LockedVip, Registry, Result};

pub(super) const FILE: &str = "nodes.json";

/// The file's form.
#[derive(Debug, Serialize, Deserialize)]
struct Nodes {
    schema: u64,
    #[serde(flatten)]
    cluster: Cluster,
    /// Fields of later versions.
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

impl Form for Nodes {
    const SCHEMA: u64 = SCHEMA;
}

fn path(registry: &Registry) -> PathBuf {
    registry.dir().join(FILE)
}

/// The nodes; `None`: this one stands alone. Fails also where the file says what no cluster can be.
pub fn load(registry: &Registry) -> Result<Option<Cluster>> {
    Ok(file::read::<Nodes>(&path(registry))?.map(|nodes| nodes.cluster))
}

/// The nodes, where there are others.
pub fn load_others(registry: &Registry) -> Result<Option<Cluster>> {
    Ok(load(registry)?.filter(|cluster| !cluster.nodes.is_empty()))
}

/// What was loaded, for who can do without: what is damaged is as good as none until viprouted writes it anew.
pub fn or_alone(loaded: Result<Option<Cluster>>) -> Option<Cluster> {
    loaded.unwrap_or_else(|error| {
        tracing::warn!(error = crate::with_causes(&error), "the other nodes aren't known: this one stands alone");
        None
    })
}

impl LockedVip {
    /// The nodes that this one knows, where there are others ([`or_alone`]). Read once for each time the lock is held.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.get_or_init(|| or_alone(load_others(&self.registry))).as_ref()
    }
}

/// Replaces the file where it says something else; `None`: this node stands alone from now on. One process at a time may call
/// it. Returns whether anything has changed.
pub fn store(registry: &Registry, cluster: Option<&Cluster>) -> Result<bool> {
    let path = path(registry);
    let Some(cluster) = cluster else {
        let was_there = path.exists();
        file::remove_record(&path)?;
        return Ok(was_there);
    };
    // A file that can't be read is replaced like one that says something else.
    if load(registry).ok().flatten().as_ref() == Some(cluster) {
        return Ok(false);
    }
    file::make_dir(registry.dir())?;
    let nodes = Nodes { schema: SCHEMA, cluster: cluster.clone(), other: BTreeMap::new() };
    let text = file::encode(&path, &nodes, SCHEMA)?;
    file::write_atomic(&path, &text, Durability::Boot)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::node::{ClusterNode, NodeId, NodeState, OwnNode};
    use crate::registry::Error;
    use crate::registry::tests::Scratch;

    fn cluster() -> Cluster {
        let address = |last| Ipv4Addr::new(192, 0, 2, last);
        let own =
            OwnNode { id: NodeId(address(1)), name: "n1".into(), tunnel: address(1).into(), heard6: None, left: false };
        let other = ClusterNode { number: 1, state: NodeState::Suspect, ..ClusterNode::at(2) };
        Cluster::new(own, vec![other]).unwrap()
    }

    #[test]
    fn it_is_written_when_it_changes_and_read_as_it_was() {
        let scratch = Scratch::new();
        let registry = &scratch.0;
        assert_eq!(load(registry).unwrap(), None);
        assert!(store(registry, Some(&cluster())).unwrap());
        assert!(!store(registry, Some(&cluster())).unwrap());
        assert_eq!(load(registry).unwrap(), Some(cluster()));
        let text = std::fs::read_to_string(path(registry)).unwrap();
        assert!(text.starts_with(r#"{"schema":2,"own":{"id":"192.0.2.1""#), "{text}");
        assert!(store(registry, None).unwrap());
        assert!(!store(registry, None).unwrap());
        assert_eq!(load(registry).unwrap(), None);
    }

    #[test]
    fn it_is_of_its_boot() {
        let scratch = Scratch::new();
        let registry = &scratch.0;
        store(registry, Some(&cluster())).unwrap();
        file::write_in_place(&registry.dir().join("boot-id"), b"00000000-0000-0000-0000-000000000000\n").unwrap();
        registry.begin().unwrap();
        assert_eq!(load(registry).unwrap(), None);
    }

    #[test]
    fn what_cant_be_a_cluster_is_damage_and_is_written_over() {
        let scratch = Scratch::new();
        let registry = &scratch.0;
        let damaged = r#"{"schema":2,"own":{"id":"192.0.2.1","name":"","tunnel":"192.0.2.1"},
            "nodes":[{"id":"192.0.2.2","name":"","number":0,"tunnel":"192.0.2.2","state":"live"}]}"#;
        for text in ["", "{", r#"{"schema":2}"#, damaged] {
            file::write_in_place(&path(registry), text.as_bytes()).unwrap();
            assert!(matches!(load(registry), Err(Error::Torn { .. })), "{text}");
        }
        assert!(store(registry, Some(&cluster())).unwrap());
        assert_eq!(load(registry).unwrap(), Some(cluster()));
    }
}
