//! The flow owner's side of a VIP: what its maps must have, what they have, and the difference. And the programs: loaded
//! once, put on every host veth.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnetwork::Ipv4Network;
use nix::time::{ClockId, clock_gettime};

use crate::ebpf::{
    self, ANY_EGRESS, Attached, ByPort, Counts, DRAINING, GUARDED, Known, LinkDrops, Maps, Member, OVER_MEMBER_LIMIT,
    POLICED, PORTS, PinDir, Policies, PolicyChange, PortPolicy, Programs, Ring, SHARES_NUMBERS, STICKY_UDP, Server,
    TRANSLATES,
};
use crate::model::address::ipv4;
use crate::model::{Backend, Cluster, Family, Port, Recorded, VipPolicy};
use crate::net::NodeNet;
use crate::registry::{LockedVip, Registry, Replica, State, VipRecord, attachment_name};

use super::attachment::{self, HostVeth};
use super::ids::VethNames;
use super::{Result, Tables, reconcile_vip, serving};

const SECOND: u64 = 1_000_000_000;
/// A SYN-ACK is repeated for about so long (`tcp_synack_retries` 5), seconds.
const HANDSHAKE: u64 = 64;
/// For so long other nodes may send packets of a VIP whose last replica has left, until they have heard of it, nanoseconds. What
/// isn't known here is dropped; what is goes back.
const LINGER: u64 = 60 * SECOND;

/// What the maps must have of a VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// By host veth. A draining replica keeps its flows, so it is here until it goes.
    pub attached: BTreeMap<u32, Attached>,
    /// Where another node has replicas: which nodes.
    pub ring: Option<Ring>,
    /// What the VIP's entry says for [`LINGER`] once it has no replica; `None`: it goes at once, there are no other nodes.
    pub lingers: Option<Ring>,
    /// Who serves which port, where not all replicas serve the same.
    pub servers: ByPort,
    /// That is so.
    pub ports_differ: bool,
    /// What Services ask of its ports.
    pub policies: Policies,
    /// Clients outside are for the replicas here, while any is ready.
    pub is_kept_here: bool,
    /// So are all clients.
    pub are_all_kept_here: bool,
    /// The pods' own addresses of IPv6, by host veth: what the programs for VIPs of IPv6 must know beside.
    pub own: BTreeMap<u32, Vec<Ipv6Addr>>,
}

impl Want {
    /// Of a VIP with these replicas, for its addresses of that family; nothing where they aren't ours.
    pub fn of(
        record: &VipRecord,
        family: Family,
        replicas: &BTreeMap<String, Replica>,
        cluster: Option<&Cluster>,
    ) -> Self {
        if record.withdrawn {
            return Self::default();
        }
        // Another node's replicas are that node's to steer to.
        let local = || replicas.values().filter_map(|replica| Some((replica.host_veth()?, replica)));
        let policies = policies(&record.policy, family);
        let flag = if policies.is_empty() { 0 } else { POLICED };
        let policed = |entry: Attached| Attached { flags: entry.flags | flag, ..entry };
        let attached = local().filter_map(|(ifindex, replica)| Some((ifindex, policed(wanted(replica)?))));
        let servers = serving::by_port(replicas, family, cluster.is_none());
        let own =
            local().filter(|_| family == Family::V6).map(|(ifindex, one)| (ifindex, ebpf::own(one.addresses.iter())));
        Self {
            own: own.collect(),
            attached: attached.collect(),
            ring: cluster.and_then(|cluster| ring(cluster, family, replicas)),
            lingers: cluster.map(lingering),
            ports_differ: !servers.is_empty(),
            servers,
            policies,
            is_kept_here: record.policy.local,
            are_all_kept_here: record.policy.prefers_node,
        }
    }

    /// Other nodes have replicas of it.
    pub fn is_far(&self) -> bool {
        self.ring.is_some()
    }

    fn own(&self, ifindex: u32) -> &[Ipv6Addr] {
        self.own.get(&ifindex).map_or(&[], Vec::as_slice)
    }

    /// Without what the programs don't know.
    fn without_lots(mut self) -> Self {
        self.servers.clear();
        self
    }

    /// Whether the VIP has an entry of its own: without replicas here too, while packets of it come from other nodes.
    fn has_entry(&self) -> bool {
        !self.attached.is_empty() || self.ring.is_some()
    }

