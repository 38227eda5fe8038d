//! The flow owner's side of a VIP: what its maps must have, what they have, and the difference. And the programs: loaded
//! once, put on every host veth.

mod difference;
mod programs;
mod want;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use nix::time::{ClockId, clock_gettime};

use crate::ebpf::{self, Attached, Counts, DRAINING, Known, LinkDrops, Maps};
use crate::model::Family;
use crate::registry::{LockedVip, VipRecord};

use super::Result;

pub use difference::{Op, is_right};
pub use programs::{ensure, of_tunnel, status};
pub(super) use want::port_number;
pub use want::{Want, Wants, is_ready};

use difference::{Have, difference, read};

const SECOND: u64 = 1_000_000_000;
/// A SYN-ACK is repeated for about so long (`tcp_synack_retries` 5), seconds.
const HANDSHAKE: u64 = 64;
/// For so long other nodes may send packets of a VIP whose last replica has left, until they have heard of it, nanoseconds. What
/// isn't known here is dropped; what is goes back.
const LINGER: u64 = 60 * SECOND;

/// The maps of a VIP on their way to what they must be.
#[derive(Debug)]
pub struct Owner {
    maps: Maps,
    address: IpAddr,
    /// What the maps have in its place; none: nothing so far.
    vip: Option<Ipv4Addr>,
    slot: u32,
    want: Want,
    /// Host veths that may have an entry and must not.
    removed: Vec<u32>,
    /// Host veths whose entries are right, and aren't read.
    settled: BTreeSet<u32>,
    /// Nanoseconds from a change of the group during which buckets may move, and handshakes be caught between replicas.
    syn_search_window: u64,
}

