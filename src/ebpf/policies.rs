//! What Services ask of VIPs' ports (`policy.h`), and the devices by which clients outside come.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData};

use super::ipv6::{SOURCES6, is_number};
use super::maps::{POLICIES, SOURCES, UPLINKS, found, open, patiently};
use super::servers::PortKey;
use super::{Error, Result, hash};

/// [`Policy::flags`]: clients come from the ranges that are listed.
const LISTED: u32 = 1;
/// The bits of VIP and port in front of a range's.
const PLACE_BITS: u32 = 64;
const SECOND: u64 = 1_000_000_000;
/// As many ranges as the map has places, of all VIPs' ports together.
pub const RANGES: usize = 65_536;

/// `struct policy`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) affinity: u64,
    pub(super) flags: u32,
    pub(super) pad: u32,
}

/// `struct source_key` behind its `bits`. Addresses are in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source<const N: usize> {
    vip: [u8; 4],
    number: u32,
    client: [u8; N],
}

const _: () = {
    assert!(size_of::<Policy>() == 16 && size_of::<Source<4>>() == 12 && size_of::<Key<Source<4>>>() == 16);
    assert!(size_of::<Source<16>>() == 24 && size_of::<Key<Source<16>>>() == 28);
};

// SAFETY: integers without padding.
unsafe impl Pod for Policy {}
// SAFETY: integers and bytes without padding.
unsafe impl<const N: usize> Pod for Source<N> {}

/// A range of clients: address and bits.
pub type Range = (IpAddr, u8);

/// What is asked of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortPolicy {
    /// Seconds; 0: a client's flows may go to different replicas.
    pub affinity: u32,
    /// Where clients come from; `None`: from anywhere.
    pub sources: Option<BTreeSet<Range>>,
}

/// What is to be asked of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// As the maps were found: ranges lie in one tree with those of all VIPs, which is read once a VIP.
    pub before: Option<PortPolicy>,
    /// `None`: nothing any more.
    pub wanted: Option<PortPolicy>,
}

/// By port (protocol << 16 | port).
pub type Policies = BTreeMap<u32, PortPolicy>;

/// The ranges of clients of one family: VIPs of IPv4 have one map, those of IPv6, which their numbers tell, another.
enum Sources {
    V4(LpmTrie<MapData, Source<4>, u32>),
    V6(LpmTrie<MapData, Source<16>, u32>),
}

/// Of a VIP's family.
fn sources(dir: &Path, vip: Ipv4Addr) -> Result<Option<Sources>> {
    let is_ipv6 = is_number(vip);
    let name = if is_ipv6 { SOURCES6 } else { SOURCES };
    let Some(map) = open(dir, name)? else { return Ok(None) };
    let map = Map::LpmTrie(map);
    let opened =
        if is_ipv6 { LpmTrie::try_from(map).map(Sources::V6) } else { LpmTrie::try_from(map).map(Sources::V4) };
    opened.map(Some).map_err(|e| Error::map("open", dir.join(name).display(), e))
}

fn key<const N: usize>(vip: Ipv4Addr, number: u32, client: [u8; N], bits: u8) -> Key<Source<N>> {
    Key::new(PLACE_BITS + u32::from(bits), Source { vip: vip.octets(), number, client })
}

/// Whose it is, and which of its ports', and the range.
type Listed = (Ipv4Addr, u32, Option<Range>);

fn listed<const N: usize>(key: &Key<Source<N>>, client: impl Fn([u8; N]) -> IpAddr) -> Listed {
    let source = key.data();
    let bits = key.prefix_len().checked_sub(PLACE_BITS).and_then(|bits| u8::try_from(bits).ok());
    (source.vip.into(), source.number, bits.map(|bits| (client(source.client), bits)))
}

