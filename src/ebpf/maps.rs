//! The maps of the flow owner's programs: what they are called, and how they are read and written.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuHashMap};
use nix::errno::Errno;

use super::attached::{Attached, AttachedKey, Place};
use super::counts::{Counts, LinkDrops};
use super::express::replicas_changed;
use super::policies::{self, Policies, PolicyChange};
use super::servers::{self, ByPort, Server};
use super::spec::Variant;
use super::vips::{FEW_MEMBERS, Known, MEMBERS, Vips};
use super::{Error, Result, answers, hash, ipv6, shared, translations};

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

/// `struct share`: nothing here reads what is in it.
pub(super) type Share = [u64; 14];

/// The maps that say which replicas a VIP has.
#[derive(Debug)]
pub struct Maps {
    attached: HashMap<MapData, AttachedKey, Attached>,
    vips: Vips,
    dir: std::path::PathBuf,
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
