//! The tunnel to the other nodes: its device with the programs, a neighbour and a nexthop for each node, which all VIPs' groups
//! share, and the programs' maps of nodes.
//!
//! ```text
//! viptun0: mtu 1500 … link/ether 02:76:c0:00:02:01, vxlan external dstport 8118, 169.254.118.1/32
//! 192.0.2.2 dev viptun0 lladdr 02:76:c0:00:02:02 PERMANENT proto 118
//! fe80::76:c000:202 dev viptun0 lladdr 02:76:c0:00:02:02 PERMANENT proto 118
//! nexthop id 2013265921 via 192.0.2.2 dev viptun0 onlink proto 118
//! ```
//!
//! A nexthop leads to a node's second address ([`ids::peer_link_local`]) as soon as some VIP has an address of IPv6: packets of both families
//! take that one.
//!
//! The device comes up last: nothing passes it before its programs are there. What they let in is for this node's own replicas alone:
//! the TOS that they give it is that of routes of the VIPs' own ([`ids::INWARD_TOS`]). No rule says so, since with the first rule of a
//! network namespace Linux asks its tables one by one, for each packet that the node forwards and for its source too, until the next
//! boot (`fib_has_custom_rules`). Earlier builds had one. It goes once it has no use any more ([`Former`]).
//!
//! The kernel tells of each change to these objects, but not of the programs and their maps: those are read again and again
//! ([`recheck`]), all else when something is heard of it.

mod former;
mod op;
mod underlay;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use crate::dataplane::attachment::{self, RP_FILTER_LOOSE, side};
use crate::dataplane::ids::{self, HOST_ADDRESS, TUNNEL_DEVICE, TUNNEL_PORT};
use crate::dataplane::plan::HaveNexthop;
use crate::dataplane::{Result, compare, owner};
use crate::ebpf::{self, Here, Hook, Nodes, Parts, Programs};
use crate::model::node::NodeId;
use crate::model::{Cluster, Family, Mac};
use crate::net::link::{self, Link};
use crate::net::neighbour::{self, Neighbour};
use crate::net::nexthop::{self, Nexthop, Object};
use crate::net::{self, NodeNet, address, filter};

pub use former::Former;
pub use op::Op;
use underlay::LEAST_MTU_OF_IPV6;
pub use underlay::{Underlay, advmss};

/// A device that isn't as it must be is made anew at most so often in one call.
const ROUNDS: u32 = 4;

/// What is wrong where the programs' maps are.
const OTHER_NODES: &str = "the programs knew other nodes";

/// What must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// This node.
    pub own: NodeId,
    /// The device's ([`Underlay::device_mtu`]), bytes.
    pub mtu: u32,
    /// The other nodes, by number.
    pub nodes: BTreeMap<u32, NodeId>,
    /// The programs' ids, by hook. Without all of them the device stays down.
    pub programs: BTreeMap<Hook, u32>,
    /// They are this build's: those of earlier ones need the rule.
    pub current: bool,
}

/// What is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// The device.
    pub link: Option<Link>,
    /// It has the host veths' address.
    pub has_address: bool,
    /// The neighbours on it that are permanent.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// The nexthops to other nodes.
    pub nexthops: BTreeMap<u32, Nexthop>,
    /// What is to go once the programs and the VIPs' routes are there.
    pub former: Former,
    /// The programs on it, by hook.
    pub programs: BTreeMap<Hook, u32>,
    /// Settings of IPv6 that differ.
    pub wrong: attachment::Wrong,
}

impl Have {
    /// Reads it.
    pub fn read(node: &NodeNet) -> net::Result<Self> {
        let link = link::by_name(node, TUNNEL_DEVICE)?;
        let mut have = Self { former: Former::read(node)?, ..Self::default() };
        let peers = nexthop::list(node)?.into_iter().filter_map(|object| match object {
            Object::Single(nexthop) if ids::is_peer(nexthop.id) => Some((nexthop.id, nexthop)),
            _ => None,
        });
        have.nexthops = peers.collect();
        let Some(link) = link else { return Ok(have) };
        let index = link.index;
        have.has_address = address::list(node, Family::V4, Some(index))?.iter().any(|a| a.address == HOST_ADDRESS);
        let permanent = |n: Neighbour| Some((n.address, n.mac.filter(|_| n.permanent)?));
        for family in Family::ALL.into_iter().filter(|family| *family == Family::V4 || link.ipv6) {
            have.neighbours.extend(neighbour::list(node, family, index)?.into_iter().filter_map(permanent));
        }
        if carries_ipv6(&link) {
            have.wrong = attachment::of_host(TUNNEL_DEVICE);
        }
        for hook in Hook::TUNNEL.into_iter().chain(Hook::TUNNEL_IPV6) {
            have.programs.extend(filter::program(node, index, side(hook))?.map(|id| (hook, id)));
        }
        have.link = Some(link);
        Ok(have)
    }

    /// Nothing of it is there.
    fn is_nothing(&self) -> bool {
        self.link.as_ref().is_none_or(|link| !is_ours(link)) && self.former.is_nothing()
    }
}

