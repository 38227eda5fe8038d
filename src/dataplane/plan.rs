//! What the node's tables must have for one VIP, what they have, and the difference. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::Family;
use crate::net::Request;
use crate::net::nexthop::{self, Group, GroupMember, Nexthop, Object, Resilience};
use crate::net::route::{self, Action, NexthopRoute, TableRoute};

use super::ids::INWARD_TOS;

/// The metric of the advertised route while no replica is ready: any other route to the VIP is better.
pub const NOBODY_READY: u32 = u32::MAX;

/// The metric of the advertised route for so many ready replicas: above the data route's. ([`NOBODY_READY`] stays.)
pub fn advertised_metric(address: IpAddr, ready: u32) -> u32 {
    ready.saturating_add(route::lowest_metric(Family::of(address)))
}

/// What a VIP must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Addresses of its that aren't served.
    pub unserved: Vec<IpAddr>,
    /// Previous addresses that are still delivered, by routes that routing daemons don't advertise.
    pub previous: Vec<IpAddr>,
    /// `src` of its routes.
    pub source: IpAddr,
    /// `mtu` of its routes; none: that of the devices.
    pub mtu: Option<u32>,
    /// Its group's id.
    pub group: u32,
    /// Its group's parameters.
    pub resilience: Resilience,
    /// Whether the node may speak of the addresses at all: it has endpoints, and the addresses are ours.
    pub present: bool,
    /// The replicas that get connections, each nexthop once.
    pub members: Vec<WantedMember>,
    /// Where other nodes may send packets of it: the id of the group of this node's replicas alone.
    pub inbound: Option<u32>,
    /// It isn't to be spoken of, even as one that nobody has ready, while no replica here is.
    pub local: bool,
}

impl Want {
    /// All addresses that it has, or had, whether they are served or not.
    pub fn all_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().chain(&self.unserved).chain(&self.previous).copied()
    }

    /// What is advertised while no replica here is ready; `None`: nothing.
    fn nobody_ready(&self) -> Option<u32> {
        (self.present && !self.local).then_some(NOBODY_READY)
    }
}

/// How many buckets the group of this node's replicas alone has. A prime, and another number than any VIP's group has: where
/// two nodes hash alike, the second choice would otherwise be the first one again.
pub const INBOUND_BUCKETS: u16 = 1021;

/// What gets connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedMember {
    /// A replica here, by its veth pair, or another node with its replicas, by the tunnel.
    pub nexthop: Nexthop,
    /// Its share.
    pub weight: u8,
    /// It is a replica of this node's: what is advertised are those alone.
    pub local: bool,
}

/// What the kernel has of a VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// The object that has the group's id.
    pub group: Option<Object>,
    /// What is known of wanted members' nexthops.
    pub nexthops: BTreeMap<u32, HaveNexthop>,
    /// The routes of its addresses, and of those it had.
    pub routes: BTreeMap<IpAddr, Routes>,
    /// The object that has the id of the group for what other nodes send.
    pub inbound: Option<Object>,
    /// The routes that lead there; one without a nexthop isn't as we make it.
    pub inbound_routes: BTreeMap<IpAddr, TableRoute>,
}

impl Have {
    fn data(&self, address: IpAddr) -> Option<DataRoute> {
        self.routes.get(&address)?.data
    }

    fn announced(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        self.routes.get(&address).into_iter().flat_map(|routes| routes.announced.iter().copied())
    }
}

/// The routes of one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// The data route.
    pub data: Option<DataRoute>,
    /// The metrics of the routes that routing daemons advertise.
    pub announced: BTreeSet<u32>,
}

/// The state of one wanted nexthop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HaveNexthop {
    /// It is there and right.
    Right,
    /// It leads to the same device by another gateway.
    OtherGateway,
    /// An object of ours has its id and differs.
    Wrong,
    /// It is missing; its device is there.
    Missing,
    /// It can't exist: its device is missing (with its pod, or deleted by another program), or a foreign nexthop has its id.
    Impossible,
}

/// The route that carries a VIP's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRoute {
    /// `nhid`; `None`: it has none, so it isn't as we make it.
    pub nexthop: Option<u32>,
    /// `src`.
    pub source: Option<IpAddr>,
    /// `cwnd`.
    pub cwnd: Option<u32>,
    /// `mtu`.
    pub mtu: Option<u32>,
}

