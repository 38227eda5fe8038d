//! The maps of the flow owner's programs: the same structs, and how they are read and written.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuHashMap};
use nix::errno::Errno;

use super::express::replicas_changed;
use crate::model::node::NodeId;

use super::policies::{self, Policies, PolicyChange};
use super::servers::{self, ByPort, Server};
use super::spec::Variant;
use super::{Error, Result, answers, hash, ipv6, shared, translations};

/// How many replicas of a VIP are asked for a flow's socket.
pub const MEMBERS: usize = 256;
/// The same by the object for kernels without BTF.
pub(super) const FEW_MEMBERS: usize = 8;
/// How many ports a VIP may be limited to.
pub const PORTS: usize = 64;
/// How many VIPs' addresses are known at most.
pub const ADDRESSES: u32 = 16384;

pub(super) const ATTACHED: &str = "attached_v3";
pub(super) const TRANSLATIONS: &str = "translations_v1";
pub(super) const VIPS: &str = "vips_v3";
pub(super) const VIPS_OF_FEW: &str = "vips_few_v3";
pub(super) const HINTS: &str = "hints_v3";
pub(super) const STICKY: &str = "sticky_v2";
pub(super) const HEARD: &str = "heard_v1";
pub(super) const FRAGMENTS: &str = "fragments_v2";
pub(super) const COUNTS: &str = "counts_v4";
pub(super) const LINK_DROPS: &str = "link_drops_v1";
pub(super) const USED: &str = "used_v1";
pub(super) const ALLOWANCES: &str = "allowances_v5";
pub(super) const SHARES: &str = "shares_v3";
pub(super) const COPYING: &str = "copying_v1";
pub(super) const SERVERS: &str = "servers_v1";
pub(super) const NODES: &str = "nodes_v1";
pub(super) const NODE_AT: &str = "node_at_v1";
pub(super) const NODES6: &str = "nodes6_v1";
pub(super) const NODE_AT6: &str = "node_at6_v1";
pub(super) const THIS_NODE: &str = "this_node_v1";
pub(super) const TUNNEL_END: &str = "tunnel_end_v1";
pub(super) const TUNNEL_COUNTS: &str = "tunnel_counts_v1";
pub(super) const EXPRESS: &str = "express_v1";
pub(super) const LEASES: &str = "leases_v2";
pub(super) const CLOSED: &str = "closed_v1";
pub(super) const EXPRESS_COUNTS: &str = "express_counts_v1";
pub(super) const EXPRESS_PLACES: &str = "express_places_v1";
pub(super) const ANSWERERS: &str = "answerers_v1";
pub(super) const ASKED: &str = "asked_v1";
pub(super) const ANSWER_FRAGMENTS: &str = "answer_fragments_v1";
pub(super) const SHARED: &str = "shared_v1";
pub(super) const CALLS: &str = "calls_v1";
pub(super) const POLICIES: &str = "policies_v1";
pub(super) const SOURCES: &str = "sources_v1";
pub(super) const CLIENTS: &str = "clients_v1";
pub(super) const UPLINKS: &str = "uplinks_v1";

/// `struct attached_key`. The address is in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttachedKey {
    pub(super) ifindex: u32,
    pub(super) vip: [u8; 4],
}

impl AttachedKey {
    pub(super) fn new(ifindex: u32, vip: Ipv4Addr) -> Self {
        Self { ifindex, vip: vip.octets() }
    }
}

/// Only the ports listed are served.
pub const GUARDED: u32 = 1;
/// UDP flows stay with their replica.
pub const STICKY_UDP: u32 = 2;
/// The VIP has more replicas than are asked ([`Maps::limit`]).
pub const OVER_MEMBER_LIMIT: u32 = 4;
/// Flows may begin in the pod: with the VIP as their source it does more than answer.
pub const ANY_EGRESS: u32 = 8;
/// The replica gets no new flows.
pub const DRAINING: u32 = 16;
/// Of some of its ports the pod has another number.
pub const TRANSLATES: u32 = 32;
/// Of several of its ports the pod has one number.
pub const SHARES_NUMBERS: u32 = 64;

