//! The maps of the tunnel (`tunnel.h`): which nodes there are, and what became of what they send each other.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};

use crate::model::node::NodeId;

use super::maps::{NODE_AT, NODES, THIS_NODE, TUNNEL_COUNTS, open};
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

/// The nodes that the programs know.
pub struct Nodes {
    by_id: HashMap<MapData, [u8; 4], [u8; 4]>,
    by_address: HashMap<MapData, [u8; 4], [u8; 4]>,
    this: Array<MapData, Here>,
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").finish_non_exhaustive()
    }
}

impl Nodes {
    /// Opens the pinned maps. `None`: no programs are loaded, or such as have no tunnel.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let (Some(nodes), Some(node_at), Some(this)) = (open(dir, NODES)?, open(dir, NODE_AT)?, open(dir, THIS_NODE)?)
        else {
            return Ok(None);
        };
        let failed = |name| move |e| Error::map("open", dir.join(name).display(), e);
        Ok(Some(Self {
            by_id: HashMap::try_from(Map::HashMap(nodes)).map_err(failed(NODES))?,
            by_address: HashMap::try_from(Map::HashMap(node_at)).map_err(failed(NODE_AT))?,
            this: Array::try_from(Map::Array(this)).map_err(failed(THIS_NODE))?,
        }))
    }

    /// Makes them say this, and nothing else; returns whether anything was different. Who comes is known before this node is,
    /// who goes after.
    pub fn set(&mut self, here: Here, nodes: &BTreeMap<NodeId, Ipv4Addr>) -> Result<bool> {
        let forward = nodes.iter().map(|(id, at)| (id.0.octets(), at.octets())).collect();
        let back = nodes.iter().map(|(id, at)| (at.octets(), id.0.octets())).collect();
        let before = self.this.get(&0, 0).map_err(|e| Error::map("read", THIS_NODE, e))?;
        if here != before && here.id == [0; 4] {
            self.write_here(here)?;
        }
        let mut changed = equal(&mut self.by_id, &forward).map_err(|e| Error::map("write", NODES, e))?;
        changed |= equal(&mut self.by_address, &back).map_err(|e| Error::map("write", NODE_AT, e))?;
        if here != before && here.id != [0; 4] {
            self.write_here(here)?;
        }
        Ok(changed || here != before)
    }

    fn write_here(&mut self, here: Here) -> Result<()> {
        self.this.set(0, here, 0).map_err(|e| Error::map("write", THIS_NODE, e))
    }
}

type Pairs = BTreeMap<[u8; 4], [u8; 4]>;

fn equal(map: &mut HashMap<MapData, [u8; 4], [u8; 4]>, want: &Pairs) -> std::result::Result<bool, MapError> {
    let have: Pairs = map.iter().collect::<std::result::Result<_, _>>()?;
    for (key, value) in want.iter().filter(|(key, value)| have.get(*key) != Some(*value)) {
        map.insert(key, value, 0)?;
    }
    for key in have.keys().filter(|key| !want.contains_key(*key)) {
        map.remove(key)?;
    }
    Ok(have != *want)
}
