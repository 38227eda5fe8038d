//! The container veth, and everything around it in its pod.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::dataplane::ids::{self, HOST_ADDRESS, HOST_LINK_LOCAL, POD_DEVICE, TABLE};
use crate::dataplane::node::tunnel;
use crate::model::{Family, Mac};
use crate::net::link::{self, Link, Setting};
use crate::net::neighbour::{self, Neighbour};
use crate::net::route::{self, Action, Filter, TableRoute};
use crate::net::rule::{self, Rule};
use crate::net::{self, PROTOCOL, PodNet, address};
use crate::registry::record::SavedSysctls;

use super::answers::Filters;
use super::settings::{has_arp_settings, nonlocal_bind, own_sources_only, strict_for_all, wanted_settings};
use super::want::{CallsLeave, PodWant, Underlay, entrance};
use super::{Fix, RP_FILTER_LOOSE, fix, fix_once_made, ipv6, is_neighbour, route_fixes, set, set_fixes};

/// No check of sources at all (`rp_filter`), and local ones are taken too (`accept_local`): with a rule in the pod the kernel
/// would look each packet's source up in all tables (`fib_validate_source()` in `net/ipv4/fib_frontend.c`).
const UNCHECKED: (i32, i32) = (0, 1);

/// The devices of a pod that matter here.
#[derive(Debug)]
pub struct PodDevices {
    /// The pod's own interface.
    pub interface: Link,
    /// The `vip0` there is, whosever it is.
    pub vip0: Option<Link>,
}

impl PodDevices {
    /// As they are. `None`: the pod has no such interface.
    pub fn read(pod: &PodNet, ifname: &str) -> net::Result<Option<Self>> {
        let vip0 = link::by_name(pod, POD_DEVICE)?;
        Ok(link::by_name(pod, ifname)?.map(|interface| Self { interface, vip0 }))
    }

    /// What is to be put back when the attachment goes.
    pub fn saved_sysctls(&self, pod: &PodNet) -> net::Result<SavedSysctls> {
        let link::Settings { arp_ignore, arp_announce, .. } = self.interface.settings;
        let (all_rp_filter, nonlocal_bind) = (strict_for_all(pod)?, nonlocal_bind(pod)?);
        let use_oif_addrs_only = own_sources_only(pod, &self.interface.name)?;
        Ok(SavedSysctls { arp_ignore, arp_announce, all_rp_filter, nonlocal_bind, use_oif_addrs_only })
    }
}

/// A pod's namespace as far as VIPs touch it.
#[derive(Debug)]
pub struct ContainerVeth {
    pub(super) interface: Link,
    pub(super) link: Link,
    pub(super) filters: Filters,
    addresses: BTreeSet<IpAddr>,
    /// Those of the other devices, but for the loopback network, and of IPv6 links' own.
    others: BTreeSet<IpAddr>,
    neighbour: Option<Neighbour>,
    /// The gateway of IPv6.
    neighbour6: Option<Neighbour>,
    rules: BTreeSet<Rule>,
    routes: BTreeSet<TableRoute>,
    /// What the table `local` has by way of `vip0`.
    locals: BTreeSet<IpAddr>,
    /// Settings of IPv6 that differ from what a `vip0` with VIPs of it must have.
    wrong: ipv6::Wrong,
    /// The same of the pod's own interface, where calls to them leave by it.
    wrong_interface: ipv6::Wrong,
    /// The pod's own interface has an address of IPv6 to call from.
    calls_by_ipv6: bool,
}

/// Which families' parts of a pod are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4's alone: nothing of IPv6 was ever put there.
    Ipv4,
    /// Both.
    Both,
}

