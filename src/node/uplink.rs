//! By which links VIPs' addresses are leased and answered for, as the configuration has it: DHCP, probes and announcements go over the one to the gateways,
//! and for IPv6 addresses over another one where `dhcp6.interface` names one.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use crate::dataplane::node::uplink::{self, INTERFACE, IPV6_INTERFACE, Problem, Want};
use crate::lease::settings::{Backend, Dhcp, Settings};
use crate::model::Family;
use crate::model::address::is_unicast;
use crate::net::link::Link;
use crate::net::route::{self, Filter, Kind, Route};
use crate::net::{self, NodeNet, PROTOCOL, address};

use super::config::{Announce, Config};

/// What a link for IPv6 addresses is needed for.
pub const DHCPV6: &str = "DHCPv6";

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's tables can't be read.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// There is none.
    #[error(transparent)]
    Problem(Problem),
    /// A tunnel, say.
    #[error("{name} has no Ethernet address, which {purpose} needs")]
    NotEthernet {
        /// Its name.
        name: String,
        /// What for.
        purpose: &'static str,
    },
}

/// The link that `config` asks for.
pub fn want(config: &Config) -> Want {
    config.interface.clone().map_or(Want::DefaultRoute, |name| Want::Named { key: INTERFACE, name })
}

/// The link that it asks for IPv6 addresses; none: they go over the same one, whichever that is.
pub fn want_ipv6(config: &Config) -> Option<Want> {
    let other = config.interface6.clone().filter(|name| config.interface.as_ref() != Some(name));
    other.map(|name| Want::Named { key: IPV6_INTERFACE, name })
}

/// It as it is now. None where nothing configured needs one and none is suitable. One that is down, or a port of another, may
/// yet come to be what it was: that is said while it lasts.
pub fn find(node: &NodeNet, config: &Config) -> Result<Option<Link>, Error> {
    let want = want(config);
    let have = uplink::read(node, &want)?;
    match (uplink::difference(&want, &have), purpose(config)) {
        (None | Some(Problem::Down(_) | Problem::NoCarrier(_) | Problem::Enslaved { .. }), _) => Ok(have.link),
        (Some(problem @ Problem::Absent { .. }), _) | (Some(problem @ Problem::Unknown), Some(_)) => {
            Err(Error::Problem(problem))
        }
        (Some(Problem::NotEthernet(name)), Some(purpose)) => Err(Error::NotEthernet { name, purpose }),
        (Some(Problem::Unknown | Problem::NotEthernet(_)), None) => Ok(None),
    }
}

/// The link of [`want_ipv6`] as it is now.
pub fn find_ipv6(node: &NodeNet, config: &Config) -> Result<Option<Link>, Error> {
    let Some(want) = want_ipv6(config) else { return Ok(None) };
    let have = uplink::read(node, &want)?;
    match uplink::difference(&want, &have) {
        None | Some(Problem::Down(_) | Problem::NoCarrier(_) | Problem::Enslaved { .. }) => Ok(have.link),
        Some(Problem::NotEthernet(name)) => Err(Error::NotEthernet { name, purpose: DHCPV6 }),
        Some(problem @ (Problem::Absent { .. } | Problem::Unknown)) => Err(Error::Problem(problem)),
    }
}

/// What can't be done without one.
pub fn purpose(config: &Config) -> Option<&'static str> {
    let asks = |lease: &Settings| matches!(lease.backend, Backend::Dhcp(Dhcp { relay: None, .. }));
    let asks_ipv6 = config.delegate.is_some() || config.lease6.as_ref().is_some_and(asks);
    match config.announce {
        _ if asks(&config.lease) => Some("DHCP"),
        _ if want_ipv6(config).is_none() && asks_ipv6 => Some(DHCPV6),
        Announce::Arp => Some("announce = \"arp\""),
        Announce::None => None,
    }
}

/// What may be a VIP's where the configuration doesn't say: addresses of the link's own prefixes. Those of IPv6 may stand in routes alone: an
/// address by `DHCPv6` is a /128, and router advertisements say which prefixes are on the link (RFC 5942 section 4).
pub fn prefixes(node: &NodeNet, family: Family, link: u32) -> net::Result<BTreeSet<IpNetwork>> {
    let addresses = address::list(node, family, Some(link))?;
    let mut prefixes: BTreeSet<IpNetwork> = addresses.iter().filter_map(prefix).collect();
    if family == Family::V6 {
        let filter = Filter { family, table: Some(route::MAIN), ..Filter::default() };
        prefixes.extend(route::list(node, filter)?.iter().filter_map(|route| on_link(route, link)));
    }
    Ok(prefixes)
}