/// Of some ports of the VIP Services ask something ([`Maps::policies`]).
pub const POLICED: u32 = 128;

/// A host veth, and a VIP of its pod's: by its address, or by the number of one of IPv6 ([`Maps::key`]).
pub(super) type Place = (u32, Ipv4Addr);

/// `struct attached`: a VIP of an attachment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The program's own: until when a SYN for this replica may have been handed to another one, nanoseconds of
    /// `CLOCK_MONOTONIC`. 0 when it is read here.
    pub syn_search_until: u64,
    /// The pod's namespace, as an id of the node's.
    pub netns: u32,
    /// [`GUARDED`], [`STICKY_UDP`], [`OVER_MEMBER_LIMIT`], [`ANY_EGRESS`], [`DRAINING`], [`TRANSLATES`],
    /// [`SHARES_NUMBERS`], [`POLICED`].
    pub flags: u32,
    /// The container veth's Ethernet address.
    pub mac: [u8; 6],
    /// How many ports are listed.
    pub ports: u16,
    /// IP protocol << 16 | port.
    pub port: [u32; PORTS],
    /// What the pod has in the place of each. The programs read what follows from it ([`translations`]).
    pub target: [u16; PORTS],
    /// The pod's own address, in network order.
    pub own: [u8; 4],
    /// How many shares of the VIP's new flows it gets beside others here.
    pub weight: u32,
}

impl Attached {
    /// Of a replica that serves everything, gets one share, and whose own address isn't known.
    pub fn new(netns: u32, mac: [u8; 6], flags: u32) -> Self {
        Self {
            syn_search_until: 0,
            netns,
            flags,
            mac,
            ports: 0,
            port: [0; PORTS],
            target: [0; PORTS],
            own: [0; 4],
            weight: 1,
        }
    }

    /// Whether several of its ports have one number in the pod.
    pub fn shares(&self) -> bool {
        shared::has_some(self)
    }
}

/// `struct member`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The host veth.
    pub ifindex: u32,
    /// The pod's namespace, as an id of the node's.
    pub netns: u32,
    /// The container veth's Ethernet address.
    pub mac: [u8; 6],
    /// [`DRAINING`], [`TRANSLATES`], [`SHARES_NUMBERS`].
    pub flags: u8,
    /// As its entry's.
    pub weight: u8,
}

impl Member {
    /// It gets no new flows.
    pub fn is_draining(&self) -> bool {
        u32::from(self.flags) & DRAINING != 0
    }

    /// A replica to be asked, by its host veth and what is known of it.
    pub fn new(ifindex: u32, Attached { netns, mac, flags, weight, .. }: &Attached) -> Self {
        // Both fit.
        let flags = u8::try_from(flags & (DRAINING | TRANSLATES | SHARES_NUMBERS)).unwrap_or_default();
        Self { ifindex, netns: *netns, mac: *mac, flags, weight: u8::try_from(*weight).unwrap_or(u8::MAX) }
    }
}

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
    /// Replicas serve different ports, here or elsewhere ([`Maps::servers`]).
    pub ports_differ: bool,
    /// Of some of its ports Services ask something ([`Maps::policies`]).
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
struct Vip<const N: usize> {
    syn_search_until: u64,
    count: u32,
    ready: u32,
    next: [u8; 4],
    flags: u32,
    member: [Member; N],
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

/// `struct counts`: what became of a VIP's packets, since the program was loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Belonged to a connection of the replica the group had chosen.
    pub local_hit: u64,
    /// Steered to another replica, which has their connection.
    pub steered: u64,
    /// Of a connection that no replica has: the chosen replica refuses them.
    pub no_owner: u64,
    /// Dropped because too many were of connections that no replica has.
    pub search_throttled: u64,
    /// To a port that isn't served.
    pub port_denied: u64,
    /// From a replica, with the VIP as the source, and no answer: it would have begun a flow.
    pub egress_denied: u64,
    /// Resets of a replica that had just closed its port, not sent to the client while another replica listens.
    pub reset_withheld: u64,
    /// To a replica, from one of its pod's own addresses.
    pub own_source: u64,
    /// To begin a flow with a port that isn't for that client.
    pub source_denied: u64,
}

