//! `viproutectl announce`: a routing daemon's configuration, from this node's own facts, to standard output.
//!
//! The data route carries the number of ready replicas as `cwnd`, which BIRD reads; FRR's zebra reads the metric of the
//! unreachable route. Routers weigh nodes by the link bandwidth community (draft-ietf-idr-link-bandwidth) made of it.

mod bird;
mod frr;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;

use crate::lease::settings::Backend;
use crate::membership;
use crate::membership::node::Node;
use crate::model::address::ipv4;
use crate::model::{Family, NetworkSpec};
use crate::net::route::{self, Packet};
use crate::net::{self, NodeNet, link};
use crate::node::config::{self, Config};

use super::arguments::{Announce, RoutingDaemon};

/// Numbers of ready replicas that a router can tell apart; more count as so many.
const MOST_COUNTED: u32 = 64;
/// Bytes a second that the link bandwidth community of one replica says: what FRR calls 1 Mbit/s.
const BANDWIDTH: u32 = 125_000;
/// Stands for an ASN of four bytes where two fit (RFC 6793 section 9).
const AS_TRANS: u16 = 23456;

/// Why no configuration can be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// viprouted's configuration.
    #[error("{}: viprouted's configuration, which says what VIPs there may be, is not usable", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: config::Error,
    },
    /// No word on which VIPs there may be.
    #[error(
        "{}: allow is not set, so no router can be told which prefixes are VIPs: expected allow = [\"10.118.0.0/16\"], say",
        .0.display()
    )]
    NoPrefixes(PathBuf),
    /// None of the router's family.
    #[error("--router {router}: by {} VIPs have no {} addresses, and those of a router's own family are announced to it: expected {}", path.display(), family.name(), wanted(*family))]
    NoneOfFamily {
        /// The router.
        router: IpAddr,
        /// Its family.
        family: Family,
        /// viprouted's configuration.
        path: PathBuf,
    },
    /// A session with itself.
    #[error("--router {0}: this is an address of this node: expected the router's")]
    OwnAddress(IpAddr),
    /// The same session twice.
    #[error("--router {0} is there twice: expected each router once")]
    Twice(IpAddr),
    /// The kernel knows no way.
    #[error("--router {0}: this node has no route to it")]
    NoRoute(IpAddr),
    /// The session has no end on this node.
    #[error("--router {0}: this node has no address of its own on the way there")]
    NoSource(IpAddr),
    /// It isn't next to this node.
    #[error(
        "--router {router}: it is on no network of this node (the way there is via {gateway}): expected a neighbour, or \
         --multihop HOPS for a session over so many routers"
    )]
    NotConnected {
        /// The router.
        router: IpAddr,
        /// Where packets to it are sent.
        gateway: IpAddr,
    },
    /// This node has no address.
    #[error(transparent)]
    Node(#[from] membership::Error),
    /// It has none of IPv4.
    #[error("this node's address {0} is of IPv6: BGP needs one of IPv4 as its router id")]
    NotIpv4(IpAddr),
    /// The kernel's tables can't be read.
    #[error(transparent)]
    Net(#[from] net::Error),
}

/// What a configuration is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    /// This node's address.
    router_id: Ipv4Addr,
    /// Its AS number.
    asn: u32,
    /// What holds every VIP's address there may be.
    prefixes: Vec<IpNetwork>,
    /// The BGP sessions.
    sessions: Vec<Session>,
    /// How many hops a router may be away; none: it is a neighbour.
    multihop: Option<u8>,
    /// Whether viprouted answers ARP for VIPs too.
    answers_arp: bool,
}

/// A session with a router.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    /// The router's address. VIPs' addresses of that family are announced to it.
    router: IpAddr,
    /// Its AS number.
    asn: u32,
    /// This node's end.
    local: IpAddr,
    /// The device that leads there.
    device: String,
}

