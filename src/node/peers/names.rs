//! Names of seeds. Looked up without the C library's resolver, which a static program can't count on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use tokio::sync::watch::{self, Receiver};

use crate::model::Family;

/// Names are looked up so often: /etc/hosts, /etc/resolv.conf and what the servers say may have changed.
const AGAIN: Duration = Duration::from_secs(10);

/// What seeds that are names with a port lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Their addresses of the family by which nodes speak.
    pub addresses: BTreeSet<SocketAddr>,
    /// Those that have addresses of the other family alone, and one of these.
    pub of_other_family: BTreeMap<String, IpAddr>,
}

impl Named {
    fn add(&mut self, seed: &str, found: BTreeSet<SocketAddr>, family: Family) {
        let (own, other): (BTreeSet<_>, BTreeSet<_>) = found.into_iter().partition(|at| Family::of(at.ip()) == family);
        if let (true, Some(other)) = (own.is_empty(), other.first()) {
            self.of_other_family.insert(seed.to_owned(), other.ip());
        }
        self.addresses.extend(own);
    }

    /// What no server says for a while stays.
    fn replace(&mut self, found: Self) {
        if !found.addresses.is_empty() {
            self.addresses = found.addresses;
        }
        self.of_other_family = found.of_other_family;
    }
}

/// What these seeds, which are names with a port, lead to by that family, as it was found last.
pub fn resolve(seeds: Vec<String>, family: Family) -> Receiver<Named> {
    let (sender, found) = watch::channel(Named::default());
    tokio::spawn(async move {
        while !seeds.is_empty() && !sender.is_closed() {
            let mut all = Named::default();
            for seed in &seeds {
                match lookup(seed).await {
                    Ok(found) => all.add(seed, found, family),
                    Err(error) => tracing::debug!(seed, error, "a seed's name isn't known"),
                }
            }
            if all != Named::default() {
                sender.send_modify(|named| named.replace(all));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn found(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn names_of_the_other_family_are_told_apart() {
        let (of_ipv4, of_ipv6) = ("192.0.2.1:8119", "[2001:db8::1]:8119");
        let mut named = Named::default();
        named.add("both:8119", found(&[of_ipv4, of_ipv6]), Family::V4);
        named.add("six:8119", found(&[of_ipv6]), Family::V4);
        assert_eq!(named.addresses, found(&[of_ipv4]));
        let six = BTreeMap::from([("six:8119".to_owned(), "2001:db8::1".parse().unwrap())]);
        assert_eq!(named.of_other_family, six);
        // The name of the node that is known isn't any more, for now.
        named.replace(Named { of_other_family: six.clone(), ..Named::default() });
        assert_eq!(named, Named { addresses: found(&[of_ipv4]), of_other_family: six });
    }
}
