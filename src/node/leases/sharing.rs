//! Leases that the nodes of a cluster share, as membership among nodes has it ([`crate::node::peers`]): the others are told what
//! this one has, and what they were granted is taken up here.

use std::collections::BTreeMap;

use crate::api::protocol::{LeaseEntry, VipStatus};
use crate::dhcp::Turn;
use crate::lease::grant::Lease;
use crate::lease::state::{Input, Renewer};
use crate::model::VipKey;
use crate::node::peers::{Heard, Own};

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
    vips: BTreeMap<VipKey, Shared>,
}

impl Sharing {
    /// `is_on`: there may be other nodes.
    pub(super) fn new(is_on: bool) -> Self {
        Self { is_on, vips: BTreeMap::new() }
    }

    /// A lease was granted: to this node, or to another one, which told of it.
    pub(super) fn granted(&mut self, vip: &VipKey, to_this_node: bool) {
        if self.is_on {
            self.vips.entry(vip.clone()).or_default().is_granted = to_this_node;
        }
    }

    /// Adds to each lease who renews it.
    pub(super) fn show(&self, leases: &mut [LeaseEntry]) {
        for lease in leases {
            lease.renewer = self.renewer(&lease.vip);
        }
    }

    /// The same for a VIP's status.
    pub(super) fn show_status(&self, vips: &mut [VipStatus]) {
        for vip in vips {
            vip.renewer = self.renewer(&vip.vip);
        }
    }

    fn renewer(&self, vip: &str) -> Option<String> {
        self.vips.get(&vip.parse().ok()?)?.renewer.clone()
    }
}

impl Daemon {
    /// Tells the others what this node has of the VIP's lease, where that has changed.
    pub(super) fn share(&mut self, vip: &VipKey) {
        if !self.sharing.is_on {
            return;
        }
        let is_shared = self.v4.state.is_asked_for(vip) && self.v4.executor.identity(vip).is_some();
        if !is_shared {
            if let Some(Shared { told: Some(_), .. }) = self.sharing.vips.remove(vip) {
                self.v4.executor.forget_turn(vip);
                self.agent.peers.tell_lease(vip.clone(), None);
            }
            return;
        }
        let shared = self.sharing.vips.entry(vip.clone()).or_default();
        let own = match self.v4.state.lease_of(vip) {
            None => Own::Asks,
            Some(lease) if shared.is_granted => Own::Granted(lease.clone()),
            Some(lease) => Own::Knows(lease.address),
        };
        if shared.told.as_ref() != Some(&own) {
            shared.told = Some(own.clone());
            self.agent.peers.tell_lease(vip.clone(), Some(own));
        }
    }

    pub(super) fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Members(members) => self.decide(|pool, here, now| {
                pool.on_members(members, now);
                pool.tick(here, now)
            }),
            Heard::Pool(from, message) => self.decide(|pool, here, now| pool.on_message(from, message, here, now)),
            Heard::Renewer { vip, is_own, has_others, name } => {
                let Some(shared) = self.sharing.vips.get_mut(&vip) else { return };
                if shared.renewer.as_ref() != Some(&name) {
                    tracing::info!(%vip, node = name, "its lease is renewed by");
                    shared.renewer = Some(name);
                }
                self.v4.executor.take_turn(&vip, if is_own { Turn::Own } else { Turn::Others });
                let renewer = match (is_own, has_others) {
                    (false, _) => Renewer::Other,
                    (true, true) => Renewer::OwnForOthers,
                    (true, false) => Renewer::OwnAlone,
                };
                self.step(&vip, Input::Renewer(renewer));
            }
            Heard::Lease(vip, lease) => self.learn(&vip, &lease),
        }
    }

    fn learn(&mut self, vip: &VipKey, lease: &Lease) {
        let address = lease.address;
        if !self.v4.state.may_learn(vip) {
            tracing::debug!(%vip, %address, "another node's lease is not taken: an address is in conflict here");
        } else if !self.v4.state.allow().permits(address) {
            let allow = self.v4.state.allow();
            tracing::warn!(%vip, %address, "another node's lease is not taken: allow doesn't hold it ({allow})");
        } else {
            self.v4.executor.learn(vip, lease);
        }
    }
}
