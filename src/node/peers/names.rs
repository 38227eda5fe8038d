//! Names of seeds. Looked up without the C library's resolver, which a static program can't count on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use tokio::sync::watch::{self, Receiver};

use crate::model::Family;

/// Names are looked up so often: /etc/hosts, /etc/resolv.conf and what the servers say may have changed.
const AGAIN: Duration = Duration::from_secs(10);

/// The addresses of a family that these seeds have, which are names with a port, as they were found last.
pub fn resolve(seeds: Vec<String>, family: Family) -> Receiver<BTreeSet<SocketAddr>> {
    let (sender, found) = watch::channel(BTreeSet::new());
    tokio::spawn(async move {
        while !seeds.is_empty() && !sender.is_closed() {
            let mut all = BTreeSet::new();
            for seed in &seeds {
                match lookup(seed).await {
                    Ok(found) => all.extend(found.into_iter().filter(|at| Family::of(at.ip()) == family)),
                    Err(error) => tracing::debug!(seed, error, "a seed's name isn't known"),
                }
            }
            // What no server says for a while stays.
            if !all.is_empty() {
                sender.send_replace(all);
            }
            tokio::time::sleep(AGAIN).await;
        }
    });
    found
}

/// The addresses of a name with a port.
pub async fn lookup(seed: &str) -> Result<BTreeSet<SocketAddr>, String> {
    let (name, port) = seed.rsplit_once(':').ok_or("no port")?;
    let port = port.parse().map_err(|_| "no port")?;
    let resolver = TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build);
    let found = resolver.map_err(|e| e.to_string())?.lookup_ip(name).await.map_err(|e| e.to_string())?;
    Ok(found.iter().map(|address| SocketAddr::new(address, port)).collect())
}