/// The prefix that a link has by an address of it; `None`: it is of that link alone, or has no room for another host.
pub fn prefix(at: &address::Address) -> Option<IpNetwork> {
    let network = IpNetwork::new(at.address, at.prefix).ok()?.network();
    let has_room = at.prefix + 1 < Family::of(at.address).bits();
    IpNetwork::new(network, at.prefix).ok().filter(|_| at.global && has_room)
}

/// The prefix of a route that says which global addresses are on the link: none of a single host's, of a gateway's, or of a VIP's.
fn on_link(route: &Route, link: u32) -> Option<IpNetwork> {
    let Kind::Via(hops) = &route.kind else { return None };
    let is_there = hops.iter().any(|hop| hop.gateway.is_none() && hop.index == Some(link));
    let length = route.prefix.prefix();
    let is_network = length > 0 && length + 1 < Family::V6.bits() && is_unicast(route.prefix.network());
    (is_there && is_network && route.protocol != PROTOCOL).then_some(route.prefix)
}

#[cfg(test)]
mod tests {
    use crate::net::route::Hop;

    use super::*;

    #[test]
    fn a_pool_that_announces_nothing_needs_no_link() {
        let purpose = |text: &str| purpose(&Config::parse(text).unwrap());
        assert_eq!(purpose("backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\""), None);
        let arp = "backend = \"pool\"\nannounce = \"arp\"\n[pool]\ncidr = \"10.118.0.0/24\"";
        assert_eq!(purpose(arp), Some("announce = \"arp\""));
        assert_eq!(purpose(""), Some("DHCP"));
        let relay = "allow = [\"10.118.0.0/16\"]\n[dhcp.relay]\nserver = \"192.0.2.1\"\nsubnet = \"10.118.0.0\"";
        assert_eq!(purpose(relay), None);
        let pool = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n[dhcp6]\n";
        assert_eq!(purpose(pool), Some("DHCPv6"));
        assert_eq!(purpose(&format!("{pool}interface = \"eth1\"")), None, "it has a link of its own");
    }

    #[test]
    fn ipv6_addresses_have_a_link_of_their_own_where_it_has_another_name() {
        let other = |text: &str| match want_ipv6(&Config::parse(text).unwrap()) {
            Some(Want::Named { key, name }) => Some(format!("{key} = {name}")),
            _ => None,
        };
        let named = "[dhcp6]\ninterface = \"eth1\"";
        assert_eq!(other("[dhcp6]"), None);
        assert_eq!(other(&format!("dhcp.interface = \"eth1\"\n{named}")), None);
        // The default route may name it now, and another one later.
        assert_eq!(other(named).as_deref(), Some("dhcp6.interface = eth1"));
        assert_eq!(other(&format!("dhcp.interface = \"eth0\"\n{named}")).as_deref(), Some("dhcp6.interface = eth1"));
    }

    #[test]
    fn a_prefix_by_router_advertisement_is_the_links() {
        let prefix = |prefix: &str, protocol: u8, gateway: Option<&str>, index: u32| {
            let gateway = gateway.map(|gateway| gateway.parse().unwrap());
            let kind = Kind::Via(vec![Hop { gateway, index: Some(index) }]);
            let (prefix, source) = (prefix.parse().unwrap(), None);
            let route = Route { prefix, table: route::MAIN, protocol, tos: 0, metric: 256, source, advmss: None, kind };
            on_link(&route, 2).map(|prefix| prefix.to_string())
        };
        let (kernel, router) = (2, Some("fe80::fe"));
        assert_eq!(prefix("2001:db8::/64", kernel, None, 2).as_deref(), Some("2001:db8::/64"));
        for other in ["2001:db8::9/128", "2001:db8::8/127", "fe80::/64", "ff00::/8", "::/0"] {
            assert_eq!(prefix(other, kernel, None, 2), None, "{other}");
        }
        assert_eq!(prefix("2001:db8::/64", kernel, None, 3), None, "another link");
        assert_eq!(prefix("2001:db8:1::/48", kernel, router, 2), None, "behind a router");
        assert_eq!(prefix("2001:db8::/64", PROTOCOL, None, 2), None, "one of this project's");
    }
}
