//! An attachment's veth pair: its host veth and everything on it, its container veth and everything around it. Like the routes:
//! what must be, what is, and the difference as requests.

mod answers;
mod host;
mod ipv6;
mod pod;
mod settings;
mod want;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::ebpf::Hook;
use crate::model::{Family, Mac};
use crate::net::filter::{Packets, Place, Side};
use crate::net::link::{self, End};
use crate::net::neighbour::Neighbour;
use crate::net::nexthop;
use crate::net::route::{self, Action, TableRoute};
use crate::net::rule;
use crate::net::{self, Netns, NodeNet, PodNet, Request};
use crate::registry::record::SavedSysctls;

use super::ids::{self, POD_DEVICE, VethNames};

pub use answers::renew;
pub use host::HostVeth;
pub use ipv6::Namespace;
pub(super) use ipv6::{Wrong, of_host};
pub use pod::{ContainerVeth, Families, PodDevices};
pub use settings::{allow_binding, has_arp_settings, relax_all};
pub use want::{PodWant, Served};

/// Loose: the address must have some way back, not necessarily this one. A replica that is not in its VIP's route still
/// answers; a strict check would drop that.
pub(super) const RP_FILTER_LOOSE: i32 = 2;

/// A step still to be taken, and what is amiss without it.
#[derive(Debug)]
pub struct Fix {
    /// What is amiss, for CHECK.
    pub finding: String,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Ask(Request),
    Set(Vec<(String, i64)>),
    /// Ask once the kernel has made its route to an address of that device.
    AskOnceMade((u32, IpAddr), Request),
}

fn fix(finding: impl Into<String>, request: Request) -> Fix {
    Fix { finding: finding.into(), step: Step::Ask(request) }
}

/// As [`fix`], for what the kernel may be about to make: its route to an address of that device.
fn fix_once_made(finding: impl Into<String>, route: (u32, IpAddr), request: Request) -> Fix {
    Fix { finding: finding.into(), step: Step::AskOnceMade(route, request) }
}

/// What settles settings that differ, if any does.
fn set(wrong: &[(String, i64)]) -> Option<Fix> {
    let (name, value) = wrong.first()?;
    Some(Fix { finding: format!("sysctl {name} is not {value}"), step: Step::Set(wrong.to_vec()) })
}

/// Takes the steps.
pub fn apply(namespace: &impl Namespace, fixes: Vec<Fix>) -> net::Result<()> {
    let mut requests: Vec<Request> = Vec::new();
    for fix in fixes {
        match fix.step {
            Step::Ask(request) => requests.push(request),
            Step::Set(settings) => {
                namespace.ask(&std::mem::take(&mut requests))?;
                namespace.set(&settings)?;
            }
            Step::AskOnceMade((index, address), request) => {
                namespace.ask(&std::mem::take(&mut requests))?;
                namespace.await_local(index, address)?;
                requests.push(request);
            }
        }
    }
    namespace.ask(&requests)
}

/// Makes the pair, its container veth in `netns`. Nothing is on it yet.
pub fn create(node: &NodeNet, names: &VethNames, mtu: u32, netns: &Netns) -> net::Result<()> {
    let host = End { name: &names.host, mac: names.host_mac };
    let pod = End { name: POD_DEVICE, mac: names.pod_mac };
    node.apply(&[link::add_veth(host, pod, mtu, netns)])
}

/// What adds or deletes one.
type Change<T> = fn(T) -> Request;

/// Surplus objects go first: one may occupy the place of a missing one.
fn set_fixes<T: Ord + Copy + fmt::Display>(
    kind: &str,
    have: &BTreeSet<T>,
    want: &BTreeSet<T>,
    (add, del): (Change<T>, Change<T>),
) -> Vec<Fix> {
    let stale = have.difference(want).map(|stale| fix(format!("{kind} {stale} should not be there"), del(*stale)));
    let missing = want.difference(have).map(|missing| fix(format!("{kind} {missing} is missing"), add(*missing)));
    stale.chain(missing).collect()
}

