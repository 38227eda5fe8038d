//! What a pod's namespace must have.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::dataplane::ids::{self, HOST_ADDRESS, HOST_LINK_LOCAL, POD_DEVICE, RULE_PRIORITY, TABLE, VethNames};
use crate::ebpf::{self, Parts};
use crate::model::{Addresses, Family};
use crate::net::route::{self, Action, TableRoute};
use crate::net::rule::{Name, Rule, Selector};
use crate::registry::Endpoint;

use super::Families;

/// What a pod's namespace must have.
#[derive(Clone, Debug)]
pub struct PodWant<'a> {
    /// The pair.
    pub names: &'a VethNames,
    /// The pod's own interface.
    pub ifname: &'a str,
    pub(super) vips: BTreeSet<IpAddr>,
    /// Those that its unbound UDP sockets answer from.
    replies: Vec<UdpReply>,
    /// UDP ports of its VIPs are named: what answers them does so from there ([`super::ContainerVeth::filter_fixes`]).
    pub(super) answers: bool,
    /// The pod's own address, as its VIPs know it.
    pub(super) own: BTreeSet<IpAddr>,
    /// See [`PodWant::source_checked`].
    pub(super) source_checked: Option<bool>,
    /// See [`PodWant::calls_leave`].
    pub(super) calls_leave: Option<bool>,
    pub(super) underlay: Underlay,
}

/// `iif vip0`: by it VIPs of that family are the pod's own.
pub(super) const fn entrance(family: Family) -> Rule {
    Rule { selector: Selector::Device(family, Name::new(POD_DEVICE)), table: TABLE, priority: RULE_PRIORITY }
}

/// The families of whose VIPs the pod's own calls leave it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CallsLeave {
    pub ipv4: bool,
    pub ipv6: bool,
}

impl CallsLeave {
    pub fn of(self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }

    pub fn has(self, vip: &IpAddr) -> bool {
        self.of(Family::of(*vip))
    }
}

/// Bytes by which IPv6's header is longer than IPv4's.
const LONGER_HEADER: u32 = 20;

/// What is known of the network under the tunnel to other nodes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Underlay {
    /// Nothing: what a pod offers to receive stays as it is.
    Unknown,
    /// The longest packet that goes through the tunnel in one piece, where there is one.
    Whole(Option<u32>),
}

