//! The express path's programs on the node's uplinks: the devices by which VIPs' clients are reached. By tcx where the kernel
//! has it (Linux 6.6), by clsact otherwise.
//!
//! A device on which another's program or filter is has none of ours: what the express path carries would pass the other by,
//! whichever of the two was there first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::RawFd;

use crate::dataplane::attachment;
use crate::dataplane::ids;
use crate::ebpf::{Hook, of_name};
use crate::net::filter;
use crate::net::link::{ETHERNET, Link};
use crate::net::route::{self, Reach};
use crate::net::{NodeNet, Result, nexthop, tcx};

use super::pod_links::About;

/// More uplinks than a node has.
pub const MOST: usize = 64;

/// A device by which clients are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its packets have an Ethernet header: without one nothing can be redirected to a pod.
    pub ethernet: bool,
}

/// Reads which devices routes name.
pub fn named(node: &NodeNet) -> Result<BTreeMap<u32, Reach>> {
    route::devices(node, || nexthop::devices(node))
}

/// The uplinks among the node's links: what routes name by a gateway, or by a network that isn't this machine's own. Never
/// a pod's device, one of ours, or a port, whose packets its master takes. One that was an uplink stays one while it has no
/// carrier.
pub fn of(links: &[Link], named: &BTreeMap<u32, Reach>, about: &About, before: &BTreeSet<u32>) -> Vec<Uplink> {
    let leads_to_pod = |link: &Link| {
        about.pairs.contains(&link.index)
            || ids::is_host_veth(&link.name)
            || link.peer_netns.is_some_and(|id| about.netns.contains(&id))
    };
    let is_uplink = |link: &&Link| {
        let reach = named.get(&link.index).copied().unwrap_or_default();
        let leads_out = reach.gateway || (reach.network && !is_of_this_machine(links, link));
        let is_alive = (link.up && link.carrier) || before.contains(&link.index);
        leads_out && is_alive && !link.loopback && link.master.is_none() && !leads_to_pod(link)
    };
    let found = links.iter().filter(is_uplink).take(MOST);
    found.map(|link| Uplink { index: link.index, name: link.name.clone(), ethernet: link.header == ETHERNET }).collect()
}

/// A bridge whose ports all lead to namespaces of this machine.
fn is_of_this_machine(links: &[Link], bridge: &Link) -> bool {
    let mut ports = links.iter().filter(|port| port.master == Some(bridge.index)).peekable();
    ports.peek().is_some() && ports.all(|port| port.peer_netns.is_some())
}

/// What is at one hook of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// Ours by tcx, by their ids; `None`: the kernel has no tcx.
    pub tcx: Option<Vec<u32>>,
    /// Ours by clsact.
    pub clsact: Option<u32>,
    /// Others' programs and filters, in words.
    pub others: Vec<String>,
}

/// The hooks of an uplink, IPv4's first: what goes straight passes no program behind it.
pub fn hooks() -> impl Iterator<Item = Hook> {
    Hook::UPLINK.into_iter().chain(Hook::UPLINK_IPV6)
}

/// Whose a program is that is at a side of a device by tcx.
enum Whose {
    /// The program of a hook of ours, or one that is gone.
    Ours(Option<Hook>),
    Others(String),
}

/// Of `known` programs the kernel needn't be asked.
fn whose(id: u32, known: &BTreeMap<u32, Hook>) -> Result<Whose> {
    if let Some(hook) = known.get(&id) {
        return Ok(Whose::Ours(Some(*hook)));
    }
    let Some(name) = tcx::name(id)? else { return Ok(Whose::Ours(None)) };
    let hook = of_name(&name).map(|spec| spec.hook).filter(|hook| hooks().any(|of_uplink| of_uplink == *hook));
    Ok(hook.map_or(Whose::Others(name), |hook| Whose::Ours(Some(hook))))
}

