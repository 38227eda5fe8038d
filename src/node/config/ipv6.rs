//! Which IPv6 addresses VIPs have: `pool.cidr6`, `address6` of pins, `[dhcp6]`. What IPv6 isn't there for is refused beside them.

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv6Network};

use crate::lease::Settings;
use crate::lease::allow::Allow;
use crate::lease::beside::{Beside, LONGEST};
use crate::lease::settings::{Backend, Dhcp, OnLost, Relay};

use super::table::Reader;
use super::{Config, Error, INTERFACE, interface_name, quoted};

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

/// `[dhcp6]`.
pub(super) struct Dhcp6 {
    dhcp: Dhcp,
    /// By this link.
    interface: Option<String>,
    /// A prefix is asked for, and not an address for each VIP.
    delegate: bool,
}

/// What a `DHCPv6` server is asked for.
#[derive(Default)]
pub(super) struct Leased {
    /// Addresses, by these settings.
    pub(super) lease6: Option<Settings>,
    /// A prefix; what is done where it is lost.
    pub(super) delegate: Option<OnLost>,
    /// By this link.
    pub(super) interface: Option<String>,
}

/// `[dhcp6]`. What is lost is treated as `dhcp.on_lost` says.
pub(super) fn dhcp6(top: &mut Reader, on_lost: OnLost) -> Result<Option<Dhcp6>, Error> {
    const EXPECTED: &str = "a unicast IPv6 address";
    let Some(mut table) = top.table("dhcp6")? else { return Ok(None) };
    let mut dhcp = Dhcp { relay: None, servers: Vec::new(), on_lost };
    let interface = table.text("interface", INTERFACE, interface_name)?;
    let delegate = table.take("delegate", "true or false", toml::Value::as_bool)?.unwrap_or(false);
    if let Some(mut relay) = table.table("relay")? {
        let mut address = |key| {
            let found = relay.text(key, EXPECTED, unicast)?.map(IpAddr::V6);
            found.ok_or_else(|| relay.missing(key, EXPECTED))
        };
        dhcp.relay = Some(Relay { server: address("server")?, subnet: address("subnet")? });
        relay.finish()?;
    }
    if delegate && dhcp.relay.is_some() {
        let expected =
            "no relay beside it: the router that delegates a prefix leads it to whom it hears on its own link";
        return Err(table.bad("delegate", &true, expected));
    }
    table.finish()?;
    Ok(Some(Dhcp6 { dhcp, interface, delegate }))
}

/// What IPv6 addresses are leased by, in place of what `lease` has beside, or the prefix that they are of.
pub(super) fn by_itself(lease: &mut Settings, dhcp6: Option<Dhcp6>) -> Result<Leased, Error> {
    let Some(Dhcp6 { dhcp, interface, delegate }) = dhcp6 else { return Ok(Leased::default()) };
    if let Some(cidr6) = lease.beside.networks().next() {
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
    if delegate {
        return Ok(Leased { lease6: None, delegate: Some(dhcp.on_lost), interface });
    }
    let beside = std::mem::take(&mut lease.beside);
    let pins = beside.pins.into_iter().map(|(vip, address)| (vip, IpAddr::V6(address))).collect();
    let lease6 = Settings { backend: Backend::Dhcp(dhcp), pins, ..lease.clone() };
    Ok(Leased { lease6: Some(lease6), delegate: None, interface })
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
    /// What IPv6 isn't there for.
    pub(super) fn check_ipv6(&self) -> Result<(), Error> {
        if self.delegate.is_some() {
            return self.check_delegate();
        }
        let cidr6 = self.lease.beside.networks().next();
        let Some(cidr6) = cidr6.filter(|_| matches!(self.lease.backend, Backend::Dhcp(_))) else { return Ok(()) };
        let expected = "backend = \"pool\" beside it; [dhcp6] leases IPv6 addresses from a DHCPv6 server".into();
        Err(Error::BadValue { key: "pool.cidr6".into(), value: quoted(cidr6), expected })
    }

    /// A delegated prefix is led to one node.
    fn check_delegate(&self) -> Result<(), Error> {
        let beside = if self.membership.is_some() {
            "[membership]"
        } else if !self.lease.peers.is_empty() {
            "peers"
        } else if self.kubernetes.is_some() {
            "[kubernetes]"
        } else {
            return Ok(());
        };
        let expected = format!(
            "false beside {beside}: the router leads a delegated prefix to one node, and VIPs of several have one address; \
             without it [dhcp6] leases an address for each VIP, and pool.cidr6 is a network that routers lead to all nodes"
        );
        Err(Error::BadValue { key: "dhcp6.delegate".into(), value: "true".into(), expected })
    }
}
