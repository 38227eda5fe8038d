//! The maps of the tunnel (`tunnel.h`): which nodes there are, and what became of what they send each other.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};

use crate::model::node::NodeId;

use super::maps::{NODE_AT, NODE_AT6, NODES, NODES6, THIS_NODE, TUNNEL_COUNTS, TUNNEL_END, open};
use super::{Error, Result};

/// `struct here`: this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// Its id, in network order; 0: it stands alone.
    pub id: [u8; 4],
    /// The tunnel's device.
    pub ifindex: u32,
}

const _: () = assert!(size_of::<Here>() == 8);

// SAFETY: four bytes and a u32.
unsafe impl Pod for Here {}

/// `struct end`: this node's end of the tunnel, of one family.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct End {
    /// In the host's order.
    local: u32,
    /// The program's own: the kernel takes no source from it.
    refused: u32,
    local6: [u8; 16],
}

const _: () = assert!(size_of::<End>() == 24);

// SAFETY: u32s and bytes, without padding.
unsafe impl Pod for End {}

impl End {
    /// At that address; none: this node stands alone.
    fn new(address: Option<IpAddr>) -> Self {
        match address {
            Some(IpAddr::V4(address)) => Self { local: address.to_bits(), ..Self::default() },
            Some(IpAddr::V6(address)) => Self { local6: address.octets(), ..Self::default() },
            None => Self::default(),
        }
    }

    fn address(self) -> Option<IpAddr> {
        match (self.local, self.local6) {
            (0, [0, ..]) => None,
            (0, local6) => Some(Ipv6Addr::from(local6).into()),
            (local, _) => Some(Ipv4Addr::from_bits(local).into()),
        }
    }
}

fn open_end(dir: &Path) -> Result<Option<Array<MapData, End>>> {
    let failed = |e| Error::map("open", dir.join(TUNNEL_END).display(), e);
    open(dir, TUNNEL_END)?.map(|map| Array::try_from(Map::Array(map)).map_err(failed)).transpose()
}

fn read_end(map: &Array<MapData, End>) -> Result<End> {
    map.get(&0, 0).map_err(|e| Error::map("read", TUNNEL_END, e))
}

/// What the programs give the tunnel's packets as their source; none: the kernel chooses it. (They are not told, are of an earlier
/// build, or have met with a kernel before 6.0, which takes none.)
pub fn tunnel_source(dir: &Path) -> Result<Option<IpAddr>> {
    let Some(map) = open_end(dir)? else { return Ok(None) };
    let end = read_end(&map)?;
    Ok(end.address().filter(|_| end.refused == 0))
}

/// What became of packets in the tunnel, since the program was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelCounts {
    /// Dropped: from no node that this one knows, or its way can't be as it says.
    pub stranger: u64,
    /// Dropped: for no VIP that this node knows.
    pub not_ours: u64,
    /// Dropped: on its way for too long, or to no node that this one knows.
    pub too_far: u64,
    /// Sent to the node that the group's hash had chosen.
    pub chosen: u64,
    /// Sent to the node where the flow was found before.
    pub aimed: u64,
    /// Sent on, from node to node.
    pub walking: u64,
    /// Reports of where a flow is.
    pub found: u64,
    /// Sent back to where they came from.
    pub back: u64,
}

impl TunnelCounts {
    /// All of them, as metrics call them.
    pub fn by_name(self) -> [(&'static str, u64); 8] {
        [
            ("stranger", self.stranger),
            ("not_ours", self.not_ours),
            ("too_far", self.too_far),
            ("chosen", self.chosen),
            ("aimed", self.aimed),
            ("walking", self.walking),
            ("found", self.found),
            ("back", self.back),
        ]
    }
}

/// As `enum` has them in `tunnel.h`.
const COUNTS: u32 = 8;

/// What became of packets in the tunnel; `None`: no programs are loaded, or such as have no tunnel.
pub fn tunnel_counts(dir: &Path) -> Result<Option<TunnelCounts>> {
    let Some(map) = open(dir, TUNNEL_COUNTS)? else { return Ok(None) };
    let failed = |e| Error::map("read", TUNNEL_COUNTS, e);
    let map = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(map)).map_err(failed)?;
    let mut sums = [0; COUNTS as usize];
    for (sum, index) in sums.iter_mut().zip(0..COUNTS) {
        *sum = map.get(&index, 0).map_err(failed)?.iter().sum();
    }
    let [stranger, not_ours, too_far, chosen, aimed, walking, found, back] = sums;
    Ok(Some(TunnelCounts { stranger, not_ours, too_far, chosen, aimed, walking, found, back }))
}

