//! What nodes say of the leases of their VIPs, by `lease/<ns>/<name>` in the gossip, and by `lease6/<ns>/<name>` of those of IPv6 addresses: by
//! it they know who renews which.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::model::address::is_unicast;
use crate::model::{Family, VipKey};

use super::word::MAX_VIPS;

const LEASE: &str = "lease/";
const LEASE6: &str = "lease6/";
/// Leases of one node that are believed: one of each family.
pub const MAX_LEASES: usize = 2 * MAX_VIPS;

/// Which lease: a VIP may have one of each family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseKey {
    /// Whose.
    pub vip: VipKey,
    /// Of its address of which family.
    pub family: Family,
}

impl fmt::Display for LeaseKey {
    /// As the gossip's keys are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.family {
            Family::V4 => LEASE,
            Family::V6 => LEASE6,
        };
        write!(f, "{prefix}{}", self.vip)
    }
}

impl FromStr for LeaseKey {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let read = |family, prefix| Some(Self { vip: text.strip_prefix(prefix)?.parse().ok()?, family });
        read(Family::V4, LEASE).or_else(|| read(Family::V6, LEASE6)).ok_or(())
    }
}

/// What a node has of a VIP's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Nothing yet: it wants an address.
    Asks,
    /// An address that another node was granted, or that it remembers.
    Knows(IpAddr),
    /// An address that its server has granted to it; the number is another one for each grant.
    Granted(IpAddr, u64),
}

impl Holding {
    /// Whether it can be said of a lease of that family.
    fn is_of(self, family: Family) -> bool {
        match self {
            Self::Asks => true,
            Self::Knows(address) | Self::Granted(address, _) => Family::of(address) == family,
        }
    }
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asks => f.write_str("asks"),
            Self::Knows(address) => write!(f, "knows {address}"),
            Self::Granted(address, number) => write!(f, "granted {address} {number}"),
        }
    }
}

impl FromStr for Holding {
    type Err = ();

    /// What a later version adds behind it is ignored.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut fields = text.split(' ');
        let what = fields.next().ok_or(())?;
        let mut field = || fields.next().ok_or(());
        let address = |text: &str| text.parse().ok().filter(|address| is_unicast(*address)).ok_or(());
        match what {
            "asks" => Ok(Self::Asks),
            "knows" => Ok(Self::Knows(address(field()?)?)),
            "granted" => Ok(Self::Granted(address(field()?)?, field()?.parse().map_err(drop)?)),
            _ => Err(()),
        }
    }
}

/// What a node says of its leases, as far as it can be read, and of [`MAX_LEASES`] at most.
pub fn holdings<'a>(values: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<LeaseKey, Holding> {
    let read = |(key, value): (&str, &str)| {
        let key: LeaseKey = key.parse().ok()?;
        let holding = value.parse().ok().filter(|holding: &Holding| holding.is_of(key.family))?;
        Some((key, holding))
    };
    values.filter_map(read).take(MAX_LEASES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn they_are_read_as_they_were_written() {
        for text in ["asks", "knows 192.0.2.100", "knows 2001:db8::100", "granted 192.0.2.100 18446744073709551615"] {
            assert_eq!(text.parse::<Holding>().unwrap().to_string(), text);
        }
        assert_eq!("granted 192.0.2.100 1 later".parse(), Ok(Holding::Granted([192, 0, 2, 100].into(), 1)));
        for bad in [
            "",
            "has",
            "knows",
            "knows 127.0.0.1",
            "knows fe80::1",
            "granted 192.0.2.100",
            "granted 224.0.0.1 1",
            "granted 192.0.2.100 -1",
        ] {
            assert!(bad.parse::<Holding>().is_err(), "{bad:?}");
        }
        let names: Vec<String> =
            (0..5000).flat_map(|n| ["", "6"].map(|six| format!("lease{six}/shop/web{n}"))).collect();
        let values =
            names.iter().map(|name| (name.as_str(), "asks")).chain([("vip/shop/web", "asks"), ("lease/x", "asks")]);
        assert_eq!(holdings(values).len(), MAX_LEASES);
    }

    #[test]
    fn an_address_is_said_of_its_familys_lease() {
        let said = [
            ("lease/shop/web", "knows 192.0.2.100"),
            ("lease6/shop/web", "knows 2001:db8::100"),
            ("lease/shop/dns", "knows 2001:db8::101"),
            ("lease6/shop/dns", "granted 192.0.2.101 1"),
            ("lease6/shop", "asks"),
            ("lease7/shop/web", "asks"),
        ];
        let read = holdings(said.into_iter());
        assert_eq!(read.keys().map(ToString::to_string).collect::<Vec<_>>(), ["lease/shop/web", "lease6/shop/web"]);
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_read_or_refused(text in "\\PC{0,60}") {
            if let Ok(holding) = text.parse::<Holding>() {
                prop_assert_eq!(holding.to_string().parse(), Ok(holding));
            }
        }
    }
}