impl ContainerVeth {
    /// A container veth that was just made: nothing is on it, nor around it. `None`: there is none.
    pub fn new(pod: &PodNet, interface: Link, families: Families) -> net::Result<Option<Self>> {
        let Some(link) = link::by_name(pod, POD_DEVICE)? else { return Ok(None) };
        let Addresses { others, calls_by_ipv6, .. } = Addresses::read(pod, (link.index, interface.index), families)?;
        let wrong_interface =
            if calls_by_ipv6 { ipv6::of_interface(pod, &interface.name)? } else { ipv6::Wrong::new() };
        Ok(Some(Self {
            interface,
            others,
            wrong: ipv6::of_new_pod(&link.name),
            wrong_interface,
            calls_by_ipv6,
            link,
            addresses: BTreeSet::new(),
            filters: Filters::default(),
            neighbour: None,
            neighbour6: None,
            rules: BTreeSet::new(),
            routes: BTreeSet::new(),
            locals: BTreeSet::new(),
        }))
    }

    /// Reads the container veth. `None`: it, or the pod's own interface, is missing.
    pub fn read(pod: &PodNet, ifname: &str, families: Families) -> net::Result<Option<Self>> {
        let Some(devices) = PodDevices::read(pod, ifname)? else { return Ok(None) };
        Self::around(pod, devices, families)
    }

    /// The same for devices that were read before.
    pub fn around(pod: &PodNet, devices: PodDevices, families: Families) -> net::Result<Option<Self>> {
        let PodDevices { interface, vip0: Some(link) } = devices else { return Ok(None) };
        let index = link.index;
        let families = if link.ipv6 { families } else { Families::Ipv4 };
        let found = Addresses::read(pod, (index, interface.index), families)?;
        let mut end = Self {
            filters: Filters::read(pod, Some(&link), &interface)?,
            interface,
            addresses: found.own,
            others: found.others,
            calls_by_ipv6: found.calls_by_ipv6,
            neighbour: neighbour::get(pod, index, HOST_ADDRESS)?,
            neighbour6: None,
            rules: rule::list(pod, Family::V4)?.into_iter().collect(),
            routes: read_routes(pod, Family::V4)?,
            locals: route::locals(pod, Family::V4, index)?,
            wrong: ipv6::Wrong::new(),
            wrong_interface: ipv6::Wrong::new(),
            link,
        };
        if families == Families::Both {
            end.neighbour6 = neighbour::get(pod, index, HOST_LINK_LOCAL)?;
            end.rules.extend(rule::list(pod, Family::V6)?);
            end.routes.extend(read_routes(pod, Family::V6)?);
            end.locals.extend(route::locals(pod, Family::V6, index)?);
            end.wrong = ipv6::of_pod(pod, &end.link.name)?;
            end.wrong_interface = ipv6::of_interface(pod, &end.interface.name)?;
        }
        Ok(Some(end))
    }

    /// The container veth's index.
    pub fn index(&self) -> u32 {
        self.link.index
    }

    /// The container veth's Ethernet address: whether it is ours.
    pub fn mac(&self) -> Option<Mac> {
        self.link.mac
    }

