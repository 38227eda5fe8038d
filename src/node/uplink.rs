//! Which link leads to the gateways, as the configuration has it: DHCP, ARP probes and announcements go over it.

use crate::dataplane::node::uplink::{self, Problem, Want};
use crate::lease::settings::{Backend, Dhcp, Settings};
use crate::net::link::Link;
use crate::net::{self, NodeNet};

use super::config::{Announce, Config};

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's tables can't be read.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// There is none.
    #[error(transparent)]
    Problem(Problem),
    /// A tunnel, say.
    #[error("{name} has no Ethernet address, which {purpose} needs")]
    NotEthernet {
        /// Its name.
        name: String,
        /// What for.
        purpose: &'static str,
    },
}

/// The link that `config` asks for.
pub fn want(config: &Config) -> Want {
    config.interface.clone().map_or(Want::DefaultRoute, Want::Named)
}

/// It as it is now. None where nothing configured needs one and none is suitable. One that is down, or a port of another, may
/// yet come to be what it was: that is said while it lasts.
pub fn find(node: &NodeNet, config: &Config) -> Result<Option<Link>, Error> {
    let want = want(config);
    let have = uplink::read(node, &want)?;
    match (uplink::difference(&want, &have), purpose(config)) {
        (None | Some(Problem::Down(_) | Problem::NoCarrier(_) | Problem::Enslaved { .. }), _) => Ok(have.link),
        (Some(problem @ Problem::Absent(_)), _) | (Some(problem @ Problem::Unknown), Some(_)) => {
            Err(Error::Problem(problem))
        }
        (Some(Problem::NotEthernet(name)), Some(purpose)) => Err(Error::NotEthernet { name, purpose }),
        (Some(Problem::Unknown | Problem::NotEthernet(_)), None) => Ok(None),
    }
}

/// What can't be done without one.
pub fn purpose(config: &Config) -> Option<&'static str> {
    let asks = |lease: &Settings| matches!(lease.backend, Backend::Dhcp(Dhcp { relay: None, .. }));
    match config.announce {
        _ if asks(&config.lease) => Some("DHCP"),
        _ if config.lease6.as_ref().is_some_and(asks) => Some("DHCPv6"),
        Announce::Arp => Some("announce = \"arp\""),
        Announce::None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_announces_nothing_needs_no_link() {
        let purpose = |text: &str| purpose(&Config::parse(text).unwrap());
        assert_eq!(purpose("backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\""), None);
        let arp = "backend = \"pool\"\nannounce = \"arp\"\n[pool]\ncidr = \"10.118.0.0/24\"";
        assert_eq!(purpose(arp), Some("announce = \"arp\""));
        assert_eq!(purpose(""), Some("DHCP"));
        let relay = "allow = [\"10.118.0.0/16\"]\n[dhcp.relay]\nserver = \"192.0.2.1\"\nsubnet = \"10.118.0.0\"";
        assert_eq!(purpose(relay), None);
    }
}