    fn known(&self, members: Vec<Member>) -> Known {
        Known {
            members,
            ring: self.ring.unwrap_or_default(),
            ports_differ: self.ports_differ,
            is_policed: !self.policies.is_empty(),
            is_kept_here: self.is_kept_here,
            are_all_kept_here: self.are_all_kept_here,
        }
    }

    /// An entry as maps have it where so many replicas are asked: of more, each notes when it was of use.
    fn within(&self, limit: usize, entry: &Attached) -> Attached {
        let flag = if self.attached.len() > limit { OVER_MEMBER_LIMIT } else { 0 };
        Attached { flags: entry.flags | flag, ..*entry }
    }

    /// All of them so.
    fn limited_to(mut self, limit: usize) -> Self {
        self.attached = self.attached.iter().map(|(ifindex, entry)| (*ifindex, self.within(limit, entry))).collect();
        self
    }

    /// Whether these are the replicas to be asked: all of them, or where they are more than the limit as many as that.
    fn is_met_by(&self, known: Option<&Known>, limit: usize) -> bool {
        let Some(known) = known else { return !self.has_entry() };
        let Known { members, ring, .. } = known;
        if !self.has_entry() {
            return self.lingers.as_ref() == Some(ring) && members.is_empty();
        }
        let is_wanted = |member: &Member| {
            let wanted = self.attached.get(&member.ifindex);
            wanted.is_some_and(|wanted| Member::new(member.ifindex, wanted) == *member)
        };
        let once = members.is_sorted_by(|one, next| one < next);
        let are_all = members.len() == self.attached.len().min(limit);
        let says = |members| Known { members, ..known.clone() } == self.known(Vec::new());
        says(Vec::new()) && once && are_all && members.iter().all(is_wanted)
    }
}

/// The same of each family that a VIP has addresses of.
#[derive(Debug, Default)]
pub struct Wants(BTreeMap<Family, Want>);

impl Wants {
    /// Of a VIP with these replicas.
    pub fn of(record: &VipRecord, replicas: &BTreeMap<String, Replica>, cluster: Option<&Cluster>) -> Self {
        let families: BTreeSet<Family> = record.all_addresses().map(Family::of).collect();
        let want = |family| (family, Want::of(record, family, replicas, cluster));
        Self(families.into_iter().map(want).collect())
    }

    /// For one of its addresses.
    pub fn for_address(&self, address: IpAddr) -> Option<&Want> {
        self.0.get(&Family::of(address))
    }

    /// What is wanted, by each.
    pub fn iter(&self) -> impl Iterator<Item = &Want> {
        self.0.values()
    }

    /// Nothing of these host veths any more.
    pub fn detach(&mut self, is_gone: impl Fn(u32) -> bool) {
        self.0.values_mut().for_each(|want| want.attached.retain(|ifindex, _| !is_gone(*ifindex)));
    }
}

/// Whether the maps have what a VIP must have. `is_due` decides for the VIP's own entry and for each replica's whether this
/// call checks it. One system call an entry.
pub fn is_right(maps: &Maps, vip: IpAddr, want: &Want, mut is_due: impl FnMut() -> bool) -> Result<bool> {
    let Some(vip) = maps.key(vip)? else { return Ok(!want.has_entry()) };
    // Where the members are exactly the wanted replicas, no entry of another replica is known.
    let limit = maps.limit();
    let mut right =
        !is_due() || (want.is_met_by(maps.known(vip)?.as_ref(), limit) && maps.is_served(vip, &want.servers)?);
    right &= want.policies.is_empty() || !is_due() || maps.has_policies(vip, &want.policies)?;
    for (ifindex, wanted) in &want.attached {
        right &= !is_due()
            || (maps.attached(*ifindex, vip)? == Some(want.within(limit, wanted))
                && maps.is_complete(*ifindex, vip, wanted)?
                && maps.is_own(*ifindex, vip, want.own(*ifindex))?);
    }
    Ok(right)
}

