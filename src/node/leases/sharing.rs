//! Leases that the nodes of a cluster share, as membership among nodes has it ([`crate::node::peers`]): the others are told what
//! this one has, and what they were granted is taken up here.

use std::collections::BTreeMap;

use crate::api::protocol::{LeaseEntry, VipStatus};
use crate::dhcp::Turn;
use crate::lease::grant::Lease;
use crate::lease::state::{Input, Renewer};
use crate::model::{Family, VipKey};
use crate::node::peers::{Heard, LeaseKey, Own};

use super::Daemon;

/// What there is to say of a lease.
#[derive(Debug, Default)]
struct Shared {
    /// Its server has granted it to this node, not to another.
    is_granted: bool,
    /// What the others were told last.
    told: Option<Own>,
    /// The name of the node that renews it.
    renewer: Option<String>,
}

/// The leases of this node's VIPs, as far as they are shared.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    /// Other nodes can be told of them.
    is_on: bool,
    leases: BTreeMap<LeaseKey, Shared>,
}

impl Sharing {
    /// `is_on`: there may be other nodes.
    pub(super) fn new(is_on: bool) -> Self {
        Self { is_on, leases: BTreeMap::new() }
    }

    /// A lease was granted: to this node, or to another one, which told of it.
    pub(super) fn granted(&mut self, key: LeaseKey, to_this_node: bool) {
        if self.is_on {
            self.leases.entry(key).or_default().is_granted = to_this_node;
        }
    }

    /// Adds to each lease who renews it.
    pub(super) fn show(&self, leases: &mut [LeaseEntry]) {
        for lease in leases {
            lease.renewer = self.renewer(&lease.vip, Family::of(lease.address));
        }
    }

    /// The same for a VIP's status, which has one lease as a rule.
    pub(super) fn show_status(&self, vips: &mut [VipStatus]) {
        for vip in vips {
            vip.renewer = Family::ALL.into_iter().find_map(|family| self.renewer(&vip.vip, family));
        }
    }

    fn renewer(&self, vip: &str, family: Family) -> Option<String> {
        self.leases.get(&LeaseKey { vip: vip.parse().ok()?, family })?.renewer.clone()
    }
}

impl Daemon {
    /// Tells the others what this node has of a lease of the VIP's, where that has changed.
    pub(super) fn share(&mut self, vip: &VipKey, family: Family) {
        let Some(leasing) = self.sharing.is_on.then(|| self.leasing(family)).flatten() else { return };
        let is_shared = leasing.state.is_asked_for(vip) && leasing.executor.identity(vip).is_some();
        let lease = leasing.state.lease_of(vip).cloned();
        let key = LeaseKey { vip: vip.clone(), family };
        if !is_shared {
            if let Some(Shared { told: Some(_), .. }) = self.sharing.leases.remove(&key) {
                if let Some(leasing) = self.leasing(family) {
                    leasing.executor.forget_turn(vip);
                }
                self.agent.peers.tell_lease(key, None);
            }
            return;
        }
        let shared = self.sharing.leases.entry(key.clone()).or_default();
        let own = match lease {
            None => Own::Asks,
            Some(lease) if shared.is_granted => Own::Granted(lease),
            Some(lease) => Own::Knows(lease.address),
        };
        if shared.told.as_ref() != Some(&own) {
            shared.told = Some(own.clone());
            self.agent.peers.tell_lease(key, Some(own));
        }
    }

    pub(super) fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Members(members) => self.decide(|pool, here, now| {
                pool.on_members(members, now);
                pool.tick(here, now)
            }),
            Heard::Pool(from, message) => self.decide(|pool, here, now| pool.on_message(from, message, here, now)),
            Heard::Renewer { key, is_own, has_others, name } => {
                let Some(shared) = self.sharing.leases.get_mut(&key) else { return };
                let LeaseKey { vip, family } = key;
                if shared.renewer.as_ref() != Some(&name) {
                    tracing::info!(%vip, %family, node = name, "its lease is renewed by");
                    shared.renewer = Some(name);
                }
                if let Some(leasing) = self.leasing(family) {
                    leasing.executor.take_turn(&vip, if is_own { Turn::Own } else { Turn::Others });
                }
                let renewer = match (is_own, has_others) {
                    (false, _) => Renewer::Other,
                    (true, true) => Renewer::OwnForOthers,
                    (true, false) => Renewer::OwnAlone,
                };
                self.step_of(family, &vip, Input::Renewer(renewer));
            }
            Heard::Lease(LeaseKey { vip, family }, lease) => self.learn((family, &vip), &lease),
        }
    }

    fn learn(&mut self, (family, vip): (Family, &VipKey), lease: &Lease) {
        let address = lease.address;
        let Some(leasing) = self.leasing(family) else { return };
        let allow = leasing.state.allow();
        if !leasing.state.may_learn(vip) {
            tracing::debug!(%vip, %address, "another node's lease is not taken: an address is in conflict here");
        } else if !allow.permits(address) {
            tracing::warn!(%vip, %address, "another node's lease is not taken: allow doesn't hold it ({allow})");
        } else {
            leasing.executor.learn(vip, lease);
        }
    }
}
