//! An attachment's veth pair: its host veth and everything on it, its container veth and everything around it. Like the routes:
//! what must be, what is, and the difference as requests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use nix::errno::Errno;

use crate::ebpf::{self, Hook, Programs};
use crate::model::{Family, Mac};
use crate::net::address::{self, Address};
use crate::net::filter::{self, Side};
use crate::net::link::{self, End, Link, Setting};
use crate::net::neighbour::{self, Neighbour};
use crate::net::nexthop::{self, Nexthop};
use crate::net::route::{self, Action, Filter, TableRoute};
use crate::net::rule::{self, Rule, Selector};
use crate::net::{self, Netns, NodeNet, PROTOCOL, PodNet, Request, Socket, sysctl};
use crate::registry::Endpoint;
use crate::registry::record::SavedSysctls;

use super::ids::{self, HOST_ADDRESS, POD_DEVICE, RULE_PRIORITY, TABLE, VethNames};
use super::node::tunnel;

/// Loose: the address must have some way back, not necessarily this one. A replica that is not in its VIP's route still
/// answers; a strict check would drop that.
pub(super) const RP_FILTER_LOOSE: i32 = 2;
/// Answer ARP only for addresses of the interface asked on (`arp_ignore`).
const OWN_ADDRESSES_ONLY: i32 = 1;
/// The values of `arp_ignore` that do so: 2 and 8 ask for still more (`arp_ignore()` in net/ipv4/arp.c).
const OWN_ADDRESSES_AT_MOST: [i32; 3] = [OWN_ADDRESSES_ONLY, 2, 8];
/// Ask by ARP with the best address of the interface used (`arp_announce`).
const BEST_ADDRESS: i32 = 2;

/// No check of sources at all (`rp_filter`), and local ones are taken too (`accept_local`): with a rule in the pod the kernel
/// would look each packet's source up in all tables (`fib_validate_source()` in `net/ipv4/fib_frontend.c`).
const UNCHECKED: (i32, i32) = (0, 1);

/// A step still to be taken, and what is amiss without it.
#[derive(Debug)]
pub struct Fix {
    /// What is amiss, for CHECK.
    pub finding: String,
    request: Request,
}

fn fix(finding: impl Into<String>, request: Request) -> Fix {
    Fix { finding: finding.into(), request }
}

/// Takes the steps.
pub fn apply(socket: &Socket, fixes: Vec<Fix>) -> net::Result<()> {
    let requests: Vec<Request> = fixes.into_iter().map(|fix| fix.request).collect();
    socket.apply(&requests)
}

/// Makes the pair, its container veth in `netns`. Nothing is on it yet.
pub fn create(node: &NodeNet, names: &VethNames, mtu: u32, netns: &Netns) -> net::Result<()> {
    let host = End { name: &names.host, mac: names.host_mac };
    let pod = End { name: POD_DEVICE, mac: names.pod_mac };
    node.apply(&[link::add_veth(host, pod, mtu, netns)])
}

/// The host veth, and what is on it.
#[derive(Debug)]
pub struct HostVeth {
    /// The device.
    pub link: Link,
    addresses: Vec<Address>,
    neighbour: Option<Neighbour>,
    /// The ids of the programs on it.
    programs: BTreeMap<Hook, u32>,
}

impl HostVeth {
    /// A host veth that was just made: nothing is on it.
    pub fn new(node: &NodeNet, names: &VethNames) -> net::Result<Option<Self>> {
        let bare = |link| Self { link, addresses: Vec::new(), neighbour: None, programs: BTreeMap::new() };
        Ok(link::by_name(node, &names.host)?.map(bare))
    }

    /// Reads the host veth. Only [`HostVeth::fixes`] needs the pod's address.
    pub fn read(node: &NodeNet, names: &VethNames, pod_address: Option<IpAddr>) -> net::Result<Option<Self>> {
        let Some(link) = link::by_name(node, &names.host)? else { return Ok(None) };
        let addresses = address::list(node, Family::V4, Some(link.index))?;
        let neighbour = pod_address.map(|address| neighbour::get(node, link.index, address)).transpose()?.flatten();
        let mut programs = BTreeMap::new();
        for hook in Hook::HOST_VETH {
            programs.extend(filter::program(node, link.index, side(hook))?.map(|id| (hook, id)));
        }
        Ok(Some(Self { link, addresses, neighbour, programs }))
    }

    /// Programs of ours run on it, of whatever build.
    pub fn has_programs(&self) -> bool {
        !self.programs.is_empty()
    }