/// `settled`: the entries of these are right.
fn read(maps: &Maps, vip: Ipv4Addr, want: &Want, (removed, settled): (&[u32], &BTreeSet<u32>)) -> Result<Have> {
    let entry = maps.known(vip)?;
    let mut known: BTreeSet<u32> = want.attached.keys().copied().collect();
    known.extend(entry.iter().flat_map(|entry| &entry.members).map(|member| member.ifindex));
    known.extend(removed);
    let settled = want.attached.iter().filter(|(ifindex, _)| settled.contains(ifindex));
    let mut attached: BTreeMap<u32, Attached> = settled.map(|(ifindex, entry)| (*ifindex, *entry)).collect();
    let mut incomplete = BTreeSet::new();
    for ifindex in known.into_iter().filter(|ifindex| !attached.contains_key(ifindex)).collect::<Vec<_>>() {
        let Some(value) = maps.attached(ifindex, vip)? else { continue };
        if !maps.is_complete(ifindex, vip, &value)? || !maps.is_own(ifindex, vip, want.own(ifindex))? {
            incomplete.insert(ifindex);
        }
        attached.insert(ifindex, value);
    }
    let is_by_port = want.ports_differ || entry.as_ref().is_some_and(|entry| entry.ports_differ);
    let servers = if is_by_port { maps.servers(vip)? } else { ByPort::new() };
    let is_policed = !want.policies.is_empty() || entry.as_ref().is_some_and(|entry| entry.is_policed);
    let policies = if is_policed { maps.policies(vip)? } else { Policies::new() };
    Ok(Have { attached, incomplete, known: entry, servers, policies })
}

/// What the maps have of a VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// By host veth, as far as asked for.
    pub attached: BTreeMap<u32, Attached>,
    /// Those of them from which something follows that isn't there.
    pub incomplete: BTreeSet<u32>,
    /// The VIP's own entry: the replicas that are asked for a flow, and the other nodes; `None`: it has none.
    pub known: Option<Known>,
    /// Who serves which port, where either has something of it.
    pub servers: ByPort,
    /// What Services ask of its ports, likewise.
    pub policies: Policies,
}

/// One step from what is to what must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// An attachment's entry, new or changed.
    Attach(u32, Box<Attached>),
    /// An attachment's entry, gone.
    Detach(u32),
    /// Who serves a port; nobody: it isn't told apart any more.
    Serve(u32, Vec<Server>),
    /// What Services ask of a port.
    Police(u32, Box<PolicyChange>),
    /// The replicas that are asked for a flow, and the other nodes.
    Set(Known),
    /// The VIP's entry stays a while without a replica.
    Linger(Ring),
    /// The whole VIP, gone.
    Forget,
}

impl Op {
    /// Whether a flow's next SYN may go to another replica than its first one.
    pub fn moves_flows(&self) -> bool {
        matches!(self, Self::Serve(..))
    }

    /// What is amiss where this step is needed, in a word for CHECK.
    pub fn finding(&self, vip: IpAddr) -> String {
        match self {
            Self::Attach(ifindex, _) => {
                format!("the flow owner's entry of {vip} on link {ifindex} is missing or wrong")
            }
            Self::Detach(ifindex) => format!("the flow owner's entry of {vip} on link {ifindex} should not be there"),
            Self::Serve(number, _) => {
                format!("the flow owner doesn't know which replicas of {vip} serve port {}", number & 0xffff)
            }
            Self::Police(number, _) => {
                format!("the flow owner doesn't know what Services ask of port {} of {vip}", number & 0xffff)
            }
            Self::Set(_) => format!("the flow owner doesn't know the replicas of {vip}"),
            Self::Linger(_) => format!("the flow owner should not know replicas of {vip}"),
            Self::Forget => format!("the flow owner should not know {vip}"),
        }
    }
}