    /// What must still be done, in an order in which replies have their way before requests can come.
    pub fn fixes(&self, want: &PodWant<'_>) -> Vec<Fix> {
        let mut fixes: Vec<Fix> = self.settings_fix(want.ifname).into_iter().collect();
        let index = self.link.index;
        let source = self
            .source_settings(want)
            .map(|(rp_filter, accept_local)| [(Setting::RpFilter, rp_filter), (Setting::AcceptLocal, accept_local)]);
        match source {
            // The host veth comes up after it.
            source if !self.link.up => {
                let settings = source.as_ref().map_or(&[][..], |settings| &settings[..]);
                fixes.push(fix(format!("{POD_DEVICE} is down"), link::prepare_up(&self.link, settings)));
            }
            Some(settings) => fixes.push(fix(self.source_finding(&settings), link::configure(index, &settings))),
            None => {}
        }
        fixes.extend(set(&self.wrong).filter(|_| want.has_ipv6()));
        for missing in want.vips.difference(&self.addresses) {
            fixes.push(fix(format!("address {missing} on {POD_DEVICE} is missing"), address::add(index, *missing)));
        }
        for stale in self.addresses.difference(&want.vips) {
            fixes
                .push(fix(format!("address {stale} on {POD_DEVICE} should not be there"), address::del(index, *stale)));
        }
        if !is_neighbour(self.neighbour.as_ref(), HOST_ADDRESS, want.names.host_mac) {
            let finding = format!("neighbour {HOST_ADDRESS} on {POD_DEVICE} is missing");
            fixes.push(fix(finding, neighbour::replace(index, HOST_ADDRESS, want.names.host_mac)));
        }
        if want.has_ipv6() && !is_neighbour(self.neighbour6.as_ref(), HOST_LINK_LOCAL, want.names.host_mac) {
            let finding = format!("neighbour {HOST_LINK_LOCAL} on {POD_DEVICE} is missing");
            fixes.push(fix(finding, neighbour::replace(index, HOST_LINK_LOCAL, want.names.host_mac)));
        }
        let calls_leave = self.calls_leave(want);
        fixes.extend(set(&self.wrong_interface).filter(|_| calls_leave.ipv6));
        // The new way in before the old one goes.
        fixes.extend(self.missing_locals(want, calls_leave));
        let (locals, routes): (BTreeSet<TableRoute>, BTreeSet<TableRoute>) =
            self.routes.iter().copied().partition(|route| matches!(route.action, Action::Local(_)));
        // Before those that have a VIP as their source.
        fixes.extend(set_fixes("route", &locals, &want.local_routes(index, calls_leave), (route::add, route::del)));
        fixes.extend(route_fixes(&routes, &want.routes(index, self.advmss(want))));
        fixes.extend(set_fixes("rule", &self.rules, &want.rules(calls_leave), (rule::add, rule::del)));
        fixes.extend(self.stale_locals(want, calls_leave));
        fixes
    }

    /// Whether what the pod sends to its VIPs is to leave it. Not where it must check sources itself: it would drop what comes back
    /// to it from its own address.
    ///
    /// IPv6 never checks. By it calls leave a pod whose own interface has an address to call from.
    fn calls_leave(&self, want: &PodWant<'_>) -> CallsLeave {
        let Some(leave) = want.calls_leave else {
            let leave = |family| self.rules.contains(&entrance(family));
            return CallsLeave { ipv4: leave(Family::V4), ipv6: leave(Family::V6) };
        };
        let leave = |family| leave && want.knows_own(&self.others, family);
        let by_ipv6 = want.has_ipv6() && self.calls_by_ipv6;
        CallsLeave { ipv4: leave(Family::V4), ipv6: by_ipv6 && leave(Family::V6) }
    }

    /// The kernel's own routes to the VIPs that calls no longer leave the pod for: as it makes one for each address.
    fn missing_locals(&self, want: &PodWant<'_>, calls_leave: CallsLeave) -> Vec<Fix> {
        let index = self.link.index;
        let is_missing = |vip: &&IpAddr| {
            !calls_leave.has(vip) && self.addresses.contains(*vip) && self.link.up && !self.locals.contains(*vip)
        };
        // Of IPv6 one that was never taken away is on its way.
        let missing = want.vips.iter().filter(is_missing).filter(|vip| vip.is_ipv4() || self.has_own_local(**vip));
        let fix =
            |vip: &IpAddr| fix(format!("route local {vip} table local is missing"), route::add_local(index, *vip));
        missing.map(fix).collect()
    }

    /// The kernel's own routes to the VIPs that calls leave the pod for. It makes them with the address and whenever `vip0` comes up; of
    /// IPv6 a moment later (`addrconf_dad_work()` in net/ipv6/addrconf.c), when ours are not there yet, or have gone with the device.
    fn stale_locals(&self, want: &PodWant<'_>, calls_leave: CallsLeave) -> Vec<Fix> {
        let index = self.link.index;
        let stale = |vip: &IpAddr| {
            let finding = format!("route local {vip} table local should not be there");
            let (is_there, deletion) = (self.locals.contains(vip), route::del_local(index, *vip));
            // The address is new, or the device comes up.
            let is_made = !self.addresses.contains(vip) || !self.link.up;
            if vip.is_ipv6() && (is_made || !(is_there || self.has_own_local(*vip))) {
                return Some(fix_once_made(finding, (index, *vip), deletion));
            }
            (is_there || is_made).then(|| fix(finding, deletion))
        };
        want.vips.iter().filter(|vip| calls_leave.has(vip)).filter_map(stale).collect()
    }

