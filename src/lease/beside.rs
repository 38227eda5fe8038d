//! The IPv6 address that a VIP has beside the one that it leases: a pinned one, or the one of its pool's `cidr6` that ends in its IPv4 address.
//! So both come and go together, and are the same after a restart, without a second lease.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::Ipv6Network;

use crate::model::{Addresses, VipKey};

use super::pools::Range;

/// The longest prefix that leaves room for an IPv4 address.
pub const LONGEST: u8 = 96;

/// Which IPv6 addresses VIPs have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// By what VIPs lease. No two of them have an address in common: each ends in the one that it goes with.
    pub prefixes: Vec<Prefix>,
    /// `address6` of pins.
    pub pins: BTreeMap<VipKey, Ipv6Addr>,
}

/// A pool's `cidr6`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The pool's addresses; empty: whatever a VIP leases.
    pub ranges: Vec<Range>,
    /// The network.
    pub network: Ipv6Network,
}

impl Prefix {
    fn is_of(&self, leased: Ipv4Addr) -> bool {
        self.ranges.is_empty() || self.ranges.iter().any(|range| range.contains(leased))
    }
}

impl Beside {
    /// VIPs have none.
    pub fn is_nothing(&self) -> bool {
        self.prefixes.is_empty() && self.pins.is_empty()
    }

    /// Those of all prefixes.
    pub fn networks(&self) -> impl Iterator<Item = Ipv6Network> {
        self.prefixes.iter().map(|prefix| prefix.network)
    }

    /// VIPs' addresses are of that network from now on, which ends in what they lease; none: of none.
    pub fn set_network(&mut self, network: Option<Ipv6Network>) {
        self.prefixes = network.map(|network| Prefix { ranges: Vec::new(), network }).into_iter().collect();
    }

    /// All addresses of a VIP that leases this one.
    pub fn addresses(&self, vip: &VipKey, leased: IpAddr) -> Addresses {
        let mut addresses = Addresses::from(leased);
        if let Some(address) = self.of(vip, leased) {
            addresses.replace(address);
        }
        addresses
    }

    /// The lease that a VIP has by what its Service says that its address is: that one, or the one beside which a `cidr6` has it. Of a pin's
    /// address6 there is none: a pinned VIP leases nothing.
    pub fn leased(&self, stated: IpAddr) -> Option<Ipv4Addr> {
        match stated {
            IpAddr::V4(stated) => Some(stated),
            IpAddr::V6(stated) => self.prefixes.iter().find_map(|prefix| {
                let leased = leased_of(prefix.network, stated)?;
                prefix.is_of(leased).then_some(leased)
            }),
        }
    }

    /// The one beside it.
    pub fn of(&self, vip: &VipKey, leased: IpAddr) -> Option<IpAddr> {
        let IpAddr::V4(leased) = leased else { return None };
        let of_pool = || {
            let prefix = self.prefixes.iter().find(|prefix| prefix.is_of(leased))?;
            Some(embedded(prefix.network, leased))
        };
        self.pins.get(vip).copied().or_else(of_pool).map(IpAddr::V6)
    }
}

impl fmt::Display for Beside {
    /// Its networks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<String> = self.networks().map(|network| network.to_string()).collect();
        f.write_str(&networks.join(", "))
    }
}

/// The reverse of [`embedded`]; `None`: it isn't one of those.
fn leased_of(network: Ipv6Network, address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [.., a, b, c, d] = address.octets();
    let leased = Ipv4Addr::new(a, b, c, d);
    (embedded(network, leased) == address).then_some(leased)
}

/// The address of the network that ends in that one.
pub fn embedded(network: Ipv6Network, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(network.network().to_bits() | u128::from(address.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vip_has_the_address_that_ends_in_its_own_or_a_pinned_one() {
        let [web, dns]: [VipKey; 2] = ["shop/web", "infra/dns"].map(|key| key.parse().unwrap());
        let pins = [(dns.clone(), "fd00:118::53".parse().unwrap())].into();
        let prefixes = vec![Prefix { ranges: Vec::new(), network: "fd00:118::/96".parse().unwrap() }];
        let beside = Beside { prefixes, pins };
        let leased = IpAddr::from([10, 118, 0, 7]);
        assert_eq!(beside.of(&web, leased), Some("fd00:118::10.118.0.7".parse().unwrap()));
        assert_eq!(Vec::from(beside.addresses(&dns, leased)), [leased, "fd00:118::53".parse().unwrap()]);
        assert_eq!(Vec::from(Beside::default().addresses(&web, leased)), [leased]);
        assert!(Beside::default().is_nothing() && !beside.is_nothing());
        for stated in [leased, beside.of(&web, leased).unwrap()] {
            assert_eq!(beside.leased(stated), Some([10, 118, 0, 7].into()), "{stated}");
        }
        for stated in ["fd00:119::10.118.0.7", "fd00:118::1:10.118.0.7"] {
            assert_eq!(beside.leased(stated.parse().unwrap()), None, "{stated}");
        }
        assert_eq!(Beside::default().leased("fd00:118::10.118.0.7".parse().unwrap()), None);
        let six = "2001:db8::7".parse().unwrap();
        assert_eq!(beside.of(&web, six), None);
    }
    #[test]
    fn each_pool_has_its_own_network_or_none() {
        let prefix = |range: &str, network: &str| Prefix {
            ranges: vec![range.parse().unwrap()],
            network: network.parse().unwrap(),
        };
        let prefixes = vec![prefix("10.118.0.0/24", "fd00:118::/96"), prefix("10.118.1.0/24", "fd00:119::/64")];
        let beside = Beside { prefixes, pins: BTreeMap::new() };
        let web: VipKey = "shop/web".parse().unwrap();
        let of = |leased: [u8; 4]| beside.of(&web, leased.into()).map(|address| address.to_string());
        assert_eq!(of([10, 118, 0, 7]).as_deref(), Some("fd00:118::a76:7"));
        assert_eq!(of([10, 118, 1, 7]).as_deref(), Some("fd00:119::a76:107"));
        assert_eq!(of([10, 118, 2, 7]), None, "of no pool that has one");
        assert_eq!(beside.leased("fd00:119::a76:107".parse().unwrap()), Some([10, 118, 1, 7].into()));
        assert_eq!(beside.leased("fd00:118::a76:107".parse().unwrap()), None, "another pool's");
        assert_eq!(beside.to_string(), "fd00:118::/96, fd00:119::/64");
    }
}
