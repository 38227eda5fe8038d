//! Which nodes' replicas a VIP's group has, where Services ask for those of some zones (`VipPolicy::near`). Pure.
//!
//! All or nothing, as with kube-proxy: where no replica that is asked for is ready, the others are chosen as if nothing were asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{Backend, Family};
use crate::registry::{Replica, VipRecord};

use super::owner::is_ready;
use super::serving;

/// The replicas that are near.
#[derive(Clone, Copy, Debug)]
pub struct Near<'a>(Option<&'a BTreeSet<IpAddr>>);

impl<'a> Near<'a> {
    /// Of a VIP with these replicas. Where they serve different ports, one that is near may lack what is asked for: then all are.
    pub fn of(record: &'a VipRecord, replicas: &BTreeMap<String, Replica>) -> Self {
        let near = Self(record.policy.near.as_ref());
        let is_some_ready = || replicas.values().any(|replica| is_ready(replica) && near.has(replica));
        let serve_alike = || Family::ALL.iter().all(|family| serving::by_port(replicas, *family, false).is_empty());
        let is_met = near.0.is_some() && is_some_ready() && serve_alike();
        Self(near.0.filter(|_| is_met))
    }

    /// Whether a replica is one of them. This node's are.
    pub fn has(self, replica: &Replica) -> bool {
        match replica.backend {
            Backend::Local => true,
            Backend::Remote(peer) => self.0.is_none_or(|near| near.contains(&peer.address)),
        }
    }
}