    /// Whether our own table has what makes the pod take packets for a VIP.
    fn has_own_local(&self, vip: IpAddr) -> bool {
        let is_it = |route: &TableRoute| route.table == TABLE && route.prefix == route::host(vip);
        self.routes.iter().any(|route| is_it(route) && matches!(route.action, Action::Local(_)))
    }

    /// The longest segment to offer to clients of IPv4. What isn't known stays as it is.
    fn advmss(&self, want: &PodWant<'_>) -> Option<u32> {
        let found = || {
            self.routes.iter().find_map(|route| match route.action {
                Action::Via { gateway: HOST_ADDRESS, advmss, .. } if route.table == TABLE => advmss,
                _ => None,
            })
        };
        match want.underlay {
            Underlay::Unknown => found(),
            Underlay::Whole(whole) => tunnel::advmss(whole?, self.link.mtu),
        }
    }

    /// The `rp_filter` and `accept_local` that `vip0` is to have instead of its own. An address that the programs don't know, of
    /// another of the pod's networks, is left to the pod to check.
    fn source_settings(&self, want: &PodWant<'_>) -> Option<(i32, i32)> {
        let link::Settings { rp_filter, accept_local, .. } = self.link.settings;
        let wanted = if want.source_checked? && want.knows_own(&self.others, Family::V4) {
            UNCHECKED
        } else if accept_local == 0 {
            return None;
        } else {
            (RP_FILTER_LOOSE, 0)
        };
        ((rp_filter, accept_local) != wanted).then_some(wanted)
    }

    fn source_finding(&self, wanted: &[(Setting, i32); 2]) -> String {
        let link::Settings { rp_filter, accept_local, .. } = self.link.settings;
        let [(_, filter), (_, local)] = wanted;
        format!("{POD_DEVICE} has rp_filter {rp_filter}, accept_local {accept_local}, not {filter}, {local}")
    }

    fn settings_fix(&self, ifname: &str) -> Option<Fix> {
        let Link { index, settings, .. } = &self.interface;
        if has_arp_settings(settings) {
            return None;
        }
        let finding =
            format!("{ifname} has arp_ignore {}, arp_announce {}", settings.arp_ignore, settings.arp_announce);
        let wanted = wanted_settings(settings.arp_ignore, settings.arp_announce);
        let wanted = [(Setting::ArpIgnore, wanted.0), (Setting::ArpAnnounce, wanted.1)];
        Some(fix(finding, link::configure(*index, &wanted)))
    }
}

/// A pod's addresses, but for the loopback network; of IPv6 those that are known beyond a link: no other is a VIP, and none of ours.
struct Addresses {
    /// Of `vip0`.
    own: BTreeSet<IpAddr>,
    /// Of the other devices.
    others: BTreeSet<IpAddr>,
    /// The pod's own interface has one of IPv6.
    calls_by_ipv6: bool,
}

impl Addresses {
    fn read(pod: &PodNet, (vip0, interface): (u32, u32), families: Families) -> net::Result<Self> {
        let mut all = address::list(pod, Family::V4, None)?;
        if families == Families::Both {
            all.extend(address::list(pod, Family::V6, None)?.into_iter().filter(|address| address.global));
        }
        let calls_by_ipv6 = all.iter().any(|address| address.index == interface && address.address.is_ipv6());
        let (own, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|address| address.index == vip0);
        let others = others.iter().map(|other| other.address).filter(|address| !address.is_loopback());
        Ok(Self { own: own.iter().map(|own| own.address).collect(), others: others.collect(), calls_by_ipv6 })
    }
}

/// The routes in our tables that [`route::add`] can have made.
pub(super) fn read_routes(pod: &PodNet, family: Family) -> net::Result<BTreeSet<TableRoute>> {
    let filter = Filter { family, protocol: Some(PROTOCOL), ..Filter::default() };
    let routes = route::list(pod, filter)?;
    Ok(routes.iter().filter(|route| ids::is_table(route.table)).filter_map(route::Route::of_ours).collect())
}
