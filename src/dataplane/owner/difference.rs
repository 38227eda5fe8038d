//! What the flow owner's maps have of a VIP, and the steps from there to what they must have. [`difference`] is pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::dataplane::Result;
use crate::ebpf::{Attached, ByPort, Known, Maps, Member, Policies, PolicyChange, Ring, Server};

use super::want::Want;

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
pub(super) fn read(
    maps: &Maps,
    vip: Ipv4Addr,
    want: &Want,
    (removed, settled): (&[u32], &BTreeSet<u32>),
) -> Result<Have> {
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

#[cfg(test)]
mod tests;
