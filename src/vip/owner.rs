//! The flow owner's side of a VIP: what its maps must have, what they have, and the difference. And the programs: loaded
//! once, put on every host end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;

use nix::time::{ClockId, clock_gettime};

use crate::bpf::{self, Attached, CROWDED, GUARDED, MEMBERS, Maps, Member, PORTS, PinDir, Programs, STICKY_UDP};
use crate::net::NodeNet;
use crate::registry::{LockedVip, Port, Registry, Replica, State, VipRecord};

use super::ids::{PairNames, mac_of};
use super::pair::{self, HostEnd};
use super::{Result, Tables, put_right_by};

/// A SYN-ACK is repeated for about so long (`tcp_synack_retries` 5), seconds.
const HANDSHAKE: u64 = 64;

/// What the maps must have of a VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// By host end. A draining replica keeps its flows, so it is here until it goes.
    pub attached: BTreeMap<u32, Attached>,
}

impl Want {
    /// Of a VIP with these replicas; nothing where its address isn't ours.
    pub fn of(record: &VipRecord, replicas: &BTreeMap<String, Replica>) -> Self {
        if record.withdrawn {
            return Self::default();
        }
        let crowded = replicas.len() > MEMBERS;
        let attached = replicas.values().filter_map(|replica| Some((replica.ifindex, wanted(replica, crowded)?)));
        Self { attached: attached.collect() }
    }

    /// Whether these are the replicas to be asked: all of them, or where they are too many as many as there is room for.
    fn is_met_by(&self, members: Option<&[Member]>) -> bool {
        let Some(members) = members else { return self.attached.is_empty() };
        let is_wanted = |member: &Member| {
            let wanted = self.attached.get(&member.ifindex);
            wanted.is_some_and(|wanted| Member::new(member.ifindex, wanted.netns, wanted.mac) == *member)
        };
        let once = members.is_sorted_by(|one, next| one < next);
        once && members.len() == self.attached.len().clamp(1, MEMBERS) && members.iter().all(is_wanted)
    }
}

/// Whether the maps have what a VIP must have, as far as it is looked at: `is_due` is asked for the VIP's own entry and for
/// each replica's. A system call an entry.
pub fn is_right(maps: &Maps, vip: Ipv4Addr, want: &Want, mut is_due: impl FnMut() -> bool) -> Result<bool> {
    // Where nobody is asked but those that are wanted, nobody else can have an entry that is known of.
    let mut right = !is_due() || want.is_met_by(maps.members(vip)?.as_deref());
    for (ifindex, wanted) in &want.attached {
        right &= !is_due() || maps.attached(*ifindex, vip)?.as_ref() == Some(wanted);
    }
    Ok(right)
}

fn read(maps: &Maps, vip: Ipv4Addr, want: &Want, departed: &[u32]) -> Result<Have> {
    let members = maps.members(vip)?;
    let mut known: BTreeSet<u32> = want.attached.keys().copied().collect();
    known.extend(members.iter().flatten().map(|member| member.ifindex));
    known.extend(departed);
    let mut attached = BTreeMap::new();
    for ifindex in known {
        attached.extend(maps.attached(ifindex, vip)?.map(|value| (ifindex, value)));
    }
    Ok(Have { attached, members })
}

/// What the maps have of a VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// By host end, as far as asked for.
    pub attached: BTreeMap<u32, Attached>,
    /// Who is asked for a flow; `None`: the VIP isn't known.
    pub members: Option<Vec<Member>>,
}

/// One step from what is to what must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// An attachment's entry, new or changed.
    Attach(u32, Box<Attached>),
    /// An attachment's entry, gone.
    Detach(u32),
    /// Who is asked.
    SetMembers(Vec<Member>),
    /// The whole VIP, gone.
    Forget,
}

impl Op {
    /// What is amiss where this step is needed, in a word for CHECK.
    pub fn finding(&self, vip: Ipv4Addr) -> String {
        match self {
            Self::Attach(ifindex, _) => {
                format!("the flow owner's entry of {vip} on link {ifindex} is missing or wrong")
            }
            Self::Detach(ifindex) => format!("the flow owner's entry of {vip} on link {ifindex} should not be there"),
            Self::SetMembers(_) => format!("the flow owner doesn't know the replicas of {vip}"),
            Self::Forget => format!("the flow owner should not know {vip}"),
        }
    }
}

