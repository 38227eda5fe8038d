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
                let lease = Lease { error: Some(refusal.msg), ..Lease::default() };
                return self.agent.services.leased(vip, Some(lease));
            }
            for family in Family::ALL {
                let has = self.leasing(family).is_none_or(|leasing| leasing.state.has(vip));
                if let Some(address) = self.agent.services.stated(vip, family).filter(|_| !has) {
                    self.step_of(family, vip, Input::Stated(address));
                }
            }
        }
        for family in Family::ALL {
            self.step_of(family, vip, Input::Demand(demand));
        }
        if demand != Demand::Wanted && self.demanded.remove(vip) {
            self.agent.services.leased(vip, None);
        }
    }

    /// Says what has become of its addresses, where a Service wants them.
    pub(super) fn tell_service(&self, vip: &VipKey) {
        if self.demanded.contains(vip) {
            let now = clock::now();
            let (address, error) = self.v4.state.service(vip, now);
            let of_ipv6 = self.v6.as_ref().map(|leasing| leasing.state.service(vip, now));
            let asks_ipv6 = of_ipv6 == Some((None, None));
            let (ipv6, error6) = of_ipv6.unwrap_or_default();
            self.agent.services.leased(vip, Some(Lease { address, ipv6, asks_ipv6, error6, error }));
        }
    }
}