/// What nodes of one family have as the addresses of their ends of the tunnel, by id, and the other way round.
struct OfFamily<const N: usize> {
    by_id: HashMap<MapData, [u8; 4], [u8; N]>,
    by_address: HashMap<MapData, [u8; N], [u8; 4]>,
    names: [&'static str; 2],
}

impl<const N: usize> OfFamily<N> {
    fn open(dir: &Path, names: [&'static str; 2]) -> Result<Option<Self>> {
        let [nodes, node_at] = names;
        let (Some(by_id), Some(by_address)) = (open(dir, nodes)?, open(dir, node_at)?) else { return Ok(None) };
        let failed = |name| move |e| Error::map("open", dir.join(name).display(), e);
        Ok(Some(Self {
            by_id: HashMap::try_from(Map::HashMap(by_id)).map_err(failed(nodes))?,
            by_address: HashMap::try_from(Map::HashMap(by_address)).map_err(failed(node_at))?,
            names,
        }))
    }

    fn set(&mut self, nodes: &BTreeMap<[u8; 4], [u8; N]>) -> Result<bool> {
        let back = nodes.iter().map(|(id, at)| (*at, *id)).collect();
        let changed = equal(&mut self.by_id, nodes).map_err(|e| Error::map("write", self.names[0], e))?;
        Ok(changed | equal(&mut self.by_address, &back).map_err(|e| Error::map("write", self.names[1], e))?)
    }
}

/// The nodes that the programs know.
pub struct Nodes {
    v4: OfFamily<4>,
    v6: OfFamily<16>,
    this: Array<MapData, Here>,
    /// Earlier builds have none.
    end: Option<Array<MapData, End>>,
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").finish_non_exhaustive()
    }
}

impl Nodes {
    /// Opens the pinned maps. `None`: no programs are loaded, or such as have no tunnel.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let (v4, v6) = (OfFamily::open(dir, [NODES, NODE_AT])?, OfFamily::open(dir, [NODES6, NODE_AT6])?);
        let (Some(v4), Some(v6), Some(this)) = (v4, v6, open(dir, THIS_NODE)?) else { return Ok(None) };
        let failed = |e| Error::map("open", dir.join(THIS_NODE).display(), e);
        Ok(Some(Self { v4, v6, this: Array::try_from(Map::Array(this)).map_err(failed)?, end: open_end(dir)? }))
    }

    /// Makes them say this, and nothing else; returns whether anything was different. Who comes is known before this node is,
    /// who goes after. `end`: where this node's end of the tunnel is.
    pub fn set(&mut self, here: Here, end: Option<IpAddr>, nodes: &BTreeMap<NodeId, IpAddr>) -> Result<bool> {
        let (mut of_ipv4, mut of_ipv6) = (BTreeMap::new(), BTreeMap::new());
        for (id, at) in nodes {
            match at {
                IpAddr::V4(at) => drop(of_ipv4.insert(id.0.octets(), at.octets())),
                IpAddr::V6(at) => drop(of_ipv6.insert(id.0.octets(), at.octets())),
            }
        }
        let before = self.this.get(&0, 0).map_err(|e| Error::map("read", THIS_NODE, e))?;
        if here != before && here.id == [0; 4] {
            self.write_here(here)?;
        }
        let changed = self.set_end(End::new(end))? | self.v4.set(&of_ipv4)? | self.v6.set(&of_ipv6)?;
        if here != before && here.id != [0; 4] {
            self.write_here(here)?;
        }
        Ok(changed || here != before)
    }

    fn set_end(&mut self, want: End) -> Result<bool> {
        let Some(map) = &mut self.end else { return Ok(false) };
        let have = read_end(map)?;
        let want = End { refused: have.refused, ..want };
        if have != want {
            map.set(0, want, 0).map_err(|e| Error::map("write", TUNNEL_END, e))?;
        }
        Ok(have != want)
    }

    fn write_here(&mut self, here: Here) -> Result<()> {
        self.this.set(0, here, 0).map_err(|e| Error::map("write", THIS_NODE, e))
    }
}

fn equal<K, V>(map: &mut HashMap<MapData, K, V>, want: &BTreeMap<K, V>) -> std::result::Result<bool, MapError>
where
    K: Pod + Ord,
    V: Pod + PartialEq,
{
    let have: BTreeMap<K, V> = map.iter().collect::<std::result::Result<_, _>>()?;
    for (key, value) in want.iter().filter(|(key, value)| have.get(*key) != Some(*value)) {
        map.insert(key, value, 0)?;
    }
    for key in have.keys().filter(|key| !want.contains_key(*key)) {
        map.remove(key)?;
    }
    Ok(have != *want)
}