/// `struct link_drops`: packets dropped at a host veth that name no VIP of its pod's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkDrops {
    /// From the pod, with a source that isn't its own.
    pub spoofed: u64,
    /// To the pod, and for no VIP of its.
    pub misrouted: u64,
}

/// `struct share`: nothing here reads what is in it.
type Share = [u64; 14];

/// The C structs have these sizes, and fields at these places (a test asks the object's BTF).
const _: () = {
    assert!(size_of::<AttachedKey>() == 8);
    assert!(size_of::<Attached>() == 32 + 6 * PORTS && offset_of!(Attached, port) == 24);
    assert!(size_of::<Member>() == 16 && offset_of!(Member, mac) == 8);
    assert!(size_of::<Vip<MEMBERS>>() == 24 + 16 * MEMBERS && offset_of!(Vip<MEMBERS>, member) == 24);
    assert!(size_of::<Counts>() == 9 * 8);
    assert!(size_of::<LinkDrops>() == 2 * 8);
};

// SAFETY: integers and arrays of them without padding between or behind them.
unsafe impl Pod for AttachedKey {}
// SAFETY: as above: 8 + 4 + 4 + 6 + 2 + 64 × 4 + 64 × 2 + 4 + 4 bytes.
unsafe impl Pod for Attached {}
// SAFETY: as above: 8 + 4 × 4 + N × 16 bytes.
unsafe impl<const N: usize> Pod for Vip<N> {}
// SAFETY: nine u64.
unsafe impl Pod for Counts {}
// SAFETY: two u64.
unsafe impl Pod for LinkDrops {}

/// The maps that say which replicas a VIP has.
#[derive(Debug)]
pub struct Maps {
    attached: HashMap<MapData, AttachedKey, Attached>,
    vips: Vips,
    dir: std::path::PathBuf,
}

/// The map of VIPs, by the object that is in use.
#[derive(Debug)]
enum Vips {
    Full(HashMap<MapData, [u8; 4], Vip<MEMBERS>>),
    Few(HashMap<MapData, [u8; 4], Vip<FEW_MEMBERS>>),
}

impl Vips {
    fn new(variant: Variant, map: MapData) -> std::result::Result<Self, MapError> {
        let map = Map::HashMap(map);
        match variant {
            Variant::Full => HashMap::try_from(map).map(Self::Full),
            Variant::WithoutBtf => HashMap::try_from(map).map(Self::Few),
        }
    }

    /// Until when the VIP's buckets may move, and what is known of it.
    fn get(&self, vip: Ipv4Addr) -> std::result::Result<(u64, Known), MapError> {
        match self {
            Self::Full(map) => map.get(&vip.octets(), 0).map(|vip| (vip.syn_search_until, vip.known())),
            Self::Few(map) => map.get(&vip.octets(), 0).map(|vip| (vip.syn_search_until, vip.known())),
        }
    }

    fn insert(&mut self, vip: Ipv4Addr, known: &Known, until: u64) -> std::result::Result<(), MapError> {
        match self {
            Self::Full(map) => map.insert(vip.octets(), Vip::new(known, until), 0),
            Self::Few(map) => map.insert(vip.octets(), Vip::new(known, until), 0),
        }
    }

    fn remove(&mut self, vip: Ipv4Addr) -> std::result::Result<(), MapError> {
        match self {
            Self::Full(map) => map.remove(&vip.octets()),
            Self::Few(map) => map.remove(&vip.octets()),
        }
    }