/// One step from what is to what must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A member's nexthop.
    AddNexthop(Nexthop),
    /// A member's nexthop, changed in place.
    ReplaceNexthop(Nexthop),
    /// A nexthop or group that must not be, or not like this.
    DelNexthop(u32),
    /// The VIP's group, new.
    AddGroup(Group),
    /// The VIP's group, changed in place.
    ReplaceGroup(Group),
    /// The data route, new. A foreign route in its place stays, and is reported.
    AddRoute(NexthopRoute),
    /// The data route, changed in place.
    ReplaceRoute(NexthopRoute),
    /// The data route, gone.
    DelRoute(IpAddr),
    /// A route for what other nodes send.
    AddInbound(TableRoute),
    /// The same, changed in place.
    ReplaceInbound(TableRoute),
    /// The same, gone.
    DelInbound(TableRoute),
    /// The advertised route with this metric.
    Announce(IpAddr, u32),
    /// The advertised route with this metric, gone.
    Unannounce(IpAddr, u32),
}

/// The steps, in an order in which every moment between them is sound: members before the group, the group before its
/// routes; the routes go before their group does, because the kernel drops a route whose group vanishes without telling
/// routing daemons; a new advertised route exists before the old one goes.
pub fn difference(have: &Have, want: &Want) -> Vec<Op> {
    let mut ops = Vec::new();
    withhold(have, want, &mut ops);
    let ready = add_members(have, want, &mut ops);
    if ready.members.is_empty() || !want.present {
        del_routes(have, want, &mut ops);
        for address in &want.addresses {
            announce(have, *address, want.nobody_ready(), &mut ops);
        }
        withdraw_previous(have, want, &mut ops);
        ops.extend(have.group.as_ref().map(|group| Op::DelNexthop(group.id())));
        put_inbound(have, want, false, &mut ops);
        return ops;
    }
    let groups = Groups::new(want, &ready);
    let cwnd = (ready.local > 0).then_some(ready.local); // what another node's replicas have ready, that node advertises
    let is_served = |address: &IpAddr| !want.unserved.contains(address);
    let mut routes: BTreeMap<IpAddr, DataRoute> = have
        .routes
        .iter()
        .filter(|(address, _)| is_served(address))
        .filter_map(|(address, routes)| Some((*address, routes.data?)))
        .collect();
    if let Some(id) = want.inbound.filter(|_| !ready.own.is_empty()) {
        let resilience = Resilience { buckets: INBOUND_BUCKETS, ..want.resilience };
        put_group(have.inbound.as_ref(), Group { id, members: ready.own, resilience }, &mut routes, &mut ops);
    }
    let wanted = |address: &IpAddr, cwnd| groups.route(want, *address, cwnd);
    // A group of which a route of IPv6 is can't get a member that leads to a gateway of IPv4: it leaves the group before.
    for address in want.addresses.iter().filter(|address| !groups.is_main(**address)) {
        put_route(*address, wanted(address, cwnd), &mut routes, &mut ops);
    }
    for address in want.previous.iter().filter(|address| !groups.is_main(**address)) {
        put_route(*address, wanted(address, None), &mut routes, &mut ops);
    }
    let group = Group { id: want.group, members: ready.members, resilience: want.resilience };
    put_group(have.group.as_ref(), group, &mut routes, &mut ops);
    for address in &want.addresses {
        put_route(*address, wanted(address, cwnd), &mut routes, &mut ops);
        let ready = cwnd.filter(|_| groups.of(*address).is_some());
        announce(have, *address, ready.or(want.nobody_ready()), &mut ops);
    }
    withdraw_previous(have, want, &mut ops);
    for address in &want.previous {
        put_route(*address, wanted(address, None), &mut routes, &mut ops);
    }
    put_inbound(have, want, cwnd.is_some(), &mut ops);
    ops
}

/// The groups to which a VIP's routes lead.
struct Groups {
    main: u32,
    of_ipv6: Option<u32>,
}

impl Groups {
    /// A route of IPv6 can't lead to a gateway of IPv4; the reverse is fine (`nexthop_check_group`). While some node doesn't serve the VIP by
    /// IPv6 the replicas here alone do.
    fn new(want: &Want, ready: &Ready) -> Self {
        let own = want.inbound.filter(|_| ready.local > 0 && ready.is_own_v6);
        Self { main: want.group, of_ipv6: if ready.is_v6 { Some(want.group) } else { own } }
    }

