//! An attachment's veth pair: its host end and everything on it, its pod end and everything around it. Like the routes:
//! what must be, what is, and the difference as requests.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use nix::errno::Errno;

use crate::bpf::{self, Programs};
use crate::net::address::{self, Address};
use crate::net::filter::{self, Side};
use crate::net::link::{self, End, Link, Setting};
use crate::net::neighbour::{self, Neighbour};
use crate::net::nexthop::{self, Nexthop};
use crate::net::route::{self, Action, Filter, TableRoute};
use crate::net::rule::{self, Rule, Selector};
use crate::net::{self, Netns, NodeNet, PROTOCOL, PodNet, Request, Socket};
use crate::registry::Endpoint;
use crate::registry::record::Former;

use super::ids::{self, HOST_ADDRESS, POD_DEVICE, PairNames, RULE_PRIORITY, TABLE, mac_text};

/// Loose: the address must have some way back, not necessarily this one. A replica that is not in its VIP's route still
/// answers; a strict check would drop that.
const RP_FILTER_LOOSE: i32 = 2;
/// Answer ARP only for addresses of the interface asked on (`arp_ignore`).
const OWN_ADDRESSES_ONLY: i32 = 1;
/// Ask by ARP with the best address of the interface used (`arp_announce`).
const BEST_ADDRESS: i32 = 2;

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

/// Makes the pair, its pod end in `netns`. Nothing is on it yet.
pub fn create(node: &NodeNet, names: &PairNames, mtu: u32, netns: &Netns) -> net::Result<()> {
    let host = End { name: &names.host, mac: names.host_mac };
    let pod = End { name: POD_DEVICE, mac: names.pod_mac };
    node.apply(&[link::add_veth(host, pod, mtu, netns)])
}

/// The host end, and what is on it.
#[derive(Debug)]
pub struct HostEnd {
    /// The device.
    pub link: Link,
    addresses: Vec<Address>,
    neighbour: Option<Neighbour>,
    /// The programs on it: the flow owner's, the guard's.
    owner: Option<u32>,
    guard: Option<u32>,
}

impl HostEnd {
    /// A host end that was just made: nothing is on it.
    pub fn new(node: &NodeNet, names: &PairNames) -> net::Result<Option<Self>> {
        let bare = |link| Self { link, addresses: Vec::new(), neighbour: None, owner: None, guard: None };
        Ok(link::by_name(node, &names.host)?.map(bare))
    }

    /// A host end as it is. Whoever doesn't ask for [`HostEnd::fixes`] needn't know the pod's address.
    pub fn read(node: &NodeNet, names: &PairNames, pod_address: Option<Ipv4Addr>) -> net::Result<Option<Self>> {
        let Some(link) = link::by_name(node, &names.host)? else { return Ok(None) };
        let addresses = address::list(node, Some(link.index))?;
        let neighbour = pod_address.map(|address| neighbour::get(node, link.index, address)).transpose()?.flatten();
        let owner = filter::program(node, link.index, Side::Egress)?;
        let guard = filter::program(node, link.index, Side::Ingress)?;
        Ok(Some(Self { link, addresses, neighbour, owner, guard }))
    }

    /// A flow owner's programs stand on it, of whatever build.
    pub fn has_programs(&self) -> bool {
        self.owner.is_some() || self.guard.is_some()
    }

    /// What must still be done for these programs to stand on it.
    pub fn filter_fixes(&self, programs: &Programs) -> bpf::Result<Vec<Fix>> {
        let Link { index, name, .. } = &self.link;
        let sides = [(Side::Egress, self.owner, &programs.owner), (Side::Ingress, self.guard, &programs.guard)];
        let mut fixes = Vec::new();
        for (side, have, program) in sides {
            if have != Some(program.id()) {
                let finding = format!("the flow owner's filter on {name} is missing or another one");
                fixes.push(fix(finding, filter::replace(*index, side, program.fd()?)));
            }
        }
        if !fixes.is_empty() {
            fixes.insert(0, fix(format!("clsact on {name} is missing"), filter::add_clsact(*index)));
        }
        Ok(fixes)
    }

