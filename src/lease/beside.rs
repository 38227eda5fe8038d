//! The IPv6 address that a VIP has beside the one that it leases: a pinned one, or the one of `pool.cidr6` that ends in its IPv4 address. So
//! both come and go together, and are the same after a restart, without a second lease.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::Ipv6Network;

use crate::model::{Addresses, VipKey};

/// The longest prefix that leaves room for an IPv4 address.
pub const LONGEST: u8 = 96;

/// Which IPv6 addresses VIPs have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// `pool.cidr6`.
    pub cidr6: Option<Ipv6Network>,
    /// `address6` of pins.
    pub pins: BTreeMap<VipKey, Ipv6Addr>,
}

impl Beside {
    /// VIPs have none.
    pub fn is_nothing(&self) -> bool {
        self.cidr6.is_none() && self.pins.is_empty()
    }

    /// The networks that they are of.
    pub fn networks(&self) -> impl Iterator<Item = Ipv6Network> {
        self.cidr6.into_iter()
    }

    /// VIPs' addresses are of that network from now on, which ends in what they lease; none: of none.
    pub fn set_network(&mut self, network: Option<Ipv6Network>) {
        self.cidr6 = network;
    }

    /// All addresses of a VIP that leases this one.
    pub fn addresses(&self, vip: &VipKey, leased: IpAddr) -> Addresses {
        let mut addresses = Addresses::from(leased);
        if let Some(address) = self.of(vip, leased) {
            addresses.replace(address);
        }
        addresses
    }

    /// The lease that a VIP has by what its Service says that its address is: that one, or the one beside which `cidr6` has it. Of a pin's
    /// address6 there is none: a pinned VIP leases nothing.
    pub fn leased(&self, stated: IpAddr) -> Option<Ipv4Addr> {
        match stated {
            IpAddr::V4(stated) => Some(stated),
            IpAddr::V6(stated) => leased_of(self.cidr6?, stated),
        }
    }

    /// The one beside it.
    pub fn of(&self, vip: &VipKey, leased: IpAddr) -> Option<IpAddr> {
        let IpAddr::V4(leased) = leased else { return None };
        let pinned = self.pins.get(vip).copied();
        pinned.or_else(|| self.cidr6.map(|cidr6| embedded(cidr6, leased))).map(IpAddr::V6)
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
        let beside = Beside { cidr6: Some("fd00:118::/96".parse().unwrap()), pins };
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
}
