//! Addresses of either family, and what differs between the families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Bits of an address: the prefix length of a route to a single one.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// `IPv4` or `IPv6`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The protocol by which a link is asked who has an address.
    pub const fn resolution(self) -> &'static str {
        match self {
            Self::V4 => "ARP",
            Self::V6 => "neighbour discovery",
        }
    }

    /// `0.0.0.0` or `::`.
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        })
    }
}

/// A text that names no family.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: expected ipv4 or ipv6")]
pub struct BadFamily(String);

impl FromStr for Family {
    type Err = BadFamily;

    /// However it is capitalized: the API of Kubernetes has `IPv4`.
    fn from_str(text: &str) -> Result<Self, BadFamily> {
        let named = |family: &Self| text.eq_ignore_ascii_case(&family.to_string());
        Self::ALL.into_iter().find(named).ok_or_else(|| BadFamily(text.to_owned()))
    }
}

/// One address or several. The first is the one to show where there is room for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<IpAddr>", into = "Vec<IpAddr>")]
pub struct Addresses {
    first: IpAddr,
    others: Vec<IpAddr>,
}

/// An empty list of addresses.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a list of addresses is empty: expected one at least")]
pub struct NoAddress;

impl Addresses {
    /// The first of them.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + Clone {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }

    /// Whether it is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.iter().any(|own| own == address)
    }

    /// The first one of IPv6.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.iter().find_map(ipv6)
    }

    /// Puts an address in the place of the one of its family, or adds it where there is none. Returns the one that it
    /// took the place of; `None`: it is new, or was there.
    pub fn replace(&mut self, address: IpAddr) -> Option<IpAddr> {
        let family = Family::of(address);
        let all = std::iter::once(&mut self.first).chain(&mut self.others);
        if let Some(own) = all.into_iter().find(|own| Family::of(**own) == family) {
            return Some(std::mem::replace(own, address)).filter(|old| *old != address);
        }
        self.others.push(address);
        None
    }
}

impl From<IpAddr> for Addresses {
    fn from(first: IpAddr) -> Self {
        Self { first, others: Vec::new() }
    }
}

impl TryFrom<Vec<IpAddr>> for Addresses {
    type Error = NoAddress;

    fn try_from(all: Vec<IpAddr>) -> Result<Self, NoAddress> {
        let mut all = all.into_iter();
        Ok(Self { first: all.next().ok_or(NoAddress)?, others: all.collect() })
    }
}

impl From<Addresses> for Vec<IpAddr> {
    fn from(addresses: Addresses) -> Self {
        addresses.iter().collect()
    }
}

/// The address for what speaks IPv4 alone: ARP, DHCP, the keys of the eBPF maps. `None`: it is an IPv6 address.
pub const fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// The address where it is one of IPv6.
pub const fn ipv6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    }
}

/// Whether a host can be reached by the address from elsewhere: not unspecified, loopback, link-local, multicast or
/// reserved (RFC 6890).
pub const fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            first >= 1 && first < 224 && !address.is_loopback() && !address.is_link_local()
        }
        IpAddr::V6(address) => {
            !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_multicast()
                && !address.is_unicast_link_local()
                && address.to_ipv4_mapped().is_none()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_takes_the_place_of_its_family() {
        let [a, b, six]: [IpAddr; 3] = ["10.0.0.1", "10.0.0.2", "2001:db8::1"].map(|text| text.parse().unwrap());
        let mut addresses = Addresses::from(a);
        assert_eq!((addresses.replace(six), addresses.replace(b), addresses.replace(b)), (None, Some(a), None));
        assert_eq!(Vec::from(addresses.clone()), [b, six]);
        assert_eq!((addresses.ipv6().map(IpAddr::V6), Addresses::from(a).ipv6()), (Some(six), None));
        assert!(addresses.contains(six) && !addresses.contains(a) && addresses.first() == b);
        assert_eq!(Addresses::try_from(Vec::new()), Err(NoAddress));
    }

    #[test]
    fn families_have_names() {
        assert_eq!(["ipv4", "IPv6"].map(str::parse), [Ok(Family::V4), Ok(Family::V6)]);
        assert_eq!((Family::V4.to_string(), Family::V6.to_string()), ("ipv4".into(), "ipv6".into()));
        assert!("ip".parse::<Family>().is_err());
    }

    #[test]
    fn unicast_addresses_are_told_from_the_others() {
        for good in ["10.118.0.7", "1.0.0.1", "223.255.255.254", "2001:db8::7", "fd00::1"] {
            assert!(is_unicast(good.parse().unwrap()), "{good}");
        }
        for bad in [
            "0.0.0.0",
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:10.118.0.7",
        ] {
            assert!(!is_unicast(bad.parse().unwrap()), "{bad}");
        }
    }
}