/// The steps. Those that add come before any change of the VIP's group, those that remove after it: the programs know each
/// replica that the group can choose, and ask each that may still have connections. `recent` gives the second in which a
/// replica last had a packet of a connection.
///
/// `limit` of a VIP's replicas are asked.
pub fn difference(have: &Have, want: &Want, limit: usize, recent: impl Fn(u32) -> u64) -> (Vec<Op>, Vec<Op>) {
    // Nobody gets in by an entry that is there before it is known who may.
    let police = |number: &u32| {
        let (before, wanted) = (have.policies.get(number).cloned(), want.policies.get(number).cloned());
        Op::Police(*number, Box::new(PolicyChange { before, wanted }))
    };
    let asked = want.policies.iter().filter(|(number, policy)| have.policies.get(number) != Some(policy));
    let mut before: Vec<Op> = asked.map(|(number, _)| police(number)).collect();
    let mut after: Vec<Op> = Vec::new();
    for (ifindex, wanted) in &want.attached {
        if have.attached.get(ifindex) != Some(wanted) || have.incomplete.contains(ifindex) {
            before.push(Op::Attach(*ifindex, Box::new(*wanted)));
        }
    }
    let new = want.servers.iter().filter(|(number, servers)| have.servers.get(number) != Some(servers));
    before.extend(new.map(|(number, servers)| Op::Serve(*number, servers.clone())));
    if want.has_entry() && !want.is_met_by(have.known.as_ref(), limit) {
        let wanted: BTreeMap<u32, Member> =
            want.attached.iter().map(|(index, entry)| (*index, Member::new(*index, entry))).collect();
        // The programs ask a leaving replica until the group has dropped it.
        let mut grown: BTreeMap<u32, Member> =
            have.known.iter().flat_map(|have| &have.members).map(|known| (known.ifindex, *known)).collect();
        grown.extend(&wanted);
        let grown = want.known(choose(grown.into_values().collect(), limit, &recent));
        let wanted = want.known(choose(wanted.into_values().collect(), limit, &recent));
        if have.known.as_ref() != Some(&grown) {
            before.push(Op::Set(grown.clone()));
        }
        if grown != wanted {
            after.push(Op::Set(wanted));
        }
    }
    let unserved = have.servers.keys().filter(|number| !want.servers.contains_key(number));
    after.extend(unserved.map(|number| Op::Serve(*number, Vec::new())));
    let unasked = have.policies.keys().filter(|number| !want.policies.contains_key(number));
    after.extend(unasked.map(police));
    let stale = have.attached.keys().filter(|index| !want.attached.contains_key(index));
    after.extend(stale.map(|index| Op::Detach(*index)));
    if !want.has_entry() && !want.is_met_by(have.known.as_ref(), limit) {
        after.push(want.lingers.map_or(Op::Forget, Op::Linger));
    }
    (before, after)
}

/// At most `limit` of them, those with the latest packets.
fn choose(mut members: Vec<Member>, limit: usize, recent: &impl Fn(u32) -> u64) -> Vec<Member> {
    if members.len() > limit {
        members.sort_by_cached_key(|member| std::cmp::Reverse(recent(member.ifindex)));
        members.truncate(limit);
        members.sort_unstable();
    }
    members
}

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
    /// ([`OVER_MEMBER_LIMIT`]): then all are compared.
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

/// Which node has replicas of a VIP isn't known any more: what goes round goes to the next one, whatever that has.
fn lingering(cluster: &Cluster) -> Ring {
    let all = cluster.nodes.iter().map(|node| node.number).collect();
    Ring { next: cluster.ring(&all).0, lingers: true, ..Ring::default() }
}

/// The other nodes that have replicas of a VIP and serve it by that family; `None`: none does.
fn ring(cluster: &Cluster, family: Family, replicas: &BTreeMap<String, Replica>) -> Option<Ring> {
    let number = |replica: &Replica| match replica.backend {
        Backend::Remote(peer) if replica.serves(family) => Some(peer.number),
        Backend::Remote(_) | Backend::Local => None,
    };
    let numbers: BTreeSet<u32> = replicas.values().filter_map(number).collect();
    let (next, suspect) = cluster.ring(&numbers);
    let flows_stay = replicas.values().any(|replica| replica.udp_sticky);
    (!numbers.is_empty()).then_some(Ring { next, suspect, flows_stay, lingers: false })
}

/// As the programs have it. Of a port that a later version names nothing is known here.
fn policies(policy: &VipPolicy, family: Family) -> Policies {
    let of = |asked: &crate::model::PortPolicy| {
        // A list of the other family's ranges alone lets nobody in.
        let of_family = |sources: &Vec<Ipv4Network>| match family {
            Family::V4 => sources.iter().map(|range| (range.network().into(), range.prefix())).collect(),
            Family::V6 => asked.sources6.iter().map(|range| (range.network().into(), range.prefix())).collect(),
        };
        let sources = asked.sources.as_ref().map(of_family);
        Some((port_number(*asked.port.known()?), PortPolicy { affinity: asked.affinity.unwrap_or_default(), sources }))
    };
    policy.ports.iter().filter_map(of).collect()
}