    /// The one for an address; `None`: nothing serves it.
    fn of(&self, address: IpAddr) -> Option<u32> {
        if address.is_ipv4() { Some(self.main) } else { self.of_ipv6 }
    }

    fn is_main(&self, address: IpAddr) -> bool {
        self.of(address) == Some(self.main)
    }

    fn route(&self, want: &Want, address: IpAddr, cwnd: Option<u32>) -> Option<NexthopRoute> {
        Some(NexthopRoute { address, nexthop: self.of(address)?, source: want.source, cwnd, mtu: want.mtu })
    }
}

/// Addresses that aren't served have no routes.
fn withhold(have: &Have, want: &Want, ops: &mut Vec<Op>) {
    for address in &want.unserved {
        ops.extend(have.data(*address).map(|_| Op::DelRoute(*address)));
        announce(have, *address, None, ops);
        ops.extend(have.inbound_routes.get(address).map(|route| Op::DelInbound(*route)));
    }
}

/// What other nodes send is for the replicas here alone, by a group and routes of their own. Of a VIP that has none of them nothing comes
/// that way: the tunnel's program sends it back (`v->ready` in nodes.h). That of IPv6 never comes to the stack, whose routes know no TOS
/// (`to_group` in inward.h). `is_wanted`: some of them are ready.
fn put_inbound(have: &Have, want: &Want, is_wanted: bool, ops: &mut Vec<Op>) {
    let Some(id) = want.inbound else { return };
    for address in want.addresses.iter().chain(&want.previous).filter(|address| address.is_ipv4()) {
        let action = Action::Nexthop { id, source: want.source };
        let route = TableRoute { table: route::LOCAL, prefix: route::host(*address), tos: INWARD_TOS, action };
        match have.inbound_routes.get(address) {
            Some(found) if !is_wanted => ops.push(Op::DelInbound(*found)),
            None if is_wanted => ops.push(Op::AddInbound(route)),
            Some(found) if *found != route => ops.push(Op::ReplaceInbound(route)),
            Some(_) | None => {}
        }
    }
    ops.extend(have.inbound.as_ref().filter(|_| !is_wanted).map(|group| Op::DelNexthop(group.id())));
}

/// The steps while the data route can't be put: advertise that no replica is ready, except where a route still carries
/// packets.
pub fn withdrawal(have: &Have, want: &Want) -> Vec<Op> {
    let mut ops = Vec::new();
    let is_own = |id| id == want.group || Some(id) == want.inbound;
    let carries = |address| have.data(address).and_then(|data| data.nexthop).is_some_and(is_own);
    for address in want.addresses.iter().filter(|address| want.present && !carries(**address)) {
        announce(have, *address, want.nobody_ready(), &mut ops);
    }
    ops
}

/// The difference for one replica alone, `id` its nexthop: neither the number nor the state of the VIP's other replicas
/// counts.
pub fn difference_for(mut have: Have, mut want: Want, id: u32) -> Vec<Op> {
    let others = want.members.iter().filter(|member| member.local).count().saturating_sub(1);
    // Which addresses have a route all members decide.
    let is_v6 = want.members.iter().all(|member| member.nexthop.gateway.is_ipv6());
    want.members.retain(|member| member.nexthop.id == id);
    want.addresses.retain(|address| is_v6 || address.is_ipv4());
    want.previous.clear();
    want.unserved.clear();
    want.inbound = None; // CHECK is about the VIP's own group
    have.routes.retain(|address, _| want.addresses.contains(address));
    if let Some(Object::Group(group)) = &mut have.group {
        group.members.retain(|member| member.id == id);
    }
    match (&want.members[..], &have.group) {
        ([], Some(Object::Group(group))) if want.present && !group.members.is_empty() => {
            return vec![Op::ReplaceGroup(group.clone())];
        }
        ([], _) if want.present => return Vec::new(),
        _ => {}
    }
    for (address, routes) in &mut have.routes {
        if let Some(cwnd) = routes.data.as_mut().and_then(|data| data.cwnd.as_mut()) {
            *cwnd = 1;
        }
        if routes.announced.iter().any(|metric| *metric != NOBODY_READY) {
            routes.announced = BTreeSet::from([advertised_metric(*address, 1)]);
        }
    }
    let mut ops = difference(&have, &want);
    for op in &mut ops {
        if let Op::Announce(_, metric) = op {
            *metric = metric.saturating_add(u32::try_from(others).unwrap_or_default());
        }
    }
    ops
}

