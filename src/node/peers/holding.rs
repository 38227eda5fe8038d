//! What nodes say of the leases of their VIPs, by `lease/<ns>/<name>` in the gossip: by it they know who renews which.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use crate::model::VipKey;
use crate::model::address::is_unicast;

use super::word::MAX_VIPS;

const LEASE: &str = "lease/";

/// What a node has of a VIP's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Nothing yet: it wants an address.
    Asks,
    /// An address that another node was granted, or that it remembers.
    Knows(Ipv4Addr),
    /// An address that its server has granted to it; the number is another one for each grant.
    Granted(Ipv4Addr, u64),
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
        let address = |text: &str| text.parse().ok().filter(|address| is_unicast(IpAddr::V4(*address))).ok_or(());
        match what {
            "asks" => Ok(Self::Asks),
            "knows" => Ok(Self::Knows(address(field()?)?)),
            "granted" => Ok(Self::Granted(address(field()?)?, field()?.parse().map_err(drop)?)),
            _ => Err(()),
        }
    }
}

/// The key of a VIP's value.
pub fn key_of(vip: &VipKey) -> String {
    format!("{LEASE}{vip}")
}

/// What a node says of its leases, as far as it can be read, and of [`MAX_VIPS`] VIPs at most.
pub fn holdings<'a>(values: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<VipKey, Holding> {
    let read = |(key, value): (&str, &str)| Some((key.strip_prefix(LEASE)?.parse().ok()?, value.parse().ok()?));
    values.filter_map(read).take(MAX_VIPS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn they_are_read_as_they_were_written() {
        for text in ["asks", "knows 192.0.2.100", "granted 192.0.2.100 18446744073709551615"] {
            assert_eq!(text.parse::<Holding>().unwrap().to_string(), text);
        }
        assert_eq!("granted 192.0.2.100 1 later".parse(), Ok(Holding::Granted([192, 0, 2, 100].into(), 1)));
        for bad in [
            "",
            "has",
            "knows",
            "knows 127.0.0.1",
            "granted 192.0.2.100",
            "granted 224.0.0.1 1",
            "granted 192.0.2.100 -1",
        ] {
            assert!(bad.parse::<Holding>().is_err(), "{bad:?}");
        }
        let names: Vec<String> = (0..5000).map(|n| format!("lease/shop/web{n}")).collect();
        let values =
            names.iter().map(|name| (name.as_str(), "asks")).chain([("vip/shop/web", "asks"), ("lease/x", "asks")]);
        assert_eq!(holdings(values).len(), MAX_VIPS);
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