    /// What must still be done for these programs to run on it.
    pub fn filter_fixes(&self, programs: &Programs) -> ebpf::Result<Vec<Fix>> {
        let Link { index, name, .. } = &self.link;
        let mut fixes = Vec::new();
        for program in programs.iter().filter(|program| Hook::HOST_VETH.contains(&program.spec.hook)) {
            let (side, found) = (side(program.spec.hook), self.programs.get(&program.spec.hook));
            if found != Some(&program.id()) {
                let (wanted, id) = (program.spec.name, program.id());
                let found = found.map_or_else(|| "none".to_owned(), |id| format!("program {id}"));
                let finding =
                    format!("the flow owner's filter on {name}, {side}: want {wanted} (program {id}), found {found}");
                fixes.push(fix(finding, filter::replace(*index, side, program.fd()?)));
            }
        }
        if !fixes.is_empty() {
            fixes.insert(0, fix(format!("clsact on {name} is missing"), filter::add_clsact(*index)));
        }
        Ok(fixes)
    }

    /// What must still be done for a pod at this address.
    pub fn fixes(&self, names: &VethNames, pod_address: IpAddr) -> Vec<Fix> {
        let Link { index, name, settings, up, .. } = &self.link;
        let index = *index;
        let mut fixes = Vec::new();
        if !up {
            fixes.push(fix(format!("{name} may take IPv6 addresses"), link::no_ipv6_addresses(index)));
        }
        if !self.addresses.iter().any(|a| a.address == HOST_ADDRESS) {
            fixes.push(fix(format!("address {HOST_ADDRESS} on {name} is missing"), address::add(index, HOST_ADDRESS)));
        }
        if settings.rp_filter != RP_FILTER_LOOSE || settings.forwarding != 1 {
            let wanted = [(Setting::RpFilter, RP_FILTER_LOOSE), (Setting::Forwarding, 1)];
            let finding = format!("{name} has rp_filter {}, forwarding {}", settings.rp_filter, settings.forwarding);
            fixes.push(fix(finding, link::configure(index, &wanted)));
        }
        if !up {
            fixes.push(fix(format!("{name} is down"), link::set_up(index)));
        }
        if !is_neighbour(self.neighbour.as_ref(), pod_address, names.pod_mac) {
            let finding = format!("neighbour {pod_address} on {name} is missing");
            fixes.push(fix(finding, neighbour::replace(index, pod_address, names.pod_mac)));
        }
        fixes
    }

    /// Whether what comes for the pod from one of its own addresses is dropped: by this build's programs. `None`: they should be
    /// on it and aren't, so that it can't be told.
    pub fn checks_sources(&self, programs: Option<&Path>) -> ebpf::Result<Option<bool>> {
        let Some(dir) = programs else { return Ok(Some(false)) };
        let Some(programs) = Programs::open(dir)? else { return Ok(None) };
        Ok(self.filter_fixes(&programs)?.is_empty().then_some(true))
    }

    /// The way to the pod: what its VIPs' groups are made of.
    pub fn nexthop(&self, pod_address: IpAddr) -> net::Result<Nexthop> {
        let index = self.link.index;
        let out_of_range = || net::Error::new("add nexthop", format!("for link {index}"), Errno::ERANGE);
        Ok(Nexthop { id: ids::nexthop(index).ok_or_else(out_of_range)?, gateway: pod_address, index })
    }
}

/// Where on a device a hook is.
pub(super) fn side(hook: Hook) -> Side {
    match hook {
        Hook::HostEgress | Hook::UplinkEgress | Hook::TunnelEgress => Side::Egress,
        Hook::HostIngress | Hook::UplinkIngress | Hook::TunnelIngress => Side::Ingress,
    }
}

fn is_neighbour(have: Option<&Neighbour>, address: IpAddr, mac: Mac) -> bool {
    have.is_some_and(|n| n.address == address && n.mac == Some(mac) && n.permanent)
}

/// What a pod's namespace must have.
#[derive(Clone, Debug)]
pub struct PodWant<'a> {
    /// The pair.
    pub names: &'a VethNames,
    /// The pod's own interface.
    pub ifname: &'a str,
    vips: BTreeSet<IpAddr>,
    /// Those that its unbound UDP sockets answer from.
    replies: Vec<UdpReply>,
    /// The pod's own address, as its VIPs know it.
    own: BTreeSet<IpAddr>,
    /// See [`PodWant::source_checked`].
    source_checked: Option<bool>,
    underlay: Underlay,
}

