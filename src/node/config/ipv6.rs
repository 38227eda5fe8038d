//! Which IPv6 addresses VIPs have: `pool.cidr6`, and `address6` of pins. What IPv6 isn't there for yet is refused beside them.

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::Ipv6Network;

use crate::lease::allow::Allow;
use crate::lease::beside::{Beside, LONGEST};
use crate::lease::settings::Backend;

use super::table::Reader;
use super::{Config, Error, quoted};

const CIDR6: &str = "a network of unicast addresses with room for an IPv4 address at their end, such as fd00:118::/96";

/// `cidr6` of `[pool]`.
pub(super) fn cidr6(table: &mut Reader, allow: &Allow) -> Result<Option<Ipv6Network>, Error> {
    let Some(cidr6) = table.text("cidr6", CIDR6, network)? else { return Ok(None) };
    if !allow.permits_all(cidr6.into()) {
        return Err(table.bad("cidr6", &quoted(cidr6), format!("a network within: {allow}")));
    }
    Ok(Some(cidr6))
}

/// `address6` of a pin. One of `cidr6` is some other VIP's, unless it ends in the pin's own address.
pub(super) fn address6(table: &mut Reader, allow: &Allow) -> Result<Option<Ipv6Addr>, Error> {
    let Some(address) = table.text("address6", "a unicast IPv6 address", unicast)? else { return Ok(None) };
    if !allow.permits(address.into()) {
        return Err(table.bad("address6", &quoted(address), format!("one within: {allow}")));
    }
    Ok(Some(address))
}

fn network(text: &str) -> Option<Ipv6Network> {
    let network: Ipv6Network = text.parse().ok()?;
    (text.contains('/') && network.ip() == network.network() && network.prefix() <= LONGEST).then_some(network)
}

fn unicast(text: &str) -> Option<Ipv6Addr> {
    text.parse().ok().filter(|address| Allow::default().permits(IpAddr::V6(*address)))
}

/// Each address is one VIP's.
pub(super) fn check_pins(beside: &Beside) -> Result<(), Error> {
    let bad = |address: &Ipv6Addr, expected: String| Error::BadValue {
        key: "pin[].address6".into(),
        value: quoted(address),
        expected,
    };
    for (vip, address) in &beside.pins {
        if let Some((other, _)) = beside.pins.iter().find(|(other, taken)| *other != vip && *taken == address) {
            return Err(bad(address, format!("an address that isn't pinned to {other} already")));
        }
        if let Some(cidr6) = beside.cidr6.filter(|cidr6| cidr6.contains(*address)) {
            return Err(bad(
                address,
                format!("one outside pool.cidr6 {cidr6}, whose addresses end in those of pool.cidr"),
            ));
        }
    }
    Ok(())
}

impl Config {
    /// What IPv6 isn't there for yet.
    pub(super) fn check_ipv6(&self) -> Result<(), Error> {
        let beside = &self.lease.beside;
        if beside.is_nothing() {
            return Ok(());
        }
        let (key, value) = match beside.cidr6 {
            Some(cidr6) => ("pool.cidr6", quoted(cidr6)),
            None => ("pin[].address6", beside.pins.values().next().map(quoted).unwrap_or_default()),
        };
        let expected = if self.kubernetes.is_some() {
            "no [kubernetes] beside it: Services have IPv4 addresses alone so far"
        } else if matches!(self.lease.backend, Backend::Dhcp(_)) && beside.cidr6.is_some() {
            "backend = \"pool\" beside it: no DHCPv6 server is asked yet"
        } else {
            return Ok(());
        };
        Err(Error::BadValue { key: key.into(), value, expected: expected.into() })
    }
}
