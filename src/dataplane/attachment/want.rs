//! What a pod's namespace must have.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::dataplane::ids::{self, HOST_ADDRESS, HOST_LINK_LOCAL, POD_DEVICE, RULE_PRIORITY, TABLE, VethNames};
use crate::model::Addresses;
use crate::net::route::{self, Action, TableRoute};
use crate::net::rule::{Name, Rule, Selector};
use crate::registry::Endpoint;

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

/// `iif vip0`: by it VIPs are the pod's own.
pub(super) const ENTRANCE: Rule =
    Rule { selector: Selector::Device(Name::new(POD_DEVICE)), table: TABLE, priority: RULE_PRIORITY };

/// Bytes by which IPv6's header is longer than IPv4's.
const LONGER_HEADER: u32 = 20;

/// What is known of the network under the tunnel to other nodes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Underlay {
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
            if endpoint.udp_reply
                && let Some(address) = addresses.iter().find(IpAddr::is_ipv4)
            {
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

    /// Whether some VIP of the pod's has an address of IPv6.
    pub(super) fn has_ipv6(&self) -> bool {
        self.vips.iter().any(IpAddr::is_ipv6)
    }

    /// Those that what the pod itself sends may leave it for.
    pub(super) fn vips_of_ipv4(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.iter().copied().filter(IpAddr::is_ipv4)
    }

    /// Whether what the pod sends to its VIPs of IPv4 goes to the node, as anybody's does (`calls_leave`). `None`: it isn't known, and
    /// stays as it is.
    #[must_use]
    pub fn calls_leave(mut self, is: Option<bool>) -> Self {
        self.calls_leave = is;
        self
    }

    /// `calls_leave`: the pod's table `local` doesn't have its VIPs of IPv4.
    pub(super) fn rules(&self, calls_leave: bool) -> BTreeSet<Rule> {
        let rule = |selector, table| Rule { selector, table, priority: RULE_PRIORITY };
        let mut rules: BTreeSet<Rule> = self.vips.iter().map(|vip| rule(Selector::Source(*vip), TABLE)).collect();
        rules.extend(calls_leave.then_some(ENTRANCE));
        for UdpReply { table, ports, .. } in &self.replies {
            rules.extend(ports.iter().map(|port| rule(Selector::UnboundUdp(*port), *table)));
        }
        rules
    }

    /// What makes the pod take packets for its VIPs where its table `local` doesn't have them: all that come by `vip0` (`index`), and
    /// those from a VIP to itself, by which health checks ask the pod alone. The kernel takes no `src VIP` in a table that
    /// neither has the VIP nor is asked behind one that has (`fib_valid_prefsrc()` in `net/ipv4/fib_semantics.c`).
    pub(super) fn local_routes(&self, index: u32, calls_leave: bool) -> BTreeSet<TableRoute> {
        if !calls_leave {
            return BTreeSet::new();
        }
        let local = |table, vip| TableRoute { table, prefix: route::host(vip), tos: 0, action: Action::Local(index) };
        let replies = self.replies.iter().map(|reply| local(reply.table, reply.vip));
        self.vips_of_ipv4().map(|vip| local(TABLE, vip)).chain(replies).collect()
    }

    /// The way back out of `vip0` (`index`), and around it for what must not take it. `advmss`: by IPv4.
    pub(super) fn routes(&self, index: u32, advmss: Option<u32>) -> BTreeSet<TableRoute> {
        let way_back = |table, source, advmss| TableRoute {
            table,
            prefix: route::DEFAULT,
            tos: 0,
            action: Action::Via { gateway: HOST_ADDRESS, index, source, advmss },
        };
        let mut routes = BTreeSet::from([way_back(TABLE, None, advmss)]);
        if self.has_ipv6() {
            let advmss = advmss.map(|advmss| advmss.saturating_sub(LONGER_HEADER));
            let action = Action::Via { gateway: HOST_LINK_LOCAL, index, source: None, advmss };
            routes.insert(TableRoute { table: TABLE, prefix: route::DEFAULT6, tos: 0, action });
        }
        for UdpReply { vip, table, node_source_address, .. } in &self.replies {
            routes.insert(way_back(*table, Some(*vip), None));
            let around = [route::MULTICAST, route::host(IpAddr::V4(Ipv4Addr::BROADCAST))].into_iter();
            let around = around.chain(node_source_address.map(route::host));
            routes.extend(around.map(|prefix| TableRoute { table: *table, prefix, tos: 0, action: Action::Throw }));
        }
        routes
    }
}
