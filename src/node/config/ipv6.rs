//! Which IPv6 addresses VIPs have: `pool.cidr6`, `address6` of pins, `[dhcp6]`. What IPv6 isn't there for yet is refused beside them.

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv6Network};

use crate::lease::Settings;
use crate::lease::allow::Allow;
use crate::lease::beside::{Beside, LONGEST};
use crate::lease::settings::{Backend, Dhcp, OnLost, Relay};

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

/// `[dhcp6]`. An address that is lost is treated as `dhcp.on_lost` says.
pub(super) fn dhcp6(top: &mut Reader, on_lost: OnLost) -> Result<Option<Dhcp>, Error> {
    const EXPECTED: &str = "a unicast IPv6 address";
    let Some(mut table) = top.table("dhcp6")? else { return Ok(None) };
    let mut dhcp = Dhcp { relay: None, servers: Vec::new(), on_lost };
    if let Some(mut relay) = table.table("relay")? {
        let mut address = |key| {
            let found = relay.text(key, EXPECTED, unicast)?.map(IpAddr::V6);
            found.ok_or_else(|| relay.missing(key, EXPECTED))
        };
        dhcp.relay = Some(Relay { server: address("server")?, subnet: address("subnet")? });
        relay.finish()?;
    }
    table.finish()?;
    Ok(Some(dhcp))
}

/// What IPv6 addresses are leased by, in place of what `lease` has beside.
pub(super) fn by_itself(lease: &mut Settings, dhcp: Dhcp) -> Result<Settings, Error> {
    let beside = std::mem::take(&mut lease.beside);
    if let Some(cidr6) = beside.networks().next() {
        let expected = "none beside [dhcp6]: an IPv6 address comes from one of the two";
        return Err(Error::BadValue { key: "pool.cidr6".into(), value: quoted(cidr6), expected: expected.into() });
    }
    let allow = lease.allow.as_ref();
    let holds_some = |allow: &Allow| allow.networks().iter().any(IpNetwork::is_ipv6);
    let is_relayed = dhcp.relay.is_some();
    if allow.map_or(is_relayed, |allow| !holds_some(allow)) {
        let expected = "the networks that VIPs' IPv6 addresses come from too, such as \"2001:db8::/64\" (with [dhcp6])";
        return Err(Error::Missing { key: "allow".into(), expected });
    }
    let pins = beside.pins.into_iter().map(|(vip, address)| (vip, IpAddr::V6(address))).collect();
    Ok(Settings { backend: Backend::Dhcp(dhcp), pins, ..lease.clone() })
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
        if let Some(cidr6) = beside.networks().find(|cidr6| cidr6.contains(*address)) {
            return Err(bad(
                address,
                format!("one outside cidr6 {cidr6} of a pool, whose addresses end in those of its cidr"),
            ));
        }
    }
    Ok(())
}

impl Config {
    /// What IPv6 isn't there for yet.
    pub(super) fn check_ipv6(&self) -> Result<(), Error> {
        let beside = &self.lease.beside;
        if beside.is_nothing() && self.lease6.is_none() {
            return Ok(());
        }
        let cidr6 = beside.networks().next();
        let (key, value) = match (cidr6, &self.lease6) {
            (Some(cidr6), _) => ("pool.cidr6", quoted(cidr6)),
            (None, Some(_)) => ("dhcp6", "{…}".to_owned()),
            (None, None) => ("pin[].address6", beside.pins.values().next().map(quoted).unwrap_or_default()),
        };
        let is_leased = self.lease6.is_some();
        let expected = if is_leased && (self.membership.is_some() || !self.lease.peers.is_empty()) {
            "no [membership] and no peers beside it: nodes don't tell each other leases of IPv6 yet"
        } else if is_leased && self.kubernetes.is_some() {
            "no [kubernetes] beside it: Services have IPv6 addresses of pool.cidr6 alone so far"
        } else if matches!(self.lease.backend, Backend::Dhcp(_)) && cidr6.is_some() {
            "backend = \"pool\" beside it; [dhcp6] leases IPv6 addresses from a DHCPv6 server"
        } else {
            return Ok(());
        };
        Err(Error::BadValue { key: key.into(), value, expected: expected.into() })
    }
}