/// A replica's entry; none where the record doesn't say enough.
fn wanted(replica: &Replica) -> Option<Attached> {
    let (mut port, mut target) = ([0; PORTS], [0; PORTS]);
    let mut ports = 0;
    for (place, wanted) in replica.ports.iter().filter_map(Recorded::known).take(PORTS).enumerate() {
        (port[place], target[place]) = (port_number(wanted.port), wanted.target);
        ports += 1;
    }
    let translates = replica.ports.iter().filter_map(Recorded::known).any(|port| port.is_translated());
    let flags = [
        (translates, TRANSLATES),
        (!replica.ports.is_empty(), GUARDED),
        (replica.udp_sticky, STICKY_UDP),
        (replica.egress.is_any(), ANY_EGRESS),
        (!is_ready(replica), DRAINING),
    ];
    let flags = flags.into_iter().filter(|(is, _)| *is).fold(0, |flags, (_, flag)| flags | flag);
    let bare = Attached::new(replica.netns_id?, replica.mac.as_ref()?.known()?.0, flags);
    // The maps have keys of IPv4, and a pod at most one address of it here.
    let own = replica.addresses.iter().find_map(ipv4).map_or([0; 4], |address| address.octets());
    let mut entry = Attached { ports, port, target, own, weight: replica.weight.into(), ..bare };
    if entry.shares() {
        entry.flags |= SHARES_NUMBERS;
    }
    Some(entry)
}

/// As the program has it: IP protocol << 16 | port.
pub(super) fn port_number(port: Port) -> u32 {
    u32::from(port.transport.protocol()) << 16 | u32::from(port.number)
}

/// Makes sure that this build's programs are loaded and attached to every host veth. The first call of a boot loads them;
/// the first one of another build replaces those that are there, under traffic: maps are filled before any program reads
/// them, each filter changes in one step, and after a crash the next call does all of it again.
pub fn ensure(node: &NodeNet, registry: &Registry, dir: &Path) -> Result<Programs> {
    ebpf::check_dir(dir)?; // before anything in it is believed
    if let Some(programs) = complete(dir)? {
        return Ok(programs);
    }
    let pins = PinDir::lock(dir)?;
    if let Some(programs) = complete(dir)? {
        return Ok(programs); // another call was faster
    }
    let programs = Programs::load(&pins)?;
    let tables = Tables::read(node, registry)?;
    for key in registry.vips()? {
        if let Some(vip) = registry.vip_if_present(&key)?
            && vip.record.as_ref().is_some_and(|record| record.flow_owner.as_deref() == Some(dir))
        {
            reconcile_vip(node, vip, Some(&tables))?;
        }
    }
    for attachment in registry.attachments()? {
        // Only one that has programs: the others do without, or their ADD is not so far yet.
        if let Some(host_veth) = HostVeth::read(node, &VethNames::of(&attachment), None)?.filter(HostVeth::has_programs)
        {
            attachment::apply(node, host_veth.filter_fixes(&programs)?)?;
            if let Err(error) = attachment::renew(registry, &attachment, &programs) {
                // Those of before go on, and viprouted replaces them.
                tracing::warn!(attachment = %attachment_name(&attachment), "{error}: its pod keeps programs of before");
            }
        }
    }
    programs.publish(&pins)?;
    pins.remove_others()?;
    Ok(programs)
}

/// This build's programs. `None`: one of their pins, or of their maps' pins, is missing.
fn complete(dir: &Path) -> Result<Option<Programs>> {
    if !ebpf::has_maps(dir) {
        return Ok(None);
    }
    Ok(Programs::open(dir)?)
}

/// The programs attached to host veths now: this build's, or another's that has replaced them. `None`: none is pinned, or
/// some of their pins are missing.
pub fn status(dir: &Path) -> Result<Option<Programs>> {
    match complete(dir)? {
        Some(programs) => Ok(Some(programs)),
        None => Ok(Programs::open_others(dir)?),
    }
}

