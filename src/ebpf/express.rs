//! Express (`express.h`): whether it is on, and what it carried.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use aya::Pod;
use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuHashMap};

use super::ipv6::EXPRESS6;
use super::maps::{EXPRESS, EXPRESS_COUNTS, EXPRESS_PLACES, found, open};
use super::{Error, Result};

/// Words of the leases' secret.
const KEYS: usize = 10;
/// The same of IPv6's.
const KEYS6: usize = 16;
/// The entry that only viprouted writes.
const OF_NODE: u32 = 0;
/// The one that is another whenever `attached_v3` has changed.
const OF_REPLICAS: u32 = 1;

/// `struct express`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) generation: u64,
    pub(super) key: [u64; KEYS],
}

/// `struct secret6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Secret6 {
    pub(super) key: [u64; KEYS6],
}

/// `struct express_counts`: what express carried to and from a host veth's pod, since the program was loaded. The veth's own counters
/// lack what came in, and have what went out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpressCounts {
    /// Packets into the pod; a GSO packet is one, as devices count.
    pub in_packets: u64,
    /// Their bytes, Ethernet headers included.
    pub in_bytes: u64,
    /// Packets out of the pod.
    pub out_packets: u64,
    /// Their bytes, Ethernet headers included.
    pub out_bytes: u64,
}

/// `struct express_place`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ExpressPlace {
    pub(super) counts: ExpressCounts,
    pub(super) ifindex: u64,
}

/// The C structs have these sizes (a test asks the object's BTF for the fields).
const _: () = {
    assert!(size_of::<State>() == 8 * (1 + KEYS));
    assert!(size_of::<Secret6>() == 8 * KEYS6);
    assert!(size_of::<ExpressCounts>() == 4 * 8);
    assert!(size_of::<ExpressPlace>() == 5 * 8);
};

// SAFETY: u64s.
unsafe impl Pod for State {}
// SAFETY: u64s.
unsafe impl Pod for Secret6 {}
// SAFETY: four u64.
unsafe impl Pod for ExpressCounts {}
// SAFETY: five u64.
unsafe impl Pod for ExpressPlace {}

/// The programs' switch. Only one process may write it: viprouted.
pub struct Express {
    state: Array<MapData, State>,
    /// None: the programs know no packets of IPv6.
    of_ipv6: Option<Array<MapData, Secret6>>,
}

impl fmt::Debug for Express {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Express").finish_non_exhaustive()
    }
}

impl Express {
    /// Opens it. `None`: no programs are loaded, or such as have no express.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let Some(state) = array(dir, EXPRESS)? else { return Ok(None) };
        Ok(Some(Self { state, of_ipv6: array(dir, EXPRESS6)? }))
    }

    /// What leases are granted under; 0: there are none, all packets go by the node's stack.
    pub fn generation(&self) -> Result<u64> {
        Ok(self.state()?.generation)
    }

    /// Another generation, which makes all leases void, or 0. The programs take up the change at once. They have express
    /// only with a secret of the leases', one for each family, which are made here.
    pub fn set_generation(&mut self, generation: u64) -> Result<()> {
        let mut state = self.state()?;
        let (lacks_ipv4s, lacks_ipv6s) = (state.key.contains(&0), self.lacks_secret_of_ipv6()?);
        if lacks_ipv4s {
            state.key = random()?;
        }
        if lacks_ipv4s || lacks_ipv6s {
            self.write(State { generation: 0, ..state })?; // so that no packet meets half a secret
        }
        if lacks_ipv6s && let Some(of_ipv6) = &mut self.of_ipv6 {
            let secret = Secret6 { key: random()? };
            of_ipv6.set(0, secret, 0).map_err(|e| Error::map("write", EXPRESS6, e))?;
        }
        self.write(State { generation, ..state })
    }

    fn lacks_secret_of_ipv6(&self) -> Result<bool> {
        let Some(of_ipv6) = &self.of_ipv6 else { return Ok(false) };
        Ok(of_ipv6.get(&0, 0).map_err(|e| Error::map("read", EXPRESS6, e))?.key.contains(&0))
    }

    fn state(&self) -> Result<State> {
        self.state.get(&OF_NODE, 0).map_err(|e| Error::map("read", EXPRESS, e))
    }

    fn write(&mut self, state: State) -> Result<()> {
        self.state.set(OF_NODE, state, 0).map_err(|e| Error::map("write", EXPRESS, e))
    }
}

