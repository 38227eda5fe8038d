//! The node's side of a VIP: group, routes, nexthops.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::model::node::NodeId;
use crate::model::{Backend, Cluster, Family, GroupSpec, Peer};
use crate::net::nexthop::{self, Found, Nexthop, Object, Resilience};
use crate::net::route::{self, Filter, Kind, Route, TableRoute};
use crate::net::{self, NodeNet, PROTOCOL, Request, link};
use crate::registry::{LockedVip, Registry, Replica, VipRecord, nodes};

use super::near::Near;
use super::node::discard;
use super::node::tunnel::Underlay;
use super::owner::{self, Owner};
use super::plan::{self, DataRoute, Have, HaveNexthop, Op, Routes, Want, WantedMember};
use super::{Error, Result, ids, timing};

/// How often the plan is made anew when the kernel refuses it: a pod that dies in between takes its nexthop along.
const TRIES: u32 = 4;

/// What came of [`reconcile_vip`].
#[derive(Debug)]
pub struct Reconciled {
    /// The VIP, while it exists.
    pub vip: Option<LockedVip>,
    /// A sentence for each step taken.
    pub repairs: Vec<String>,
}

/// Makes the kernel's tables match the registry for one VIP. Without endpoints nothing of it stays, on disk either: the
/// lock is consumed and given back only while the VIP exists.
///
/// A caller that reconciles many VIPs reads the tables once: the kernel finds one prefix among its routes only by going
/// through all of them (`inet_dump_fib`). What has changed since makes a step fail, and everything is read anew; or it makes
/// none, since replacing what is right already changes nothing.
pub fn reconcile_vip(node: &NodeNet, vip: LockedVip, tables: Option<&Tables>) -> Result<Reconciled> {
    timing::timed(|| apply(node, vip, tables, How { failures: Failures::End, entries: Entries::All }))
}

/// The same after a replica has joined. What the flow owner's maps have of the others is left to viprouted, where the kernel had
/// it when they were recorded: a system call for each of a thousand replicas is a tenth of what an ADD takes.
pub fn reconcile_with(node: &NodeNet, vip: LockedVip) -> Result<Reconciled> {
    timing::timed(|| apply(node, vip, None, How { failures: Failures::End, entries: Entries::Changed }))
}

/// The same after a replica has left. Steps that fail for the remaining replicas don't keep it: the next reconciliation
/// of the VIP takes them again.
pub fn reconcile_without(node: &NodeNet, vip: LockedVip) -> Result<Reconciled> {
    timing::timed(|| apply(node, vip, None, How { failures: Failures::OfRemovals, entries: Entries::Changed }))
}

/// How a VIP is reconciled.
#[derive(Clone, Copy, Debug)]
struct How {
    failures: Failures,
    entries: Entries,
}

/// Which replicas' entries in the flow owner's maps are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entries {
    /// Every replica's.
    All,
    /// Those of replicas that this holder of the VIP's lock has changed, if it is known that the others were right.
    Changed,
}

/// Which failures of steps count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failures {
    /// The first ends it.
    End,
    /// Those of steps that remove something; the others are skipped.
    OfRemovals,
}

/// What was read of the tables before a VIP is reconciled.
struct Seen<'a> {
    /// None where it is another VIP's: then it is left alone.
    group: Option<Object>,
    tables: Option<&'a Tables>,
    mode: Mode,
}

#[derive(Clone, Copy, Debug)]
struct Mode {
    group_is_ours: bool,
    failures: Failures,
}

/// What is seen once something has changed meanwhile.
fn anew(node: &NodeNet, want: &Want, mode: Mode) -> net::Result<Seen<'static>> {
    let group = if mode.group_is_ours { nexthop::get(node, want.group)? } else { None };
    Ok(Seen { group, tables: None, mode })
}

