//! The maps of `owner.bpf.c`: the same structs, and how they are read and written.

use std::net::Ipv4Addr;
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuHashMap};
use nix::errno::Errno;

use super::{Error, Result};

/// How many replicas of a VIP are asked for a flow's socket.
pub const MEMBERS: usize = 256;
/// How many ports a VIP may be limited to.
pub const PORTS: usize = 64;
/// How many VIPs' addresses are known at most.
pub const ADDRESSES: u32 = 16384;

const ATTACHED: &str = "attached_v1";
const VIPS: &str = "vips_v1";
const COUNTS: &str = "counts_v1";
const SPOOFED: &str = "spoofed_v1";
const STICKY: &str = "sticky_v1";
const USED: &str = "used_v1";

/// Every map, by name: all are pinned, so that a program of another build takes over what it can.
pub(super) const NAMES: [&str; 9] =
    [ATTACHED, VIPS, "hints_v1", STICKY, "fragments_v1", COUNTS, SPOOFED, USED, "allowances_v2"];

/// `struct attached_key`. The address is in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AttachedKey {
    ifindex: u32,
    vip: [u8; 4],
}

/// Only the ports listed are served.
pub const GUARDED: u32 = 1;
/// UDP flows stay with their replica.
pub const STICKY_UDP: u32 = 2;
/// The VIP has more than [`MEMBERS`] replicas.
pub const CROWDED: u32 = 4;

/// `struct attached`: a VIP of an attachment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The pod's namespace, as an id of the node's.
    pub netns: u32,
    /// [`GUARDED`], [`STICKY_UDP`], [`CROWDED`].
    pub flags: u32,
    /// The pod end's Ethernet address.
    pub mac: [u8; 6],
    /// How many ports are listed.
    pub ports: u16,
    /// IP protocol << 16 | port.
    pub port: [u32; PORTS],
}

/// `struct member`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The host end.
    pub ifindex: u32,
    /// The pod's namespace, as an id of the node's.
    pub netns: u32,
    /// The pod end's Ethernet address.
    pub mac: [u8; 6],
    pad: u16,
}

impl Member {
    /// A replica to be asked.
    pub fn new(ifindex: u32, netns: u32, mac: [u8; 6]) -> Self {
        Self { ifindex, netns, mac, pad: 0 }
    }
}

/// `struct vip`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Vip {
    unsettled_until: u64,
    count: u32,
    pad: u32,
    member: [Member; MEMBERS],
}

/// `struct flow`, in network order.
#[repr(C)]
#[derive(Clone, Copy)]
struct FlowKey {
    client: [u8; 4],
    vip: [u8; 4],
    client_port: [u8; 2],
    vip_port: [u8; 2],
}

/// `struct counts`: what became of a VIP's packets, since the program was loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Belonged to a connection of the replica the group had chosen.
    pub chosen: u64,
    /// Brought to another replica, which has their connection.
    pub owned: u64,
    /// Nobody's: the chosen replica refuses them.
    pub missed: u64,
    /// Dropped because too many were nobody's.
    pub limited: u64,
    /// To a port that isn't served.
    pub refused: u64,
}

// SAFETY: integers and arrays of them without padding between or behind them.
unsafe impl Pod for AttachedKey {}
// SAFETY: as above: 4 + 4 + 6 + 2 + 64 × 4 bytes.
unsafe impl Pod for Attached {}
// SAFETY: as above: 8 + 4 + 4 + 256 × 16 bytes.
unsafe impl Pod for Vip {}
// SAFETY: bytes.
unsafe impl Pod for FlowKey {}
// SAFETY: five u64.
unsafe impl Pod for Counts {}

/// The maps that say which replicas a VIP has.
#[derive(Debug)]
pub struct Maps {
    attached: HashMap<MapData, AttachedKey, Attached>,
    vips: HashMap<MapData, [u8; 4], Vip>,
    dir: std::path::PathBuf,
}