/// Whether the kernel has IPv6 on the device.
fn carries_ipv6(link: &Link) -> bool {
    link.ipv6 && link.mtu >= LEAST_MTU_OF_IPV6
}

/// The tunnel's device, as far as other nodes' replicas are reached by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Programs for packets of IPv6 are on it, and it takes such.
    pub carries_ipv6: bool,
}

impl Device {
    /// Reads it; none: it isn't there.
    pub fn read(node: &NodeNet) -> net::Result<Option<Self>> {
        let Some(link) = link::by_name(node, TUNNEL_DEVICE)? else { return Ok(None) };
        let mut carries = link.up && carries_ipv6(&link);
        for hook in Hook::TUNNEL_IPV6 {
            carries = carries && filter::program(node, link.index, side(hook))?.is_some();
        }
        Ok(Some(Self { index: link.index, carries_ipv6: carries }))
    }
}

/// Whether a device of that name may be changed or removed.
fn is_ours(link: &Link) -> bool {
    link.external_vxlan == Some(TUNNEL_PORT) && link.mac.is_some_and(|mac| mac.0.starts_with(&[0x02, 0x76]))
}

/// The steps that can be taken now; where the device is to be made, others come once it is there.
pub fn difference(have: &Have, want: &Want) -> Vec<Op> {
    let Some(link) = &have.link else { return vec![Op::AddLink(want.own, want.mtu)] };
    let index = link.index;
    if link.mac != Some(want.own.mac()) || link.external_vxlan != Some(TUNNEL_PORT) {
        // Another's is left alone: adding ours then says that the name is taken.
        return vec![if is_ours(link) { Op::DelLink(index) } else { Op::AddLink(want.own, want.mtu) }];
    }
    let mut ops = Vec::new();
    ops.extend((link.mtu != want.mtu).then_some(Op::SetMtu(index, want.mtu)));
    let is_configured = link.settings.rp_filter == RP_FILTER_LOOSE && link.settings.forwarding == 1;
    let has_all = Hook::TUNNEL.iter().all(|hook| want.programs.contains_key(hook));
    // A device that is down shows no IPv6 address that it would take.
    let goes_up = has_all && !link.up;
    ops.extend((!is_configured || goes_up).then_some(Op::Configure(index)));
    ops.extend((!have.wrong.is_empty()).then(|| Op::Settle(have.wrong.clone())));
    ops.extend((!have.has_address).then_some(Op::AddAddress(index)));
    let is_attached = |hook: &Hook| want.programs.get(hook).is_none_or(|id| have.programs.get(hook) == Some(id));
    let hooks = Hook::TUNNEL.into_iter().chain(Hook::TUNNEL_IPV6);
    ops.extend(hooks.filter(|hook| !is_attached(hook)).map(|hook| Op::Attach(index, hook)));
    if has_all {
        ops.extend(goes_up.then_some(Op::Up(index)));
        nodes(have, want, index, &mut ops);
    }
    if want.current && have.former.needed_by.is_empty() {
        ops.extend(have.former.removal());
    }
    ops
}

fn nodes(have: &Have, want: &Want, index: u32, ops: &mut Vec<Op>) {
    let mut wanted = BTreeMap::new();
    let has_ipv6 = have.link.as_ref().is_some_and(carries_ipv6);
    for (number, id) in &want.nodes {
        let gateway = IpAddr::V4(id.0);
        let of_ipv6 = has_ipv6.then(|| IpAddr::V6(ids::peer_link_local(*id)));
        let addresses = [gateway].into_iter().chain(of_ipv6);
        let missing = addresses.filter(|address| have.neighbours.get(address) != Some(&id.mac()));
        ops.extend(missing.map(|address| Op::SetNeighbour(index, address, *id)));
        wanted.extend(ids::peer_nexthop(*number).map(|id| (id, Nexthop { id, gateway, index })));
    }
    for (id, nexthop) in &wanted {
        match have.nexthops.get(id) {
            // The one for both families would do, if the device could carry it.
            Some(found) if found == nexthop || (has_ipv6 && compare(found, nexthop) == HaveNexthop::Right) => {}
            Some(_) => ops.extend([Op::DelNexthop(*id), Op::AddNexthop(*nexthop)]),
            None => ops.push(Op::AddNexthop(*nexthop)),
        }
    }
    let orphans = have.nexthops.values().filter(|found| found.index == index && !wanted.contains_key(&found.id));
    ops.extend(orphans.map(|found| Op::DelNexthop(found.id)));
}

/// The steps that remove all of it.
pub fn removal(have: &Have) -> Vec<Op> {
    let mut ops = Vec::new();
    if let Some(link) = have.link.as_ref().filter(|link| is_ours(link)) {
        let of_it = have.nexthops.values().filter(|nexthop| nexthop.index == link.index);
        ops.extend(of_it.map(|nexthop| Op::DelNexthop(nexthop.id)));
        ops.push(Op::DelLink(link.index));
    }
    ops.extend(have.former.removal());
    ops
}