fn apply(node: &NodeNet, mut vip: LockedVip, tables: Option<&Tables>, how: How) -> Result<Reconciled> {
    let mut repairs = Vec::new();
    vip.follow_families()?;
    if let Some(record) = vip.record.clone() {
        let want = want_of(node, &record, &mut vip)?;
        let seen = see(node, &mut vip, &want, (tables, how.failures))?;
        let gone = gone(node, seen.group.as_ref(), vip.replicas()?)?;
        let mut owners = Owner::all(&record, &mut vip, &gone)?;
        if how.entries == Entries::Changed
            && let Some(changed) = vip.only_changed()?
        {
            for owner in &mut owners {
                owner.compare_only(&changed);
            }
        }
        repairs = apply_plan(node, &want, seen, owners)?;
        vip.reconciled();
    }
    let vip = if vip.is_unused()? { vip.remove().map(|()| None)? } else { Some(vip) };
    Ok(Reconciled { vip, repairs })
}

/// Reads the VIP's group before any change. One with members that aren't this VIP's may be another VIP's, whose record
/// names it too: then there is nothing to repair, and no connection of one VIP may ever reach the other's pods.
fn see<'a>(
    node: &NodeNet,
    vip: &mut LockedVip,
    want: &Want,
    (tables, failures): (Option<&'a Tables>, Failures),
) -> Result<Seen<'a>> {
    let group = nexthop::get(node, want.group)?;
    let mut own: BTreeSet<u32> = vip.removed().iter().filter_map(|index| ids::nexthop(*index)).collect();
    own.extend(vip.replicas()?.values().filter_map(member_id));
    if members_of(group.as_ref()).is_subset(&own) {
        return Ok(Seen { group, tables, mode: Mode { group_is_ours: true, failures } });
    }
    match vip.other_in_slot(ids::slot(want.group))? {
        None => Ok(Seen { group, tables, mode: Mode { group_is_ours: true, failures } }),
        // To take it out of the tables no group is needed.
        Some(_) if want.members.is_empty() || !want.present => {
            Ok(Seen { group: None, tables, mode: Mode { group_is_ours: false, failures } })
        }
        Some(other) => Err(Error::SharedGroup { vip: vip.key().clone(), other, group: want.group }),
    }
}

/// Removes one of a VIP's previous addresses from the kernel's tables and the flow owner's maps.
pub fn drop_previous(node: &NodeNet, record: &VipRecord, address: IpAddr) -> Result<()> {
    let routes = read_routes(node, address)?;
    let prefix = route::host(address);
    let mut requests: Vec<Request> = routes.announced.iter().map(|m| route::del_unreachable(prefix, *m)).collect();
    requests.extend(routes.data.map(|_| route::del_nexthop(address)));
    requests.extend(read_inbound(node, address)?.map(route::del));
    node.apply(&requests)?;
    let Some(mut owner) = Owner::bare(record, address)? else { return Ok(()) };
    let (before, after) = owner.difference()?;
    owner.apply(before)?;
    owner.apply(after)
}

/// How the kernel differs from the registry: a sentence for each step that [`reconcile_vip`] would take now.
pub fn differs(node: &NodeNet, vip: &mut LockedVip) -> Result<Vec<String>> {
    or_shared(differences(node, vip))
}

/// The same for one replica alone, by its attachment's name: differences of the VIP's other replicas are left out.
pub fn differs_for(node: &NodeNet, vip: &mut LockedVip, attachment: &str) -> Result<Vec<String>> {
    or_shared(differences_for(node, vip, attachment))
}

/// That another VIP has the group is a difference, too, and all that can be said.
fn or_shared(found: Result<Vec<String>>) -> Result<Vec<String>> {
    found.or_else(|error| match error {
        Error::SharedGroup { .. } => Ok(vec![error.to_string()]),
        other => Err(other),
    })
}

fn differences(node: &NodeNet, vip: &mut LockedVip) -> Result<Vec<String>> {
    let Some(record) = vip.record.clone() else { return Ok(Vec::new()) };
    let want = want_of(node, &record, vip)?;
    let seen = see(node, vip, &want, (None, Failures::End))?;
    let gone = gone(node, seen.group.as_ref(), vip.replicas()?)?;
    let have = read(node, &want, seen)?;
    let mut findings: Vec<String> = plan::difference(&have, &want).iter().map(Op::finding).collect();
    let owners = Owner::all(&record, vip, &gone)?;
    if owners.is_empty() && record.flow_owner.is_some() {
        findings.push("the flow owner isn't loaded".to_owned());
    }
    for owner in owners {
        let (before, after) = owner.difference()?;
        findings.extend(owner.findings(before.iter().chain(&after)));
    }
    Ok(findings)
}