/// What is known of the network under the tunnel to other nodes.
#[derive(Clone, Copy, Debug)]
enum Underlay {
    /// Nothing: what a pod offers to receive stays as it is.
    Unknown,
    /// Its MTU, where there is a tunnel.
    Mtu(Option<u32>),
}

/// A VIP that a pod serves, as the registry has it.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// Its place in the attachment's list.
    pub place: usize,
    /// Its address.
    pub address: IpAddr,
    /// The pod as its replica.
    pub endpoint: &'a Endpoint,
}

/// A VIP that a pod's unbound UDP sockets answer from.
#[derive(Clone, Debug)]
struct UdpReply {
    vip: IpAddr,
    table: u32,
    ports: Vec<u16>,
    node_source_address: Option<IpAddr>,
}

impl<'a> PodWant<'a> {
    /// For a pod that serves these VIPs.
    pub fn new<'s>(names: &'a VethNames, ifname: &'a str, served: impl IntoIterator<Item = Served<'s>>) -> Self {
        let (vips, own) = (BTreeSet::new(), BTreeSet::new());
        let mut want =
            Self { names, ifname, vips, replies: Vec::new(), own, source_checked: None, underlay: Underlay::Unknown };
        for Served { place, address, endpoint } in served {
            want.vips.insert(address);
            want.own.extend(endpoint.addresses.iter());
            if endpoint.udp_reply {
                let ports = endpoint.udp_ports().collect();
                let (table, node_source_address) = (ids::reply_table(place), endpoint.node_source_address);
                want.replies.push(UdpReply { vip: address, table, ports, node_source_address });
            }
        }
        want
    }

    /// With addresses that its VIPs had a moment ago.
    #[must_use]
    pub fn keeping(mut self, previous: impl IntoIterator<Item = IpAddr>) -> Self {
        self.vips.extend(previous);
        self
    }

    /// Whether what comes from the pod's own addresses is dropped before it gets there ([`HostVeth::checks_sources`]), so that the
    /// pod needn't check it. `None`: it isn't known, and what the pod does stays as it is.
    #[must_use]
    pub fn source_checked(mut self, is: Option<bool>) -> Self {
        self.source_checked = is;
        self
    }

    /// The MTU of the network under the tunnel, where there is one ([`tunnel::underlay_mtu`]): what clients send must go through it in
    /// one piece. Unless this is called what the pod offers stays as it is.
    #[must_use]
    pub fn tunnel_mtu(mut self, mtu: Option<u32>) -> Self {
        self.underlay = Underlay::Mtu(mtu);
        self
    }

    fn rules(&self) -> BTreeSet<Rule> {
        let rule = |selector, table| Rule { selector, table, priority: RULE_PRIORITY };
        let mut rules: BTreeSet<Rule> = self.vips.iter().map(|vip| rule(Selector::Source(*vip), TABLE)).collect();
        for UdpReply { table, ports, .. } in &self.replies {
            rules.extend(ports.iter().map(|port| rule(Selector::UnboundUdp(*port), *table)));
        }
        rules
    }

    /// The way back out of `vip0` (`index`), and around it for what must not take it.
    fn routes(&self, index: u32, advmss: Option<u32>) -> BTreeSet<TableRoute> {
        let way_back = |table, source, advmss| TableRoute {
            table,
            prefix: route::DEFAULT,
            action: Action::Via { gateway: HOST_ADDRESS, index, source, advmss },
        };
        let mut routes = BTreeSet::from([way_back(TABLE, None, advmss)]);
        for UdpReply { vip, table, node_source_address, .. } in &self.replies {
            routes.insert(way_back(*table, Some(*vip), None));
            let around = [route::MULTICAST, route::host(IpAddr::V4(Ipv4Addr::BROADCAST))].into_iter();
            let around = around.chain(node_source_address.map(route::host));
            routes.extend(around.map(|prefix| TableRoute { table: *table, prefix, action: Action::Throw }));
        }
        routes
    }
}

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
        Ok(SavedSysctls { arp_ignore, arp_announce, all_rp_filter: strict_for_all(pod)? })
    }
}

/// A pod's namespace as far as VIPs touch it.
#[derive(Debug)]
pub struct ContainerVeth {
    interface: Link,
    link: Link,
    addresses: BTreeSet<IpAddr>,
    /// Those of the other devices, but for the loopback network.
    others: BTreeSet<IpAddr>,
    neighbour: Option<Neighbour>,
    rules: BTreeSet<Rule>,
    routes: BTreeSet<TableRoute>,
}

