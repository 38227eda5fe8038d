//! A link by which VIPs' addresses are leased and answered for: the one to the gateways, and perhaps another one for IPv6 addresses. DHCP, probes
//! and proxy neighbour entries are on it. It is never made or changed here; the difference is what keeps it from being used.

use crate::net::link::{self, Link};
use crate::net::{NodeNet, Result, route};

/// The key that names the link to the gateways.
pub const INTERFACE: &str = "dhcp.interface";
/// The key that names another link for IPv6 addresses.
pub const IPV6_INTERFACE: &str = "dhcp6.interface";

/// Which link it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// The one of this name.
    Named {
        /// The configuration's key that names it.
        key: &'static str,
        /// The name.
        name: String,
    },
    /// The default route's.
    DefaultRoute,
}

impl Want {
    /// The keys of the configuration, and what else, that may name it.
    fn named_by(&self) -> &'static str {
        match self {
            Self::Named { key: key @ IPV6_INTERFACE, .. } => key,
            Self::Named { .. } | Self::DefaultRoute => "dhcp.interface or the default route",
        }
    }
}

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// The link.
    pub link: Option<Link>,
    /// The bridge, bond or the like whose port it is.
    pub master: Option<String>,
}

/// Why it can't be used, or not well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Configured, and not there.
    #[error("{key} = {name:?}: there is no such interface")]
    Absent {
        /// The configuration's key.
        key: &'static str,
        /// What it says.
        name: String,
    },
    /// Neither configured nor found.
    #[error("no interface: dhcp.interface isn't set, and there is no default route to take it from")]
    Unknown,
    /// A tunnel, say.
    #[error("{0} has no Ethernet address")]
    NotEthernet(String),
    /// What comes in by it goes to its master.
    #[error("{name} is a port of {master} now, which takes what comes in by it: {named_by} must name {master}")]
    Enslaved {
        /// The link.
        name: String,
        /// What names it.
        named_by: &'static str,
        /// Its master.
        master: String,
    },
    /// It carries nothing.
    #[error("{0} is down")]
    Down(String),
    /// The same: a cable, a switch.
    #[error("{0} has no carrier")]
    NoCarrier(String),
}

/// Finds it. The default route is searched for among all routes of table main.
pub fn read(node: &NodeNet, want: &Want) -> Result<Have> {
    let link = match want {
        Want::Named { name, .. } => link::by_name(node, name)?,
        Want::DefaultRoute => match route::first_default_way(node)?.and_then(|way| way.hop.index) {
            Some(index) => link::by_index(node, index)?,
            None => None,
        },
    };
    complete(node, link)
}

/// The same link as it is now: by its name, since one that was made anew has another index.
pub fn again(node: &NodeNet, link: &Link) -> Result<Have> {
    complete(node, link::by_name(node, &link.name)?)
}

fn complete(node: &NodeNet, link: Option<Link>) -> Result<Have> {
    let master = match link.as_ref().and_then(|link| link.master) {
        Some(index) => link::by_index(node, index)?.map(|master| master.name),
        None => None,
    };
    Ok(Have { link, master })
}

/// What keeps it from being used.
pub fn difference(want: &Want, have: &Have) -> Option<Problem> {
    let Some(link) = &have.link else {
        return Some(match want {
            Want::Named { key, name } => Problem::Absent { key, name: name.clone() },
            Want::DefaultRoute => Problem::Unknown,
        });
    };
    let name = link.name.clone();
    match &have.master {
        _ if link.mac.is_none() => Some(Problem::NotEthernet(name)),
        Some(master) => Some(Problem::Enslaved { name, named_by: want.named_by(), master: master.clone() }),
        None if !link.up => Some(Problem::Down(name)),
        None if !link.carrier => Some(Problem::NoCarrier(name)),
        None => None,
    }
}

/// Whether sockets that were bound to `before` reach the network by `now`.
pub fn is_same(before: &Link, now: &Link) -> bool {
    (before.index, before.mac, &before.name) == (now.index, now.mac, &now.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mac;

    fn link() -> Link {
        Link {
            index: 2,
            name: "eth0".into(),
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            up: true,
            carrier: true,
            ..Link::default()
        }
    }

    #[test]
    fn what_keeps_a_link_from_being_used_is_named() {
        let named = Want::Named { key: INTERFACE, name: "eth0".into() };
        let of_ipv6 = Want::Named { key: IPV6_INTERFACE, name: "eth0".into() };
        let have = |link: Option<Link>, master: Option<&str>| Have { link, master: master.map(Into::into) };
        let problem = |want: &Want, have: Have| difference(want, &have).map(|problem| problem.to_string());
        assert_eq!(problem(&named, have(Some(link()), None)), None);
        assert_eq!(problem(&named, have(None, None)).unwrap(), "dhcp.interface = \"eth0\": there is no such interface");
        assert_eq!(
            problem(&of_ipv6, have(None, None)).unwrap(),
            "dhcp6.interface = \"eth0\": there is no such interface"
        );
        assert!(problem(&Want::DefaultRoute, have(None, None)).unwrap().contains("no default route"));
        let enslaved = |want| problem(want, have(Some(link()), Some("br0"))).unwrap();
        assert!(enslaved(&named).contains("eth0 is a port of br0"));
        assert!(enslaved(&named).ends_with("dhcp.interface or the default route must name br0"));
        assert!(enslaved(&of_ipv6).ends_with("it: dhcp6.interface must name br0"));
        assert_eq!(problem(&named, have(Some(Link { up: false, ..link() }), None)).unwrap(), "eth0 is down");
        assert_eq!(
            problem(&named, have(Some(Link { carrier: false, ..link() }), None)).unwrap(),
            "eth0 has no carrier"
        );
        assert!(problem(&named, have(Some(Link { mac: None, ..link() }), None)).unwrap().contains("Ethernet"));
    }

    #[test]
    fn another_index_or_address_is_another_link() {
        assert!(is_same(&link(), &Link { up: false, mtu: 9000, ..link() }));
        assert!(!is_same(&link(), &Link { index: 3, ..link() }));
        assert!(!is_same(&link(), &Link { mac: Some(Mac([2, 0, 0, 0, 0, 2])), ..link() }));
    }
}