    fn keys(&self) -> std::result::Result<Vec<[u8; 4]>, MapError> {
        match self {
            Self::Full(map) => map.keys().collect(),
            Self::Few(map) => map.keys().collect(),
        }
    }
}

impl Maps {
    /// Opens the pinned maps. `None`: the flow owner isn't loaded, or one whose maps have another form is.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let Some(variant) = Variant::pinned(dir) else { return Ok(None) };
        let (Some(attached), Some(vips)) = (open(dir, ATTACHED)?, open(dir, variant.vips())?) else { return Ok(None) };
        let failed = |name| move |e| Error::map("open", dir.join(name).display(), e);
        Ok(Some(Self {
            attached: HashMap::try_from(Map::HashMap(attached)).map_err(failed(ATTACHED))?,
            vips: Vips::new(variant, vips).map_err(failed(variant.vips()))?,
            dir: dir.to_owned(),
        }))
    }

    /// Where they are pinned.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many replicas of a VIP are asked: of more, those that were of use last.
    pub fn limit(&self) -> usize {
        match &self.vips {
            Vips::Full(_) => MEMBERS,
            Vips::Few(_) => FEW_MEMBERS,
        }
    }

    /// What is known of a VIP of an attachment.
    pub fn attached(&self, ifindex: u32, vip: Ipv4Addr) -> Result<Option<Attached>> {
        let key = AttachedKey { ifindex, vip: vip.octets() };
        let value = found(self.attached.get(&key, 0)).map_err(|e| Error::map("read", entry(ifindex, vip), e))?;
        Ok(value.map(|value| Attached { syn_search_until: 0, ..value }))
    }

    /// Writes a VIP of an attachment. What follows from it is written before it: whoever finds the entry as it should be finds that too,
    /// but for what others do.
    pub fn attach(&mut self, ifindex: u32, vip: Ipv4Addr, value: &Attached) -> Result<()> {
        let before = self.attached(ifindex, vip)?;
        self.write_what_follows((ifindex, vip), before.as_ref(), Some(value))?;
        let key = AttachedKey { ifindex, vip: vip.octets() };
        patiently(|| self.attached.insert(key, value, 0)).map_err(|e| Error::map("write", entry(ifindex, vip), e))?;
        replicas_changed(&self.dir)
    }

    /// Removes a VIP of an attachment; it needn't be there.
    pub fn detach(&mut self, ifindex: u32, vip: Ipv4Addr) -> Result<()> {
        let before = self.attached(ifindex, vip)?;
        self.write_what_follows((ifindex, vip), before.as_ref(), None)?;
        let key = AttachedKey { ifindex, vip: vip.octets() };
        found(self.attached.remove(&key)).map_err(|e| Error::map("delete", entry(ifindex, vip), e))?;
        ipv6::forget_own(&self.dir, (ifindex, vip))?;
        replicas_changed(&self.dir)
    }

    fn write_what_follows(&self, place: Place, before: Option<&Attached>, after: Option<&Attached>) -> Result<()> {
        translations::write(&self.dir, place, before, after)?;
        answers::write(&self.dir, place, before, after)?;
        shared::write(&self.dir, place, before, after)
    }

    /// Whether what follows from the entry of a VIP of an attachment is there, in maps of its own.
    pub fn is_complete(&self, ifindex: u32, vip: Ipv4Addr, value: &Attached) -> Result<bool> {
        let place = (ifindex, vip);
        Ok(translations::are_there(&self.dir, place, value)?
            && answers::is_there(&self.dir, place, value)?
            && shared::are_there(&self.dir, place, value)?)
    }

    /// The host veths, and their pods' VIPs, that translations are of. Their entries may be missing.
    pub fn all_translated(&self) -> Result<BTreeSet<Place>> {
        translations::places(&self.dir)
    }

    /// Who serves which port of a VIP; nothing where all replicas serve the same ports, and by programs that don't know it.
    pub fn servers(&self, vip: Ipv4Addr) -> Result<ByPort> {
        servers::read(&self.dir, vip)
    }

    /// Whether the map has these. By programs that don't know it: yes.
    pub fn is_served(&self, vip: Ipv4Addr, by_port: &ByPort) -> Result<bool> {
        servers::are_there(&self.dir, vip, by_port)
    }

    /// Writes who serves a port (protocol << 16 | port; 0: all that isn't named); nobody: it isn't known any more.
    pub fn set_servers(&mut self, vip: Ipv4Addr, number: u32, of: &[Server]) -> Result<()> {
        servers::write(&self.dir, vip, number, of)
    }

    /// What is asked of a VIP's ports.
    pub fn policies(&self, vip: Ipv4Addr) -> Result<Policies> {
        policies::read(&self.dir, vip)
    }

    /// Whether the maps have these. Where programs run that don't know them: yes.
    pub fn has_policies(&self, vip: Ipv4Addr, wanted: &Policies) -> Result<bool> {
        policies::are_there(&self.dir, vip, wanted)
    }

    /// Writes what is asked of a port (protocol << 16 | port). What flows were given by what was asked before is void.
    pub fn set_policy(&mut self, vip: Ipv4Addr, number: u32, change: &PolicyChange) -> Result<()> {
        policies::write(&self.dir, vip, number, change)?;
        replicas_changed(&self.dir)
    }

    /// The VIPs of which something is asked. Their own entries may be missing.
    pub fn all_policed(&self) -> Result<BTreeSet<Ipv4Addr>> {
        policies::vips(&self.dir)
    }

    /// Whether replicas with different ports are told apart by port: without BTF there is no room for that.
    pub fn draws_lots(&self) -> bool {
        matches!(self.vips, Vips::Full(_))
    }

    /// Those of whose ports several have one number in the pod. Their entries may be missing.
    pub fn all_sharing(&self) -> Result<BTreeSet<Place>> {
        shared::places(&self.dir)
    }

    /// Those whose UDP servers answer from their VIPs. Their entries may be missing.
    pub fn all_answering(&self) -> Result<BTreeSet<Place>> {
        answers::places(&self.dir)
    }

    /// What is known of a VIP; `None`: nothing.
    pub fn known(&self, vip: Ipv4Addr) -> Result<Option<Known>> {
        let value = found(self.vips.get(vip)).map_err(|e| Error::map("read", vip, e))?;
        Ok(value.map(|(_, known)| known))
    }

    /// Until when a VIP's buckets may move, nanoseconds of `CLOCK_MONOTONIC`; 0 where the VIP isn't known.
    pub fn syn_search_until(&self, vip: Ipv4Addr) -> Result<u64> {
        let value = found(self.vips.get(vip)).map_err(|e| Error::map("read", vip, e))?;
        Ok(value.map_or(0, |(until, _)| until))
    }

    /// Writes what is known of a VIP; of its replicas at most [`Maps::limit`].
    pub fn set(&mut self, vip: Ipv4Addr, known: &Known, syn_search_until: u64) -> Result<()> {
        patiently(|| self.vips.insert(vip, known, syn_search_until)).map_err(|e| Error::map("write", vip, e))
    }

    /// Until when the entry of a VIP that has no replica any more is kept, nanoseconds of `CLOCK_MONOTONIC`; `None`: it isn't
    /// such an entry.
    pub fn lingers_until(&self, vip: Ipv4Addr) -> Result<Option<u64>> {
        let value = found(self.vips.get(vip)).map_err(|e| Error::map("read", vip, e))?;
        Ok(value.filter(|(_, known)| known.ring.lingers).map(|(until, _)| until))
    }

    /// Removes a VIP, its counts and its shares; it needn't be there.
    pub fn forget(&mut self, vip: Ipv4Addr) -> Result<()> {
        found(self.vips.remove(vip)).map_err(|e| Error::map("delete", vip, e))?;
        for number in self.servers(vip)?.into_keys() {
            self.set_servers(vip, number, &[])?;
        }
        for (number, before) in self.policies(vip)? {
            self.set_policy(vip, number, &PolicyChange { before: Some(before), wanted: None })?;
        }
        self.forget_in::<Counts>(COUNTS, vip)?;
        self.forget_in::<Share>(SHARES, vip)?;
        self.unname(vip)
    }

    fn forget_in<V: Pod>(&self, name: &str, vip: Ipv4Addr) -> Result<()> {
        let Some(map) = open(&self.dir, name)? else { return Ok(()) };
        let removed = PerCpuHashMap::<_, [u8; 4], V>::try_from(Map::PerCpuHashMap(map))
            .and_then(|mut map| found(map.remove(&vip.octets())));
        removed.map(drop).map_err(|e| Error::map("delete", vip, e))
    }

    /// The VIPs of whose ports something is known. Their own entries may be missing.
    pub fn all_served(&self) -> Result<BTreeSet<Ipv4Addr>> {
        servers::vips(&self.dir)
    }

    /// The VIPs that are known.
    pub fn vips(&self) -> Result<Vec<Ipv4Addr>> {
        Ok(self.vips.keys().map_err(|e| Error::map("list", VIPS, e))?.into_iter().map(Ipv4Addr::from).collect())
    }

    /// The VIPs of attachments that are known: host veth and address.
    pub fn all_attached(&self) -> Result<Vec<Place>> {
        Ok(hash::keys(&self.attached, ATTACHED)?.into_iter().map(|key| (key.ifindex, key.vip.into())).collect())
    }

    /// What became of a VIP's packets.
    pub fn counts(&self, vip: Ipv4Addr) -> Result<Counts> {
        let Some(map) = open(&self.dir, COUNTS)? else { return Ok(Counts::default()) };
        let of_cpus = PerCpuHashMap::<_, [u8; 4], Counts>::try_from(Map::PerCpuHashMap(map))
            .and_then(|map| found(map.get(&vip.octets(), 0)));
        let of_cpus = of_cpus.map_err(|e| Error::map("read", vip, e))?;
        Ok(of_cpus.map_or_else(Counts::default, |cpus| cpus.iter().fold(Counts::default(), Counts::and)))
    }

    /// What was dropped at a host veth.
    pub fn link_drops(&self, ifindex: u32) -> Result<LinkDrops> {
        let Some(map) = open(&self.dir, LINK_DROPS)? else { return Ok(LinkDrops::default()) };
        let of_cpus = PerCpuHashMap::<_, u32, LinkDrops>::try_from(Map::PerCpuLruHashMap(map))
            .and_then(|map| found(map.get(&ifindex, 0)));
        let of_cpus = of_cpus.map_err(|e| Error::map("read", LINK_DROPS, e))?;
        Ok(of_cpus
            .map_or_else(LinkDrops::default, |cpus| cpus.iter().copied().fold(LinkDrops::default(), LinkDrops::and)))
    }

    /// The same for all host veths where any packet was.
    pub fn all_link_drops(&self) -> Result<Vec<(u32, LinkDrops)>> {
        let Some(map) = open(&self.dir, LINK_DROPS)? else { return Ok(Vec::new()) };
        let failed = |e| Error::map("list", LINK_DROPS, e);
        let map = PerCpuHashMap::<_, u32, LinkDrops>::try_from(Map::PerCpuLruHashMap(map)).map_err(failed)?;
        let drops: std::result::Result<Vec<_>, _> = map.iter().collect();
        let sum = |(index, cpus): (u32, aya::maps::PerCpuValues<LinkDrops>)| {
            (index, cpus.iter().copied().fold(LinkDrops::default(), LinkDrops::and))
        };
        Ok(drops.map_err(failed)?.into_iter().map(sum).collect())
    }

    /// The second, of `CLOCK_MONOTONIC`, in which a replica of a VIP over its member limit was last of use; 0: never, as far as is known.
    pub fn used(&self, ifindex: u32) -> Result<u64> {
        let Some(map) = open(&self.dir, USED)? else { return Ok(0) };
        let second = HashMap::<_, u32, u64>::try_from(Map::LruHashMap(map)).and_then(|map| found(map.get(&ifindex, 0)));
        second.map(Option::unwrap_or_default).map_err(|e| Error::map("read", USED, e))
    }
}

