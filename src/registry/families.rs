//! By which families a VIP is served, as its replicas ask for it.
//!
//! One that all replicas ask for alone is the only one. As soon as one of them asks for the other too, or for nothing in particular, the VIP is
//! served by all addresses that it has: so a rollout that changes what pods ask for breaks no connection, whichever pods come first.

use std::collections::BTreeMap;

use crate::model::{Family, Recorded};

use super::{LockedVip, Replica, Result, VipRecord};

/// The family that all of them ask for and no other; `None`: there is none.
pub fn only<'a>(replicas: impl IntoIterator<Item = &'a Replica>) -> Option<Family> {
    let mut asked = replicas.into_iter().map(|replica| replica.families.as_ref()?.known()?.only());
    let first = asked.next()??;
    asked.all(|other| other == Some(first)).then_some(first)
}

impl LockedVip {
    /// Has the record say what the VIP's replicas ask for. Without replicas it stays as it is: the first ones are on their way, or the last have
    /// just left.
    pub fn follow_families(&mut self) -> Result<()> {
        let replicas: &BTreeMap<String, Replica> = self.replicas()?;
        if replicas.is_empty() {
            return Ok(());
        }
        let family = only(replicas.values()).map(Recorded::Known);
        match self.record.clone() {
            Some(record) if record.family != family => self.write_record(VipRecord { family, ..record }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Endpoint;

    fn replica(families: Option<&str>) -> Replica {
        let mut record = serde_json::json!({
            "network": "net", "addresses": ["10.1.0.1"], "node": "192.0.2.1", "gateway": null, "device": "vip0", "ifindex": 7, "nexthop": 7,
            "state": "ready", "weight": 1,
        });
        if let Some(families) = families {
            record["families"] = families.into();
        }
        let endpoint: Endpoint = serde_json::from_value(record).unwrap();
        Replica::of(&endpoint).unwrap()
    }

    #[test]
    fn a_family_is_the_only_one_if_all_ask_for_it_alone() {
        let of = |asked: &[Option<&str>]| only(&asked.iter().map(|families| replica(*families)).collect::<Vec<_>>());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[Some("ipv6"), Some("ipv6")]), Some(Family::V6));
        assert_eq!(of(&[Some("ipv4")]), Some(Family::V4));
        for all in [
            &[None][..],
            &[Some("ipv6"), None],
            &[None, Some("ipv6")],
            &[Some("ipv6"), Some("ipv4")],
            &[Some("ipv6"), Some("ipv4,ipv6")],
            &[Some("ipv6"), Some("ipv7")],
        ] {
            assert_eq!(of(all), None, "{all:?}");
        }
    }

    #[test]
    fn what_services_say_goes_before_what_replicas_ask_for() {
        let record = |more: serde_json::Value| -> VipRecord {
            let mut record = serde_json::json!({
                "key": "shop/web", "addresses": ["10.118.0.7", "fd00:118::7"], "slot": 1, "node": "192.0.2.1",
                "group": { "buckets": 8, "idleTimer": 1, "unbalancedTimer": 10 },
            });
            record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(record).unwrap()
        };
        let served = |more| {
            let record = record(more);
            let [served, kept] = [record.served_addresses().count(), record.unserved_addresses().count()];
            (record.served_address().is_ipv6(), served, kept)
        };
        assert_eq!(served(serde_json::json!({})), (false, 2, 0));
        assert_eq!(served(serde_json::json!({ "family": "ipv6" })), (true, 1, 1));
        assert_eq!(served(serde_json::json!({ "family": "ipv6", "policy": { "family": "ipv4" } })), (false, 1, 1));
        assert_eq!(served(serde_json::json!({ "family": "ipv7" })), (false, 2, 0), "a later version's");
    }
}