/// As [`set_fixes`]; a route that differs in what it does alone is replaced, so that no answer is without its way.
fn route_fixes(have: &BTreeSet<TableRoute>, want: &BTreeSet<TableRoute>) -> Vec<Fix> {
    let is_of_same = |one: &TableRoute, other: &TableRoute| (one.table, one.prefix) == (other.table, other.prefix);
    let (changed, rest): (BTreeSet<TableRoute>, BTreeSet<TableRoute>) =
        want.difference(have).copied().partition(|new| have.iter().any(|old| is_of_same(old, new)));
    let replaced = |old: &&TableRoute| changed.iter().any(|new| is_of_same(old, new)) && !want.contains(*old);
    let kept: BTreeSet<TableRoute> = have.iter().filter(|old| !replaced(old)).copied().collect();
    let rest = kept.intersection(want).copied().chain(rest).collect();
    let mut fixes = set_fixes("route", &kept, &rest, (route::add, route::del));
    fixes.extend(changed.iter().map(|new| fix(format!("route {new} is missing"), route::replace(*new))));
    fixes
}

/// Takes our rules and routes out of a pod that lives on, and puts its interface's settings back. A `vip0` that isn't
/// this pair's belongs to another attachment, and so does all the rest then.
pub fn leave(pod: &PodNet, names: &VethNames, ifname: &str, saved: SavedSysctls) -> net::Result<()> {
    let vip0 = link::by_name(pod, POD_DEVICE)?;
    if vip0.as_ref().is_some_and(|link| link.mac != Some(names.pod_mac)) {
        return Ok(());
    }
    let families = if vip0.as_ref().is_some_and(|vip0| vip0.ipv6) { &Family::ALL[..] } else { &[Family::V4] };
    let mut requests: Vec<Request> = Vec::new();
    for family in families {
        requests.extend(rule::list(pod, *family)?.into_iter().map(rule::del));
    }
    // Those by way of vip0 go with it, and without a notification each; `throw` has no device to go with.
    let goes_with = |route: &TableRoute| match route.action {
        Action::Via { index, .. } | Action::Local(index) => vip0.as_ref().is_some_and(|vip0| vip0.index == index),
        _ => false,
    };
    for family in families {
        let routes = pod::read_routes(pod, *family)?;
        requests.extend(routes.into_iter().filter(|route| !goes_with(route)).map(route::del));
    }
    if let Some(interface) = link::by_name(pod, ifname)? {
        requests.extend(answers::Filters::read(pod, None, &interface)?.removal(&interface));
        let restored = settings::restored(saved, &interface.settings);
        if !restored.is_empty() {
            requests.push(link::configure(interface.index, &restored).absent_is_ok());
        }
    }
    pod.apply(&requests)?;
    settings::restore_all(pod, ifname, saved)
}

/// Removes the veth pair: the nexthop first, for which the kernel sends a notification, then the devices.
pub fn remove(node: &NodeNet, names: &VethNames) -> net::Result<()> {
    let Some(link) = link::by_name(node, &names.host)? else { return Ok(()) };
    let mut requests = Vec::new();
    if let Some(id) = ids::nexthop(link.index)
        && nexthop::get(node, id)?.is_some()
    {
        requests.push(nexthop::del(id));
    }
    requests.push(link::del(&names.host));
    node.apply(&requests)
}

/// What is wrong with an end's Ethernet address, if anything is.
pub fn wrong_mac(name: &str, have: Option<Mac>, want: Mac) -> Option<String> {
    (have != Some(want)).then(|| {
        let have = have.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
        format!("{name} has the Ethernet address {have}, not {want}")
    })
}

/// Where on a device a hook is.
pub(super) fn side(hook: Hook) -> Place {
    let side = match hook {
        Hook::HostEgress | Hook::UplinkEgress | Hook::TunnelEgress | Hook::InterfaceEgress => Side::Egress,
        Hook::HostEgressIpv6 | Hook::UplinkEgressIpv6 | Hook::TunnelEgressIpv6 | Hook::InterfaceEgressIpv6 => {
            Side::Egress
        }
        _ => Side::Ingress,
    };
    Place { side, packets: if hook.is_of_ipv6() { Packets::Ipv6 } else { Packets::All } }
}

fn is_neighbour(have: Option<&Neighbour>, address: IpAddr, mac: Mac) -> bool {
    have.is_some_and(|n| n.address == address && n.mac == Some(mac) && n.permanent)
}
