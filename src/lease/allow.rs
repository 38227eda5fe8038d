//! Which addresses may be a VIP's at all.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::address::is_unicast;

/// The allow list of the configuration, or what takes its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    networks: Vec<IpNetwork>,
    /// The link whose prefixes these are, where the configuration says nothing.
    link: Option<String>,
}

impl Allow {
    /// A VIP must lie in one of `networks`; if there are none, any unicast address will do.
    pub fn new(networks: Vec<IpNetwork>) -> Self {
        Self { networks, link: None }
    }

    /// A VIP must lie in one of `networks`, which are those of the link: it is leased from there. None while that has no
    /// address.
    pub fn of_link(link: &str, networks: Vec<IpNetwork>) -> Self {
        Self { networks, link: Some(link.into()) }
    }

    /// Those of these networks too.
    #[must_use]
    pub fn and(mut self, networks: impl IntoIterator<Item = IpNetwork>) -> Self {
        self.networks.extend(networks);
        self
    }

    /// The networks themselves; none where anything goes.
    pub fn networks(&self) -> &[IpNetwork] {
        &self.networks
    }

    /// Whether nothing is permitted now, because the link has no address.
    pub fn is_nothing(&self) -> bool {
        self.link.is_some() && self.networks.is_empty()
    }

    fn is_anything(&self) -> bool {
        self.link.is_none() && self.networks.is_empty()
    }

    /// Whether `address` may be a VIP's.
    pub fn permits(&self, address: IpAddr) -> bool {
        is_unicast(address) && (self.is_anything() || self.networks.iter().any(|n| n.contains(address)))
    }

    /// Whether every address of `network` may be a VIP's.
    pub fn permits_all(&self, network: IpNetwork) -> bool {
        is_unicast(network.network())
            && is_unicast(network.broadcast())
            && (self.is_anything()
                || self.networks.iter().any(|n| n.prefix() <= network.prefix() && n.contains(network.network())))
    }

    /// The length in bits of the longest entry that holds `address`; 0 (the default route's) if the list is empty.
    /// A route as wide as that, or wider, says nothing about a single address.
    pub fn prefix_of(&self, address: IpAddr) -> u8 {
        let holding = self.networks.iter().filter(|n| n.contains(address));
        holding.map(IpNetwork::prefix).max().unwrap_or(0)
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_anything() {
            return f.write_str("any unicast address");
        }
        for (i, network) in self.networks.iter().enumerate() {
            write!(f, "{}{network}", if i == 0 { "" } else { ", " })?;
        }
        match &self.link {
            Some(link) if self.networks.is_empty() => write!(f, "the prefix of {link}, which has no address"),
            Some(link) => write!(f, ", the prefix of {link}"),
            None => Ok(()),
        }
    }
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
    fn a_links_prefix_permits_what_it_holds_and_nothing_while_there_is_none() {
        let allow = Allow::of_link("eth0", vec!["192.0.2.0/24".parse().unwrap()]);
        assert!(allow.permits([192, 0, 2, 7].into()) && !allow.permits([10, 118, 0, 7].into()) && !allow.is_nothing());
        assert_eq!(allow.to_string(), "192.0.2.0/24, the prefix of eth0");
        let none = Allow::of_link("eth0", vec![]);
        assert!(none.is_nothing() && !none.permits([192, 0, 2, 7].into()));
        assert_eq!(none.to_string(), "the prefix of eth0, which has no address");
        assert!(!Allow::default().is_nothing());
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
