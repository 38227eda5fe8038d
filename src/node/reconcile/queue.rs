//! The work queue: which attachments and VIPs an event concerns. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::dataplane::ids;
use crate::model::VipKey;
use crate::net::monitor::{Change, Event};
use crate::net::route;

use super::cache::Cache;

/// What may have become of the link to the gateways; a later one includes those before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkNews {
    /// Nothing.
    #[default]
    None,
    /// A device that is none of ours is another one.
    Device,
    /// The default route is another one.
    DefaultRoute,
}

/// What is to be reconciled.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(PartialEq, Eq))]
pub struct WorkQueue {
    /// Attachments, by name.
    pub attachments: BTreeSet<String>,
    /// VIPs.
    pub vips: BTreeSet<VipKey>,
    /// What may have become of the link to the gateways.
    pub link: LinkNews,
    /// Devices that are none of ours, on which something is another: a neighbour, a filter, a setting.
    pub devices: BTreeSet<u32>,
    /// Addresses of the node that came or went.
    pub addresses: BTreeSet<IpAddr>,
    /// Networks to which a route of ours is another.
    pub networks: BTreeSet<IpNetwork>,
    /// An event showed an object of ours that is no attachment's and no VIP's.
    pub orphans: bool,
    /// Something of the tunnel to other nodes is another.
    pub tunnel: bool,
    /// Everything.
    pub all: bool,
}

impl WorkQueue {
    /// Queues what the event concerns.
    pub fn on_event(&mut self, cache: &Cache, event: &Event) {
        match (event.netns, &event.change) {
            (_, Change::Overrun) => self.all = true,
            (Some(netns), change) => {
                // Of a pod's routes only those in tables of ours. Its other events aren't filtered: a comparison costs little.
                let concerns_us = !matches!(change, Change::Route { table, .. } if !ids::is_table(*table));
                if concerns_us && !matches!(change, Change::Nexthop(_)) {
                    self.attachments.extend(cache.by_netns(netns).cloned());
                }
            }
            (None, Change::Link { index, name }) => match cache.by_host(name).or_else(|| cache.by_index(*index)) {
                Some(attachment) => self.pair(cache, attachment),
                None if ids::is_host_veth(name) => self.orphans = true,
                None if name == ids::TUNNEL_DEVICE => self.tunnel = true,
                None => {
                    self.tunnel |= cache.is_tunnel(*index) || cache.is_under_tunnel(*index);
                    self.link = self.link.max(LinkNews::Device);
                }
            },
            // Each host veth has it, and the tunnel.
            (None, Change::Address { index, address }) if *address == ids::HOST_ADDRESS => {
                self.tunnel |= cache.is_tunnel(*index);
                self.attachments.extend(cache.by_index(*index).cloned());
            }
            (None, Change::Address { address, .. }) => {
                self.tunnel |= cache.is_tunnel_address(*address);
                self.addresses.insert(*address);
            }
            (None, Change::OnLink(index)) => {
                self.tunnel |= cache.is_tunnel(*index);
                match cache.by_index(*index) {
                    Some(attachment) => drop(self.attachments.insert(attachment.clone())),
                    None => drop(self.devices.insert(*index)),
                }
            }
            (None, Change::Route { prefix, table }) if *table == route::MAIN && route::is_host(*prefix) => {
                match cache.by_address(prefix.ip()) {
                    Some(vip) => drop(self.vips.insert(vip.clone())),
                    None => self.orphans = true,
                }
            }
            // Among the addresses of the node's devices: what other nodes send.
            (None, Change::Route { prefix, table }) if *table == route::LOCAL && route::is_host(*prefix) => {
                self.vips.extend(cache.by_address(prefix.ip()).cloned());
            }
            (None, Change::Route { prefix, table }) if *table == route::MAIN && is_default(*prefix) => {
                self.link = LinkNews::DefaultRoute;
            }
            (None, Change::Route { prefix, table }) if *table == route::MAIN => {
                self.networks.insert(*prefix);
            }
            // Of a table that policy rules choose: another uplink, perhaps.
            (None, Change::Route { prefix, .. }) if *prefix == route::DEFAULT => {
                self.link = self.link.max(LinkNews::Device);
            }
            (None, Change::Nexthop(id)) if ids::is_ours(*id) => self.nexthop(cache, *id),
            (None, Change::Route { .. } | Change::Nexthop(_) | Change::Rules) => {}
        }
    }

