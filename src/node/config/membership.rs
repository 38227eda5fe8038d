//! `[membership]`: the other nodes. Without the table the node stands alone.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use super::table::Reader;
use super::{Error, path_of, unicast};

/// Where the gossip is heard unless `listen` has another port.
pub const PORT: u16 = 8119;
/// Where the key is unless `key_file` says otherwise.
pub const DEFAULT_KEY_FILE: &str = "/etc/viproute/membership.key";
/// More seeds than that say nothing that fewer don't.
const MAX_SEEDS: usize = 64;

const SEED: &str = "a node's IPv4 address or name, with or without a port: \"192.0.2.11\", \"nodes.example:8119\"";
const NAME: &str = "a node's name: 1 to 63 lower-case letters, digits, '-' and '.'";
const LISTEN: &str = "a unicast IPv4 address of this node, with or without a port";

/// Who the other nodes are, and how they are heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Nodes that are asked first, each with its port. One that answers knows the others. None: this one waits to be asked.
    pub seeds: Vec<String>,
    /// The file of the shared keys.
    pub key_file: PathBuf,
    /// Where the gossip is heard; none: the node's own address.
    pub listen: Option<Ipv4Addr>,
    /// Its UDP port.
    pub port: u16,
    /// Where the tunnel is reached; none: where the gossip is heard.
    pub tunnel: Option<Ipv4Addr>,
    /// What the node is called; none: its host name.
    pub name: Option<String>,
}

impl Membership {
    /// The seeds that are no names.
    pub fn seed_addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.seeds.iter().filter_map(|seed| Some(*seed.parse::<SocketAddrV4>().ok()?.ip()))
    }

    pub(super) fn read(top: &mut Reader) -> Result<Option<Self>, Error> {
        let Some(mut table) = top.table("membership")? else { return Ok(None) };
        let seeds = table.list("seeds", SEED, seed)?;
        if seeds.len() > MAX_SEEDS {
            return Err(table.bad("seeds", &format!("[{} nodes]", seeds.len()), "64 nodes at most"));
        }
        let path = "an absolute path of at most 107 bytes";
        let key_file = table.text("key_file", path, path_of)?.unwrap_or_else(|| DEFAULT_KEY_FILE.into());
        let listen = table.text("listen", LISTEN, listen)?;
        let (listen, port) = listen.map_or((None, PORT), |(address, port)| (Some(address), port));
        let tunnel = table.text("tunnel", "a unicast IPv4 address of this node", unicast)?;
        let name = table.text("name", NAME, name)?;
        table.finish()?;
        Ok(Some(Self { seeds, key_file, listen, port, tunnel, name }))
    }
}

/// The seed with its port.
fn seed(text: &str) -> Option<String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)?),
        None => (text, PORT),
    };
    let is_address = host.parse::<Ipv4Addr>().is_ok();
    let looks_like_one = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    let fine = if is_address || looks_like_one { unicast(host).is_some() } else { is_host_name(host) };
    fine.then(|| format!("{host}:{port}"))
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

fn listen(text: &str) -> Option<(Ipv4Addr, u16)> {
    if let Ok(socket) = text.parse::<SocketAddrV4>() {
        return unicast(&socket.ip().to_string())
            .map(|address| (address, socket.port()))
            .filter(|(_, port)| *port != 0);
    }
    unicast(text).map(|address| (address, PORT))
}

fn name(text: &str) -> Option<String> {
    is_node_name(text).then(|| text.to_owned())
}

/// Whether a node may be called so.
pub fn is_node_name(text: &str) -> bool {
    text.len() <= 63 && is_host_name(text) && !text.chars().any(|c| c.is_ascii_uppercase())
}