/// Why there can be no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its outer packets would have no source.
    #[error("tunnel address {0}: expected an address of this node's, found none on any of its links")]
    NoSuchAddress(IpAddr),
    /// The programs without BTF have no part for it.
    #[error(
        "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF), which the programs of the tunnel need: this node stands alone"
    )]
    NoBtf,
}

/// What came of [`reconcile`].
#[derive(Debug, Default)]
pub struct Reconciled {
    /// A sentence for each step taken.
    pub repairs: Vec<String>,
    /// Why it is not complete.
    pub lacks: Option<Error>,
    /// What it has come to be; none: steps are left.
    pub settled: Option<Settled>,
}

/// A tunnel that is as it must be, as far as it can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The device's index.
    pub device: u32,
    /// That of the device under it, whose MTU it has.
    pub underlay: u32,
    /// The ids of its programs.
    pub programs: BTreeMap<Hook, u32>,
}

/// Makes the tunnel as it must be. `dir`: where the flow owner's programs are pinned; none: no VIP of the node has any, and
/// the device waits for them.
pub fn reconcile(node: &NodeNet, cluster: &Cluster, dir: Option<&Path>) -> Result<Reconciled> {
    let mut done = Reconciled::default();
    let Some(underlay) = Underlay::read(node, cluster.own.tunnel)? else {
        done.lacks = Some(Error::NoSuchAddress(cluster.own.tunnel));
        return Ok(done);
    };
    let programs = dir.map(owner::of_tunnel).transpose()?.flatten();
    let of_tunnel = of_tunnel(programs.as_ref());
    if programs.is_some() && of_tunnel.is_empty() {
        done.lacks = Some(Error::NoBtf);
    }
    let nodes = cluster.nodes.iter().map(|node| (node.number, node.id)).collect();
    let is_ours = |dir| Ok::<_, ebpf::Error>(Programs::open(dir, Parts::default())?.is_some());
    let current = dir.map_or(Ok(true), is_ours)?;
    let want = Want { own: cluster.own.id, mtu: underlay.device_mtu(), nodes, programs: of_tunnel, current };
    for _ in 0..ROUNDS {
        let have = Have::read(node)?;
        if let Some(link) = have.link.as_ref().filter(|_| !want.programs.is_empty()) {
            done.repairs.extend(tell(dir, link.index, cluster)?);
        }
        let ops = difference(&have, &want);
        if ops.is_empty() {
            let settled =
                |link: Link| Settled { device: link.index, underlay: underlay.index, programs: want.programs };
            // Until what earlier builds had is gone all is compared again and again.
            done.settled = have.link.filter(|_| have.former.is_nothing()).map(settled);
            break;
        }
        for op in &ops {
            op.take(node, programs.as_ref())?;
        }
        done.repairs.extend(ops.iter().map(Op::finding));
    }
    Ok(done)
}

/// Looks again at what the kernel doesn't tell of. Returns what the programs had to be told anew; `None`: they are others, and all of
/// the tunnel is to be reconciled.
pub fn recheck(settled: &Settled, cluster: &Cluster, dir: Option<&Path>) -> Result<Option<Vec<String>>> {
    let programs = dir.map(owner::of_tunnel).transpose()?.flatten();
    Ok(match of_tunnel(programs.as_ref()) {
        programs if programs != settled.programs => None,
        none if none.is_empty() => Some(Vec::new()),
        _ => Some(tell(dir, settled.device, cluster)?.into_iter().collect()),
    })
}

/// Those that the device has, by hook.
fn of_tunnel(programs: Option<&Programs>) -> BTreeMap<Hook, u32> {
    let all = programs.into_iter().flat_map(Programs::iter);
    let is_of_it = |hook: &Hook| Hook::TUNNEL.contains(hook) || Hook::TUNNEL_IPV6.contains(hook);
    all.filter(|program| is_of_it(&program.spec.hook)).map(|program| (program.spec.hook, program.id())).collect()
}

/// Tells the programs which nodes there are; returns what was wrong.
fn tell(dir: Option<&Path>, device: u32, cluster: &Cluster) -> ebpf::Result<Option<String>> {
    let Some(mut maps) = dir.map(Nodes::open).transpose()?.flatten() else { return Ok(None) };
    let here = Here { id: cluster.own.id.0.octets(), ifindex: device };
    let end = Some(cluster.own.tunnel);
    let changed = maps.set(here, end, &cluster.nodes.iter().map(|node| (node.id, node.tunnel)).collect())?;
    Ok(changed.then(|| OTHER_NODES.to_owned()))
}

/// Removes the tunnel; the programs know no other node any more. `dirs`: where programs are pinned.
pub fn remove<'a>(node: &NodeNet, dirs: impl IntoIterator<Item = &'a Path>) -> Result<Vec<String>> {
    let have = Have::read(node)?;
    let mut found = Vec::new();
    if !have.is_nothing() {
        for op in removal(&have) {
            op.take(node, None)?;
            found.push(op.finding());
        }
    }
    for dir in dirs.into_iter().collect::<BTreeSet<_>>() {
        if let Some(mut maps) = Nodes::open(dir)?
            && maps.set(Here::default(), None, &BTreeMap::new())?
        {
            found.push(OTHER_NODES.to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