/// The configuration that `question` asks for.
pub fn write(question: &Announce) -> Result<String, Error> {
    let path = &question.config;
    let config = Config::load(path).map_err(|source| Error::Config { path: path.clone(), source })?;
    let net = NodeNet::open()?;
    let facts = Facts::gather(&net, &config, question)?;
    Ok(match question.daemon {
        RoutingDaemon::Bird => bird::text(&facts),
        RoutingDaemon::Frr => frr::text(&facts),
    })
}

impl Facts {
    fn gather(net: &NodeNet, config: &Config, question: &Announce) -> Result<Self, Error> {
        let prefixes = prefixes(config, &question.config)?;
        let families: BTreeSet<Family> = prefixes.iter().map(|prefix| Family::of(prefix.ip())).collect();
        let address = Node::find(net, &NetworkSpec::default())?.address;
        let router_id = ipv4(address).ok_or(Error::NotIpv4(address))?;
        let mut seen = BTreeSet::new();
        let mut sessions = Vec::new();
        for router in &question.router {
            let (address, family) = (router.address, Family::of(router.address));
            if !seen.insert(address) {
                return Err(Error::Twice(address));
            }
            if !families.contains(&family) {
                return Err(Error::NoneOfFamily { router: address, family, path: question.config.clone() });
            }
            let asn = router.asn.unwrap_or(question.asn);
            let (local, device) = way(net, address, question.multihop)?;
            let own = Some(IpAddr::V4(router_id)).filter(|_| family == Family::V4);
            let local = local.or(own).ok_or(Error::NoSource(address))?;
            sessions.push(Session { router: address, asn, local, device });
        }
        Ok(Self {
            router_id,
            asn: question.asn,
            prefixes,
            sessions,
            multihop: question.multihop,
            answers_arp: config.announce == config::Announce::Arp,
        })
    }

    /// The ASN of a link bandwidth community, which has two bytes for it.
    fn community_asn(&self) -> u16 {
        u16::try_from(self.asn).unwrap_or(AS_TRANS)
    }

    /// What is written of each family that is announced to a router.
    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let of = |family| Part {
            family,
            prefixes: self.prefixes.iter().filter(|prefix| Family::of(prefix.ip()) == family).collect(),
            sessions: self.sessions.iter().filter(|session| Family::of(session.router) == family).collect(),
        };
        Family::ALL.map(of).into_iter().filter(|part| !part.sessions.is_empty())
    }

    /// The families of VIPs' addresses that are announced to no router.
    fn untold(&self) -> BTreeSet<Family> {
        let of = |address: IpAddr| Family::of(address);
        let told: BTreeSet<Family> = self.sessions.iter().map(|session| of(session.router)).collect();
        self.prefixes.iter().map(|prefix| of(prefix.ip())).filter(|family| !told.contains(family)).collect()
    }

    /// The devices that lead to routers, each once.
    fn devices(&self) -> BTreeSet<&str> {
        self.sessions.iter().map(|session| session.device.as_str()).collect()
    }

    /// What the head of every configuration says, without comment signs.
    fn head(&self, file: &str) -> Vec<String> {
        let names = |each: &mut dyn Iterator<Item = String>| each.collect::<Vec<_>>().join(", ");
        let prefixes = names(&mut self.prefixes.iter().map(ToString::to_string));
        let routers = names(&mut self.sessions.iter().map(|s| format!("{} (AS {})", s.router, s.asn)));
        let mut lines = vec![
            format!("{file} of the node {}, AS {}, written by `viproutectl announce`.", self.router_id, self.asn),
            format!("VIPs lie in {prefixes} and are announced to {routers}."),
        ];
        for family in self.untold() {
            lines.push(format!(
                "VIPs' {name} addresses are announced to no router: that takes its {name} address, --router {}.",
                form(family),
                name = family.name()
            ));
        }
        if self.answers_arp {
            lines.push(
                "viprouted answers ARP for VIPs as well: set announce = \"none\" where routers alone lead to them."
                    .into(),
            );
        }
        lines
    }

    /// What a router needs to spread flows over nodes by their weights, in FRR's words.
    fn router_side(&self) -> Vec<String> {
        let ends: BTreeSet<IpAddr> = self.sessions.iter().map(|session| session.local).collect();
        let mut lines = vec!["A router that runs FRR needs, for each node:".to_owned()];
        for end in ends {
            lines.push(format!(
                "  neighbor {end} remote-as {}, the same with bfd, and maximum-paths 64 (ibgp)",
                self.asn
            ));
            if end.is_ipv6() {
                lines.push(format!(
                    "  neighbor {end} activate, in address-family ipv6 unicast, where maximum-paths is too"
                ));
            }
        }
        lines.push("  bgp bestpath as-path multipath-relax, where the nodes' AS numbers differ".into());
        for Part { family, .. } in self.parts() {
            lines.push(format!(
                "and hashes by ports with sysctl net.{family}.fib_multipath_hash_policy=1: else a client's address meets one node."
            ));
        }
        lines.push(
            "Don't take bfd from the router's side alone: a node's daemon sees that as the router's death.".into(),
        );
        lines
    }
}