    /// A change of a veth pair concerns its nexthop too, and so its VIPs' groups.
    fn pair(&mut self, cache: &Cache, attachment: &str) {
        self.vips.extend(cache.vips_of(attachment).cloned());
        self.attachments.insert(attachment.to_owned());
    }

    fn nexthop(&mut self, cache: &Cache, id: u32) {
        if let Some(vip) = cache.by_group(id) {
            self.vips.insert(vip.clone());
            return;
        }
        self.tunnel |= ids::is_peer(id);
        match ids::nexthop_link(id).and_then(|index| cache.by_index(index)) {
            Some(attachment) => self.pair(cache, attachment),
            None => self.orphans = true,
        }
    }
}

/// The uplink may be another.
fn is_default(prefix: IpNetwork) -> bool {
    [route::DEFAULT, route::DEFAULT6].contains(&prefix)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use std::collections::BTreeMap;

    use super::*;
    use crate::dataplane::node::tunnel::Settled;
    use crate::dataplane::owner::Wants;
    use crate::model::node::{NodeId, OwnNode};
    use crate::model::{Backend, Cluster, GroupSpec};
    use crate::node::reconcile::cache::Vip;
    use crate::registry::{Replica, State, VipRecord};

    fn key() -> VipKey {
        VipKey::new("shop", "web").unwrap()
    }

    /// One VIP with one replica: pod `c1`, host veth 7, namespace 3.
    fn cache() -> Cache {
        let record = VipRecord {
            schema: 1,
            key: key().to_string(),
            addresses: IpAddr::from([10, 118, 0, 7]).into(),
            slot: 5,
            node: [192, 0, 2, 1].into(),
            group: GroupSpec { buckets: 1024, idle_timer: 1, unbalanced_timer: 10 },
            flow_owner: None,
            withdrawn: false,
            previous_addresses: Vec::new(),
            policy: crate::model::VipPolicy::default(),
            family: None,
            other: BTreeMap::new(),
        };
        let replica = Replica {
            addresses: IpAddr::from([10, 1, 0, 1]).into(),
            backend: Backend::Local,
            ifindex: 7,
            state: State::Ready,
            weight: 1,
            netns_id: Some(3),
            mac: None,
            ports: Vec::new(),
            udp_sticky: false,
            egress: crate::model::Egress::Answer.into(),
            health: None,
            drained: false,
            families: None,
            served: None,
        };
        let mut cache = Cache::default();
        let replicas = BTreeMap::from([("c1@eth0".to_owned(), replica)]);
        cache.update(&key(), Some(Vip { record, replicas, wants: Wants::default() }));
        cache
    }

    fn heard(cache: &Cache, netns: Option<u32>, change: Change) -> WorkQueue {
        let mut queue = WorkQueue::default();
        queue.on_event(cache, &Event { netns, change });
        queue
    }

    fn about(attachment: bool, vip: bool, orphans: bool) -> WorkQueue {
        let attachments = attachment.then(|| "c1@eth0".to_owned()).into_iter().collect();
        WorkQueue { attachments, vips: vip.then(key).into_iter().collect(), orphans, ..WorkQueue::default() }
    }

    fn route(prefix: &str, table: u32) -> Change {
        Change::Route { prefix: prefix.parse().unwrap(), table }
    }

    #[test]
    fn an_event_queues_what_it_concerns() {
        let cache = cache();
        let link = |name: &str| Change::Link { index: 9, name: name.to_owned() };
        assert_eq!(heard(&cache, None, link("vipd72e032fedd")), about(true, true, false));
        assert_eq!(heard(&cache, None, Change::Link { index: 7, name: "renamed".into() }), about(true, true, false));
        assert_eq!(heard(&cache, None, link("vip00000000000")), about(false, false, true));
        assert_eq!(heard(&cache, None, link("eth0")), WorkQueue { link: LinkNews::Device, ..WorkQueue::default() });
        let address = |index, address: [u8; 4]| Change::Address { index, address: address.into() };
        assert_eq!(heard(&cache, None, address(7, [169, 254, 118, 1])), about(true, false, false));
        let own = WorkQueue { addresses: [[192, 0, 2, 1].into()].into(), ..WorkQueue::default() };
        assert_eq!(heard(&cache, None, address(2, [192, 0, 2, 1])), own);
        let default_route = WorkQueue { link: LinkNews::DefaultRoute, ..WorkQueue::default() };
        assert_eq!(heard(&cache, None, route("0.0.0.0/0", 254)), default_route);
        let of_ipv6 = WorkQueue { link: LinkNews::DefaultRoute, ..WorkQueue::default() };
        assert_eq!(heard(&cache, None, route("::/0", 254)), of_ipv6);
        assert_eq!(heard(&cache, None, Change::OnLink(7)), about(true, false, false));
        let device = |index| WorkQueue { devices: [index].into(), ..WorkQueue::default() };
        assert_eq!(heard(&cache, None, Change::OnLink(8)), device(8));
        let other_table = WorkQueue { link: LinkNews::Device, ..WorkQueue::default() };
        assert_eq!(heard(&cache, None, route("0.0.0.0/0", 99)), other_table);
        assert_eq!(heard(&cache, None, route("10.118.0.7/32", 254)), about(false, true, false));
        assert_eq!(heard(&cache, None, route("10.118.0.8/32", 254)), about(false, false, true));
        assert_eq!(heard(&cache, None, route("10.118.0.7/32", 7)), WorkQueue::default());
        assert_eq!(heard(&cache, None, route("10.118.0.7/32", 255)), about(false, true, false));
        assert_eq!(heard(&cache, None, route("10.1.0.1/32", 255)), WorkQueue::default(), "a device's address");
        assert_eq!(heard(&cache, None, Change::Nexthop(0x7700_0005)), about(false, true, false));
        assert_eq!(heard(&cache, None, Change::Nexthop(0x7600_0007)), about(true, true, false));
        assert_eq!(heard(&cache, None, Change::Nexthop(0x7600_0008)), about(false, false, true));
        assert_eq!(heard(&cache, None, Change::Nexthop(8)), WorkQueue::default());
        assert_eq!(heard(&cache, None, Change::Rules), WorkQueue::default());
        assert!(heard(&cache, None, Change::Overrun).all);
    }

    /// Its device is 9, on device 2, which has 192.0.2.1.
    #[test]
    fn what_concerns_the_tunnel() {
        let mut cache = cache();
        let (id, tunnel) = (NodeId([192, 0, 2, 1].into()), [192, 0, 2, 1].into());
        let own = OwnNode { id, name: String::new(), tunnel, heard6: None, left: false };
        cache.set_cluster(Some(Cluster { own, nodes: Vec::new() }));
        cache.set_tunnel(Some(&Settled { device: 9, underlay: 2, programs: BTreeMap::new() }));
        let link = |index, name: &str| Change::Link { index, name: name.to_owned() };
        let address = |index, address: [u8; 4]| Change::Address { index, address: address.into() };
        let concern = [
            link(9, "viptun0"),
            link(9, "renamed"),
            link(2, "eth0"),
            Change::OnLink(9),
            address(9, [169, 254, 118, 1]),
            address(3, [192, 0, 2, 1]),
            Change::Nexthop(0x7800_0001),
        ];
        for change in concern {
            assert!(heard(&cache, None, change.clone()).tunnel, "{change:?}");
        }
        let none = [
            link(3, "eth1"),
            Change::OnLink(2),
            address(2, [192, 0, 2, 7]),
            address(7, [169, 254, 118, 1]),
            route("10.118.0.7/32", route::LOCAL),
            Change::Rules,
            Change::Nexthop(0x7700_0005),
        ];
        for change in none {
            assert!(!heard(&cache, None, change.clone()).tunnel, "{change:?}");
        }
    }

    #[test]
    fn what_happens_in_a_pod_is_about_that_pod() {
        let cache = cache();
        for change in [Change::Rules, Change::OnLink(1), route("0.0.0.0/0", 118)] {
            assert_eq!(heard(&cache, Some(3), change.clone()), about(true, false, false));
            assert_eq!(heard(&cache, Some(4), change), WorkQueue::default());
        }
        assert_eq!(heard(&cache, Some(3), route("0.0.0.0/0", 254)), WorkQueue::default());
    }

    #[test]
    fn a_removed_vip_is_not_queued() {
        let mut cache = cache();
        cache.update(&key(), None);
        let device = WorkQueue { devices: [7].into(), ..WorkQueue::default() };
        assert_eq!(heard(&cache, None, Change::OnLink(7)), device);
        assert_eq!(heard(&cache, Some(3), Change::Rules), WorkQueue::default());
        assert_eq!(cache.attachments().count() + cache.vips().len(), 0);
    }
}