/// The steps. Those that add come before any change of the VIP's group, those that take away after it: whoever the group
/// can choose is known, and whoever may still have connections is asked. `recent` says when a replica was last of use.
pub fn difference(have: &Have, want: &Want, recent: impl Fn(u32) -> u64) -> (Vec<Op>, Vec<Op>) {
    let mut before: Vec<Op> = Vec::new();
    let mut after: Vec<Op> = Vec::new();
    for (ifindex, wanted) in &want.attached {
        if have.attached.get(ifindex) != Some(wanted) {
            before.push(Op::Attach(*ifindex, Box::new(*wanted)));
        }
    }
    if !want.attached.is_empty() && !want.is_met_by(have.members.as_deref()) {
        let wanted: BTreeSet<Member> =
            want.attached.iter().map(|(index, a)| Member::new(*index, a.netns, a.mac)).collect();
        let known: BTreeSet<Member> = have.members.iter().flatten().copied().collect();
        // Those that go are still asked until the group has let go of them.
        let grown = choose(wanted.union(&known).copied().collect(), &recent);
        let wanted = choose(wanted.into_iter().collect(), &recent);
        if have.members.as_ref() != Some(&grown) {
            before.push(Op::SetMembers(grown.clone()));
        }
        if grown != wanted {
            after.push(Op::SetMembers(wanted));
        }
    }
    let stale = have.attached.keys().filter(|index| !want.attached.contains_key(index));
    after.extend(stale.map(|index| Op::Detach(*index)));
    if want.attached.is_empty() && have.members.is_some() {
        after.push(Op::Forget);
    }
    (before, after)
}

/// Where they are too many, those that were of use last.
fn choose(mut members: Vec<Member>, recent: &impl Fn(u32) -> u64) -> Vec<Member> {
    if members.len() > MEMBERS {
        members.sort_by_cached_key(|member| std::cmp::Reverse(recent(member.ifindex)));
        members.truncate(MEMBERS);
        members.sort_unstable();
    }
    members
}

/// The maps of a VIP on their way to what they must be.
#[derive(Debug)]
pub struct Owner {
    maps: Maps,
    vip: Ipv4Addr,
    want: Want,
    /// Host ends that may be known and must not be.
    departed: Vec<u32>,
    /// Nanoseconds from a change of the group during which buckets may move, and handshakes be caught between replicas.
    unsettled: u64,
}