/// The route to one of the VIP's addresses; `None`: there is to be none. Without `cwnd` routing daemons leave it alone. `routes`: those that
/// there are after the steps so far.
fn put_route(address: IpAddr, want: Option<NexthopRoute>, routes: &mut BTreeMap<IpAddr, DataRoute>, ops: &mut Vec<Op>) {
    let Some(route) = want else {
        ops.extend(routes.remove(&address).map(|_| Op::DelRoute(address)));
        return;
    };
    let NexthopRoute { nexthop, cwnd, mtu, .. } = route;
    let data = DataRoute { nexthop: Some(nexthop), source: route.preferred(), cwnd, mtu };
    match routes.insert(address, data) {
        None => ops.push(Op::AddRoute(route)),
        Some(have) if have != data => ops.push(Op::ReplaceRoute(route)),
        Some(_) => {}
    }
}

fn del_routes(have: &Have, want: &Want, ops: &mut Vec<Op>) {
    let all = want.addresses.iter().chain(&want.previous);
    ops.extend(all.filter(|address| have.data(**address).is_some()).map(|address| Op::DelRoute(*address)));
}

/// The members that can be in the group.
#[derive(Default)]
struct Ready {
    members: Vec<GroupMember>,
    /// How many of them are replicas of this node's.
    local: u32,
    /// Those.
    own: Vec<GroupMember>,
    /// All of them have gateways of IPv6.
    is_v6: bool,
    /// So have those that are replicas of this node's.
    is_own_v6: bool,
}

/// Adds the steps for the members' nexthops; returns the members that the group can have.
fn add_members(have: &Have, want: &Want, ops: &mut Vec<Op>) -> Ready {
    let members = Vec::with_capacity(want.members.len());
    let mut ready = Ready { members, is_v6: true, is_own_v6: true, ..Ready::default() };
    for WantedMember { nexthop, weight, local } in &want.members {
        match have.nexthops.get(&nexthop.id).copied().unwrap_or(HaveNexthop::Impossible) {
            HaveNexthop::Right => {}
            HaveNexthop::Impossible => continue,
            HaveNexthop::Missing => ops.push(Op::AddNexthop(*nexthop)),
            HaveNexthop::OtherGateway => ops.push(Op::ReplaceNexthop(*nexthop)),
            HaveNexthop::Wrong => ops.extend([Op::DelNexthop(nexthop.id), Op::AddNexthop(*nexthop)]),
        }
        let member = GroupMember { id: nexthop.id, weight: u32::from(*weight) };
        ready.own.extend(local.then_some(member));
        ready.members.push(member);
        ready.local += u32::from(*local);
        ready.is_v6 &= nexthop.gateway.is_ipv6();
        ready.is_own_v6 &= !local || nexthop.gateway.is_ipv6();
    }
    ready.members.sort_unstable();
    ready.own.sort_unstable();
    ready
}

/// Adds the steps for a group. `routes` lead to it, or to another one: those of it go with what has its place and is none.
fn put_group(have: Option<&Object>, mut group: Group, routes: &mut BTreeMap<IpAddr, DataRoute>, ops: &mut Vec<Op>) {
    match have {
        Some(Object::Group(existing)) => {
            group.resilience.buckets = existing.resilience.buckets; // can't be changed while the group lives
            let mut existing = existing.clone();
            existing.members.sort_unstable();
            if existing != group {
                ops.push(Op::ReplaceGroup(group));
            }
        }
        Some(other) => {
            let is_of_it = |data: &DataRoute| data.nexthop.is_none_or(|id| id == group.id);
            ops.extend(routes.iter().filter(|(_, data)| is_of_it(data)).map(|(address, _)| Op::DelRoute(*address)));
            routes.retain(|_, data| !is_of_it(data));
            ops.extend([Op::DelNexthop(other.id()), Op::AddGroup(group)]);
        }
        None => ops.push(Op::AddGroup(group)),
    }
}