    /// What must still be done for a pod at this address.
    pub fn fixes(&self, names: &PairNames, pod_address: Ipv4Addr) -> Vec<Fix> {
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

    /// The way to the pod: what its VIPs' groups are made of.
    pub fn nexthop(&self, pod_address: Ipv4Addr) -> net::Result<Nexthop> {
        let index = self.link.index;
        let out_of_range = || net::Error::new("add nexthop", format!("for link {index}"), Errno::ERANGE);
        Ok(Nexthop { id: ids::nexthop(index).ok_or_else(out_of_range)?, gateway: pod_address, index })
    }
}

fn is_neighbour(have: Option<&Neighbour>, address: Ipv4Addr, mac: link::Mac) -> bool {
    have.is_some_and(|n| n.address == address && n.mac == Some(mac) && n.permanent)
}

/// What a pod's namespace must have.
#[derive(Clone, Debug)]
pub struct PodWant<'a> {
    /// The pair.
    pub names: &'a PairNames,
    /// The pod's own interface.
    pub ifname: &'a str,
    /// The VIPs it serves.
    vips: BTreeSet<Ipv4Addr>,
    /// Those that its unbound UDP sockets answer from.
    replies: Vec<UdpReply>,
}

/// A VIP that a pod serves, as the registry has it.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// Its place in the attachment's list.
    pub place: usize,
    /// Its address.
    pub address: Ipv4Addr,
    /// The pod as its replica.
    pub endpoint: &'a Endpoint,
}

/// A VIP that a pod's unbound UDP sockets answer from.
#[derive(Clone, Debug)]
struct UdpReply {
    vip: Ipv4Addr,
    table: u32,
    ports: Vec<u16>,
    asked_from: Option<Ipv4Addr>,
}