fn differences_for(node: &NodeNet, vip: &mut LockedVip, attachment: &str) -> Result<Vec<String>> {
    let Some(record) = vip.record.clone() else { return Ok(Vec::new()) };
    let Some(replica) = vip.replicas()?.get(attachment).cloned() else { return Ok(Vec::new()) };
    let mtu = routes_mtu(node, vip.cluster())?;
    let want = Want { mtu, ..want(&record, false, vip.replicas()?) };
    let seen = see(node, vip, &want, (None, Failures::End))?;
    let have = read(node, &want, seen)?;
    let Some(id) = member_id(&replica) else { return Ok(Vec::new()) };
    let mut findings: Vec<String> = plan::difference_for(have, want, id).iter().map(Op::finding).collect();
    if let Some(host_veth) = replica.host_veth() {
        for owner in Owner::all(&record, vip, &BTreeSet::new())? {
            findings.extend(owner.finding_for(host_veth)?);
        }
    }
    Ok(findings)
}

/// The flow owner knows a joining replica before the group can choose it, and a leaving one until the group no longer can.
fn apply_plan(node: &NodeNet, want: &Want, seen: Seen<'_>, mut owners: Vec<Owner>) -> Result<Vec<String>> {
    let (mut found, mut later) = (Vec::new(), Vec::with_capacity(owners.len()));
    for owner in &mut owners {
        let (before, after) = owner.difference()?;
        found.extend(owner.findings(before.iter().chain(&after)));
        if before.iter().chain(&after).any(owner::Op::moves_flows) {
            owner.open_syn_search()?;
        }
        owner.apply(before)?;
        later.push(after);
    }
    found.extend(apply_tables(node, want, seen, &mut owners)?);
    for (owner, after) in owners.iter_mut().zip(later) {
        owner.apply(after)?;
    }
    Ok(found)
}

/// `seen` is a moment old: what has changed since makes a step fail, and then everything is read anew.
fn apply_tables(node: &NodeNet, want: &Want, mut seen: Seen<'_>, owners: &mut [Owner]) -> Result<Vec<String>> {
    let (mut tries, mode) = (1, seen.mode);
    loop {
        let ops = plan::difference(&read(node, want, seen)?, want);
        if ops.iter().any(Op::moves_buckets) {
            owners.iter_mut().try_for_each(Owner::open_syn_search)?;
        }
        // One by one: a step counts on those before it, and the kernel would go on behind a refused one.
        match ops.iter().try_for_each(|op| node.apply(&[op.request()])) {
            Ok(()) => return Ok(ops.iter().map(Op::finding).collect()),
            Err(e) if tries == TRIES => return Ok(give_up(node, want, e, mode)?),
            Err(_) => {
                tries += 1;
                seen = anew(node, want, mode)?;
            }
        }
    }
}

