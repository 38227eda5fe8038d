//! Addresses that Services want, whether they have replicas here or not.

use crate::lease::clock;
use crate::lease::state::{Demand, Input};
use crate::model::{Family, VipKey};
use crate::node::kubernetes::addresses::Lease;

use super::Daemon;

impl Daemon {
    /// A Service wants an address for its VIP, or no longer does.
    pub(super) fn demanded(&mut self, vip: &VipKey, demand: Demand) {
        let asked = self.agent.services.asked(vip).filter(|_| demand == Demand::Wanted);
        if self.v4.executor.wish(vip, asked) {
            let steps = self.v4.state.ask_anew(vip);
            let acted = self.v4.perform(steps);
            self.finish(Family::V4, acted);
        }
        if demand == Demand::Wanted {
            self.demanded.insert(vip.clone());
            if let Some(refusal) = self.v4.state.over_limit(vip) {
                let lease = Lease { address: None, error: Some(refusal.msg) };
                return self.agent.services.leased(vip, Some(lease));
            }
            if let Some(address) = self.agent.services.stated(vip).filter(|_| !self.v4.state.has(vip)) {
                self.step(vip, Input::Stated(address));
            }
        }
        self.step(vip, Input::Demand(demand));
        if demand != Demand::Wanted && self.demanded.remove(vip) {
            self.agent.services.leased(vip, None);
        }
    }

    /// Says what has become of the address, where a Service wants it.
    pub(super) fn tell_service(&self, vip: &VipKey) {
        if self.demanded.contains(vip) {
            let (address, error) = self.v4.state.service(vip, clock::now());
            self.agent.services.leased(vip, Some(Lease { address, error }));
        }
    }
}
