//! `viprouted.toml`: every key optional, every default here, everything checked before anything starts.

mod ipv6;
mod kubernetes;
mod lease;
mod membership;
mod observe;
mod pools;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::lease::Settings;
use crate::lease::allow::Allow;
use crate::lease::settings::{Backend, Dhcp, Gateway, Limits, OnLost, Relay, RoutingDaemon};
use crate::model::VipKey;
use crate::node::Wanted;
pub use crate::node::config::kubernetes::Kubernetes;
pub use crate::node::config::membership::{DEFAULT_KEY_FILE, Membership, is_node_name};
pub use crate::node::config::observe::{Form, Log, Metrics};
use crate::node::config::table::Reader;

/// Where the file is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/viproute/viprouted.toml";

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("{} can't be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("line {line} is not TOML: {message}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What the parser makes of it.
        message: String,
    },
    /// A key that doesn't exist.
    #[error("{key}: no such key (there are: {known})")]
    UnknownKey {
        /// With its tables, as in `dhcp.relay.server`.
        key: String,
        /// The keys that exist there.
        known: String,
    },
    /// A key that has to be there, given the others.
    #[error("{key} is missing: expected {expected}")]
    Missing {
        /// With its tables.
        key: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A value that makes no sense.
    #[error("{key} = {value}: expected {expected}")]
    BadValue {
        /// With its tables.
        key: String,
        /// As the file has it.
        value: String,
        /// What would have been right.
        expected: String,
    },
}

/// The whole configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The unix socket the plugin calls.
    pub socket: PathBuf,
    /// Where leases are kept across reboots.
    pub state_dir: PathBuf,
    /// The plugin's registry.
    pub data_dir: PathBuf,
    /// Where VIPs' addresses come from, and which they may be.
    pub lease: Settings,
    /// The same of IPv6 addresses that are leased by themselves; none: those that VIPs have are derived.
    pub lease6: Option<Settings>,
    /// A `DHCPv6` server delegates the prefix that VIPs' IPv6 addresses are of: what is done where it is lost.
    pub delegate: Option<OnLost>,
    /// Whether this node answers ARP for its VIPs.
    pub announce: Announce,
    /// The link DHCP, ARP probes and announcements use; none: the default route's.
    pub interface: Option<String>,
    /// The link that IPv6 addresses, or their prefix, are leased by; none: the same.
    pub interface6: Option<String>,
    /// Whether VIP traffic is kept out of connection tracking.
    pub notrack: bool,
    /// Whether packets may take the express path.
    pub express: bool,
    /// The other nodes; none: the node stands alone.
    pub membership: Option<Membership>,
    /// The Kubernetes API; none: Services are none of its business.
    pub kubernetes: Option<Kubernetes>,
    /// Where metrics are served.
    pub metrics: Metrics,
    /// The log's form and level.
    pub log: Log,
}

/// Whether this node answers ARP for its VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// While a ready replica is here.
    Arp,
    /// Never: routers learn the VIPs otherwise.
    None,
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Unreadable { path: path.into(), source })?;
        Self::parse(&text)
    }

    /// The same of a node that is called so, where the file has no name: one configuration is many nodes'.
    #[must_use]
    pub fn of_node(mut self, name: Option<&str>) -> Self {
        let Some(name) = name else { return self };
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.node.get_or_insert_with(|| name.to_owned());
        }
        // Other nodes take 63 letters at most.
        if let Some(membership) = self.membership.as_mut().filter(|_| is_node_name(name)) {
            membership.name.get_or_insert_with(|| name.to_owned());
        }
        self
    }

    /// Checks the file's text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut top = Reader::new("", text.parse().map_err(|e| syntax(text, &e))?);
        let config = Self::read(&mut top)?;
        top.finish()?;
        config.check_ipv6()?;
        Ok(config)
    }

    fn read(top: &mut Reader) -> Result<Self, Error> {
        let (dhcp, interface) = dhcp(top)?;
        let membership = Membership::read(top)?;
        let kubernetes = Kubernetes::read(top)?;
        let dhcp6 = ipv6::dhcp6(top, dhcp.on_lost)?;
        let mut lease = lease::lease(top, dhcp, membership.as_ref())?;
        if matches!(lease.backend, Backend::Pool(_)) && membership.is_none() && kubernetes.is_none() {
            pools::stand_alone(top, &lease.peers, !lease.pins.is_empty())?;
        }
        let ipv6::Leased { lease6, delegate, interface: interface6 } = ipv6::by_itself(&mut lease, dhcp6)?;
        let announce = top.text("announce", "\"arp\" or \"none\"", announce_name)?;
        Ok(Self {
            socket: path(top, "socket", "/run/viproute/viprouted.sock")?,
            state_dir: path(top, "state_dir", "/var/lib/viproute")?,
            data_dir: path(top, "data_dir", "/var/lib/cni/viproute")?,
            announce: announce.unwrap_or_else(|| default_announce(&lease.backend)),
            interface,
            interface6,
            notrack: top.take("notrack", "true or false", toml::Value::as_bool)?.unwrap_or(true),
            express: top.text("express", "\"on\" or \"off\"", switch)?.unwrap_or(true),
            kubernetes,
            membership,
            metrics: Metrics::read(top)?,
            log: Log::read(top)?,
            lease,
            lease6,
            delegate,
        })
    }
}

