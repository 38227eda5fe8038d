//! What was last known of the cluster, on disk: after a restart it stays in force until the API has said everything anew.

use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::registry;
use crate::registry::file::{self, Durability};

use super::objects::Objects;

/// The file's name, in the state directory.
pub const FILE: &str = "kubernetes.json";

const SCHEMA: u64 = 1;

/// The file's form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    schema: u64,
    /// The identity of the cluster's namespace kube-system.
    pub cluster: Option<String>,
    /// Where its API server is, by the Service of its own.
    #[serde(default)]
    pub servers: Vec<SocketAddr>,
    /// Everything else.
    pub objects: Objects,
}

impl file::Form for Remembered {
    const SCHEMA: u64 = SCHEMA;
}

impl Remembered {
    /// What is known now.
    pub fn of(cluster: Option<&str>, objects: &Objects) -> Self {
        let servers = Self::servers_of(objects);
        Self { schema: SCHEMA, cluster: cluster.map(str::to_owned), servers, objects: objects.clone() }
    }

    /// What the last run has left. What can't be read is as good as nothing: the API says it again.
    pub fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        match file::read(&path) {
            Ok(found) => found.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "what was known of Kubernetes isn't understood"
                );
                Self::default()
            }
        }
    }

    /// Replaces the file as a whole.
    pub fn save(&self, state_dir: &Path) -> registry::Result<()> {
        let path = state_dir.join(FILE);
        let text = file::encode(&path, self, SCHEMA)?;
        file::write_atomic(&path, &text, Durability::Disk)
    }

    /// It says this already.
    pub fn is(&self, cluster: Option<&str>, objects: &Objects) -> bool {
        self.schema == SCHEMA && self.cluster.as_deref() == cluster && self.objects == *objects
    }

    /// Where the API server is, as its own Service's slices say.
    pub fn servers_of(objects: &Objects) -> Vec<SocketAddr> {
        let slices = objects.slices.values().filter(|slice| slice.service == super::API_SERVICE);
        slices.flat_map(|slice| slice.api_servers.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::kubernetes::objects::Service;

    #[test]
    #[allow(clippy::disallowed_methods)] // half a file is what it is about
    fn what_was_known_is_known_again() {
        let dir = std::env::temp_dir().join(format!("viproute-kubernetes-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(Remembered::load(&dir), Remembered::default());
        let mut objects = Objects::default();
        objects.services.insert("shop/web".into(), Service { uid: "u".into(), ..Service::default() });
        let known = Remembered::of(Some("c1"), &objects);
        known.save(&dir).unwrap();
        let again = Remembered::load(&dir);
        assert_eq!(again, known);
        assert!(again.is(Some("c1"), &objects) && !again.is(Some("c2"), &objects));
        std::fs::write(dir.join(FILE), "{\"schema\": 1").unwrap();
        assert_eq!(Remembered::load(&dir), Remembered::default(), "what can't be read is as good as nothing");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