fn array<V: Pod>(dir: &Path, name: &str) -> Result<Option<Array<MapData, V>>> {
    let Some(map) = open(dir, name)? else { return Ok(None) };
    Array::try_from(Map::Array(map)).map(Some).map_err(|e| Error::map("open", dir.join(name).display(), e))
}

/// What the replicas' entries say has changed: the leases that say the same are void.
pub(super) fn replicas_changed(dir: &Path) -> Result<()> {
    let Some(mut express) = Express::open(dir)? else { return Ok(()) };
    // Whoever else changes an entry at the same time writes another number; either will do.
    let [generation] = random()?;
    let state = State { generation, ..State::default() };
    express.state.set(OF_REPLICAS, state, 0).map_err(|e| Error::map("write", EXPRESS, e))
}

/// What express carried to and from the pods of these host veths. Each is read by itself: few of the places are in use.
pub fn express_counts(dir: &Path, host_veths: &BTreeSet<u32>) -> Result<BTreeMap<u32, ExpressCounts>> {
    let Some(counters) = Counters::open(dir)? else { return Ok(BTreeMap::new()) };
    host_veths.iter().map(|ifindex| Ok((*ifindex, counters.of(*ifindex)?))).collect()
}

impl ExpressCounts {
    fn add(&mut self, other: &Self) {
        self.in_packets += other.in_packets;
        self.in_bytes += other.in_bytes;
        self.out_packets += other.out_packets;
        self.out_bytes += other.out_bytes;
    }
}

/// Both maps of counters.
struct Counters {
    places: PerCpuArray<MapData, ExpressPlace>,
    others: PerCpuHashMap<MapData, u32, ExpressCounts>,
}

impl Counters {
    fn open(dir: &Path) -> Result<Option<Self>> {
        let (Some(places), Some(others)) = (open(dir, EXPRESS_PLACES)?, open(dir, EXPRESS_COUNTS)?) else {
            return Ok(None);
        };
        let failed = |name| move |e| Error::map("open", dir.join(name).display(), e);
        Ok(Some(Self {
            places: PerCpuArray::try_from(Map::PerCpuArray(places)).map_err(failed(EXPRESS_PLACES))?,
            others: PerCpuHashMap::try_from(Map::PerCpuLruHashMap(others)).map_err(failed(EXPRESS_COUNTS))?,
        }))
    }

    fn of(&self, ifindex: u32) -> Result<ExpressCounts> {
        let mut sum = ExpressCounts::default();
        let place = self.places.get(&(ifindex % self.places.len()), 0);
        let cpus = place.map_err(|e| Error::map("read", EXPRESS_PLACES, e))?;
        cpus.iter().filter(|place| place.ifindex == u64::from(ifindex)).for_each(|place| sum.add(&place.counts));
        let others = found(self.others.get(&ifindex, 0)).map_err(|e| Error::map("read", EXPRESS_COUNTS, e))?;
        others.iter().flat_map(|cpus| cpus.iter()).for_each(|counts| sum.add(counts));
        Ok(sum)
    }
}

/// Words that nobody can guess; the programs take a first word of 0 for none.
fn random<const WORDS: usize>() -> Result<[u64; WORDS]> {
    const URANDOM: &str = "/dev/urandom";
    let mut source = File::open(URANDOM).map_err(Error::io("open", Path::new(URANDOM)))?;
    let mut key = [0; WORDS];
    while key.contains(&0) {
        let mut bytes = [[0; 8]; WORDS];
        source.read_exact(bytes.as_flattened_mut()).map_err(Error::io("read", Path::new(URANDOM)))?;
        key = bytes.map(u64::from_ne_bytes);
    }
    Ok(key)
}