impl Owner {
    /// One for each of the VIP's addresses, each wants all replicas known but those whose host end is gone. None: the VIP
    /// does without, or nothing is loaded.
    pub fn all(record: &VipRecord, vip: &mut LockedVip, gone: &BTreeSet<u32>) -> Result<Vec<Self>> {
        let owners = record.addresses().map(|address| Self::of(record, address, vip, gone));
        Ok(owners.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn of(record: &VipRecord, address: Ipv4Addr, vip: &mut LockedVip, gone: &BTreeSet<u32>) -> Result<Option<Self>> {
        let Some(mut owner) = Self::bare(record, address)? else { return Ok(None) };
        owner.departed = vip.departed().to_vec();
        if !record.withdrawn {
            let replicas = vip.replicas()?;
            if replicas.len() > MEMBERS {
                tracing::debug!(
                    vip = record.key,
                    replicas = replicas.len(),
                    asked = MEMBERS,
                    "more replicas than are asked for a misplaced connection: those that were of use last are"
                );
            }
            owner.want = Want::of(record, replicas);
            owner.want.attached.retain(|ifindex, _| !gone.contains(ifindex));
            owner.departed.extend(gone);
        }
        Ok(Some(owner))
    }

    /// Wants nothing of one of the VIP's addresses.
    pub fn bare(record: &VipRecord, address: Ipv4Addr) -> Result<Option<Self>> {
        const SECOND: u64 = 1_000_000_000;
        let Some(dir) = &record.flow_owner else { return Ok(None) };
        let Some(maps) = Maps::open(dir)? else { return Ok(None) };
        // Without that timer a bucket moves when it has been idle, some time.
        let unsettled = match record.group.unbalanced_timer {
            0 => u64::MAX,
            seconds => (u64::from(seconds) + HANDSHAKE) * SECOND,
        };
        Ok(Some(Self { maps, vip: address, want: Want::default(), departed: Vec::new(), unsettled }))
    }

    /// The steps that are needed.
    pub fn difference(&self) -> Result<(Vec<Op>, Vec<Op>)> {
        let have = read(&self.maps, self.vip, &self.want, &self.departed)?;
        Ok(difference(&have, &self.want, |ifindex| self.maps.used(ifindex).unwrap_or_default()))
    }

    /// What is amiss where these steps are needed, a sentence each.
    pub fn findings<'a>(&self, ops: impl Iterator<Item = &'a Op>) -> Vec<String> {
        ops.map(|op| op.finding(self.vip)).collect()
    }

    /// Takes the steps.
    pub fn apply(&mut self, ops: Vec<Op>) -> Result<()> {
        for op in ops {
            match op {
                Op::Attach(ifindex, value) => self.maps.attach(ifindex, self.vip, &value)?,
                Op::Detach(ifindex) => self.maps.detach(ifindex, self.vip)?,
                Op::SetMembers(members) => {
                    let until = self.maps.unsettled_until(self.vip)?;
                    self.maps.set_members(self.vip, &members, until)?;
                }
                Op::Forget => self.maps.forget(self.vip)?,
            }
        }
        Ok(())
    }

    /// The group is about to change: for a while a SYN may be the second one of a handshake with another replica.
    pub fn unsettle(&mut self) -> Result<()> {
        let Some(members) = self.maps.members(self.vip)? else { return Ok(()) };
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or_default();
        Ok(self.maps.set_members(self.vip, &members, now.saturating_add(self.unsettled))?)
    }
}

/// A replica's entry; none where the record doesn't say enough.
fn wanted(replica: &Replica, crowded: bool) -> Option<Attached> {
    let mut port = [0; PORTS];
    let mut ports = 0;
    for (place, wanted) in port.iter_mut().zip(replica.ports.iter().filter_map(|text| text.parse().ok())) {
        *place = port_number(wanted);
        ports += 1;
    }
    let flags = [(!replica.ports.is_empty(), GUARDED), (replica.udp_sticky, STICKY_UDP), (crowded, CROWDED)];
    let flags = flags.into_iter().filter(|(is, _)| *is).fold(0, |flags, (_, flag)| flags | flag);
    Some(Attached { netns: replica.netns_id?, flags, mac: mac_of(&replica.mac)?, ports, port })
}

/// As the program has it: IP protocol << 16 | port.
fn port_number(port: Port) -> u32 {
    u32::from(port.transport.protocol()) << 16 | u32::from(port.number)
}

/// Sees to it that this build's programs are loaded and stand on every host end. The first call of a boot loads them; the
/// first one of another build replaces those that are there, under traffic: maps are filled before any program looks at
/// them, each filter changes in one step, and a crash on the way leaves everything to be done again.
pub fn ensure(node: &NodeNet, registry: &Registry, dir: &Path) -> Result<Programs> {
    if let Some(programs) = complete(dir)? {
        return Ok(programs);
    }
    let pins = PinDir::lock(dir)?;
    if let Some(programs) = complete(dir)? {
        return Ok(programs); // another call was faster
    }
    let programs = Programs::load(&pins)?;
    let tables = Tables::read(node)?;
    for key in registry.vips()? {
        if let Some(vip) = registry.vip_if_present(&key)?
            && vip.record.as_ref().is_some_and(|record| record.flow_owner.as_deref() == Some(dir))
        {
            put_right_by(node, vip, &tables)?;
        }
    }
    for attachment in registry.attachments()? {
        // Only one that has programs: the others do without, or their ADD is not so far yet.
        if let Some(host_end) = HostEnd::read(node, &PairNames::of(&attachment), None)?.filter(HostEnd::has_programs) {
            pair::apply(node, host_end.filter_fixes(&programs)?)?;
        }
    }
    programs.publish(&pins)?;
    pins.remove_others()?;
    Ok(programs)
}

/// This build's programs, unless somebody has taken away a pin of theirs or of their maps.
fn complete(dir: &Path) -> Result<Option<Programs>> {
    if !bpf::has_maps(dir) {
        return Ok(None);
    }
    Ok(Programs::open(dir)?)
}

/// The programs that stand on host ends now: this build's, or another's that has taken its place. `None`: none is
/// pinned, or not all that belongs to them.
pub fn standing(dir: &Path) -> Result<Option<Programs>> {
    match complete(dir)? {
        Some(programs) => Ok(Some(programs)),
        None => Ok(Programs::open_others(dir)?),
    }
}

/// Whether a replica gets new connections.
pub fn is_ready(replica: &Replica) -> bool {
    replica.state == State::Ready
}

/// What the programs counted of a VIP, and the sources its replicas faked.
pub fn counts(record: &VipRecord, host_ends: &[u32]) -> bpf::Result<Option<(bpf::Counts, u64)>> {
    let Some(dir) = &record.flow_owner else { return Ok(None) };
    let Some(maps) = Maps::open(dir)? else { return Ok(None) };
    let mut spoofed = 0;
    for ifindex in host_ends {
        spoofed += maps.spoofed(*ifindex)?;
    }
    Ok(Some((maps.counts(record.address)?, spoofed)))
}

/// The sources that were faked, by host end.
pub fn spoofed(dir: &Path) -> bpf::Result<Vec<(u32, u64)>> {
    Maps::open(dir)?.map_or(Ok(Vec::new()), |maps| maps.all_spoofed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(netns: u32) -> Attached {
        Attached { netns, flags: 0, mac: [6, 0x76, 0, 0, 0, 1], ports: 0, port: [0; PORTS] }
    }

    fn want(indices: &[u32]) -> Want {
        Want { attached: indices.iter().map(|index| (*index, entry(*index))).collect() }
    }

    fn members(indices: &[u32]) -> Vec<Member> {
        indices.iter().map(|index| Member::new(*index, *index, entry(*index).mac)).collect()
    }

    fn settled(indices: &[u32]) -> Have {
        Have { attached: want(indices).attached, members: Some(members(indices)) }
    }

    fn steps(have: &Have, want: &Want) -> (Vec<Op>, Vec<Op>) {
        difference(have, want, u64::from)
    }

    #[test]
    fn what_is_right_is_left_alone() {
        assert_eq!(steps(&settled(&[3, 4]), &want(&[3, 4])), (vec![], vec![]));
        assert_eq!(steps(&Have::default(), &want(&[])), (vec![], vec![]));
    }

    #[test]
    fn a_replica_that_joins_is_known_before_the_group_changes() {
        let (before, after) = steps(&settled(&[3]), &want(&[3, 4]));
        assert_eq!(before, [Op::Attach(4, Box::new(entry(4))), Op::SetMembers(members(&[3, 4]))]);
        assert_eq!(after, []);
    }

    #[test]
    fn a_replica_that_leaves_is_asked_until_the_group_has_changed() {
        let (before, after) = steps(&settled(&[3, 4]), &want(&[4]));
        assert_eq!(before, []);
        assert_eq!(after, [Op::SetMembers(members(&[4])), Op::Detach(3)]);
    }

    #[test]
    fn the_last_one_takes_the_vip_along() {
        let (before, after) = steps(&settled(&[3]), &want(&[]));
        assert_eq!((before, after), (vec![], vec![Op::Detach(3), Op::Forget]));
    }

    #[test]
    fn a_wrong_entry_is_written_anew() {
        let mut have = settled(&[3]);
        have.attached.insert(3, Attached { flags: GUARDED, ..entry(3) });
        assert_eq!(steps(&have, &want(&[3])).0, [Op::Attach(3, Box::new(entry(3)))]);
        have.attached.clear();
        assert_eq!(steps(&have, &want(&[3])).0, [Op::Attach(3, Box::new(entry(3)))]);
    }

    #[test]
    fn of_too_many_those_are_asked_that_were_of_use_last() {
        let many: Vec<u32> = (1..=300).collect();
        let (before, after) = steps(&Have::default(), &want(&many));
        let last = members(&many[300 - MEMBERS..]);
        assert_eq!(before.last(), Some(&Op::SetMembers(last.clone())));
        assert_eq!(after, []);
        // Any 256 of them are good enough until something changes.
        let have = Have { attached: want(&many).attached, members: Some(members(&many[..MEMBERS])) };
        assert_eq!(steps(&have, &want(&many)), (vec![], vec![]));
    }

    #[test]
    fn ports_are_as_the_program_has_them() {
        assert_eq!(port_number("80/tcp".parse().unwrap()), 0x0006_0050);
        assert_eq!(port_number("53/udp".parse().unwrap()), 0x0011_0035);
    }
}