/// Reads one hook of a device. `known`: whose the kernel needn't be asked. The other family's program at the same side is ours, too.
pub fn read(node: &NodeNet, index: u32, hook: Hook, known: &BTreeMap<u32, Hook>) -> Result<Have> {
    let side = attachment::side(hook);
    let mut have = Have { tcx: tcx::programs(index, side.side)?, ..Have::default() };
    if let Some(ids) = &mut have.tcx {
        let mut ours = Vec::new();
        for id in std::mem::take(ids) {
            match whose(id, known)? {
                Whose::Ours(of) if of.is_none_or(|of| of == hook) => ours.push(id),
                Whose::Ours(_) => {}
                Whose::Others(name) => have.others.push(format!("{name} (program {id}, {}, tcx)", side.side)),
            }
        }
        *ids = ours;
    }
    for filter in filter::list(node, index, side)? {
        if filter.is_ours_for(side.packets) {
            have.clsact = filter.program.or(have.clsact);
        } else if !filter.is_ours() {
            let what =
                filter.name.as_ref().map_or_else(|| filter.kind.clone(), |name| format!("{} {name}", filter.kind));
            let words = format!("{what} ({}, pref {})", side.side, filter.preference);
            // The kernel shows a preference before its filters.
            let of_preference = format!("{} ({}, pref {})", filter.kind, side.side, filter.preference);
            have.others.retain(|known| *known != of_preference);
            have.others.push(words);
        }
    }
    Ok(have)
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Put the program there by tcx.
    Attach,
    /// Put it in the place of another build's.
    Replace(u32),
    /// Take one off.
    Detach(u32),
    /// Put it there by clsact, in the place of what is there.
    SetFilter,
    /// Take that off.
    DeleteFilter,
}

/// The steps by which a hook has the program of that id, and no other of ours; none: it has none of ours. What is wanted
/// comes before what isn't: no packet meets neither.
pub fn difference(have: &Have, want: Option<u32>) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut stale: Vec<u32> = have.tcx.iter().flatten().copied().filter(|id| Some(*id) != want).collect();
    match (want, &have.tcx) {
        (Some(id), Some(ours)) if !ours.contains(&id) => {
            ops.push(stale.pop().map_or(Op::Attach, Op::Replace));
        }
        (Some(id), None) if have.clsact != Some(id) => ops.push(Op::SetFilter),
        _ => {}
    }
    ops.extend(stale.into_iter().map(Op::Detach));
    if have.clsact.is_some() && (want.is_none() || have.tcx.is_some()) {
        ops.push(Op::DeleteFilter);
    }
    ops
}

/// Takes all programs of the express path off a device; it may have gone.
pub fn clear(node: &NodeNet, index: u32) -> Result<()> {
    for hook in hooks() {
        for op in difference(&read(node, index, hook, &BTreeMap::new())?, None) {
            op.apply(node, index, hook, -1)?;
        }
    }
    Ok(())
}

/// The links that have programs of the express path: a run before has left them. On host veths the filters of that
/// preference are others of ours.
pub fn left(node: &NodeNet, links: &[Link], about: &About) -> Result<Vec<u32>> {
    let mut left = Vec::new();
    let is_pair = |link: &Link| about.pairs.contains(&link.index) || ids::is_host_veth(&link.name);
    for link in links.iter().filter(|link| link.header == ETHERNET && !is_pair(link)) {
        for hook in hooks() {
            let have = read(node, link.index, hook, &BTreeMap::new())?;
            if have.clsact.is_some() || have.tcx.is_some_and(|ours| !ours.is_empty()) {
                left.push(link.index);
                break;
            }
        }
    }
    Ok(left)
}

impl Op {
    /// Whether a program is there behind it.
    pub fn puts(self) -> bool {
        matches!(self, Self::Attach | Self::Replace(_) | Self::SetFilter)
    }