impl Sources {
    /// The map's.
    fn name(&self) -> &'static str {
        match self {
            Self::V4(_) => SOURCES,
            Self::V6(_) => SOURCES6,
        }
    }

    fn list(&self) -> Result<Vec<Listed>> {
        let failed = |e| Error::map("list", self.name(), e);
        match self {
            Self::V4(map) => map.keys().map(|key| Ok(listed(&key.map_err(failed)?, IpAddr::from))).collect(),
            Self::V6(map) => map.keys().map(|key| Ok(listed(&key.map_err(failed)?, IpAddr::from))).collect(),
        }
    }

    /// The bits of a range that is there; one of the other family never is.
    fn get(&self, vip: Ipv4Addr, number: u32, (address, bits): Range) -> Result<Option<u32>> {
        let read = match (self, address) {
            (Self::V4(map), IpAddr::V4(client)) => map.get(&key(vip, number, client.octets(), bits), 0),
            (Self::V6(map), IpAddr::V6(client)) => map.get(&key(vip, number, client.octets(), bits), 0),
            _ => return Ok(None),
        };
        found(read).map_err(|e| Error::map("read", self.name(), e))
    }

    fn insert(&mut self, vip: Ipv4Addr, number: u32, (address, bits): Range) -> Result<()> {
        let (name, value) = (self.name(), u32::from(bits));
        let written = match (self, address) {
            (Self::V4(map), IpAddr::V4(client)) => {
                let key = key(vip, number, client.octets(), bits);
                patiently(|| map.insert(&key, value, 0))
            }
            (Self::V6(map), IpAddr::V6(client)) => {
                let key = key(vip, number, client.octets(), bits);
                patiently(|| map.insert(&key, value, 0))
            }
            _ => return Ok(()),
        };
        written.map_err(|e| Error::map("write", name, e))
    }

    fn remove(&mut self, vip: Ipv4Addr, number: u32, (address, bits): Range) -> Result<()> {
        let name = self.name();
        let removed = match (self, address) {
            (Self::V4(map), IpAddr::V4(client)) => map.remove(&key(vip, number, client.octets(), bits)),
            (Self::V6(map), IpAddr::V6(client)) => map.remove(&key(vip, number, client.octets(), bits)),
            _ => return Ok(()),
        };
        found(removed).map(drop).map_err(|e| Error::map("delete", name, e))
    }
}

/// The ranges that the map has of a VIP, by port.
fn ranges(map: &Sources, vip: Ipv4Addr) -> Result<BTreeMap<u32, BTreeSet<Range>>> {
    let mut all: BTreeMap<u32, BTreeSet<Range>> = BTreeMap::new();
    for (_, number, range) in map.list()?.into_iter().filter(|(of, ..)| *of == vip) {
        all.entry(number).or_default().extend(range);
    }
    Ok(all)
}

/// What the maps have of a VIP.
pub(super) fn read(dir: &Path, vip: Ipv4Addr) -> Result<Policies> {
    let Some(map) = hash::map::<PortKey, Policy>(dir, POLICIES)? else { return Ok(Policies::new()) };
    let mut of_ports = sources(dir, vip)?.map(|map| ranges(&map, vip)).transpose()?.unwrap_or_default();
    let mut all = Policies::new();
    for key in hash::keys(&map, POLICIES)?.into_iter().filter(|key| key.vip == vip.octets()) {
        let Some(policy) = found(map.get(&key, 0)).map_err(|e| Error::map("read", POLICIES, e))? else { continue };
        let affinity = u32::try_from(policy.affinity / SECOND).unwrap_or(u32::MAX);
        let listed = of_ports.remove(&key.number);
        // Ranges of a port without that flag are left over: it is another policy than any that is wanted.
        let sources = if policy.flags & LISTED != 0 { Some(listed.unwrap_or_default()) } else { listed };
        all.insert(key.number, PortPolicy { affinity, sources });
    }
    // Likewise those of a port that has none.
    all.extend(of_ports.into_iter().map(|(number, left)| (number, PortPolicy { affinity: 0, sources: Some(left) })));
    Ok(all)
}