impl Config {
    /// What it asks of the node's packet paths.
    pub fn wanted(&self) -> Wanted {
        Wanted { notrack: self.notrack, express: self.express }
    }

    /// The networks of which nothing may go to a gateway: those of the pools, and pins beside them, where this node knows by the others where each VIP is.
    pub fn discarded(&self) -> BTreeSet<IpNetwork> {
        let Backend::Pool(pools) = &self.lease.backend else { return BTreeSet::new() };
        if self.membership.is_none() {
            return BTreeSet::new();
        }
        let of_pools = pools.networks().into_iter().map(IpNetwork::V4);
        let networks: BTreeSet<IpNetwork> = of_pools.chain(self.lease.beside.networks().map(IpNetwork::V6)).collect();
        let pins = self.lease.pins.values().copied().chain(self.lease.beside.pins.values().copied().map(IpAddr::V6));
        let outside = pins.filter(|pin| !networks.iter().any(|network| network.contains(*pin)));
        outside.map(IpNetwork::from).chain(networks.iter().copied()).collect()
    }
}

fn switch(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// The form of a [`duration`], for errors.
pub const HOLD: &str = "a time such as \"30s\", \"10m\" or \"1h 30m\"";

enum Choice {
    Dhcp,
    Pool,
}

fn backend_name(text: &str) -> Option<Choice> {
    match text {
        "dhcp" => Some(Choice::Dhcp),
        "pool" => Some(Choice::Pool),
        _ => None,
    }
}

fn announce_name(text: &str) -> Option<Announce> {
    match text {
        "arp" => Some(Announce::Arp),
        "none" => Some(Announce::None),
        _ => None,
    }
}

/// Hosts of the LAN search for a VIP leased from it by ARP; a router reaches any other by a route.
fn default_announce(backend: &Backend) -> Announce {
    match backend {
        Backend::Dhcp(Dhcp { relay: None, .. }) => Announce::Arp,
        _ => Announce::None,
    }
}

fn on_lost_name(text: &str) -> Option<OnLost> {
    match text {
        "withdraw" => Some(OnLost::Withdraw),
        "keep" => Some(OnLost::Keep),
        _ => None,
    }
}

/// `[dhcp]`, and the interface, which counts with every backend.
fn dhcp(top: &mut Reader) -> Result<(Dhcp, Option<String>), Error> {
    let mut dhcp = Dhcp { relay: None, servers: Vec::new(), on_lost: OnLost::Withdraw };
    let Some(mut table) = top.table("dhcp")? else {
        return Ok((dhcp, None));
    };
    let interface = table.text("interface", INTERFACE, interface_name)?;
    if let Some(mut relay) = table.table("relay")? {
        let expected = "a unicast IPv4 address";
        let mut address = |key| {
            let found = relay.text(key, expected, unicast)?.map(IpAddr::V4);
            found.ok_or_else(|| relay.missing(key, expected))
        };
        dhcp.relay = Some(Relay { server: address("server")?, subnet: address("subnet")? });
        relay.finish()?;
    }
    dhcp.servers = table.list("servers", "a unicast IPv4 address", |text| unicast(text).map(IpAddr::V4))?;
    if let Some(on_lost) = table.text("on_lost", "\"withdraw\" or \"keep\"", on_lost_name)? {
        dhcp.on_lost = on_lost;
    }
    table.finish()?;
    Ok((dhcp, interface))
}

/// `[limits]`.
fn limits(top: &mut Reader) -> Result<Limits, Error> {
    let mut limits = Limits::default();
    let Some(mut table) = top.table("limits")? else { return Ok(limits) };
    let number = |value: &toml::Value| usize::try_from(value.as_integer()?).ok().filter(|number| *number > 0);
    let expected = "a number from 1 on";
    if let Some(number) = table.take("vips_per_namespace", expected, number)? {
        limits.vips_per_namespace = number;
    }
    if let Some(number) = table.take("vips", expected, number)? {
        limits.vips = number;
    }
    table.finish()?;
    Ok(limits)
}

/// VIPs, and the addresses that they are pinned to.
type Pins<A> = BTreeMap<VipKey, A>;

/// `[[pin]]`: each VIP once, each address once.
fn pins(top: &mut Reader, allow: &Allow) -> Result<(Pins<IpAddr>, Pins<Ipv6Addr>), Error> {
    let (mut pins, mut pins6) = (BTreeMap::new(), BTreeMap::new());
    for mut table in top.tables("pin")? {
        let vip: Option<VipKey> = table.text("vip", "a VIP, <namespace>/<name>", |text| text.parse().ok())?;
        let vip = vip.ok_or_else(|| table.missing("vip", "a VIP, <namespace>/<name>"))?;
        let address = table.text("address", "a unicast IPv4 address", unicast)?;
        let address = IpAddr::V4(address.ok_or_else(|| table.missing("address", "a unicast IPv4 address"))?);
        if !allow.permits(address) {
            return Err(table.bad("address", &quoted(address), format!("one within: {allow}")));
        }
        if let Some((other, _)) = pins.iter().find(|(_, taken)| **taken == address) {
            let expected = format!("an address that isn't pinned to {other} already");
            return Err(table.bad("address", &quoted(address), expected));
        }
        if pins.contains_key(&vip) {
            return Err(table.bad("vip", &quoted(vip), "each VIP pinned once"));
        }
        pins6.extend(ipv6::address6(&mut table, allow)?.map(|address| (vip.clone(), address)));
        table.finish()?;
        pins.insert(vip, address);
    }
    Ok((pins, pins6))
}

/// `[[gateway]]`: each daemon once.
fn gateways(top: &mut Reader) -> Result<Vec<Gateway>, Error> {
    let mut gateways: Vec<Gateway> = Vec::new();
    for mut table in top.tables("gateway")? {
        let expected = "\"bird\" or \"frr\"";
        let daemon = table.text("kind", expected, daemon_name)?.ok_or_else(|| table.missing("kind", expected))?;
        let socket = path(&mut table, "socket", daemon.usual_socket())?;
        if gateways.iter().any(|other| other.socket == socket) {
            return Err(table.bad("socket", &quoted(socket.display()), "each daemon's socket once"));
        }
        table.finish()?;
        gateways.push(Gateway { daemon, socket });
    }
    Ok(gateways)
}

fn daemon_name(text: &str) -> Option<RoutingDaemon> {
    match text {
        "bird" => Some(RoutingDaemon::Bird),
        "frr" => Some(RoutingDaemon::Frr),
        _ => None,
    }
}

fn quoted(value: impl std::fmt::Display) -> String {
    format!("\"{value}\"")
}

/// An absolute path. A socket's may have 107 bytes (`sun_path`), which is kept for all of them.
fn path(top: &mut Reader, key: &'static str, default: &str) -> Result<PathBuf, Error> {
    let expected = "an absolute path of at most 107 bytes";
    Ok(top.text(key, expected, path_of)?.unwrap_or_else(|| default.into()))
}

fn path_of(text: &str) -> Option<PathBuf> {
    let fine = text.starts_with('/') && text.len() <= 107 && !text.contains('\0');
    fine.then(|| PathBuf::from(text))
}

fn cluster(top: &mut Reader) -> Result<Option<String>, Error> {
    let read = |text: &str| (1..=253).contains(&text.len()).then(|| text.to_string());
    top.text("cluster", "1 to 253 bytes of text", read)
}

/// What an interface's name has to be.
const INTERFACE: &str = "an interface name (1 to 15 bytes)";

fn interface_name(text: &str) -> Option<String> {
    let fine = (1..=15).contains(&text.len()) && !text.contains(['/', '\0']) && !text.contains(char::is_whitespace);
    fine.then(|| text.to_string())
}

/// The same of either family.
fn any_network(text: &str) -> Option<IpNetwork> {
    let network: IpNetwork = text.parse().ok()?;
    (text.contains('/') && network.ip() == network.network()).then_some(network)
}

fn unicast(text: &str) -> Option<Ipv4Addr> {
    text.parse().ok().filter(|address| Allow::default().permits(IpAddr::V4(*address)))
}

fn any_unicast(text: &str) -> Option<IpAddr> {
    text.parse().ok().filter(|address| Allow::default().permits(*address))
}

/// `30s`, `10m`, `1h 30m`. At most a year, so that no later sum overflows.
pub fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok().filter(|time| *time <= Duration::from_secs(366 * 24 * 3600))
}

fn syntax(text: &str, error: &toml::de::Error) -> Error {
    let upto = error.span().map_or(0, |span| span.start.min(text.len()));
    let lines = text.as_bytes()[..upto].split(|byte| *byte == b'\n');
    let line = lines.count();
    Error::Syntax { line, message: error.message().replace('\n', " ") }
}

#[cfg(test)]
mod tests;
