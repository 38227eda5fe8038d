//! What the programs remember of single flows: where a misplaced connection was found last, and where a UDP flow stays.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map};

use crate::model::node::NodeId;

use super::ipv6::{CLIENTS6, HINTS6, STICKY6};
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

/// The same of IPv6.
#[repr(C)]
#[derive(Clone, Copy)]
struct FlowKey6 {
    client: [u8; 16],
    vip: [u8; 4],
    client_port: [u8; 2],
    vip_port: [u8; 2],
}

/// `struct hint`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Hint {
    pub(super) ifindex: u32,
    pub(super) node: [u8; 4],
    pub(super) flags: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 12 && size_of::<FlowKey6>() == 24 && size_of::<Hint>() == 12);

// SAFETY: bytes.
unsafe impl Pod for FlowKey {}
// SAFETY: bytes.
unsafe impl Pod for FlowKey6 {}
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

/// A flow as the maps have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowId {
    /// Who asks.
    pub client: SocketAddr,
    /// What the maps have in the place of the VIP's address (`Maps::key`).
    pub vip: Ipv4Addr,
    /// The VIP's port.
    pub vip_port: u16,
}

/// Where a misplaced connection was found last; `None`: nothing is remembered, or nothing but that its SYN went somewhere.
pub fn hint(dir: &Path, flow: FlowId) -> Result<Option<FlowPlace>> {
    place(dir, [HINTS, HINTS6], flow)
}

/// Where a sticky UDP flow stays; `None`: nothing is remembered, or the other nodes haven't said yet.
pub fn sticky(dir: &Path, flow: FlowId) -> Result<Option<FlowPlace>> {
    place(dir, [STICKY, STICKY6], flow)
}

/// `struct client_key`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ClientKey {
    pub(super) vip: [u8; 4],
    pub(super) number: u32,
    pub(super) client: [u8; 4],
}

/// The same of a client of IPv6.
#[repr(C)]
#[derive(Clone, Copy)]
struct ClientKey6 {
    vip: [u8; 4],
    number: u32,
    client: [u8; 16],
}

/// `struct client_place`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ClientPlace {
    pub(super) last: u64,
    pub(super) ifindex: u32,
    pub(super) node: [u8; 4],
}

const _: () = assert!(size_of::<ClientKey>() == 12 && size_of::<ClientKey6>() == 24 && size_of::<ClientPlace>() == 16);

// SAFETY: integers and bytes without padding.
unsafe impl Pod for ClientKey {}
// SAFETY: integers and bytes without padding.
unsafe impl Pod for ClientKey6 {}
// SAFETY: integers and bytes without padding.
unsafe impl Pod for ClientPlace {}

/// Where a client's flows to a port of that protocol go, for so many nanoseconds after its last one; `now`: of `CLOCK_MONOTONIC`. `None`:
/// anywhere.
pub fn client(dir: &Path, flow: FlowId, protocol: u8, now: u64) -> Result<Option<FlowPlace>> {
    let number = u32::from(protocol) << 16 | u32::from(flow.vip_port);
    let affinity = policies::affinity(dir, flow.vip, number)?;
    if affinity == 0 {
        return Ok(None);
    }
    let vip = flow.vip.octets();
    let kept: Option<ClientPlace> = match flow.client.ip() {
        IpAddr::V4(client) => kept(dir, CLIENTS, &ClientKey { vip, number, client: client.octets() })?,
        IpAddr::V6(client) => kept(dir, CLIENTS6, &ClientKey6 { vip, number, client: client.octets() })?,
    };
    let kept = kept.filter(|place| now.saturating_sub(place.last) <= affinity);
    Ok(kept.map(|ClientPlace { ifindex, node, .. }| FlowPlace::of(ifindex, node)))
}

/// `names`: of the map of IPv4's flows, and of IPv6's.
fn place(dir: &Path, names: [&'static str; 2], flow: FlowId) -> Result<Option<FlowPlace>> {
    let vip = flow.vip.octets();
    let (client_port, vip_port) = (flow.client.port().to_be_bytes(), flow.vip_port.to_be_bytes());
    let found: Option<Hint> = match flow.client.ip() {
        IpAddr::V4(client) => kept(dir, names[0], &FlowKey { client: client.octets(), vip, client_port, vip_port })?,
        IpAddr::V6(client) => kept(dir, names[1], &FlowKey6 { client: client.octets(), vip, client_port, vip_port })?,
    };
    let found = found.filter(|hint| hint.flags == 0);
    Ok(found.map(|Hint { ifindex, node, .. }| FlowPlace::of(ifindex, node)))
}

/// What a map of flows has; `None`: nothing, or the programs that run know no such map.
fn kept<K: Pod, V: Pod>(dir: &Path, name: &'static str, key: &K) -> Result<Option<V>> {
    let Some(map) = open(dir, name)? else { return Ok(None) };
    let kept = HashMap::<_, K, V>::try_from(Map::LruHashMap(map)).and_then(|map| found(map.get(key, 0)));
    kept.map_err(|e| Error::map("read", name, e))
}

impl FlowPlace {
    fn of(ifindex: u32, node: [u8; 4]) -> Self {
        match Ipv4Addr::from(node) {
            Ipv4Addr::UNSPECIFIED => Self::Replica(ifindex),
            node => Self::Node(NodeId(node)),
        }
    }
}
