//! `viprouted.toml`: every key optional, every default here, everything checked before anything starts.

mod observe;
mod table;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::Ipv4Network;

pub use self::observe::{Form, Log, Metrics};
use self::table::Reader;
use super::allow::Allow;
use crate::registry::VipKey;

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
        /// As it stands in the file.
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
    /// Part of every VIP's DHCP identity: clusters on one LAN keep apart by it.
    pub cluster: String,
    /// Where addresses come from.
    pub backend: Backend,
    /// Which addresses may be VIPs.
    pub allow: Allow,
    /// How long a lease is kept after the VIP's last replica left.
    pub hold: Duration,
    /// Whether this node answers ARP for its VIPs.
    pub announce: Announce,
    /// Addresses of the cluster's nodes, this one's included.
    pub peers: Vec<Ipv4Addr>,
    /// The link DHCP, ARP probes and announcements use; none: the default route's.
    pub interface: Option<String>,
    /// Whether VIP traffic is kept out of connection tracking.
    pub notrack: bool,
    /// Addresses settled by hand, by VIP.
    pub pins: BTreeMap<VipKey, Ipv4Addr>,
    /// Where metrics are served.
    pub metrics: Metrics,
    /// What the log looks like.
    pub log: Log,
}

/// Where addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A DHCP server.
    Dhcp(Dhcp),
    /// A range of this node's own.
    Pool(Pool),
}

impl Backend {
    /// As the file names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dhcp(_) => "dhcp",
            Self::Pool(_) => "pool",
        }
    }
}

/// The `[dhcp]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dhcp {
    /// Ask a server elsewhere for addresses of a subnet that isn't this link's.
    pub relay: Option<Relay>,
    /// What to do with a VIP whose lease is gone.
    pub on_lost: OnLost,
}

/// `relay` of `[dhcp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// The DHCP server's address.
    pub server: Ipv4Addr,
    /// Any address of the subnet VIPs come from.
    pub subnet: Ipv4Addr,
}

/// What to do with a VIP whose lease is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLost {
    /// Stop serving it until there is an address again: it may be another host's by now.
    Withdraw,
    /// Go on serving it and ask for the same address only.
    Keep,
}

/// Whether this node answers ARP for its VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// While a ready replica is here.
    Arp,
    /// Never: routers learn the VIPs otherwise.
    None,
}

/// The `[pool]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Addresses are taken from it, the lowest free one first.
    pub cidr: Ipv4Network,
    /// Never given out.
    pub exclude: Vec<Ipv4Addr>,
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Unreadable { path: path.into(), source })?;
        Self::parse(&text)
    }

    /// Checks the file's text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut top = Reader::new("", text.parse().map_err(|e| syntax(text, &e))?);
        let allow = top.list("allow", "a network such as 10.118.0.0/16", network)?;
        let allow = Allow::new(allow);
        let (dhcp, interface) = dhcp(&mut top)?;
        let pool = pool(&mut top, &allow)?;
        let backend = match top.text("backend", "\"dhcp\" or \"pool\"", backend_name)? {
            None | Some(Choice::Dhcp) => Backend::Dhcp(dhcp),
            Some(Choice::Pool) => Backend::Pool(
                pool.ok_or(Error::Missing { key: "pool.cidr".into(), expected: "a network within allow" })?,
            ),
        };
        let announce = top.text("announce", "\"arp\" or \"none\"", announce_name)?;
        let config = Self {
            socket: path(&mut top, "socket", "/run/viproute/viprouted.sock")?,
            state_dir: path(&mut top, "state_dir", "/var/lib/viproute")?,
            data_dir: path(&mut top, "data_dir", "/var/lib/cni/viproute")?,
            cluster: cluster(&mut top)?,
            allow: allow.clone(),
            hold: top.text("hold", HOLD, duration)?.unwrap_or(Duration::from_secs(600)),
            announce: announce.unwrap_or_else(|| default_announce(&backend)),
            peers: top.list("peers", "a unicast IPv4 address", unicast)?,
            interface,
            notrack: top.take("notrack", "true or false", toml::Value::as_bool)?.unwrap_or(true),
            pins: pins(&mut top, &allow)?,
            metrics: Metrics::read(&mut top)?,
            log: Log::read(&mut top)?,
            backend,
        };
        top.finish()?;
        Ok(config)
    }
}

const CIDR: &str = "a network of unicast addresses such as 10.118.0.0/24";
/// What a [`duration`] looks like.
pub const HOLD: &str = "a number and s, m or h, such as \"10m\"";

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