/// Whether a replica gets new connections.
pub fn is_ready(replica: &Replica) -> bool {
    replica.state == State::Ready
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::NodeId;

    /// As many as one of the objects asks.
    const LIMIT: usize = 256;

    fn entry(netns: u32) -> Attached {
        Attached::new(netns, [6, 0x76, 0, 0, 0, 1], 0)
    }

    fn want(indices: &[u32]) -> Want {
        Want { attached: indices.iter().map(|index| (*index, entry(*index))).collect(), ..Want::default() }
    }

    fn members(indices: &[u32]) -> Known {
        let members = indices.iter().map(|index| Member::new(*index, &entry(*index))).collect();
        Known { members, ..Known::default() }
    }

    fn reconciled(indices: &[u32]) -> Have {
        Have { attached: want(indices).attached, known: Some(members(indices)), ..Have::default() }
    }

    fn steps(have: &Have, want: &Want) -> (Vec<Op>, Vec<Op>) {
        difference(have, want, LIMIT, u64::from)
    }

    #[test]
    fn what_is_right_is_left_alone() {
        assert_eq!(steps(&reconciled(&[3, 4]), &want(&[3, 4])), (vec![], vec![]));
        assert_eq!(steps(&Have::default(), &want(&[])), (vec![], vec![]));
    }

    #[test]
    fn a_replica_that_joins_is_known_before_the_group_changes() {
        let (before, after) = steps(&reconciled(&[3]), &want(&[3, 4]));
        assert_eq!(before, [Op::Attach(4, Box::new(entry(4))), Op::Set(members(&[3, 4]))]);
        assert_eq!(after, []);
    }

    #[test]
    fn a_replica_that_leaves_is_asked_until_the_group_has_changed() {
        let (before, after) = steps(&reconciled(&[3, 4]), &want(&[4]));
        assert_eq!(before, []);
        assert_eq!(after, [Op::Set(members(&[4])), Op::Detach(3)]);
    }

    #[test]
    fn the_last_one_takes_the_vip_along() {
        let (before, after) = steps(&reconciled(&[3]), &want(&[]));
        assert_eq!((before, after), (vec![], vec![Op::Detach(3), Op::Forget]));
    }

    #[test]
    fn among_other_nodes_the_vip_stays_a_while_without_replicas() {
        let ring = Ring { next: Some(NodeId(Ipv4Addr::new(192, 0, 2, 2))), lingers: true, ..Ring::default() };
        let none = Want { lingers: Some(ring), ..want(&[]) };
        assert_eq!(steps(&reconciled(&[3]), &none), (vec![], vec![Op::Detach(3), Op::Linger(ring)]));
        let lingering = Have { known: Some(Known { ring, ..Known::default() }), ..Have::default() };
        assert_eq!(steps(&lingering, &none), (vec![], vec![]));
        assert_eq!(steps(&lingering, &want(&[])).1, [Op::Forget], "the other nodes are gone");
        let again = Want { lingers: Some(ring), ..want(&[3]) };
        assert_eq!(steps(&lingering, &again).0.last(), Some(&Op::Set(members(&[3]))));
        assert_eq!(steps(&Have::default(), &none), (vec![], vec![]));
    }

    #[test]
    fn a_vip_that_other_nodes_have_replicas_of_is_known_without_any_here() {
        let next = NodeId(Ipv4Addr::new(192, 0, 2, 2));
        let ring = Ring { next: Some(next), ..Ring::default() };
        let far = Want { ring: Some(ring), ..want(&[]) };
        assert_eq!(steps(&Have::default(), &far).0, [Op::Set(Known { ring, ..Known::default() })]);
        let have = Have { known: Some(Known { ring, ..Known::default() }), ..Have::default() };
        assert_eq!(steps(&have, &far), (vec![], vec![]));
        // The last one here leaves.
        let before = Have { known: Some(Known { ring, ..members(&[3]) }), ..reconciled(&[3]) };
        assert_eq!(steps(&before, &far), (vec![], vec![Op::Set(Known { ring, ..Known::default() }), Op::Detach(3)]));
        // One falls silent.
        let suspect = Ring { suspect: true, ..Ring::default() };
        let silent = Want { ring: Some(suspect), ..want(&[3]) };
        assert_eq!(steps(&before, &silent), (vec![Op::Set(Known { ring: suspect, ..members(&[3]) })], vec![]));
        assert_eq!(steps(&have, &want(&[])), (vec![], vec![Op::Forget]));
    }

    #[test]
    fn who_serves_a_port_is_known_before_lots_are_drawn_and_after() {
        let server = |ifindex| Server { ifindex, weight: 1, of: 1, ..Server::default() };
        let by_port = ByPort::from([(80, vec![server(3)]), (443, vec![server(4)])]);
        let differ = Want { servers: by_port.clone(), ports_differ: true, ..want(&[3, 4]) };
        let marked = Known { ports_differ: true, ..members(&[3, 4]) };
        let (before, after) = steps(&reconciled(&[3, 4]), &differ);
        let written = [Op::Serve(80, vec![server(3)]), Op::Serve(443, vec![server(4)]), Op::Set(marked.clone())];
        assert_eq!((before, after), (written.into(), vec![]));
        let have = Have { servers: by_port, known: Some(marked), ..reconciled(&[3, 4]) };
        assert_eq!(steps(&have, &differ), (vec![], vec![]));
        let (before, after) = steps(&have, &want(&[3, 4]));
        assert_eq!(before, [Op::Set(members(&[3, 4]))]);
        assert_eq!(after, [Op::Serve(80, vec![]), Op::Serve(443, vec![])]);
    }

    #[test]
    fn who_may_come_is_known_before_a_replica_is() {
        let policy = PortPolicy { affinity: 60, sources: Some(BTreeSet::from([(IpAddr::from([10, 0, 0, 0]), 8)])) };
        let policies = Policies::from([(80, policy.clone())]);
        let asks = Want { policies: policies.clone(), ..want(&[3]) };
        let known = Known { is_policed: true, ..members(&[3]) };
        let (before, after) = steps(&Have::default(), &asks);
        let change = |before, wanted| Op::Police(80, Box::new(PolicyChange { before, wanted }));
        let written = change(None, Some(policy.clone()));
        let expected = [written, Op::Attach(3, Box::new(entry(3))), Op::Set(known.clone())];
        assert_eq!((before, after), (expected.into(), vec![]));
        let have = Have { policies, known: Some(known), ..reconciled(&[3]) };
        assert_eq!(steps(&have, &asks), (vec![], vec![]));
        let removed = change(Some(policy), None);
        assert_eq!(steps(&have, &want(&[3])), (vec![Op::Set(members(&[3]))], vec![removed.clone()]));
        // It is somebody else's by now.
        assert_eq!(steps(&Have { known: None, ..have }, &want(&[])).1, [removed, Op::Detach(3)]);
    }

    #[test]
    fn a_wrong_entry_is_written_anew() {
        let mut have = reconciled(&[3]);
        have.attached.insert(3, Attached { flags: GUARDED, ..entry(3) });
        assert_eq!(steps(&have, &want(&[3])).0, [Op::Attach(3, Box::new(entry(3)))]);
        have.attached.clear();
        assert_eq!(steps(&have, &want(&[3])).0, [Op::Attach(3, Box::new(entry(3)))]);
        let incomplete = Have { incomplete: BTreeSet::from([3]), ..reconciled(&[3]) };
        assert_eq!(steps(&incomplete, &want(&[3])).0, [Op::Attach(3, Box::new(entry(3)))]);
    }

    #[test]
    fn of_too_many_those_are_asked_that_were_of_use_last() {
        let many: Vec<u32> = (1..=300).collect();
        let (before, after) = steps(&Have::default(), &want(&many));
        let last = members(&many[300 - LIMIT..]);
        assert_eq!(before.last(), Some(&Op::Set(last.clone())));
        assert_eq!(after, []);
        // Any 256 of them are good enough until something changes.
        let have = Have { attached: want(&many).attached, known: Some(members(&many[..LIMIT])), ..Have::default() };
        assert_eq!(steps(&have, &want(&many)), (vec![], vec![]));
    }

    #[test]
    fn replicas_beyond_the_limit_note_when_they_are_of_use() {
        let flags = |limit| want(&[3, 4, 5]).limited_to(limit).attached.into_values().map(|entry| entry.flags);
        assert!(flags(3).all(|flags| flags == 0));
        assert!(flags(2).all(|flags| flags == OVER_MEMBER_LIMIT));
    }

    #[test]
    fn ports_are_as_the_program_has_them() {
        assert_eq!(port_number("80/tcp".parse().unwrap()), 0x0006_0050);
        assert_eq!(port_number("53/udp".parse().unwrap()), 0x0011_0035);
    }
}