/// `ready`: how many replicas are, or [`NOBODY_READY`]; none: the address is not to be advertised.
fn announce(have: &Have, address: IpAddr, ready: Option<u32>, ops: &mut Vec<Op>) {
    let metric = ready.map(|ready| advertised_metric(address, ready));
    let missing = metric.filter(|metric| have.announced(address).all(|announced| announced != *metric));
    ops.extend(missing.map(|metric| Op::Announce(address, metric)));
    let stale = have.announced(address).filter(|announced| Some(*announced) != metric);
    ops.extend(stale.map(|metric| Op::Unannounce(address, metric)));
}

fn withdraw_previous(have: &Have, want: &Want, ops: &mut Vec<Op>) {
    for address in &want.previous {
        announce(have, *address, None, ops);
    }
}

impl Op {
    /// The request that does it.
    pub fn request(&self) -> Request {
        match self {
            Self::AddNexthop(nexthop) => nexthop::add(*nexthop),
            Self::ReplaceNexthop(nexthop) => nexthop::replace(*nexthop),
            Self::DelNexthop(id) => nexthop::del(*id),
            Self::AddGroup(group) => nexthop::add_group(group),
            Self::ReplaceGroup(group) => nexthop::replace_group(group),
            Self::AddRoute(route) => route::add_nexthop(*route),
            Self::ReplaceRoute(route) => route::replace_nexthop(*route),
            Self::DelRoute(address) => route::del_nexthop(*address),
            Self::AddInbound(route) => route::add(*route),
            Self::ReplaceInbound(route) => route::replace(*route),
            Self::DelInbound(route) => route::del(*route),
            Self::Announce(address, metric) => route::add_unreachable(route::host(*address), *metric),
            Self::Unannounce(address, metric) => route::del_unreachable(route::host(*address), *metric),
        }
    }

    /// Whether something comes to be by it that wasn't there, or not like this. A member that leaves a group does so by the
    /// group's replacement.
    pub fn puts(&self) -> bool {
        match self {
            Self::AddNexthop(_)
            | Self::ReplaceNexthop(_)
            | Self::AddGroup(_)
            | Self::AddRoute(_)
            | Self::ReplaceRoute(_)
            | Self::AddInbound(_)
            | Self::ReplaceInbound(_)
            | Self::Announce(..) => true,
            Self::ReplaceGroup(_)
            | Self::DelNexthop(_)
            | Self::DelRoute(_)
            | Self::DelInbound(_)
            | Self::Unannounce(..) => false,
        }
    }

    /// Whether flows may come to other members by it.
    pub fn moves_buckets(&self) -> bool {
        matches!(self, Self::AddGroup(_) | Self::ReplaceGroup(_))
    }

    /// What is amiss where this step is needed, in a word for CHECK.
    pub fn finding(&self) -> String {
        match self {
            Self::AddNexthop(n) => format!("nexthop {} via {} is missing", n.id, n.gateway),
            Self::ReplaceNexthop(n) => format!("nexthop {} has another gateway than {}", n.id, n.gateway),
            Self::DelNexthop(id) => format!("nexthop {id} doesn't match the registry"),
            Self::AddGroup(group) => format!("nexthop group {} is missing", group.id),
            Self::ReplaceGroup(group) => format!("nexthop group {} doesn't match the registry", group.id),
            Self::AddRoute(route) => format!("route {} nhid {} is missing", route::host(route.address), route.nexthop),
            Self::ReplaceRoute(route) => {
                format!("route {} nhid {} doesn't match the registry", route::host(route.address), route.nexthop)
            }
            Self::AddInbound(route) => format!("route {route} is missing"),
            Self::ReplaceInbound(route) => format!("route {route} doesn't match the registry"),
            Self::DelInbound(route) => format!("route {route} should not be there"),
            Self::DelRoute(address) => format!("route {} should not be there", route::host(*address)),
            Self::Announce(address, metric) => {
                format!("route unreachable {} metric {metric} is missing", route::host(*address))
            }
            Self::Unannounce(address, metric) => {
                format!("route unreachable {} metric {metric} should not be there", route::host(*address))
            }
        }
    }
}

#[cfg(test)]
mod tests;
