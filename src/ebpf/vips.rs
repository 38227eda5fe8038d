//! What the programs know of a VIP: the replicas here that are asked for its flows, and what other nodes may have of them.

use std::mem::offset_of;
use std::net::Ipv4Addr;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError};

use super::attached::{DRAINING, Member, POLICED};
use super::spec::Variant;
use crate::model::node::NodeId;

/// How many replicas of a VIP are asked for a flow's socket.
pub const MEMBERS: usize = 256;
/// The same by the object for kernels without BTF.
pub(super) const FEW_MEMBERS: usize = 8;
/// What other nodes may have of a VIP's flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// The node behind this one, in the order of their ids, that has replicas of it.
    pub next: Option<NodeId>,
    /// One that has replicas of it has fallen silent.
    pub suspect: bool,
    /// Flows of UDP stay, by the word of a replica on any node.
    pub flows_stay: bool,
    /// No replica is known, here or elsewhere: for a while what other nodes send is passed on, to `next`, whatever that has.
    pub lingers: bool,
}

/// What is known of a VIP but for its entries of attachments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // flags of the programs, in every combination
pub struct Known {
    /// The replicas here that are asked for a flow.
    pub members: Vec<Member>,
    /// The other nodes.
    pub ring: Ring,
    /// Replicas serve different ports, here or elsewhere ([`Maps::servers`](super::Maps::servers)).
    pub ports_differ: bool,
    /// Of some of its ports Services ask something ([`Maps::policies`](super::Maps::policies)).
    pub is_policed: bool,
    /// Clients outside are for the replicas here, while any is ready.
    pub is_kept_here: bool,
    /// So are all clients.
    pub are_all_kept_here: bool,
}

/// A node that has replicas of the VIP has fallen silent.
const SUSPECT: u32 = 1;
/// [`Ring::flows_stay`].
const FLOWS_STAY: u32 = 2;
/// [`Ring::lingers`].
const LINGERS: u32 = 4;
/// [`Known::ports_differ`].
const PORTS_DIFFER: u32 = 8;
/// [`Known::is_kept_here`].
const KEPT_HERE: u32 = 16;
/// [`Known::are_all_kept_here`].
const ALL_KEPT_HERE: u32 = 32;

impl Ring {
    fn flags(self) -> u32 {
        let flags = [(self.suspect, SUSPECT), (self.flows_stay, FLOWS_STAY), (self.lingers, LINGERS)];
        flags.into_iter().filter(|(is, _)| *is).fold(0, |flags, (_, flag)| flags | flag)
    }
}

/// `struct vip`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Vip<const N: usize> {
    pub(super) syn_search_until: u64,
    pub(super) count: u32,
    pub(super) ready: u32,
    pub(super) next: [u8; 4],
    pub(super) flags: u32,
    pub(super) member: [Member; N],
}

impl<const N: usize> Vip<N> {
    fn new(known: &Known, syn_search_until: u64) -> Self {
        let Known { members, ring, ports_differ, is_policed, is_kept_here, are_all_kept_here } = known;
        let mut member = [Member::default(); N];
        let count = members.len().min(N);
        member[..count].copy_from_slice(&members[..count]);
        let ready = members.iter().filter(|member| u32::from(member.flags) & DRAINING == 0).count();
        let said = [
            (*ports_differ, PORTS_DIFFER),
            (*is_policed, POLICED),
            (*is_kept_here, KEPT_HERE),
            (*are_all_kept_here, ALL_KEPT_HERE),
        ];
        let flags = said.into_iter().filter(|(is, _)| *is).fold(ring.flags(), |flags, (_, flag)| flags | flag);
        Self {
            syn_search_until,
            count: u32::try_from(count).unwrap_or_default(),
            ready: u32::try_from(ready).unwrap_or_default(),
            next: ring.next.map_or([0; 4], |id| id.0.octets()),
            flags,
            member,
        }
    }

    fn known(&self) -> Known {
        let next = Some(self.next).filter(|next| *next != [0; 4]).map(|next| NodeId(next.into()));
        let is = |flag| self.flags & flag != 0;
        let ring = Ring { next, suspect: is(SUSPECT), flows_stay: is(FLOWS_STAY), lingers: is(LINGERS) };
        let members = self.member.iter().take(self.count as usize).copied().collect();
        Known {
            members,
            ring,
            ports_differ: is(PORTS_DIFFER),
            is_policed: is(POLICED),
            is_kept_here: is(KEPT_HERE),
            are_all_kept_here: is(ALL_KEPT_HERE),
        }
    }
}

/// As the C struct, field by field (`layout` asks the object's BTF).
const _: () = assert!(size_of::<Vip<MEMBERS>>() == 24 + 16 * MEMBERS && offset_of!(Vip<MEMBERS>, member) == 24);

// SAFETY: integers and arrays of them without padding between or behind them: 8 + 4 × 4 + N × 16 bytes.
unsafe impl<const N: usize> Pod for Vip<N> {}

/// The map of VIPs, by the object that is in use.
#[derive(Debug)]
pub(super) enum Vips {
    Full(HashMap<MapData, [u8; 4], Vip<MEMBERS>>),
    Few(HashMap<MapData, [u8; 4], Vip<FEW_MEMBERS>>),
}

impl Vips {
    pub(super) fn new(variant: Variant, map: MapData) -> std::result::Result<Self, MapError> {
        let map = Map::HashMap(map);
        match variant {
            Variant::Full => HashMap::try_from(map).map(Self::Full),
            Variant::WithoutBtf => HashMap::try_from(map).map(Self::Few),
        }
    }

    /// Until when the VIP's buckets may move, and what is known of it.
    pub(super) fn get(&self, vip: Ipv4Addr) -> std::result::Result<(u64, Known), MapError> {
        match self {
            Self::Full(map) => map.get(&vip.octets(), 0).map(|vip| (vip.syn_search_until, vip.known())),
            Self::Few(map) => map.get(&vip.octets(), 0).map(|vip| (vip.syn_search_until, vip.known())),
        }
    }

    pub(super) fn insert(&mut self, vip: Ipv4Addr, known: &Known, until: u64) -> std::result::Result<(), MapError> {
        match self {
            Self::Full(map) => map.insert(vip.octets(), Vip::new(known, until), 0),
            Self::Few(map) => map.insert(vip.octets(), Vip::new(known, until), 0),
        }
    }

    pub(super) fn remove(&mut self, vip: Ipv4Addr) -> std::result::Result<(), MapError> {
        match self {
            Self::Full(map) => map.remove(&vip.octets()),
            Self::Few(map) => map.remove(&vip.octets()),
        }
    }

    pub(super) fn keys(&self) -> std::result::Result<Vec<[u8; 4]>, MapError> {
        match self {
            Self::Full(map) => map.keys().collect(),
            Self::Few(map) => map.keys().collect(),
        }
    }
}