/// A VIP leased from this LAN is looked for on it by ARP; any other is somebody's routing entry.
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
    let mut dhcp = Dhcp { relay: None, on_lost: OnLost::Withdraw };
    let Some(mut table) = top.table("dhcp")? else {
        return Ok((dhcp, None));
    };
    let interface = table.text("interface", "an interface name (1 to 15 bytes)", interface_name)?;
    if let Some(mut relay) = table.table("relay")? {
        let mut address = |key| {
            let found = relay.text(key, "a unicast IPv4 address", unicast)?;
            found.ok_or_else(|| relay.missing(key, "a unicast IPv4 address"))
        };
        dhcp.relay = Some(Relay { server: address("server")?, subnet: address("subnet")? });
        relay.finish()?;
    }
    if let Some(on_lost) = table.text("on_lost", "\"withdraw\" or \"keep\"", on_lost_name)? {
        dhcp.on_lost = on_lost;
    }
    table.finish()?;
    Ok((dhcp, interface))
}

/// `[pool]`; an address outside `allow` would be refused later, so the range has to lie inside.
fn pool(top: &mut Reader, allow: &Allow) -> Result<Option<Pool>, Error> {
    let mut table = top.table("pool")?.unwrap_or_else(|| Reader::new("pool.", toml::Table::new()));
    let cidr = table.text("cidr", CIDR, network)?;
    let exclude = table.list("exclude", "an IPv4 address", |text| text.parse().ok())?;
    if let Some(cidr) = cidr.filter(|cidr| !allow.permits_all(*cidr)) {
        let expected = format!("a network within: {allow}");
        return Err(table.bad("cidr", &quoted(cidr), expected));
    }
    table.finish()?;
    // The default may lie outside `allow`, which matters only if the pool is used.
    let default = Ipv4Network::new(Ipv4Addr::new(10, 118, 0, 0), 24).ok();
    let cidr = cidr.or(default.filter(|cidr| allow.permits_all(*cidr)));
    Ok(cidr.map(|cidr| Pool { cidr, exclude }))
}

/// `[[pin]]`: each VIP once, each address once.
fn pins(top: &mut Reader, allow: &Allow) -> Result<BTreeMap<VipKey, Ipv4Addr>, Error> {
    let mut pins = BTreeMap::new();
    for mut table in top.tables("pin")? {
        let vip: Option<VipKey> = table.text("vip", "a VIP, <namespace>/<name>", |text| text.parse().ok())?;
        let vip = vip.ok_or_else(|| table.missing("vip", "a VIP, <namespace>/<name>"))?;
        let address = table.text("address", "a unicast IPv4 address", unicast)?;
        let address = address.ok_or_else(|| table.missing("address", "a unicast IPv4 address"))?;
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
        table.finish()?;
        pins.insert(vip, address);
    }
    Ok(pins)
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

fn cluster(top: &mut Reader) -> Result<String, Error> {
    let read = |text: &str| (1..=253).contains(&text.len()).then(|| text.to_string());
    Ok(top.text("cluster", "1 to 253 bytes of text", read)?.unwrap_or_else(|| "default".into()))
}

fn interface_name(text: &str) -> Option<String> {
    let fine = (1..=15).contains(&text.len()) && !text.contains(['/', '\0']) && !text.contains(char::is_whitespace);
    fine.then(|| text.to_string())
}

/// A network whose host bits are zero; anything else is more likely a slip than meant.
fn network(text: &str) -> Option<Ipv4Network> {
    let network: Ipv4Network = text.parse().ok()?;
    (text.contains('/') && network.ip() == network.network()).then_some(network)
}

fn unicast(text: &str) -> Option<Ipv4Addr> {
    text.parse().ok().filter(|address| Allow::default().permits(*address))
}

/// `30s`, `10m`, `1h`.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, seconds) = match text.as_bytes().last()? {
        b's' => (text.strip_suffix('s')?, 1),
        b'm' => (text.strip_suffix('m')?, 60),
        b'h' => (text.strip_suffix('h')?, 3600),
        _ => return None,
    };
    // At most a year, so that no later sum overflows.
    let number: u32 = number.parse().ok().filter(|_| number.bytes().all(|b| b.is_ascii_digit()))?;
    let total = u64::from(number) * seconds;
    (total <= 366 * 24 * 3600).then(|| Duration::from_secs(total))
}

fn syntax(text: &str, error: &toml::de::Error) -> Error {
    let upto = error.span().map_or(0, |span| span.start.min(text.len()));
    let lines = text.as_bytes()[..upto].split(|byte| *byte == b'\n');
    let line = lines.count();
    Error::Syntax { line, message: error.message().replace('\n', " ") }
}

#[cfg(test)]
mod tests;