/// After a step that can't be taken: takes what other steps it can, and withdraws the VIP where no route carries its
/// packets. Fails by `error`, unless only failures of removals count.
fn give_up(node: &NodeNet, want: &Want, error: net::Error, mode: Mode) -> net::Result<Vec<String>> {
    let read = || read(node, want, anew(node, want, mode)?);
    let failures = mode.failures;
    let mut found = Vec::new();
    let mut failed = (failures == Failures::End).then_some(error);
    if failures == Failures::OfRemovals {
        for op in plan::difference(&read()?, want) {
            match node.apply(&[op.request()]) {
                Ok(()) => found.push(op.finding()),
                Err(error) if op.puts() => tracing::debug!(%error, "left to the next reconciliation of the VIP"),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
    }
    for op in plan::withdrawal(&read()?, want) {
        if let Err(error) = node.apply(&[op.request()]) {
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(found), Err)
}

fn bare_want(record: &VipRecord) -> Want {
    let GroupSpec { buckets, idle_timer, unbalanced_timer } = record.group;
    Want {
        addresses: record.served_addresses().collect(),
        unserved: record.unserved_addresses().collect(),
        previous: record.previous_addresses().collect(),
        source: record.node,
        mtu: None,
        group: ids::group(record.slot),
        resilience: Resilience { buckets, idle_timer, unbalanced_timer },
        present: !record.withdrawn,
        members: Vec::new(),
        inbound: None,
        local: record.policy.local,
    }
}

fn want_of(node: &NodeNet, record: &VipRecord, vip: &mut LockedVip) -> Result<Want> {
    let inbound = vip.cluster().map(|_| ids::local_group(record.slot));
    let mtu = routes_mtu(node, vip.cluster())?;
    Ok(Want { mtu, inbound, ..want(record, vip.is_unused()?, vip.replicas()?) })
}

/// What is too long for the tunnel is not to get there, where its own packets are of IPv6 ([`Underlay::device_mtu`]): the programs send packets
/// by it that the kernel has measured for a replica of this node. So each route of a VIP has the tunnel's MTU, and the kernel cuts, or refuses by
/// ICMP, what is longer, before a program sees it.
fn routes_mtu(node: &NodeNet, cluster: Option<&Cluster>) -> net::Result<Option<u32>> {
    let Some(tunnel) = cluster.map(|cluster| cluster.own.tunnel).filter(IpAddr::is_ipv6) else { return Ok(None) };
    Ok(Underlay::read(node, tunnel)?.map(Underlay::device_mtu))
}

fn want(record: &VipRecord, unused: bool, replicas: &BTreeMap<String, Replica>) -> Want {
    let mut want = bare_want(record);
    want.present &= !unused;
    let has_ipv6 = record.has_ipv6();
    let near = Near::of(record, replicas);
    for replica in replicas.values().filter(|replica| owner::is_ready(replica) && near.has(replica)) {
        let Some(member) = member(replica, has_ipv6) else { continue };
        match want.members.iter_mut().find(|known| known.nexthop.id == member.nexthop.id) {
            // One member is a node with all of its replicas.
            Some(known) if !known.local => known.weight = known.weight.saturating_add(member.weight),
            _ => want.members.push(member),
        }
    }
    want
}

/// What a replica is in its VIP's group. `None`: it would have an id beyond the range. `has_ipv6`: the VIP has an address of it.
fn member(replica: &Replica, has_ipv6: bool) -> Option<WantedMember> {
    let (id, gateway) = match replica.backend {
        Backend::Local => (ids::nexthop(replica.ifindex)?, gateway(replica.addresses.first(), has_ipv6)),
        Backend::Remote(Peer { number, address }) => {
            let of_ipv6 = replica.addresses.iter().find(IpAddr::is_ipv6).filter(|_| has_ipv6);
            (ids::peer_nexthop(number)?, of_ipv6.unwrap_or(address))
        }
    };
    let nexthop = Nexthop { id, gateway, index: replica.ifindex };
    Some(WantedMember { nexthop, weight: replica.weight, local: replica.backend.is_local() })
}

/// What a pod's nexthop leads to: the pod's address, or where it has none of IPv4, or some VIP of its has one of IPv6, its end of the pair.
pub fn gateway(pod: IpAddr, has_ipv6: bool) -> IpAddr {
    if has_ipv6 || pod.is_ipv6() { ids::POD_LINK_LOCAL } else { pod }
}

/// What a nexthop is, beside the one that is wanted. One by the pod's end of the pair, or by another node's end of the tunnel, does for VIPs
/// of both families.
pub fn compare(found: &Nexthop, wanted: &Nexthop) -> HaveNexthop {
    let for_both = match wanted.gateway {
        IpAddr::V4(id) if ids::is_peer(wanted.id) => ids::peer_link_local(NodeId(id)).into(),
        _ if ids::is_peer(wanted.id) => wanted.gateway,
        _ => ids::POD_LINK_LOCAL,
    };
    let is_for_both = Nexthop { gateway: for_both, ..*wanted } == *found;
    if found == wanted || is_for_both {
        HaveNexthop::Right
    } else if (found.id, found.index) == (wanted.id, wanted.index) {
        HaveNexthop::OtherGateway
    } else {
        HaveNexthop::Wrong
    }
}

/// The nexthop by which a replica is in its VIP's group.
pub fn member_id(replica: &Replica) -> Option<u32> {
    Some(member(replica, false)?.nexthop.id)
}

/// Host veths that are missing: their pods are gone, and a DEL is yet to come. The kernel may have given their namespaces'
/// ids to others, so the flow owner must not ask by them. A host veth whose nexthop is in the group exists.
fn gone(node: &NodeNet, group: Option<&Object>, replicas: &BTreeMap<String, Replica>) -> net::Result<BTreeSet<u32>> {
    let in_group = members_of(group);
    let mut gone = BTreeSet::new();
    for index in replicas.values().filter_map(Replica::host_veth) {
        let is_member = ids::nexthop(index).is_some_and(|id| in_group.contains(&id));
        if !is_member && link::by_index(node, index)?.is_none() {
            gone.insert(index);
        }
    }
    Ok(gone)
}

fn members_of(group: Option<&Object>) -> BTreeSet<u32> {
    match group {
        Some(Object::Group(group)) => group.members.iter().map(|m| m.id).collect(),
        _ => BTreeSet::new(),
    }
}

/// All our objects in the node's tables, read once for a pass over 1,000 VIPs, each of which would read all of them.
#[derive(Debug)]
pub struct Tables {
    routes: HashMap<IpAddr, Routes>,
    objects: HashMap<u32, Object>,
    inbound: HashMap<IpAddr, TableRoute>,
    cluster: Option<Cluster>,
    /// What routes of VIPs have.
    mtu: Option<u32>,
}

impl Tables {
    /// Reads them.
    pub fn read(node: &NodeNet, registry: &Registry) -> net::Result<Self> {
        let mut routes: HashMap<IpAddr, Routes> = HashMap::new();
        for family in Family::ALL {
            let filter = Filter { family, table: Some(route::MAIN), protocol: Some(PROTOCOL), prefix: None };
            for route in route::list(node, filter)?.iter().filter(|route| route::is_host(route.prefix)) {
                sort_in(routes.entry(route.prefix.ip()).or_default(), route);
            }
        }
        let objects = nexthop::list(node)?.into_iter().map(|object| (object.id(), object)).collect();
        let cluster = nodes::or_alone(nodes::load_others(registry));
        let mut inbound = HashMap::new();
        if cluster.is_some() {
            inbound.extend(list_inbound(node, None)?.into_iter().map(|route| (route.prefix.ip(), route)));
        }
        let mtu = routes_mtu(node, cluster.as_ref())?;
        Ok(Self { routes, objects, inbound, cluster, mtu })
    }

    /// Whether the kernel has what a VIP with these replicas must have. Without the VIP's lock, so "no" may be wrong by now.
    pub fn have(&self, record: &VipRecord, replicas: &BTreeMap<String, Replica>) -> bool {
        let inbound = self.cluster.as_ref().map(|_| ids::local_group(record.slot));
        let want = Want { inbound, mtu: self.mtu, ..want(record, replicas.is_empty(), replicas) };
        let state = |wanted: &Nexthop| match self.objects.get(&wanted.id) {
            Some(Object::Single(found)) => compare(found, wanted),
            Some(_) => HaveNexthop::Wrong,
            None => HaveNexthop::Missing,
        };
        let nexthops = want.members.iter().map(|member| (member.nexthop.id, state(&member.nexthop))).collect();
        let group = self.objects.get(&want.group).cloned();
        let all = want.all_addresses();
        let routes = all.map(|address| (address, self.routes(address))).collect();
        let inbound = inbound.and_then(|id| self.objects.get(&id).cloned());
        let leads_in = |address| Some((address, *self.inbound.get(&address)?));
        let inbound_routes = want.all_addresses().filter_map(leads_in).collect();
        plan::difference(&Have { group, nexthops, routes, inbound, inbound_routes }, &want).is_empty()
    }

    fn routes(&self, address: IpAddr) -> Routes {
        self.routes.get(&address).cloned().unwrap_or_default()
    }
}

fn read(node: &NodeNet, want: &Want, Seen { group, tables, .. }: Seen<'_>) -> net::Result<Have> {
    let routes = |address| tables.map_or_else(|| read_routes(node, address), |tables| Ok(tables.routes(address)));
    let all = want.all_addresses();
    let routes = all.map(|address| Ok((address, routes(address)?))).collect::<net::Result<_>>()?;
    let mut have = Have { nexthops: read_nexthops(node, want, group.as_ref())?, group, routes, ..Have::default() };
    if let Some(id) = want.inbound {
        have.inbound = nexthop::get(node, id)?;
        for address in want.all_addresses() {
            have.inbound_routes.extend(read_inbound(node, address)?.map(|route| (address, route)));
        }
    }
    Ok(have)
}

fn read_inbound(node: &NodeNet, address: IpAddr) -> net::Result<Option<TableRoute>> {
    Ok(if address.is_ipv4() { list_inbound(node, Some(address))?.into_iter().next() } else { None })
}

/// The routes for what other nodes send, of one address or of all.
fn list_inbound(node: &NodeNet, address: Option<IpAddr>) -> net::Result<Vec<TableRoute>> {
    let (table, protocol) = (Some(route::LOCAL), Some(PROTOCOL));
    let filter = Filter { family: Family::V4, table, protocol, prefix: address.map(route::host) };
    let routes = route::list(node, filter)?;
    let is_inbound = |route: &&Route| route.tos == ids::INWARD_TOS && route::is_host(route.prefix);
    Ok(routes.iter().filter(is_inbound).filter_map(Route::of_ours).collect())
}

/// A nexthop that is in the group exists (the kernel takes a vanishing one out of its groups) and, its id being made of
/// its device's index, is the right one where it may have a gateway of either family; only the others are asked for, and those of other nodes, whose ids say nothing of their gateways. So reading 1,000 replicas is one question.
fn read_nexthops(node: &NodeNet, want: &Want, group: Option<&Object>) -> net::Result<BTreeMap<u32, HaveNexthop>> {
    let in_group = members_of(group);
    let mut nexthops = BTreeMap::new();
    for WantedMember { nexthop: wanted, local, .. } in &want.members {
        let is_right = *local && in_group.contains(&wanted.id) && wanted.gateway.is_ipv4();
        let have = if is_right { HaveNexthop::Right } else { read_nexthop(node, *wanted)? };
        nexthops.insert(wanted.id, have);
    }
    Ok(nexthops)
}

fn read_nexthop(node: &NodeNet, wanted: Nexthop) -> net::Result<HaveNexthop> {
    Ok(match nexthop::find(node, wanted.id)? {
        Some(Found::Ours(Object::Single(found))) => compare(&found, &wanted),
        Some(Found::Ours(_)) => HaveNexthop::Wrong,
        // A device that is down can't carry a nexthop.
        None if link::by_index(node, wanted.index)?.is_some_and(|link| link.up) => HaveNexthop::Missing,
        Some(Found::Foreign) | None => HaveNexthop::Impossible,
    })
}

fn read_routes(node: &NodeNet, address: IpAddr) -> net::Result<Routes> {
    let (family, prefix) = (Family::of(address), Some(route::host(address)));
    let filter = Filter { family, table: Some(route::MAIN), protocol: Some(PROTOCOL), prefix };
    let mut found = Routes::default();
    route::list(node, filter)?.iter().for_each(|route| sort_in(&mut found, route));
    Ok(found)
}

/// A route of protocol 118 in table main is a VIP's data route, or one to advertise; a discard route is no VIP's.
fn sort_in(routes: &mut Routes, route: &Route) {
    match route.kind {
        _ if discard::is_one(route) => {}
        Kind::Unreachable => drop(routes.announced.insert(route.metric)),
        Kind::Nexthop { id, source, cwnd, mtu } => {
            routes.data = Some(DataRoute { nexthop: Some(id), source, cwnd, mtu });
        }
        Kind::Via(_) | Kind::Throw | Kind::Local(_) | Kind::Other => {
            routes.data = Some(DataRoute { nexthop: None, source: None, cwnd: None, mtu: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn replica(fields: &Value) -> Replica {
        let mut all = json!({ "addresses": ["10.1.1.2"], "ifindex": 7, "state": "ready", "weight": 1, "netns_id": 3 });
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn remote(number: u32, weight: u8) -> Replica {
        let peer = json!({ "remote": { "number": number, "address": "10.0.0.12" } });
        replica(&json!({ "backend": peer, "ifindex": 9, "weight": weight, "netns_id": null }))
    }

    fn record() -> VipRecord {
        let group = json!({ "buckets": 1024, "idleTimer": 1, "unbalancedTimer": 10 });
        let record =
            json!({ "key": "a/b", "addresses": ["10.118.0.7"], "slot": 1, "node": "192.0.2.1", "group": group });
        serde_json::from_value(record).unwrap()
    }

    fn wanted(replicas: Vec<Replica>) -> Vec<WantedMember> {
        let replicas = replicas.into_iter().enumerate().map(|(n, replica)| (format!("c{n}@eth0"), replica));
        want(&record(), false, &replicas.collect()).members
    }

    #[test]
    fn members_are_made_of_records_of_either_kind() {
        let draining = replica(&json!({ "state": "draining", "ifindex": 8 }));
        let local = Nexthop { id: 0x7600_0007, gateway: [10, 1, 1, 2].into(), index: 7 };
        let peer = Nexthop { id: 0x7800_0003, gateway: [10, 0, 0, 12].into(), index: 9 };
        let expected = [
            WantedMember { nexthop: local, weight: 1, local: true },
            WantedMember { nexthop: peer, weight: 4, local: false },
        ];
        assert_eq!(wanted(vec![replica(&json!({})), remote(3, 4), draining]), expected);
    }

    #[test]
    fn a_node_is_one_member_however_many_records_are_of_it() {
        let members = wanted(vec![remote(3, 200), remote(3, 100), remote(4, 1)]);
        let weights: Vec<_> = members.iter().map(|member| (member.nexthop.id, member.weight)).collect();
        assert_eq!(weights, [(0x7800_0003, 255), (0x7800_0004, 1)]);
        assert_eq!(wanted(vec![remote(1 << 24, 1)]), [], "a number beyond the range");
    }

    #[test]
    fn another_node_is_reached_for_both_families_where_it_serves_both() {
        let mut serves = remote(3, 4);
        let far = ids::peer_link_local(NodeId([10, 0, 0, 12].into()));
        serves.addresses.replace(far.into());
        let gateway = |replica: &Replica, has_ipv6| member(replica, has_ipv6).unwrap().nexthop.gateway;
        let v4 = IpAddr::from([10, 0, 0, 12]);
        assert_eq!((gateway(&serves, true), gateway(&serves, false)), (far.into(), v4));
        assert_eq!(gateway(&remote(3, 4), true), v4);
        let nexthop = |gateway| Nexthop { id: 0x7800_0003, gateway, index: 9 };
        let compared = |found, wanted| compare(&nexthop(found), &nexthop(wanted));
        assert_eq!(compared(far.into(), v4), HaveNexthop::Right);
        assert_eq!(compared(v4, far.into()), HaveNexthop::OtherGateway);
        assert_eq!(compared(ids::POD_LINK_LOCAL, v4), HaveNexthop::OtherGateway);
        assert!(serves.serves(Family::V6) && !remote(3, 4).serves(Family::V6));
    }

    #[test]
    fn the_flow_owner_knows_this_nodes_replicas_alone() {
        let replicas = [replica(&json!({ "mac": "06:76:00:00:00:01" })), remote(3, 4)];
        let replicas = replicas.into_iter().enumerate().map(|(n, replica)| (n.to_string(), replica)).collect();
        for family in Family::ALL {
            let want = owner::Want::of(&record(), family, &replicas, None);
            assert_eq!(want.attached.into_keys().collect::<Vec<_>>(), [7]);
        }
    }
}