impl Maps {
    /// Opens the pinned maps. `None`: the flow owner isn't loaded, or one whose maps have another form is.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let (Some(attached), Some(vips)) = (open(dir, ATTACHED)?, open(dir, VIPS)?) else { return Ok(None) };
        let failed = |name| move |e| Error::map("open", dir.join(name).display(), e);
        Ok(Some(Self {
            attached: HashMap::try_from(Map::HashMap(attached)).map_err(failed(ATTACHED))?,
            vips: HashMap::try_from(Map::HashMap(vips)).map_err(failed(VIPS))?,
            dir: dir.to_owned(),
        }))
    }

    /// What is known of a VIP of an attachment.
    pub fn attached(&self, ifindex: u32, vip: Ipv4Addr) -> Result<Option<Attached>> {
        let key = AttachedKey { ifindex, vip: vip.octets() };
        found(self.attached.get(&key, 0)).map_err(|e| Error::map("read", entry(ifindex, vip), e))
    }

    /// Writes a VIP of an attachment.
    pub fn attach(&mut self, ifindex: u32, vip: Ipv4Addr, value: &Attached) -> Result<()> {
        let key = AttachedKey { ifindex, vip: vip.octets() };
        self.attached.insert(key, value, 0).map_err(|e| Error::map("write", entry(ifindex, vip), e))
    }

    /// Removes a VIP of an attachment; it needn't be there.
    pub fn detach(&mut self, ifindex: u32, vip: Ipv4Addr) -> Result<()> {
        let key = AttachedKey { ifindex, vip: vip.octets() };
        found(self.attached.remove(&key)).map(drop).map_err(|e| Error::map("delete", entry(ifindex, vip), e))
    }

    /// The replicas of a VIP that are asked; `None`: the VIP isn't known.
    pub fn members(&self, vip: Ipv4Addr) -> Result<Option<Vec<Member>>> {
        let value = found(self.vips.get(&vip.octets(), 0)).map_err(|e| Error::map("read", vip, e))?;
        Ok(value.map(|vip| vip.member.iter().take(vip.count as usize).copied().collect()))
    }

    /// Until when a VIP's buckets may move, nanoseconds of `CLOCK_MONOTONIC`; 0 where the VIP isn't known.
    pub fn unsettled_until(&self, vip: Ipv4Addr) -> Result<u64> {
        let value = found(self.vips.get(&vip.octets(), 0)).map_err(|e| Error::map("read", vip, e))?;
        Ok(value.map_or(0, |vip| vip.unsettled_until))
    }

    /// Writes a VIP's replicas, at most [`MEMBERS`].
    pub fn set_members(&mut self, vip: Ipv4Addr, members: &[Member], unsettled_until: u64) -> Result<()> {
        let mut member = [Member::default(); MEMBERS];
        let count = members.len().min(MEMBERS);
        member[..count].copy_from_slice(&members[..count]);
        let count = u32::try_from(count).unwrap_or_default();
        let value = Vip { unsettled_until, count, pad: 0, member };
        self.vips.insert(vip.octets(), value, 0).map_err(|e| Error::map("write", vip, e))
    }

    /// Removes a VIP and its counts; it needn't be there.
    pub fn forget(&mut self, vip: Ipv4Addr) -> Result<()> {
        found(self.vips.remove(&vip.octets())).map_err(|e| Error::map("delete", vip, e))?;
        let Some(counts) = open(&self.dir, COUNTS)? else { return Ok(()) };
        let removed = PerCpuHashMap::<_, [u8; 4], Counts>::try_from(Map::PerCpuHashMap(counts))
            .and_then(|mut counts| found(counts.remove(&vip.octets())));
        removed.map(drop).map_err(|e| Error::map("delete", vip, e))
    }

    /// The VIPs that are known.
    pub fn vips(&self) -> Result<Vec<Ipv4Addr>> {
        let keys: std::result::Result<Vec<[u8; 4]>, _> = self.vips.keys().collect();
        Ok(keys.map_err(|e| Error::map("list", VIPS, e))?.into_iter().map(Ipv4Addr::from).collect())
    }

    /// The VIPs of attachments that are known: host end and address.
    pub fn all_attached(&self) -> Result<Vec<(u32, Ipv4Addr)>> {
        let keys: std::result::Result<Vec<AttachedKey>, _> = self.attached.keys().collect();
        let keys = keys.map_err(|e| Error::map("list", ATTACHED, e))?;
        Ok(keys.into_iter().map(|key| (key.ifindex, key.vip.into())).collect())
    }

    /// What became of a VIP's packets.
    pub fn counts(&self, vip: Ipv4Addr) -> Result<Counts> {
        let Some(map) = open(&self.dir, COUNTS)? else { return Ok(Counts::default()) };
        let of_cpus = PerCpuHashMap::<_, [u8; 4], Counts>::try_from(Map::PerCpuHashMap(map))
            .and_then(|map| found(map.get(&vip.octets(), 0)));
        let of_cpus = of_cpus.map_err(|e| Error::map("read", vip, e))?;
        Ok(of_cpus.map_or_else(Counts::default, |cpus| cpus.iter().fold(Counts::default(), Counts::and)))
    }

    /// How many packets with a source that isn't the pod's came from it.
    pub fn spoofed(&self, ifindex: u32) -> Result<u64> {
        let Some(map) = open(&self.dir, SPOOFED)? else { return Ok(0) };
        let of_cpus = PerCpuHashMap::<_, u32, u64>::try_from(Map::PerCpuLruHashMap(map))
            .and_then(|map| found(map.get(&ifindex, 0)));
        let of_cpus = of_cpus.map_err(|e| Error::map("read", SPOOFED, e))?;
        Ok(of_cpus.map_or(0, |cpus| cpus.iter().sum()))
    }

    /// The same for all host ends that have sent such packets.
    pub fn all_spoofed(&self) -> Result<Vec<(u32, u64)>> {
        let Some(map) = open(&self.dir, SPOOFED)? else { return Ok(Vec::new()) };
        let failed = |e| Error::map("list", SPOOFED, e);
        let map = PerCpuHashMap::<_, u32, u64>::try_from(Map::PerCpuLruHashMap(map)).map_err(failed)?;
        let counts: std::result::Result<Vec<_>, _> = map.iter().collect();
        Ok(counts.map_err(failed)?.into_iter().map(|(index, cpus)| (index, cpus.iter().sum())).collect())
    }

    /// The second, of `CLOCK_MONOTONIC`, in which a replica of a crowded VIP was last of use; 0: never, as far as is known.
    pub fn used(&self, ifindex: u32) -> Result<u64> {
        let Some(map) = open(&self.dir, USED)? else { return Ok(0) };
        let second = HashMap::<_, u32, u64>::try_from(Map::LruHashMap(map)).and_then(|map| found(map.get(&ifindex, 0)));
        second.map(Option::unwrap_or_default).map_err(|e| Error::map("read", USED, e))
    }

    /// The host end of the replica that a sticky UDP flow stays with.
    pub fn sticky(&self, client: std::net::SocketAddrV4, vip: std::net::SocketAddrV4) -> Result<Option<u32>> {
        let Some(map) = open(&self.dir, STICKY)? else { return Ok(None) };
        let key = FlowKey {
            client: client.ip().octets(),
            vip: vip.ip().octets(),
            client_port: client.port().to_be_bytes(),
            vip_port: vip.port().to_be_bytes(),
        };
        let kept = HashMap::<_, FlowKey, u32>::try_from(Map::LruHashMap(map)).and_then(|map| found(map.get(&key, 0)));
        kept.map_err(|e| Error::map("read", STICKY, e))
    }
}

impl Counts {
    fn and(self, other: &Self) -> Self {
        Self {
            chosen: self.chosen + other.chosen,
            owned: self.owned + other.owned,
            missed: self.missed + other.missed,
            limited: self.limited + other.limited,
            refused: self.refused + other.refused,
        }
    }
}

fn entry(ifindex: u32, vip: Ipv4Addr) -> String {
    format!("{vip} on link {ifindex}")
}

fn open(dir: &Path, name: &str) -> Result<Option<MapData>> {
    let path = dir.join(name);
    match MapData::from_pin(&path) {
        Ok(map) => Ok(Some(map)),
        Err(e) if errno(&e) == Some(Errno::ENOENT) => Ok(None),
        Err(e) => Err(Error::map("open", path.display(), e)),
    }
}

/// What isn't in a map is `None`.
fn found<T>(result: std::result::Result<T, MapError>) -> std::result::Result<Option<T>, MapError> {
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