impl Counts {
    /// Both together.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        Self {
            local_hit: self.local_hit + other.local_hit,
            steered: self.steered + other.steered,
            no_owner: self.no_owner + other.no_owner,
            search_throttled: self.search_throttled + other.search_throttled,
            port_denied: self.port_denied + other.port_denied,
            egress_denied: self.egress_denied + other.egress_denied,
            reset_withheld: self.reset_withheld + other.reset_withheld,
            own_source: self.own_source + other.own_source,
            source_denied: self.source_denied + other.source_denied,
        }
    }
}

impl LinkDrops {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { spoofed: self.spoofed + other.spoofed, misrouted: self.misrouted + other.misrouted }
    }
}

/// The kernel takes memory for entries out of a small store that it fills up a moment later (`bpf_mem_alloc`, Linux 6.1): an update
/// right after another may find it empty.
pub(super) fn patiently(
    mut write: impl FnMut() -> std::result::Result<(), MapError>,
) -> std::result::Result<(), MapError> {
    const TRIES: u32 = 20;
    const MOMENT: Duration = Duration::from_millis(5);
    for _ in 1..TRIES {
        match write() {
            Err(e) if errno(&e) == Some(Errno::ENOMEM) => std::thread::sleep(MOMENT),
            done => return done,
        }
    }
    write()
}

