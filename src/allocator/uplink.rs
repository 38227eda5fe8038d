//! The link to the gateways: DHCP, ARP probes and announcements go over it.

use super::config::{Announce, Backend, Config, Dhcp};
use crate::net::link::{self, Link};
use crate::net::{self, NodeNet, route};

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's tables can't be read.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// Configured, and not there.
    #[error("dhcp.interface = {name:?}: there is no such interface")]
    Absent {
        /// Its name.
        name: String,
    },
    /// Neither configured nor found.
    #[error("no interface: dhcp.interface isn't set, and there is no default route to take it from")]
    Unknown,
    /// Made anew, or given another Ethernet address.
    #[error("{name} is not the link it was when viprouted started")]
    Replaced {
        /// Its name.
        name: String,
    },
    /// A tunnel, say.
    #[error("{name} has no Ethernet address, which {purpose} needs")]
    NotEthernet {
        /// Its name.
        name: String,
        /// What for.
        purpose: &'static str,
    },
}

/// The link of `config`, by default the default route's. None where nothing configured needs one and none is suitable.
pub fn find(node: &NodeNet, config: &Config) -> Result<Option<Link>, Error> {
    let purpose = purpose(config);
    let link = match &config.interface {
        Some(name) => Some(link::by_name(node, name)?.ok_or_else(|| Error::Absent { name: name.clone() })?),
        None => of_default_route(node)?,
    };
    match (link, purpose) {
        (Some(link), _) if link.mac.is_some() => Ok(Some(link)),
        (Some(link), Some(purpose)) => Err(Error::NotEthernet { name: link.name, purpose }),
        (None, Some(_)) => Err(Error::Unknown),
        (_, None) => Ok(None),
    }
}

/// Whether `link` is still the one it was: sockets are bound to its index, and frames carry its address. One that is away
/// may come back as it was (a cable, a driver), so that is no reason to stop.
pub fn check(node: &NodeNet, link: &Link) -> Result<(), Error> {
    match link::by_name(node, &link.name)? {
        Some(now) if (now.index, now.mac) != (link.index, link.mac) => Err(Error::Replaced { name: link.name.clone() }),
        _ => Ok(()),
    }
}

/// What can't be done without one.
fn purpose(config: &Config) -> Option<&'static str> {
    match (&config.backend, config.announce) {
        (Backend::Dhcp(Dhcp { relay: None, .. }), _) => Some("DHCP"),
        (_, Announce::Arp) => Some("announce = \"arp\""),
        _ => None,
    }
}

fn of_default_route(node: &NodeNet) -> net::Result<Option<Link>> {
    match route::default_way(node)?.and_then(|way| way.hop.index) {
        Some(index) => link::by_index(node, index),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_announces_nothing_needs_no_link() {
        let purpose = |text: &str| purpose(&Config::parse(text).unwrap());
        assert_eq!(purpose("backend = \"pool\""), None);
        assert_eq!(purpose("backend = \"pool\"\nannounce = \"arp\""), Some("announce = \"arp\""));
        assert_eq!(purpose(""), Some("DHCP"));
        let relay = "[dhcp.relay]\nserver = \"192.0.2.1\"\nsubnet = \"10.118.0.0\"";
        assert_eq!(purpose(relay), None);
    }
}
