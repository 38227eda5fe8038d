//! Which addresses may be a VIP's at all.

use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

/// The allow list of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow(Vec<Ipv4Network>);

impl Allow {
    /// A VIP must lie in one of `networks`; if there are none, any unicast address will do.
    pub fn new(networks: Vec<Ipv4Network>) -> Self {
        Self(networks)
    }

    /// Whether `address` may be a VIP's.
    pub fn permits(&self, address: Ipv4Addr) -> bool {
        is_unicast(address) && (self.0.is_empty() || self.0.iter().any(|n| n.contains(address)))
    }

    /// Whether every address of `network` may be a VIP's.
    pub fn permits_all(&self, network: Ipv4Network) -> bool {
        is_unicast(network.network())
            && is_unicast(network.broadcast())
            && (self.0.is_empty()
                || self.0.iter().any(|n| n.prefix() <= network.prefix() && n.contains(network.network())))
    }

    /// The length in bits of the longest entry that holds `address`; 0 (the default route's) if the list is empty.
    /// A route as wide as that, or wider, says nothing about a single address.
    pub fn prefix_of(&self, address: Ipv4Addr) -> u8 {
        let holding = self.0.iter().filter(|n| n.contains(address));
        holding.map(|n| n.prefix()).max().unwrap_or(0)
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("any unicast address");
        }
        for (i, network) in self.0.iter().enumerate() {
            write!(f, "{}{network}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// An address a host can be reached by: in 1.0.0.0 – 223.255.255.255, neither loopback nor link-local.
fn is_unicast(address: Ipv4Addr) -> bool {
    (1..224).contains(&address.octets()[0]) && !address.is_loopback() && !address.is_link_local()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(networks: &[&str]) -> Allow {
        Allow::new(networks.iter().map(|n| n.parse().unwrap()).collect())
    }

    #[test]
    fn an_empty_list_permits_unicast_only() {
        for good in ["10.118.0.7", "1.0.0.1", "223.255.255.254", "192.168.0.1"] {
            assert!(allow(&[]).permits(good.parse().unwrap()), "{good}");
        }
        for bad in ["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "255.255.255.255"] {
            assert!(!allow(&[]).permits(bad.parse().unwrap()), "{bad}");
        }
    }

    #[test]
    fn a_list_permits_what_it_holds() {
        let allow = allow(&["10.118.0.0/16", "10.118.7.0/24"]);
        assert!(allow.permits([10, 118, 3, 1].into()));
        assert!(!allow.permits([10, 119, 0, 1].into()));
        assert_eq!(allow.prefix_of([10, 118, 7, 1].into()), 24);
        assert_eq!(allow.prefix_of([10, 118, 3, 1].into()), 16);
        assert!(allow.permits_all("10.118.0.0/20".parse().unwrap()));
        assert!(!allow.permits_all("10.118.0.0/15".parse().unwrap()));
    }
}
