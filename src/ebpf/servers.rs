//! Which replicas of a VIP, and which other nodes, serve which of its ports, where that isn't the same for all (`serving.h`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;

use aya::Pod;

use super::maps::{SERVERS, found, patiently};
use super::vips::MEMBERS;
use super::{Error, Result, hash};

/// `struct port_key`. The address is in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortKey {
    pub(super) vip: [u8; 4],
    pub(super) number: u32,
}

/// `struct server`: a replica here, or another node with its replicas.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// The host veth; 0: another node.
    pub ifindex: u32,
    /// The node's id, in network order; 0: a replica here.
    pub node: [u8; 4],
    /// Beside the others that serve the port; not 0.
    pub weight: u32,
    /// What it is in the VIP's group.
    pub of: u32,
}

/// `struct servers`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Servers {
    pub(super) count: u32,
    pub(super) pad: u32,
    pub(super) server: [Server; MEMBERS],
}

const _: () = {
    assert!(size_of::<PortKey>() == 8);
    assert!(size_of::<Server>() == 16);
    assert!(size_of::<Servers>() == 8 + 16 * MEMBERS);
};

// SAFETY: integers and bytes without padding.
unsafe impl Pod for PortKey {}
// SAFETY: as above.
unsafe impl Pod for Servers {}

/// By port (protocol << 16 | port; 0: all that isn't named) who serves it, in order. Of more than [`MEMBERS`] the first.
pub type ByPort = BTreeMap<u32, Vec<Server>>;

impl Servers {
    fn new(of: &[Server]) -> Self {
        let mut server = [Server::default(); MEMBERS];
        let count = of.len().min(MEMBERS);
        server[..count].copy_from_slice(&of[..count]);
        Self { count: u32::try_from(count).unwrap_or_default(), pad: 0, server }
    }

    fn list(&self) -> Vec<Server> {
        self.server.iter().take(self.count as usize).copied().collect()
    }
}

/// What the map has of a VIP.
pub(super) fn read(dir: &Path, vip: Ipv4Addr) -> Result<ByPort> {
    let Some(map) = hash::map::<PortKey, Servers>(dir, SERVERS)? else { return Ok(ByPort::new()) };
    let mut all = ByPort::new();
    for key in hash::keys(&map, SERVERS)?.into_iter().filter(|key| key.vip == vip.octets()) {
        let value = found(map.get(&key, 0)).map_err(|e| Error::map("read", SERVERS, e))?;
        all.extend(value.map(|value| (key.number, value.list())));
    }
    Ok(all)
}

/// Whether the map has all of these; it may have others.
pub(super) fn are_there(dir: &Path, vip: Ipv4Addr, wanted: &ByPort) -> Result<bool> {
    let Some(map) = hash::map::<PortKey, Servers>(dir, SERVERS)? else { return Ok(true) };
    for (number, servers) in wanted {
        let key = PortKey { vip: vip.octets(), number: *number };
        let have = found(map.get(&key, 0)).map_err(|e| Error::map("read", SERVERS, e))?;
        if have.is_none_or(|have| have.list() != *servers) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes who serves a port; nobody: nothing is known of it any more.
pub(super) fn write(dir: &Path, vip: Ipv4Addr, number: u32, servers: &[Server]) -> Result<()> {
    let Some(mut map) = hash::map::<PortKey, Servers>(dir, SERVERS)? else { return Ok(()) };
    let key = PortKey { vip: vip.octets(), number };
    if servers.is_empty() {
        return found(map.remove(&key)).map(drop).map_err(|e| Error::map("delete", SERVERS, e));
    }
    let value = Servers::new(servers);
    patiently(|| map.insert(key, value, 0)).map_err(|e| Error::map("write", SERVERS, e))
}

/// The VIPs of which it has something.
pub(super) fn vips(dir: &Path) -> Result<BTreeSet<Ipv4Addr>> {
    let Some(map) = hash::map::<PortKey, Servers>(dir, SERVERS)? else { return Ok(BTreeSet::new()) };
    Ok(hash::keys(&map, SERVERS)?.into_iter().map(|key| key.vip.into()).collect())
}