/// Whether the maps have all of these; they may have others.
pub(super) fn are_there(dir: &Path, vip: Ipv4Addr, wanted: &Policies) -> Result<bool> {
    if wanted.is_empty() {
        return Ok(true);
    }
    let Some(map) = hash::map::<PortKey, Policy>(dir, POLICIES)? else { return Ok(true) };
    let Some(sources) = sources(dir, vip)? else { return Ok(true) };
    for (number, wanted) in wanted {
        let place = PortKey { vip: vip.octets(), number: *number };
        let have = found(map.get(&place, 0)).map_err(|e| Error::map("read", POLICIES, e))?;
        if have != Some(value(wanted)) {
            return Ok(false);
        }
        for range in wanted.sources.iter().flatten() {
            if sources.get(vip, *number, *range)? != Some(range.1.into()) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn value(policy: &PortPolicy) -> Policy {
    let flags = if policy.sources.is_some() { LISTED } else { 0 };
    Policy { affinity: u64::from(policy.affinity) * SECOND, flags, pad: 0 }
}

/// Writes what is asked of a port. At every moment in between those get in that may before or after, and nobody else.
pub(super) fn write(dir: &Path, vip: Ipv4Addr, number: u32, change: &PolicyChange) -> Result<()> {
    let Some(mut map) = hash::map::<PortKey, Policy>(dir, POLICIES)? else { return Ok(()) };
    let Some(mut sources) = sources(dir, vip)? else { return Ok(()) };
    let PolicyChange { before, wanted } = change;
    let had = before.as_ref().and_then(|before| before.sources.as_ref());
    let listed = wanted.as_ref().and_then(|wanted| wanted.sources.as_ref());
    for range in listed.into_iter().flatten().filter(|range| had.is_none_or(|had| !had.contains(range))) {
        sources.insert(vip, number, *range)?;
    }
    let place = PortKey { vip: vip.octets(), number };
    match wanted {
        Some(wanted) => {
            let value = value(wanted);
            patiently(|| map.insert(place, value, 0)).map_err(|e| Error::map("write", POLICIES, e))?;
        }
        None => found(map.remove(&place)).map(drop).map_err(|e| Error::map("delete", POLICIES, e))?,
    }
    for range in had.into_iter().flatten().filter(|range| listed.is_none_or(|listed| !listed.contains(range))) {
        sources.remove(vip, number, *range)?;
    }
    Ok(())
}

/// For so many nanoseconds after a client's last flow its next one goes to the same replica; 0: anywhere.
pub(super) fn affinity(dir: &Path, vip: Ipv4Addr, number: u32) -> Result<u64> {
    let Some(map) = hash::map::<PortKey, Policy>(dir, POLICIES)? else { return Ok(0) };
    let policy = found(map.get(&PortKey { vip: vip.octets(), number }, 0));
    Ok(policy.map_err(|e| Error::map("read", POLICIES, e))?.map_or(0, |policy| policy.affinity))
}

/// The VIPs of which the maps have something.
pub(super) fn vips(dir: &Path) -> Result<BTreeSet<Ipv4Addr>> {
    let mut vips = BTreeSet::new();
    if let Some(map) = hash::map::<PortKey, Policy>(dir, POLICIES)? {
        vips.extend(hash::keys(&map, POLICIES)?.into_iter().map(|key| Ipv4Addr::from(key.vip)));
    }
    // Any of each family.
    for of in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST] {
        if let Some(map) = sources(dir, of)? {
            vips.extend(map.list()?.into_iter().map(|(vip, ..)| vip));
        }
    }
    Ok(vips)
}

/// The devices by which clients outside come.
pub fn uplinks(dir: &Path) -> Result<BTreeSet<u32>> {
    let Some(map) = hash::map::<u32, u32>(dir, UPLINKS)? else { return Ok(BTreeSet::new()) };
    Ok(hash::keys(&map, UPLINKS)?.into_iter().collect())
}

/// Makes the map have these devices, by which clients outside come. Without programs, or by some that don't know it, there is nothing to do.
pub fn set_uplinks(dir: &Path, wanted: &BTreeSet<u32>) -> Result<()> {
    let Some(mut map) = hash::map::<u32, u32>(dir, UPLINKS)? else { return Ok(()) };
    let have = uplinks(dir)?;
    for index in have.difference(wanted) {
        found(map.remove(index)).map(drop).map_err(|e| Error::map("delete", UPLINKS, e))?;
    }
    for index in wanted.difference(&have) {
        patiently(|| map.insert(index, 1_u32, 0)).map_err(|e| Error::map("write", UPLINKS, e))?;
    }
    Ok(())
}
