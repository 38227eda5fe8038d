//! What events call for: which attachments and VIPs to look at. Pure.

use std::collections::BTreeSet;

use crate::net::monitor::{Change, Event};
use crate::net::route;
use crate::registry::VipKey;
use crate::vip::ids;

use super::known::Known;

/// What is to be looked at.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(PartialEq, Eq))]
pub struct Todo {
    /// Attachments, by name.
    pub attachments: BTreeSet<String>,
    /// VIPs.
    pub vips: BTreeSet<VipKey>,
    /// Something of ours that is nobody's was seen.
    pub strays: bool,
    /// Everything.
    pub all: bool,
}

impl Todo {
    /// Something happened.
    pub fn hear(&mut self, known: &Known, event: &Event) {
        match (event.netns, &event.change) {
            (_, Change::Overrun) => self.all = true,
            (Some(netns), change) => {
                // Of a pod's routes only those in tables of ours; the rest isn't told apart: a look costs little.
                let concerns_us = !matches!(change, Change::Route { table, .. } if !ids::is_table(*table));
                if concerns_us && !matches!(change, Change::Nexthop(_)) {
                    self.attachments.extend(known.by_netns(netns).cloned());
                }
            }
            (None, Change::Link { index, name }) => match known.by_host(name).or_else(|| known.by_index(*index)) {
                Some(attachment) => self.pair(known, attachment),
                None => self.strays |= ids::is_host_end(name),
            },
            (None, Change::OnLink(index)) => self.attachments.extend(known.by_index(*index).cloned()),
            (None, Change::Route { prefix, table }) if *table == route::MAIN && prefix.prefix() == 32 => {
                match known.by_address(prefix.ip()) {
                    Some(vip) => drop(self.vips.insert(vip.clone())),
                    None => self.strays = true,
                }
            }
            (None, Change::Nexthop(id)) if ids::is_ours(*id) => self.nexthop(known, *id),
            (None, Change::Route { .. } | Change::Nexthop(_) | Change::Rules) => {}
        }
    }

    /// What happens to a pair happens to its nexthop, and so to its VIPs' groups.
    fn pair(&mut self, known: &Known, attachment: &str) {
        self.vips.extend(known.vips_of(attachment).cloned());
        self.attachments.insert(attachment.to_owned());
    }

    fn nexthop(&mut self, known: &Known, id: u32) {
        if let Some(vip) = known.by_group(id) {
            self.vips.insert(vip.clone());
            return;
        }
        match ids::nexthop_link(id).and_then(|index| known.by_index(index)) {
            Some(attachment) => self.pair(known, attachment),
            None => self.strays = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::agent::reconcile::known::Vip;
    use crate::cni::config::Group;
    use crate::registry::{Replica, State, VipRecord};
    use crate::vip::owner::Want;

    fn key() -> VipKey {
        VipKey::new("shop", "web").unwrap()
    }

    /// One VIP with one replica: pod `c1`, host end 7, namespace 3.
    fn known() -> Known {
        let record = VipRecord {
            schema: 1,
            key: key().to_string(),
            address: [10, 118, 0, 7].into(),
            slot: 5,
            node: [192, 0, 2, 1].into(),
            group: Group { buckets: 1024, idle_timer: 1, unbalanced_timer: 10 },
            flow_owner: None,
            withdrawn: false,
            former: Vec::new(),
            other: BTreeMap::new(),
        };
        let replica = Replica {
            address: [10, 1, 0, 1].into(),
            ifindex: 7,
            state: State::Ready,
            weight: 1,
            netns_id: Some(3),
            mac: String::new(),
            ports: Vec::new(),
            udp_sticky: false,
            health: None,
            drained: false,
        };
        let mut known = Known::default();
        let replicas = BTreeMap::from([("c1@eth0".to_owned(), replica)]);
        known.update(&key(), Some(Vip { record, replicas, want: Want::default() }));
        known
    }

    fn heard(known: &Known, netns: Option<u32>, change: Change) -> Todo {
        let mut todo = Todo::default();
        todo.hear(known, &Event { netns, change });
        todo
    }

    fn about(attachment: bool, vip: bool, strays: bool) -> Todo {
        let attachments = attachment.then(|| "c1@eth0".to_owned()).into_iter().collect();
        Todo { attachments, vips: vip.then(key).into_iter().collect(), strays, all: false }
    }

    fn route(prefix: &str, table: u32) -> Change {
        Change::Route { prefix: prefix.parse().unwrap(), table }
    }

    #[test]
    fn an_event_says_whom_to_look_at() {
        let known = known();
        let link = |name: &str| Change::Link { index: 9, name: name.to_owned() };
        assert_eq!(heard(&known, None, link("vipd72e032fedd")), about(true, true, false));
        assert_eq!(heard(&known, None, Change::Link { index: 7, name: "renamed".into() }), about(true, true, false));
        assert_eq!(heard(&known, None, link("vip00000000000")), about(false, false, true));
        assert_eq!(heard(&known, None, link("eth0")), Todo::default());
        assert_eq!(heard(&known, None, Change::OnLink(7)), about(true, false, false));
        assert_eq!(heard(&known, None, Change::OnLink(8)), Todo::default());
        assert_eq!(heard(&known, None, route("10.118.0.7/32", 254)), about(false, true, false));
        assert_eq!(heard(&known, None, route("10.118.0.8/32", 254)), about(false, false, true));
        assert_eq!(heard(&known, None, route("10.118.0.7/32", 7)), Todo::default());
        assert_eq!(heard(&known, None, Change::Nexthop(0x7700_0005)), about(false, true, false));
        assert_eq!(heard(&known, None, Change::Nexthop(0x7600_0007)), about(true, true, false));
        assert_eq!(heard(&known, None, Change::Nexthop(0x7600_0008)), about(false, false, true));
        assert_eq!(heard(&known, None, Change::Nexthop(8)), Todo::default());
        assert_eq!(heard(&known, None, Change::Rules), Todo::default());
        assert!(heard(&known, None, Change::Overrun).all);
    }

    #[test]
    fn what_happens_in_a_pod_is_about_that_pod() {
        let known = known();
        for change in [Change::Rules, Change::OnLink(1), route("0.0.0.0/0", 118)] {
            assert_eq!(heard(&known, Some(3), change.clone()), about(true, false, false));
            assert_eq!(heard(&known, Some(4), change), Todo::default());
        }
        assert_eq!(heard(&known, Some(3), route("0.0.0.0/0", 254)), Todo::default());
    }

    #[test]
    fn who_is_gone_is_nobody() {
        let mut known = known();
        known.update(&key(), None);
        assert_eq!(heard(&known, None, Change::OnLink(7)), Todo::default());
        assert_eq!(heard(&known, Some(3), Change::Rules), Todo::default());
        assert_eq!(known.attachments().count() + known.vips().len(), 0);
    }
}