impl ContainerVeth {
    /// A container veth that was just made: nothing is on it, nor around it. `None`: there is none.
    pub fn new(pod: &PodNet, interface: Link) -> net::Result<Option<Self>> {
        let Some(link) = link::by_name(pod, POD_DEVICE)? else { return Ok(None) };
        Ok(Some(Self {
            interface,
            others: read_addresses(pod, link.index)?.1,
            link,
            addresses: BTreeSet::new(),
            neighbour: None,
            rules: BTreeSet::new(),
            routes: BTreeSet::new(),
        }))
    }

    /// Reads the container veth. `None`: it, or the pod's own interface, is missing.
    pub fn read(pod: &PodNet, ifname: &str) -> net::Result<Option<Self>> {
        let Some(devices) = PodDevices::read(pod, ifname)? else { return Ok(None) };
        Self::around(pod, devices)
    }

    /// The same for devices that were read before.
    pub fn around(pod: &PodNet, devices: PodDevices) -> net::Result<Option<Self>> {
        let PodDevices { interface, vip0: Some(link) } = devices else { return Ok(None) };
        let index = link.index;
        let (addresses, others) = read_addresses(pod, index)?;
        Ok(Some(Self {
            interface,
            addresses,
            others,
            neighbour: neighbour::get(pod, index, HOST_ADDRESS)?,
            rules: rule::list(pod, Family::V4)?.into_iter().collect(),
            routes: read_routes(pod)?,
            link,
        }))
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
        let mut fixes: Vec<Fix> = self.settings_fix(want.ifname).into_iter().chain(self.source_fix(want)).collect();
        let index = self.link.index;
        if !self.link.up {
            fixes.push(fix(format!("{POD_DEVICE} may take IPv6 addresses"), link::no_ipv6_addresses(index)));
            fixes.push(fix(format!("{POD_DEVICE} is down"), link::set_up(index)));
        }
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
        fixes.extend(route_fixes(&self.routes, &want.routes(index, self.advmss(want))));
        fixes.extend(set_fixes("rule", &self.rules, &want.rules(), (rule::add, rule::del)));
        fixes
    }

    /// The longest segment to offer to clients. What isn't known stays as it is.
    fn advmss(&self, want: &PodWant<'_>) -> Option<u32> {
        let found = || {
            self.routes.iter().find_map(|route| match route.action {
                Action::Via { advmss, .. } if route.table == TABLE => advmss,
                _ => None,
            })
        };
        match want.underlay {
            Underlay::Unknown => found(),
            Underlay::Mtu(mtu) => tunnel::advmss(mtu?, self.link.mtu),
        }
    }