impl<'a> PodWant<'a> {
    /// For a pod that serves these VIPs.
    pub fn new<'s>(names: &'a PairNames, ifname: &'a str, served: impl IntoIterator<Item = Served<'s>>) -> Self {
        let mut want = Self { names, ifname, vips: BTreeSet::new(), replies: Vec::new() };
        for Served { place, address, endpoint } in served {
            want.vips.insert(address);
            if endpoint.udp_reply {
                let ports = endpoint.udp_ports().collect();
                let (table, asked_from) = (ids::reply_table(place), endpoint.asked_from);
                want.replies.push(UdpReply { vip: address, table, ports, asked_from });
            }
        }
        want
    }

    /// With addresses that its VIPs had a moment ago.
    #[must_use]
    pub fn keeping(mut self, former: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        self.vips.extend(former);
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
    fn routes(&self, index: u32) -> BTreeSet<TableRoute> {
        let way_back = |table, source| TableRoute {
            table,
            prefix: route::DEFAULT,
            action: Action::Via { gateway: HOST_ADDRESS, index, source },
        };
        let mut routes = BTreeSet::from([way_back(TABLE, None)]);
        for UdpReply { vip, table, asked_from, .. } in &self.replies {
            routes.insert(way_back(*table, Some(*vip)));
            let around = [route::MULTICAST, route::host(Ipv4Addr::BROADCAST)].into_iter();
            let around = around.chain(asked_from.map(route::host));
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
    pub fn former(&self) -> Former {
        let link::Settings { arp_ignore, arp_announce, .. } = self.interface.settings;
        Former { arp_ignore, arp_announce }
    }
}

/// A pod's namespace as far as VIPs touch it.
#[derive(Debug)]
pub struct PodEnd {
    interface: Link,
    link: Link,
    addresses: BTreeSet<Ipv4Addr>,
    neighbour: Option<Neighbour>,
    rules: BTreeSet<Rule>,
    routes: BTreeSet<TableRoute>,
}

impl PodEnd {
    /// A pod end that was just made: nothing is on it, nor around it. `None`: there is none.
    pub fn new(pod: &PodNet, interface: Link) -> net::Result<Option<Self>> {
        let bare = |link| Self {
            interface,
            link,
            addresses: BTreeSet::new(),
            neighbour: None,
            rules: BTreeSet::new(),
            routes: BTreeSet::new(),
        };
        Ok(link::by_name(pod, POD_DEVICE)?.map(bare))
    }

    /// A pod end as it is. `None`: it, or the pod's own interface, is gone.
    pub fn read(pod: &PodNet, ifname: &str) -> net::Result<Option<Self>> {
        let Some(devices) = PodDevices::read(pod, ifname)? else { return Ok(None) };
        Self::around(pod, devices)
    }

    /// The same where the devices have been looked at.
    pub fn around(pod: &PodNet, devices: PodDevices) -> net::Result<Option<Self>> {
        let PodDevices { interface, vip0: Some(link) } = devices else { return Ok(None) };
        let index = link.index;
        Ok(Some(Self {
            interface,
            addresses: address::list(pod, Some(index))?.iter().map(|a| a.address).collect(),
            neighbour: neighbour::get(pod, index, HOST_ADDRESS)?,
            rules: rule::list(pod)?.into_iter().collect(),
            routes: read_routes(pod)?,
            link,
        }))
    }

    /// The pod end's index.
    pub fn index(&self) -> u32 {
        self.link.index
    }

    /// The pod end's Ethernet address: whether it is ours.
    pub fn mac(&self) -> Option<link::Mac> {
        self.link.mac
    }

    /// What must still be done, in an order in which replies have their way before requests can come.
    pub fn fixes(&self, want: &PodWant<'_>) -> Vec<Fix> {
        let mut fixes: Vec<Fix> = self.settings_fix(want.ifname).into_iter().collect();
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
        fixes.extend(set_fixes("route", &self.routes, &want.routes(index), (route::add, route::del)));
        fixes.extend(set_fixes("rule", &self.rules, &want.rules(), (rule::add, rule::del)));
        fixes
    }

    fn settings_fix(&self, ifname: &str) -> Option<Fix> {
        let Link { index, settings, .. } = &self.interface;
        if has_arp_settings(settings) {
            return None;
        }
        let finding =
            format!("{ifname} has arp_ignore {}, arp_announce {}", settings.arp_ignore, settings.arp_announce);
        let wanted = [(Setting::ArpIgnore, OWN_ADDRESSES_ONLY), (Setting::ArpAnnounce, BEST_ADDRESS)];
        Some(fix(finding, link::configure(*index, &wanted)))
    }
}

/// Whether a pod's own interface never answers ARP for its VIPs.
pub fn has_arp_settings(settings: &link::Settings) -> bool {
    settings.arp_ignore >= OWN_ADDRESSES_ONLY && settings.arp_announce >= BEST_ADDRESS
}

/// What adds or deletes one.
type Change<T> = fn(T) -> Request;

/// What is there too much goes first: it may stand where what is missing has to.
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

/// The routes in our tables that [`route::add`] can have made.
fn read_routes(pod: &PodNet) -> net::Result<BTreeSet<TableRoute>> {
    let filter = Filter { protocol: Some(PROTOCOL), ..Filter::default() };
    let routes = route::list(pod, filter)?;
    Ok(routes.iter().filter(|route| ids::is_table(route.table)).filter_map(route::Route::of_ours).collect())
}

/// Takes our rules and routes out of a pod that lives on, and puts its interface's settings back. A `vip0` that isn't
/// this pair's belongs to another attachment, and so does all the rest then.
pub fn leave(pod: &PodNet, names: &PairNames, ifname: &str, former: Former) -> net::Result<()> {
    if link::by_name(pod, POD_DEVICE)?.is_some_and(|link| link.mac != Some(names.pod_mac)) {
        return Ok(());
    }
    let mut requests: Vec<Request> = rule::list(pod)?.into_iter().map(rule::del).collect();
    // Those by way of vip0 go with it; `throw` has no device to go with.
    requests.extend(read_routes(pod)?.into_iter().map(route::del));
    if let Some(interface) = link::by_name(pod, ifname)? {
        let settings = [(Setting::ArpIgnore, former.arp_ignore), (Setting::ArpAnnounce, former.arp_announce)];
        requests.push(link::configure(interface.index, &settings).absent_is_ok());
    }
    pod.apply(&requests)
}

/// Takes the pair away: the nexthop first, told to everybody, then the devices.
pub fn remove(node: &NodeNet, names: &PairNames) -> net::Result<()> {
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
pub fn wrong_mac(name: &str, have: Option<link::Mac>, want: link::Mac) -> Option<String> {
    (have != Some(want)).then(|| {
        let have = have.map_or_else(|| "none".to_owned(), mac_text);
        format!("{name} has the Ethernet address {have}, not {}", mac_text(want))
    })
}