impl Owner {
    /// One for each of the VIP's addresses, each wants all replicas known but those whose host veth is gone. None: the VIP
    /// does without, or nothing is loaded.
    pub fn all(record: &VipRecord, vip: &mut LockedVip, gone: &BTreeSet<u32>) -> Result<Vec<Self>> {
        let owners = record.all_addresses().map(|address| Self::of(record, address, vip, gone));
        Ok(owners.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn of(record: &VipRecord, address: IpAddr, vip: &mut LockedVip, gone: &BTreeSet<u32>) -> Result<Option<Self>> {
        let Some(mut owner) = Self::bare(record, address)? else { return Ok(None) };
        owner.removed = vip.removed().to_vec();
        if !record.withdrawn {
            let cluster = vip.cluster().cloned();
            let (replicas, limit) = (vip.replicas()?, owner.maps.limit());
            if replicas.len() > limit {
                tracing::debug!(
                    vip = record.key,
                    replicas = replicas.len(),
                    asked = limit,
                    "more replicas than are asked for a misplaced connection: those that were of use last are"
                );
            }
            let family = Family::of(address);
            owner.want = Want::of(record, family, replicas, cluster.as_ref()).limited_to(limit);
            owner.want.attached.retain(|ifindex, _| !gone.contains(ifindex));
            if !owner.maps.draws_lots() {
                owner.want = owner.want.without_lots();
            }
            owner.removed.extend(gone);
        }
        Ok(Some(owner))
    }

    /// Wants nothing of one of the VIP's addresses. None also for one of IPv6 where the programs that run know none.
    pub fn bare(record: &VipRecord, address: IpAddr) -> Result<Option<Self>> {
        let Some(dir) = &record.flow_owner else { return Ok(None) };
        let Some(maps) = Maps::open(dir)? else { return Ok(None) };
        if address.is_ipv6() && !maps.knows_ipv6()? {
            return Ok(None);
        }
        let (vip, slot) = (maps.key(address)?, record.slot);
        // Without that timer a bucket moves when it has been idle, some time.
        let syn_search_window = match record.group.unbalanced_timer {
            0 => u64::MAX,
            seconds => (u64::from(seconds) + HANDSHAKE) * SECOND,
        };
        let (removed, settled) = (Vec::new(), BTreeSet::new());
        Ok(Some(Self { maps, address, vip, slot, want: Want::default(), removed, settled, syn_search_window }))
    }

    /// The entries of all host veths but these are right. With the number of replicas that are asked each entry changes
    /// ([`ebpf::OVER_MEMBER_LIMIT`]): then all are compared.
    pub fn compare_only(&mut self, changed: &BTreeSet<u32>) {
        if self.want.attached.len().abs_diff(self.maps.limit()) > changed.len() + self.removed.len() {
            self.settled = self.want.attached.keys().copied().filter(|ifindex| !changed.contains(ifindex)).collect();
        }
    }

    /// The steps that are needed.
    pub fn difference(&self) -> Result<(Vec<Op>, Vec<Op>)> {
        let have = match self.vip {
            Some(vip) => read(&self.maps, vip, &self.want, (&self.removed, &self.settled))?,
            None => Have::default(),
        };
        let recent = |ifindex| self.maps.used(ifindex).unwrap_or_default();
        Ok(difference(&have, &self.want, self.maps.limit(), recent))
    }

    /// What is amiss where these steps are needed, a sentence each.
    pub fn findings<'a>(&self, ops: impl Iterator<Item = &'a Op>) -> Vec<String> {
        ops.map(|op| op.finding(self.address)).collect()
    }

    /// What is amiss with one replica, by its host veth. Not whether it is known to be draining: a viprouted of the version
    /// before changes a replica's state, and knows no map that has it.
    pub fn finding_for(&self, ifindex: u32) -> Result<Option<String>> {
        let Some(wanted) = self.want.attached.get(&ifindex) else { return Ok(None) };
        let stateless = |entry: Attached| Attached { flags: entry.flags & !DRAINING, ..entry };
        let Some(vip) = self.vip else {
            return Ok(Some(Op::Attach(ifindex, Box::new(*wanted)).finding(self.address)));
        };
        let is_right = self.maps.attached(ifindex, vip)?.map(stateless) == Some(stateless(*wanted))
            && self.maps.is_complete(ifindex, vip, wanted)?
            && self.maps.is_own(ifindex, vip, self.want.own(ifindex))?;
        let op = if is_right {
            let known = self.maps.known(vip)?.unwrap_or_default();
            // Where they are too many, not all of them are asked.
            if self.want.attached.len() > self.maps.limit()
                || known.members.iter().any(|member| member.ifindex == ifindex)
            {
                return Ok(None);
            }
            Op::Set(known)
        } else {
            Op::Attach(ifindex, Box::new(*wanted))
        };
        Ok(Some(op.finding(self.address)))
    }

    /// What the maps have in the address' place, from now on at the latest.
    fn key(&mut self) -> Result<Ipv4Addr> {
        let vip = match (self.vip, self.address) {
            (Some(vip), _) | (None, IpAddr::V4(vip)) => vip,
            (None, IpAddr::V6(address)) => self.maps.name(address, self.slot)?,
        };
        self.vip = Some(vip);
        Ok(vip)
    }

    /// Takes the steps.
    pub fn apply(&mut self, ops: Vec<Op>) -> Result<()> {
        for op in ops {
            let vip = self.key()?;
            match op {
                Op::Attach(ifindex, value) => {
                    self.maps.set_own(ifindex, vip, self.want.own(ifindex))?;
                    self.maps.attach(ifindex, vip, &value)?;
                }
                Op::Detach(ifindex) => self.maps.detach(ifindex, vip)?,
                Op::Serve(number, servers) => self.maps.set_servers(vip, number, &servers)?,
                Op::Police(number, change) => self.maps.set_policy(vip, number, &change)?,
                Op::Set(known) => {
                    let until = self.maps.syn_search_until(vip)?;
                    self.maps.set(vip, &known, until)?;
                }
                Op::Linger(ring) => {
                    let known = Known { ring, ..Known::default() };
                    self.maps.set(vip, &known, now().saturating_add(LINGER))?;
                }
                Op::Forget => {
                    self.maps.forget(vip)?;
                    self.vip = None;
                }
            }
        }
        Ok(())
    }

    /// The group is about to change: for a while a SYN may be the second one of a handshake with another replica.
    pub fn open_syn_search(&mut self) -> Result<()> {
        let Some(vip) = self.vip else { return Ok(()) };
        let Some(known) = self.maps.known(vip)? else { return Ok(()) };
        Ok(self.maps.set(vip, &known, now().saturating_add(self.syn_search_window))?)
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or_default()
}

/// Whether a VIP's entry is one that stays a while without a replica.
pub fn lingers(maps: &Maps, vip: Ipv4Addr) -> Result<bool> {
    Ok(maps.lingers_until(vip)?.is_some_and(|until| until > now()))
}

/// What the programs counted of a VIP, and what they dropped at its replicas' host veths.
pub fn counts(record: &VipRecord, host_veths: &[u32]) -> ebpf::Result<Option<(Counts, LinkDrops)>> {
    let Some(dir) = &record.flow_owner else { return Ok(None) };
    let Some(maps) = Maps::open(dir)? else { return Ok(None) };
    let mut drops = LinkDrops::default();
    for ifindex in host_veths {
        drops = drops.and(maps.link_drops(*ifindex)?);
    }
    let mut counts = Counts::default();
    for address in record.addresses.iter() {
        if let Some(vip) = maps.key(address)? {
            counts = counts.and(&maps.counts(vip)?);
        }
    }
    Ok(Some((counts, drops)))
}

/// What was dropped at host veths, by their indices.
pub fn link_drops(dir: &Path) -> ebpf::Result<Vec<(u32, LinkDrops)>> {
    Maps::open(dir)?.map_or(Ok(Vec::new()), |maps| maps.all_link_drops())
}