    /// An address that the programs don't know, of another of the pod's networks, is left to the pod to check.
    fn source_fix(&self, want: &PodWant<'_>) -> Option<Fix> {
        let Link { index, settings: link::Settings { rp_filter, accept_local, .. }, .. } = self.link;
        let wanted = if want.source_checked? && self.others.is_subset(&want.own) {
            UNCHECKED
        } else if accept_local == 0 {
            return None;
        } else {
            (RP_FILTER_LOOSE, 0)
        };
        if (rp_filter, accept_local) == wanted {
            return None;
        }
        let finding = format!(
            "{POD_DEVICE} has rp_filter {rp_filter}, accept_local {accept_local}, not {}, {}",
            wanted.0, wanted.1
        );
        let wanted = [(Setting::RpFilter, wanted.0), (Setting::AcceptLocal, wanted.1)];
        Some(fix(finding, link::configure(index, &wanted)))
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

/// Whether a pod's own interface never answers ARP for its VIPs.
pub fn has_arp_settings(settings: &link::Settings) -> bool {
    OWN_ADDRESSES_AT_MOST.contains(&settings.arp_ignore) && settings.arp_announce >= BEST_ADDRESS
}

/// `arp_ignore` and `arp_announce` that an interface with these is to have: what is strict enough already stays.
fn wanted_settings(arp_ignore: i32, arp_announce: i32) -> (i32, i32) {
    let is_strict = OWN_ADDRESSES_AT_MOST.contains(&arp_ignore);
    (if is_strict { arp_ignore } else { OWN_ADDRESSES_ONLY }, arp_announce.max(BEST_ADDRESS))
}

/// What is to be put back: the settings that still are as an ADD made them. Another value is another's (the plugin
/// `tuning` behind us in the chain, a person).
fn restored(saved: SavedSysctls, settings: &link::Settings) -> Vec<(Setting, i32)> {
    let made = wanted_settings(saved.arp_ignore, saved.arp_announce);
    let all = [
        (Setting::ArpIgnore, saved.arp_ignore, made.0, settings.arp_ignore),
        (Setting::ArpAnnounce, saved.arp_announce, made.1, settings.arp_announce),
    ];
    let ours = all.into_iter().filter(|(_, saved, made, now)| now == made && now != saved);
    ours.map(|(setting, saved, ..)| (setting, saved)).collect()
}

/// The kernel takes the greater one of this and the device's.
const ALL_RP_FILTER: &str = "net.ipv4.conf.all.rp_filter";
/// What a device that comes later has.
const DEFAULT_RP_FILTER: &str = "net.ipv4.conf.default.rp_filter";

/// A pod's `all.rp_filter` where it makes `vip0` check sources and nothing else: each other device is as strict by itself, and so are
/// those to come.
fn strict_for_all(pod: &PodNet) -> net::Result<Option<i32>> {
    let read = || [ALL_RP_FILTER, DEFAULT_RP_FILTER].map(|name| sysctl::get(name).ok());
    let [Some(all), Some(default)] = pod.netns().run(read)? else { return Ok(None) };
    if all == 0 || default < all {
        return Ok(None);
    }
    let is_strict = |link: &Link| link.loopback || link.name == POD_DEVICE || i64::from(link.settings.rp_filter) >= all;
    Ok(if link::list(pod)?.iter().all(is_strict) { i32::try_from(all).ok() } else { None })
}

/// Lowers a pod's `all.rp_filter` that was saved: `vip0` alone changes. Where it can't be written, packets are looked up as before.
pub fn relax_all(pod: &PodNet, saved: SavedSysctls) -> net::Result<()> {
    if saved.all_rp_filter.is_none() {
        return Ok(());
    }
    if let Err(error) = pod.netns().run(|| sysctl::ensure(ALL_RP_FILTER, 0))? {
        tracing::warn!("{error}: a pod's packets take longer");
    }
    Ok(())
}

/// Puts it back, unless it is another's by now.
fn restore_all(pod: &PodNet, saved: SavedSysctls) -> net::Result<()> {
    let Some(all) = saved.all_rp_filter else { return Ok(()) };
    pod.netns().run(|| match sysctl::get(ALL_RP_FILTER)? {
        0 => sysctl::ensure(ALL_RP_FILTER, all.into()),
        _ => Ok(()),
    })?
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

/// The addresses of one device of a pod, and those of all others but for the loopback network.
fn read_addresses(pod: &PodNet, index: u32) -> net::Result<(BTreeSet<IpAddr>, BTreeSet<IpAddr>)> {
    let (own, others): (Vec<_>, Vec<_>) =
        address::list(pod, Family::V4, None)?.into_iter().partition(|address| address.index == index);
    let others = others.iter().map(|other| other.address).filter(|address| !address.is_loopback());
    Ok((own.iter().map(|own| own.address).collect(), others.collect()))
}

/// The routes in our tables that [`route::add`] can have made.
fn read_routes(pod: &PodNet) -> net::Result<BTreeSet<TableRoute>> {
    let filter = Filter { protocol: Some(PROTOCOL), ..Filter::default() };
    let routes = route::list(pod, filter)?;
    Ok(routes.iter().filter(|route| ids::is_table(route.table)).filter_map(route::Route::of_ours).collect())
}

/// Takes our rules and routes out of a pod that lives on, and puts its interface's settings back. A `vip0` that isn't
/// this pair's belongs to another attachment, and so does all the rest then.
pub fn leave(pod: &PodNet, names: &VethNames, ifname: &str, saved: SavedSysctls) -> net::Result<()> {
    if link::by_name(pod, POD_DEVICE)?.is_some_and(|link| link.mac != Some(names.pod_mac)) {
        return Ok(());
    }
    let mut requests: Vec<Request> = rule::list(pod, Family::V4)?.into_iter().map(rule::del).collect();
    // Those by way of vip0 go with it; `throw` has no device to go with.
    requests.extend(read_routes(pod)?.into_iter().map(route::del));
    if let Some(interface) = link::by_name(pod, ifname)? {
        let settings = restored(saved, &interface.settings);
        if !settings.is_empty() {
            requests.push(link::configure(interface.index, &settings).absent_is_ok());
        }
    }
    pod.apply(&requests)?;
    restore_all(pod, saved)
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
