//! What the flow owner's maps must have of a VIP, by its replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::Ipv4Network;

use crate::ebpf::{
    self, ANY_EGRESS, Attached, ByPort, DRAINING, GUARDED, Known, Member, OVER_MEMBER_LIMIT, POLICED, PORTS, Policies,
    PortPolicy, Ring, SHARES_NUMBERS, STICKY_UDP, TRANSLATES,
};
use crate::model::address::ipv4;
use crate::model::{Backend, Cluster, Family, Port, Recorded, VipPolicy};
use crate::registry::{Replica, State, VipRecord};

use super::super::serving;

/// What the maps must have of a VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// By host veth. A draining replica keeps its flows, so it is here until it goes.
    pub attached: BTreeMap<u32, Attached>,
    /// Where another node has replicas: which nodes.
    pub ring: Option<Ring>,
    /// What the VIP's entry says for [`super::LINGER`] once it has no replica; `None`: it goes at once, there are no other nodes.
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

    pub(super) fn own(&self, ifindex: u32) -> &[Ipv6Addr] {
        self.own.get(&ifindex).map_or(&[], Vec::as_slice)
    }

    /// Without what the programs don't know.
    pub(super) fn without_lots(mut self) -> Self {
        self.servers.clear();
        self
    }

    /// Whether the VIP has an entry of its own: without replicas here too, while packets of it come from other nodes.
    pub(super) fn has_entry(&self) -> bool {
        !self.attached.is_empty() || self.ring.is_some()
    }

    pub(super) fn known(&self, members: Vec<Member>) -> Known {
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
    pub(super) fn within(&self, limit: usize, entry: &Attached) -> Attached {
        let flag = if self.attached.len() > limit { OVER_MEMBER_LIMIT } else { 0 };
        Attached { flags: entry.flags | flag, ..*entry }
    }

    /// All of them so.
    pub(super) fn limited_to(mut self, limit: usize) -> Self {
        self.attached = self.attached.iter().map(|(ifindex, entry)| (*ifindex, self.within(limit, entry))).collect();
        self
    }

    /// Whether these are the replicas to be asked: all of them, or where they are more than the limit as many as that.
    pub(super) fn is_met_by(&self, known: Option<&Known>, limit: usize) -> bool {
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

    /// Nothing of these host veths any more.
    pub fn detach(&mut self, is_gone: impl Fn(u32) -> bool) {
        self.0.values_mut().for_each(|want| want.attached.retain(|ifindex, _| !is_gone(*ifindex)));
    }
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
pub(in crate::dataplane) fn port_number(port: Port) -> u32 {
    u32::from(port.transport.protocol()) << 16 | u32::from(port.number)
}

/// Whether a replica gets new connections.
pub fn is_ready(replica: &Replica) -> bool {
    replica.state == State::Ready
}