fn entry(ifindex: u32, vip: Ipv4Addr) -> String {
    format!("{vip} on link {ifindex}")
}

pub(super) fn open(dir: &Path, name: &str) -> Result<Option<MapData>> {
    let path = dir.join(name);
    match MapData::from_pin(&path) {
        Ok(map) => Ok(Some(map)),
        Err(e) if errno(&e) == Some(Errno::ENOENT) => Ok(None),
        Err(e) => Err(Error::map("open", path.display(), e)),
    }
}

/// What isn't in a map is `None`.
pub(super) fn found<T>(result: std::result::Result<T, MapError>) -> std::result::Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(e) if errno(&e) == Some(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The kernel's own word, below whatever wraps it.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    super::errno_of(error)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::answers::{Answerer, AnswererKey};
    use super::super::express::{ExpressCounts, ExpressPlace, Secret6, State};
    use super::super::flows::{FlowKey, Hint};
    use super::super::policies::Policy;
    use super::super::servers::{PortKey, Servers};
    use super::super::shared::{Shared, SharedKey};
    use super::super::translations::TranslationKey;
    use super::*;

    /// A struct of the object's: its size, and its fields with their offsets.
    type Layout = (usize, BTreeMap<String, usize>);

    /// Reads the structs out of BTF (the kernel's Documentation/bpf/btf.rst).
    fn structs(btf: &[u8]) -> BTreeMap<String, Layout> {
        const STRUCT: u32 = 4;
        let word = |at: usize| u32::from_ne_bytes(btf[at..at + 4].try_into().unwrap());
        let at = |at: usize| word(at) as usize;
        let header = at(4);
        let (mut next, end, strings) = (header + at(8), header + at(8) + at(12), header + at(16));
        let name = |offset: usize| {
            let text = &btf[strings + offset..];
            String::from_utf8_lossy(&text[..text.iter().position(|byte| *byte == 0).unwrap()]).into_owned()
        };
        let mut structs = BTreeMap::new();
        while next < end {
            let (kind, count) = (word(next + 4) >> 24 & 31, word(next + 4) as usize & 0xffff);
            let members = next + 12;
            if kind == STRUCT {
                let fields = (0..count).map(|field| members + 12 * field);
                let fields = fields.map(|member| (name(at(member)), (at(member + 8) & 0x00ff_ffff) / 8));
                structs.insert(name(at(next)), (at(next + 8), fields.collect()));
            }
            next = members
                + match kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    4 | 5 | 15 | 19 => 12 * count,
                    6 | 13 => 8 * count,
                    _ => 0,
                };
        }
        structs
    }

    macro_rules! layout {
        ($type:ty, $($field:ident),*) => {
            (size_of::<$type>(), BTreeMap::from([$((stringify!($field).to_owned(), offset_of!($type, $field))),*]))
        };
    }

    #[test]
    fn structs_are_as_the_programs_have_them() {
        are_as_the_programs_have_them(
            Variant::Full,
            layout!(Vip<MEMBERS>, syn_search_until, count, ready, next, flags, member),
        );
        are_as_the_programs_have_them(
            Variant::WithoutBtf,
            layout!(Vip<FEW_MEMBERS>, syn_search_until, count, ready, next, flags, member),
        );
    }

    #[test]
    fn structs_of_ipv6_are_as_its_programs_have_them() {
        let object = aya_obj::Object::parse(Variant::Full.objects()[1]).unwrap();
        let structs = structs(&object.btf.unwrap().to_bytes());
        let ours: [(&str, Layout); 3] = [
            ("secret6", layout!(Secret6, key)),
            ("answerer_key", layout!(AnswererKey, vip, mac, pad)),
            ("answerer", layout!(Answerer, own, ifindex)),
        ];
        for (name, ours) in ours {
            assert_eq!(structs.get(name), Some(&ours), "struct {name}");
        }
    }

    fn are_as_the_programs_have_them(variant: Variant, vip: Layout) {
        let object = aya_obj::Object::parse(variant.objects()[0]).unwrap();
        let structs = structs(&object.btf.unwrap().to_bytes());
        let ours: [(&str, Layout); 16] = [
            ("attached_key", layout!(AttachedKey, ifindex, vip)),
            ("attached", layout!(Attached, syn_search_until, netns, flags, mac, ports, port, target, own, weight)),
            ("translation_key", layout!(TranslationKey, ifindex, vip, number, way)),
            ("answerer_key", layout!(AnswererKey, vip, mac, pad)),
            ("answerer", layout!(Answerer, own, ifindex)),
            ("shared_key", layout!(SharedKey, ifindex, vip, number)),
            ("shared", layout!(Shared, alone_until, alone, pad)),
            ("member", layout!(Member, ifindex, netns, mac, flags, weight)),
            ("vip", vip),
            ("flow", layout!(FlowKey, client, vip, client_port, vip_port)),
            ("hint", layout!(Hint, ifindex, node, flags)),
            ("link_drops", layout!(LinkDrops, spoofed, misrouted)),
            ("express", layout!(State, generation, key)),
            ("express_counts", layout!(ExpressCounts, in_packets, in_bytes, out_packets, out_bytes)),
            ("express_place", layout!(ExpressPlace, counts, ifindex)),
            ("policy", layout!(Policy, affinity, flags, pad)),
        ];
        for (name, ours) in ours {
            assert_eq!(structs.get(name), Some(&ours), "struct {name}");
        }
        let of_ports: [(&str, Layout); 3] = [
            ("port_key", layout!(PortKey, vip, number)),
            ("server", layout!(Server, ifindex, node, weight, of)),
            ("servers", layout!(Servers, count, pad, server)),
        ];
        for (name, ours) in of_ports.into_iter().filter(|_| variant == Variant::Full) {
            assert_eq!(structs.get(name), Some(&ours), "struct {name}");
        }
        // An array there, eight fields here.
        assert_eq!(structs["counts"].0, size_of::<Counts>());
        assert_eq!(structs["share"].0, size_of::<Share>());
    }
}
