//! What the programs remember of single flows: where a misplaced connection was found last, and where a UDP flow stays.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map};

use crate::model::node::NodeId;

use super::maps::{CLIENTS, HINTS, STICKY, found, open};
use super::{Error, Result, policies};

/// `struct flow`, in network order.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct FlowKey {
    pub(super) client: [u8; 4],
    pub(super) vip: [u8; 4],
    pub(super) client_port: [u8; 2],
    pub(super) vip_port: [u8; 2],
}

/// `struct hint`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Hint {
    pub(super) ifindex: u32,
    pub(super) node: [u8; 4],
    pub(super) flags: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 12 && size_of::<Hint>() == 12);

// SAFETY: bytes.
unsafe impl Pod for FlowKey {}
// SAFETY: integers and bytes without padding.
unsafe impl Pod for Hint {}

/// Where a flow is, as far as the programs remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowPlace {
    /// At the replica behind this host veth.
    Replica(u32),
    /// On another node.
    Node(NodeId),
}

/// Where a misplaced connection was found last; `None`: nothing is remembered, or nothing but that its SYN went somewhere.
pub fn hint(dir: &Path, client: SocketAddrV4, vip: SocketAddrV4) -> Result<Option<FlowPlace>> {
    place(dir, HINTS, (client, vip))
}

/// Where a sticky UDP flow stays; `None`: nothing is remembered, or the other nodes haven't said yet.
pub fn sticky(dir: &Path, client: SocketAddrV4, vip: SocketAddrV4) -> Result<Option<FlowPlace>> {
    place(dir, STICKY, (client, vip))
}

/// `struct client_key`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ClientKey {
    pub(super) vip: [u8; 4],
    pub(super) number: u32,
    pub(super) client: [u8; 4],
}

/// `struct client_place`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ClientPlace {
    pub(super) last: u64,
    pub(super) ifindex: u32,
    pub(super) node: [u8; 4],
}

const _: () = assert!(size_of::<ClientKey>() == 12 && size_of::<ClientPlace>() == 16);

// SAFETY: integers and bytes without padding.
unsafe impl Pod for ClientKey {}
// SAFETY: integers and bytes without padding.
unsafe impl Pod for ClientPlace {}

/// Where a client's flows to a port (protocol << 16 | port) go, for so many nanoseconds after its last one; `now`: of `CLOCK_MONOTONIC`. `None`: anywhere.
pub fn client(dir: &Path, (client, vip): (Ipv4Addr, Ipv4Addr), number: u32, now: u64) -> Result<Option<FlowPlace>> {
    let affinity = policies::affinity(dir, vip, number)?;
    let Some(map) = open(dir, CLIENTS)?.filter(|_| affinity > 0) else { return Ok(None) };
    let key = ClientKey { vip: vip.octets(), number, client: client.octets() };
    let kept = HashMap::<_, ClientKey, ClientPlace>::try_from(Map::LruHashMap(map));
    let kept = kept.and_then(|map| found(map.get(&key, 0))).map_err(|e| Error::map("read", CLIENTS, e))?;
    let kept = kept.filter(|place| now.saturating_sub(place.last) <= affinity);
    Ok(kept.map(|ClientPlace { ifindex, node, .. }| FlowPlace::of(ifindex, node)))
}

fn place(dir: &Path, name: &str, (client, vip): (SocketAddrV4, SocketAddrV4)) -> Result<Option<FlowPlace>> {
    let Some(map) = open(dir, name)? else { return Ok(None) };
    let key = FlowKey {
        client: client.ip().octets(),
        vip: vip.ip().octets(),
        client_port: client.port().to_be_bytes(),
        vip_port: vip.port().to_be_bytes(),
    };
    let kept = HashMap::<_, FlowKey, Hint>::try_from(Map::LruHashMap(map)).and_then(|map| found(map.get(&key, 0)));
    let kept = kept.map_err(|e| Error::map("read", name, e))?.filter(|hint| hint.flags == 0);
    Ok(kept.map(|Hint { ifindex, node, .. }| FlowPlace::of(ifindex, node)))
}

impl FlowPlace {
    fn of(ifindex: u32, node: [u8; 4]) -> Self {
        match Ipv4Addr::from(node) {
            Ipv4Addr::UNSPECIFIED => Self::Replica(ifindex),
            node => Self::Node(NodeId(node)),
        }
    }
}