    /// Takes it. `program` is the one wanted; a step that puts nothing there needs none.
    pub fn apply(self, node: &NodeNet, index: u32, hook: Hook, program: RawFd) -> Result<()> {
        let place = attachment::side(hook);
        match self {
            Self::Attach => tcx::attach(index, place.side, program),
            Self::Replace(id) => tcx::replace(index, place.side, program, id),
            Self::Detach(id) => tcx::detach(index, place.side, id),
            Self::SetFilter => node.apply(&[filter::add_clsact(index), filter::replace(index, place, program)]),
            Self::DeleteFilter => node.apply(&[filter::delete(index, place)]),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach | Self::SetFilter => f.write_str("its program is missing"),
            Self::Replace(id) => write!(f, "its program is another build's (program {id})"),
            Self::Detach(_) | Self::DeleteFilter => f.write_str("a program of the express path should not be there"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.to_owned(), up: true, carrier: true, header: ETHERNET, ..Link::default() }
    }

    fn names(links: &[Link], named: &[(u32, bool)], before: &[u32]) -> Vec<String> {
        let about = About { netns: [3].into(), pairs: [20].into(), ..About::default() };
        let reach = |(index, gateway)| (index, Reach { gateway, network: !gateway });
        let named = named.iter().copied().map(reach).collect();
        of(links, &named, &about, &before.iter().copied().collect()).into_iter().map(|uplink| uplink.name).collect()
    }

    #[test]
    fn uplinks_are_what_routes_name_and_no_pods_devices() {
        let mut links = vec![link(1, "lo"), link(2, "eth0"), link(3, "eth1"), link(10, "veth-p3"), link(20, "vip123")];
        links[0].loopback = true;
        links[3].peer_netns = Some(3);
        let all = [(1, false), (2, true), (3, false), (10, true), (20, true)];
        assert_eq!(names(&links, &all, &[]), ["eth0", "eth1"]);
        assert_eq!(names(&links, &[(2, true)], &[]), ["eth0"], "named by no route");
        links[2].carrier = false;
        assert_eq!(names(&links, &all, &[]), ["eth0"]);
        assert_eq!(names(&links, &all, &[3]), ["eth0", "eth1"], "one that has lost its carrier");
    }

    #[test]
    fn a_bridge_is_an_uplink_if_it_leads_off_the_machine_and_its_ports_never_are() {
        let mut links = vec![link(2, "br0"), link(3, "up0"), link(4, "cni0"), link(5, "veth-p5")];
        links[1].master = Some(2);
        (links[3].master, links[3].peer_netns) = (Some(4), Some(5));
        let all = [(2, false), (3, true), (4, false)];
        assert_eq!(names(&links, &all, &[]), ["br0"]);
        // By a gateway it leads further, whatever its ports are.
        assert_eq!(names(&links, &[(4, true)], &[]), ["cni0"]);
    }

    fn tcx(ours: &[u32]) -> Have {
        Have { tcx: Some(ours.to_vec()), ..Have::default() }
    }

    #[test]
    fn the_program_wanted_comes_before_others_go() {
        assert_eq!(difference(&tcx(&[]), Some(7)), [Op::Attach]);
        assert_eq!(difference(&tcx(&[7]), Some(7)), []);
        assert_eq!(difference(&tcx(&[5]), Some(7)), [Op::Replace(5)]);
        assert_eq!(difference(&tcx(&[5, 7]), Some(7)), [Op::Detach(5)]);
        assert_eq!(difference(&tcx(&[5, 7]), None), [Op::Detach(5), Op::Detach(7)]);
        let both = Have { clsact: Some(5), ..tcx(&[]) };
        assert_eq!(difference(&both, Some(7)), [Op::Attach, Op::DeleteFilter]);
    }

    #[test]
    fn without_tcx_the_filter_is_replaced_in_one_step() {
        let have = |clsact| Have { clsact, ..Have::default() };
        assert_eq!(difference(&have(None), Some(7)), [Op::SetFilter]);
        assert_eq!(difference(&have(Some(5)), Some(7)), [Op::SetFilter]);
        assert_eq!(difference(&have(Some(7)), Some(7)), []);
        assert_eq!(difference(&have(Some(7)), None), [Op::DeleteFilter]);
        assert_eq!(difference(&have(None), None), []);
    }
}
