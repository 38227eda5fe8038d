//! `[membership]`: the other nodes. Without the table the node stands alone.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::model::Family;
use crate::model::address::is_unicast;

use super::table::Reader;
use super::{Error, path_of};

/// Where the gossip is heard unless `listen` has another port.
pub const PORT: u16 = 8119;
/// Where the key is unless `key_file` says otherwise.
pub const DEFAULT_KEY_FILE: &str = "/etc/viproute/membership.key";
/// More seeds than that say nothing that fewer don't.
const MAX_SEEDS: usize = 64;

const SEED: &str = "a node's address or name, with or without a port: \"192.0.2.11\", \"2001:db8::11\", \"[2001:db8::11]:8119\", \"nodes.example:8119\"";
const ONE_FAMILY: &str = "addresses of one family, IPv4 or IPv6: all nodes speak by it";
const NAME: &str = "a node's name: 1 to 63 lower-case letters, digits, '-' and '.'";
const LISTEN: &str = "a unicast address of this node, with or without a port: \"192.0.2.11\", \"[2001:db8::11]:8119\"";

/// Who the other nodes are, and how they are heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Nodes that are asked first, each with its port. One that answers knows the others. None: this one waits to be asked.
    pub seeds: Vec<String>,
    /// The file of the shared keys.
    pub key_file: PathBuf,
    /// Where the gossip is heard; none: the node's own address.
    pub listen: Option<IpAddr>,
    /// Its UDP port.
    pub port: u16,
    /// Where the tunnel is reached; none: where the gossip is heard.
    pub tunnel: Option<IpAddr>,
    /// What the node is called; none: its host name.
    pub name: Option<String>,
}

impl Membership {
    /// The seeds that are no names.
    pub fn seed_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.seeds.iter().filter_map(|seed| Some(seed.parse::<SocketAddr>().ok()?.ip()))
    }

    /// The family by which nodes speak; none: that of this node's own address.
    pub fn family(&self) -> Option<Family> {
        self.listen.or(self.tunnel).or_else(|| self.seed_addresses().next()).map(Family::of)
    }

    pub(super) fn read(top: &mut Reader) -> Result<Option<Self>, Error> {
        let Some(mut table) = top.table("membership")? else { return Ok(None) };
        let seeds = table.list("seeds", SEED, seed)?;
        if seeds.len() > MAX_SEEDS {
            return Err(table.bad("seeds", &format!("[{} nodes]", seeds.len()), "64 nodes at most"));
        }
        let path = "an absolute path of at most 107 bytes";
        let key_file = table.text("key_file", path, path_of)?.unwrap_or_else(|| DEFAULT_KEY_FILE.into());
        let listen = table.text("listen", LISTEN, address_and_port)?;
        let (listen, port) = listen.map_or((None, PORT), |(address, port)| (Some(address), port));
        let tunnel = table.text("tunnel", "a unicast address of this node", unicast)?;
        let name = table.text("name", NAME, name)?;
        let read = Self { seeds, key_file, listen, port, tunnel, name };
        read.check_families(&table)?;
        table.finish()?;
        Ok(Some(read))
    }

    fn check_families(&self, table: &Reader) -> Result<(), Error> {
        let Some(family) = self.seed_addresses().next().map(Family::of) else {
            let pair = self.listen.zip(self.tunnel).filter(|(listen, tunnel)| listen.is_ipv4() != tunnel.is_ipv4());
            return pair.map_or(Ok(()), |(_, tunnel)| {
                Err(table.bad(
                    "tunnel",
                    &format!("{:?}", tunnel.to_string()),
                    "an address of the family of membership.listen",
                ))
            });
        };
        let is_other = |address: &IpAddr| Family::of(*address) != family;
        if let Some(other) = self.seed_addresses().find(is_other) {
            return Err(table.bad("seeds", &format!("[…, {:?}]", other.to_string()), ONE_FAMILY));
        }
        let both = [("listen", self.listen), ("tunnel", self.tunnel)];
        match both.iter().find_map(|(key, address)| Some((key, address.filter(is_other)?))) {
            Some((key, other)) => {
                let expected = "an address of the family of membership.seeds: all nodes speak by it";
                Err(table.bad(key, &format!("{:?}", other.to_string()), expected))
            }
            None => Ok(()),
        }
    }
}

/// A unicast address. One of IPv6 in another form (`::ffff:192.0.2.1`) is none.
fn unicast(text: &str) -> Option<IpAddr> {
    text.parse().ok().filter(|address| is_unicast(*address))
}

/// An address, in brackets where a port is behind one of IPv6, and the port.
fn address_and_port(text: &str) -> Option<(IpAddr, u16)> {
    let found = text.parse().map(|socket: SocketAddr| (socket.ip(), socket.port()));
    let (address, port) = found.ok().or_else(|| Some((text.parse().ok()?, PORT)))?;
    // A scope belongs to link-local addresses.
    (is_unicast(address) && port != 0 && !text.contains('%')).then_some((address, port))
}

/// The seed with its port.
fn seed(text: &str) -> Option<String> {
    if let Some((address, port)) = address_and_port(text) {
        return Some(SocketAddr::new(address, port).to_string());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)?),
        None => (text, PORT),
    };
    let looks_like_an_address = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    (!looks_like_an_address && is_host_name(host)).then(|| format!("{host}:{port}"))
}

/// RFC 1123 section 2.1.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (1..=253).contains(&text.len()) && text.split('.').all(label)
}

fn name(text: &str) -> Option<String> {
    is_node_name(text).then(|| text.to_owned())
}

/// Whether a node may be called so.
pub fn is_node_name(text: &str) -> bool {
    text.len() <= 63 && is_host_name(text) && !text.chars().any(|c| c.is_ascii_uppercase())
}