/// A VIP that a pod serves, as the registry has it.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// Its place in the attachment's list.
    pub place: usize,
    /// Its addresses.
    pub addresses: &'a Addresses,
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
        let mut want = Self {
            names,
            ifname,
            vips,
            replies: Vec::new(),
            answers: false,
            own,
            source_checked: None,
            calls_leave: None,
            underlay: Underlay::Unknown,
        };
        for Served { place, addresses, endpoint } in served {
            want.vips.extend(addresses.iter());
            want.own.extend(endpoint.addresses.iter());
            want.answers |= endpoint.udp_ports().next().is_some();
            // One of each family.
            let vip_of = |family| addresses.iter().find(|address| Family::of(*address) == family);
            for vip in Family::ALL.into_iter().filter(|_| endpoint.udp_reply).filter_map(vip_of) {
                let (table, ports) = (ids::reply_table(place), endpoint.udp_ports().collect());
                let is_of_family = |address: &IpAddr| address.is_ipv4() == vip.is_ipv4();
                let node_source_address = endpoint.node_source_address.filter(is_of_family);
                want.replies.push(UdpReply { vip, table, ports, node_source_address });
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

    /// Whether what comes from the pod's own addresses is dropped before it gets there ([`super::HostVeth::checks_sources`]), so that the
    /// pod needn't check it. `None`: it isn't known, and what the pod does stays as it is.
    #[must_use]
    pub fn source_checked(mut self, is: Option<bool>) -> Self {
        self.source_checked = is;
        self
    }

    /// The longest packet that goes through the tunnel in one piece, where there is one ([`crate::dataplane::node::tunnel::Underlay::whole`]): what clients send must be
    /// no longer. Unless this is called what the pod offers stays as it is.
    #[must_use]
    pub fn tunnel_mtu(mut self, whole: Option<u32>) -> Self {
        self.underlay = Underlay::Whole(whole);
        self
    }

    /// The programs that it has need of, in the pod.
    pub fn parts(&self) -> Parts {
        Parts::ipv6(self.has_ipv6())
    }

    /// Whether some VIP of the pod's has an address of IPv6.
    pub(super) fn has_ipv6(&self) -> bool {
        self.vips.iter().any(IpAddr::is_ipv6)
    }

    /// Which parts of the pod there can be something of.
    pub fn families(&self) -> Families {
        if self.has_ipv6() { Families::Both } else { Families::Ipv4 }
    }

    /// Whether the programs know these addresses of a family, all that the pod has of it, as the pod's own.
    pub(super) fn knows_own(&self, addresses: &BTreeSet<IpAddr>, family: Family) -> bool {
        let mut of_family = addresses.iter().filter(|address| Family::of(**address) == family);
        let own = self.own.iter().filter(|address| Family::of(**address) == family);
        of_family.all(|address| self.own.contains(address)) && (family == Family::V4 || own.count() <= ebpf::OWN)
    }

    /// Whether what the pod sends to its VIPs goes to the node, as anybody's does (`calls_leave`). `None`: it isn't known, and
    /// stays as it is.
    #[must_use]
    pub fn calls_leave(mut self, is: Option<bool>) -> Self {
        self.calls_leave = is;
        self
    }

    /// `calls_leave`: the pod's table `local` doesn't have its VIPs of that family.
    pub(super) fn rules(&self, calls_leave: CallsLeave) -> BTreeSet<Rule> {
        let rule = |selector, table| Rule { selector, table, priority: RULE_PRIORITY };
        let mut rules: BTreeSet<Rule> = self.vips.iter().map(|vip| rule(Selector::Source(*vip), TABLE)).collect();
        rules.extend(Family::ALL.into_iter().filter(|family| calls_leave.of(*family)).map(entrance));
        for UdpReply { vip, table, ports, .. } in &self.replies {
            let family = Family::of(*vip);
            rules.extend(ports.iter().map(|port| rule(Selector::UnboundUdp(family, *port), *table)));
            // What has one of the pod's own addresses as its source goes on where it went.
            let own = self.own.iter().filter(|_| family == Family::V6).filter(|own| own.is_ipv6());
            rules.extend(own.map(|own| Rule {
                selector: Selector::Source(*own),
                table: route::MAIN,
                priority: RULE_PRIORITY - 1,
            }));
        }
        rules
    }

    /// What makes the pod take packets for its VIPs where its table `local` doesn't have them: all that come by `vip0` (`index`), and
    /// those from a VIP to itself, by which health checks ask the pod alone. The kernel takes no `src VIP` in a table that
    /// neither has the VIP nor is asked behind one that has (`fib_valid_prefsrc()` in `net/ipv4/fib_semantics.c`); IPv6 asks for the
    /// address alone.
    pub(super) fn local_routes(&self, index: u32, calls_leave: CallsLeave) -> BTreeSet<TableRoute> {
        let local = |table, vip| TableRoute { table, prefix: route::host(vip), tos: 0, action: Action::Local(index) };
        let replies = self.replies.iter().filter(|reply| reply.vip.is_ipv4() && calls_leave.ipv4);
        let replies = replies.map(|reply| local(reply.table, reply.vip));
        let vips = self.vips.iter().filter(|vip| calls_leave.has(vip));
        vips.map(|vip| local(TABLE, *vip)).chain(replies).collect()
    }

    /// The way back out of `vip0` (`index`), and around it for what must not take it. `advmss`: by IPv4.
    pub(super) fn routes(&self, index: u32, advmss: Option<u32>) -> BTreeSet<TableRoute> {
        let way_back = |family, table, source, advmss| {
            let (prefix, gateway) = match family {
                Family::V4 => (route::DEFAULT, HOST_ADDRESS),
                Family::V6 => (route::DEFAULT6, HOST_LINK_LOCAL),
            };
            TableRoute { table, prefix, tos: 0, action: Action::Via { gateway, index, source, advmss } }
        };
        let of_ipv6 = advmss.map(|advmss| advmss.saturating_sub(LONGER_HEADER));
        let mut routes = BTreeSet::from([way_back(Family::V4, TABLE, None, advmss)]);
        routes.extend(self.has_ipv6().then(|| way_back(Family::V6, TABLE, None, of_ipv6)));
        for UdpReply { vip, table, node_source_address, .. } in &self.replies {
            let family = Family::of(*vip);
            routes.insert(way_back(family, *table, Some(*vip), None));
            let groups = match family {
                Family::V4 => vec![route::MULTICAST, route::host(IpAddr::V4(Ipv4Addr::BROADCAST))],
                Family::V6 => vec![route::MULTICAST6],
            };
            let around = groups.into_iter().chain(node_source_address.map(route::host));
            routes.extend(around.map(|prefix| TableRoute { table: *table, prefix, tos: 0, action: Action::Throw }));
        }
        routes
    }
}