/// `bytes/s` of so many replicas, as the community holds it: a float of four bytes.
fn bandwidth(replicas: u32) -> u32 {
    // Exact: 64 times 125,000 has 23 bits.
    #[allow(clippy::cast_precision_loss)]
    let bytes = (replicas.min(MOST_COUNTED) * BANDWIDTH) as f32;
    bytes.to_bits()
}

/// What is written of one family of VIPs' addresses.
struct Part<'a> {
    family: Family,
    /// What holds them.
    prefixes: Vec<&'a IpNetwork>,
    /// With the routers that they are announced to.
    sessions: Vec<&'a Session>,
}

impl Part<'_> {
    fn suffix(&self) -> &'static str {
        suffix(self.family)
    }
}

/// What the names of a family's lists and filters end in.
fn suffix(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => "6",
    }
}

/// How a router of a family is written.
fn form(family: Family) -> &'static str {
    match family {
        Family::V4 => "ADDRESS:ASN",
        Family::V6 => "[ADDRESS]:ASN",
    }
}

/// What in viprouted's configuration gives VIPs addresses of a family.
fn wanted(family: Family) -> &'static str {
    match family {
        Family::V4 => "a network of IPv4 in allow",
        Family::V6 => "a network of IPv6 in allow, or without allow pool.cidr6 or address6 of a [[pin]]",
    }
}

/// Every prefix that a VIP's address can be in: `allow`, or without it the pools and the pins.
fn prefixes(config: &Config, path: &Path) -> Result<Vec<IpNetwork>, Error> {
    if let Some(allow) = &config.lease.allow {
        return Ok(allow.networks().to_vec());
    }
    let Backend::Pool(pools) = &config.lease.backend else { return Err(Error::NoPrefixes(path.to_owned())) };
    let beside = &config.lease.beside;
    let networks = pools.networks().into_iter().map(IpNetwork::V4).chain(beside.networks().map(IpNetwork::V6));
    let mut prefixes: Vec<IpNetwork> = networks.collect();
    let of_lease6 = config.lease6.iter().flat_map(|lease| lease.pins.values().copied());
    let pins = config.lease.pins.values().copied().chain(beside.pins.values().copied().map(IpAddr::V6));
    for pin in pins.chain(of_lease6) {
        if !prefixes.iter().any(|prefix| prefix.contains(pin)) {
            prefixes.push(IpNetwork::from(pin));
        }
    }
    Ok(prefixes)
}

/// This node's end of a session, where the way there says, and the device.
fn way(net: &NodeNet, router: IpAddr, multihop: Option<u8>) -> Result<(Option<IpAddr>, String), Error> {
    if route::is_local(net, router)? {
        return Err(Error::OwnAddress(router));
    }
    let way = route::lookup(net, Packet::to(router))?.ok_or(Error::NoRoute(router))?;
    if let (Some(gateway), None) = (way.hop.gateway, multihop) {
        return Err(Error::NotConnected { router, gateway });
    }
    let index = way.hop.index.ok_or(Error::NoRoute(router))?;
    let device = link::by_index(net, index)?.ok_or(Error::NoRoute(router))?.name;
    Ok((way.source, device))
}

#[cfg(test)]
mod tests;
