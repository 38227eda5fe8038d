//! An attachment's veth pair: its host end and everything on it, its pod end and everything around it. Like the routes:
//! what must be, what is, and the difference as requests.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use nix::errno::Errno;

use crate::bpf::{self, Programs};
use crate::net::address::{self, Address};
use crate::net::filter::{self, Side};
use crate::net::link::{self, End, Link, Setting};
use crate::net::neighbour::{self, Neighbour};
use crate::net::nexthop::{self, Nexthop};
use crate::net::route::{self, Filter, Hop, Kind};
use crate::net::rule::{self, Rule};
use crate::net::{self, Netns, NodeNet, PROTOCOL, PodNet, Request, Socket};
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
    neighbours: Vec<Neighbour>,
    /// The programs on it: the flow owner's, the guard's.
    owner: Option<u32>,
    guard: Option<u32>,
}

impl HostEnd {
    /// A host end that was just made: nothing is on it.
    pub fn new(node: &NodeNet, names: &PairNames) -> net::Result<Option<Self>> {
        let bare = |link| Self { link, addresses: Vec::new(), neighbours: Vec::new(), owner: None, guard: None };
        Ok(link::by_name(node, &names.host)?.map(bare))
    }

    /// A host end as it is.
    pub fn read(node: &NodeNet, names: &PairNames) -> net::Result<Option<Self>> {
        let Some(link) = link::by_name(node, &names.host)? else { return Ok(None) };
        let addresses = address::list(node, Some(link.index))?;
        let neighbours = neighbour::list(node, link.index)?;
        let owner = filter::program(node, link.index, Side::Egress)?;
        let guard = filter::program(node, link.index, Side::Ingress)?;
        Ok(Some(Self { link, addresses, neighbours, owner, guard }))
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
            if have != Some(program.id) {
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
        if !has_neighbour(&self.neighbours, pod_address, names.pod_mac) {
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

fn has_neighbour(neighbours: &[Neighbour], address: Ipv4Addr, mac: link::Mac) -> bool {
    neighbours.iter().any(|n| n.address == address && n.mac == Some(mac) && n.permanent)
}

/// What a pod's namespace must have.
#[derive(Clone, Debug)]
pub struct PodWant<'a> {
    /// The pair.
    pub names: &'a PairNames,
    /// The pod's own interface.
    pub ifname: &'a str,
    /// The VIPs it serves.
    pub vips: BTreeSet<Ipv4Addr>,
}

/// The pod's own interface, and a `vip0` that is in our way.
#[derive(Debug)]
pub struct PodBefore {
    /// The pod's own interface.
    pub interface: Link,
    /// There is a `vip0` already.
    pub taken: bool,
}

impl PodBefore {
    /// Looks at a pod before anything is made in it. `None`: it has no such interface.
    pub fn read(pod: &PodNet, ifname: &str) -> net::Result<Option<Self>> {
        let taken = link::by_name(pod, POD_DEVICE)?.is_some();
        Ok(link::by_name(pod, ifname)?.map(|interface| Self { interface, taken }))
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
    neighbours: Vec<Neighbour>,
    rules: BTreeSet<Rule>,
    default: bool,
}

impl PodEnd {
    /// A pod end that was just made: nothing is on it, nor around it. `None`: there is none.
    pub fn new(pod: &PodNet, interface: Link) -> net::Result<Option<Self>> {
        let bare = |link| Self {
            interface,
            link,
            addresses: BTreeSet::new(),
            neighbours: Vec::new(),
            rules: BTreeSet::new(),
            default: false,
        };
        Ok(link::by_name(pod, POD_DEVICE)?.map(bare))
    }

    /// A pod end as it is. `None`: it, or the pod's own interface, is gone.
    pub fn read(pod: &PodNet, ifname: &str) -> net::Result<Option<Self>> {
        let (Some(interface), Some(link)) = (link::by_name(pod, ifname)?, link::by_name(pod, POD_DEVICE)?) else {
            return Ok(None);
        };
        let index = link.index;
        let here = Hop { gateway: Some(HOST_ADDRESS), index: Some(index) };
        let filter = Filter { table: Some(TABLE), protocol: Some(PROTOCOL), prefix: Some(route::DEFAULT) };
        Ok(Some(Self {
            interface,
            addresses: address::list(pod, Some(index))?.iter().map(|a| a.address).collect(),
            neighbours: neighbour::list(pod, index)?,
            rules: rule::list(pod)?.into_iter().collect(),
            default: route::list(pod, filter)?.iter().any(|r| r.kind == Kind::Via(vec![here.clone()])),
            link,
        }))
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
        if !has_neighbour(&self.neighbours, HOST_ADDRESS, want.names.host_mac) {
            let finding = format!("neighbour {HOST_ADDRESS} on {POD_DEVICE} is missing");
            fixes.push(fix(finding, neighbour::replace(index, HOST_ADDRESS, want.names.host_mac)));
        }
        if !self.default {
            let finding = format!("route default via {HOST_ADDRESS} dev {POD_DEVICE} table {TABLE} is missing");
            fixes.push(fix(finding, route::add_default(TABLE, HOST_ADDRESS, index)));
        }
        fixes.extend(self.rule_fixes(&want.vips));
        fixes
    }

    fn settings_fix(&self, ifname: &str) -> Option<Fix> {
        let Link { index, settings, .. } = &self.interface;
        if settings.arp_ignore >= OWN_ADDRESSES_ONLY && settings.arp_announce >= BEST_ADDRESS {
            return None;
        }
        let finding =
            format!("{ifname} has arp_ignore {}, arp_announce {}", settings.arp_ignore, settings.arp_announce);
        let wanted = [(Setting::ArpIgnore, OWN_ADDRESSES_ONLY), (Setting::ArpAnnounce, BEST_ADDRESS)];
        Some(fix(finding, link::configure(*index, &wanted)))
    }

    fn rule_fixes(&self, vips: &BTreeSet<Ipv4Addr>) -> Vec<Fix> {
        let wanted: BTreeSet<Rule> = vips.iter().copied().map(rule_for).collect();
        let mut fixes = Vec::new();
        for stale in self.rules.difference(&wanted) {
            let finding = format!("rule from {} lookup {} should not be there", stale.source, stale.table);
            fixes.push(fix(finding, rule::del(*stale)));
        }
        for missing in wanted.difference(&self.rules) {
            let finding = format!("rule from {} lookup {} is missing", missing.source, missing.table);
            fixes.push(fix(finding, rule::add(*missing)));
        }
        fixes
    }
}

fn rule_for(vip: Ipv4Addr) -> Rule {
    Rule { source: vip, table: TABLE, priority: RULE_PRIORITY }
}

/// Takes our rules out of a pod that lives on, and puts its interface's settings back. A `vip0` that isn't this pair's
/// belongs to another attachment, and so does all the rest then.
pub fn leave(pod: &PodNet, names: &PairNames, ifname: &str, former: Former) -> net::Result<()> {
    if link::by_name(pod, POD_DEVICE)?.is_some_and(|link| link.mac != Some(names.pod_mac)) {
        return Ok(());
    }
    let mut requests: Vec<Request> = rule::list(pod)?.into_iter().map(rule::del).collect();
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
