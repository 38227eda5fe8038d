//! The state as `leases` and `status` show it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::api::protocol::{LeaseEntry, LeaseState, VipStatus};
use crate::lease::grant::{Lease, unix};
use crate::model::VipKey;

use super::State;
use super::vip::{Phase, Vip};

impl State {
    /// Whether its source asks for the VIP's address, or renews it.
    pub fn is_asked_for(&self, vip: &VipKey) -> bool {
        self.vips.get(vip).is_some_and(|vip| vip.running)
    }

    /// Whether the VIP has an address here, or wants one.
    pub fn has(&self, vip: &VipKey) -> bool {
        self.vips.get(vip).is_some_and(Vip::counts)
    }

    /// The lease that the VIP has: found without conflict, and not lost.
    pub fn lease_of(&self, vip: &VipKey) -> Option<&Lease> {
        let vip = self.vips.get(vip).filter(|vip| !vip.lost && matches!(vip.phase, Phase::Saving | Phase::Bound))?;
        vip.lease.as_ref()
    }

    /// The address that the VIP is to be served at: as it is while that is being decided, and none where it is lost.
    pub fn in_service(&self, vip: &VipKey) -> Option<IpAddr> {
        let vip = self.vips.get(vip).filter(|vip| !vip.withdrawn)?;
        let granted = vip.lease.as_ref().filter(|_| vip.phase == Phase::Bound).map(|lease| lease.address);
        granted.or(vip.usage.address)
    }

    /// Where the VIP's replicas here are served; none: nowhere.
    pub fn served_at(&self, vip: &VipKey) -> Option<IpAddr> {
        let vip = self.vips.get(vip).filter(|vip| vip.usage.endpoints > 0 && !vip.withdrawn)?;
        vip.usage.address
    }

    /// Whether what another node was granted may be this node's: none of the addresses offered lately is in conflict here.
    pub fn may_learn(&self, vip: &VipKey) -> bool {
        self.vips.get(vip).is_some_and(|vip| vip.running && vip.conflicts.is_empty())
    }

    /// All leases in force.
    pub fn leases(&self) -> Vec<LeaseEntry> {
        let entry = |(name, vip): (&VipKey, &Vip)| {
            let lease = vip.lease.as_ref().filter(|_| !vip.lost)?;
            Some(LeaseEntry {
                vip: name.to_string(),
                address: lease.address,
                server: lease.server,
                granted: unix(lease.granted),
                expires: lease.expires.map(unix),
                left: vip.left.map(unix),
                renewer: None,
            })
        };
        self.vips.iter().filter_map(entry).collect()
    }

    /// The state of every VIP.
    pub fn status(&self) -> Vec<VipStatus> {
        self.vips.iter().map(|(name, vip)| status(name, vip, self.rules.hold)).collect()
    }

    /// What keeps VIPs that are asked for from an address, or from it for longer: a sentence for each cause.
    pub fn readiness_errors(&self, now: SystemTime) -> Vec<String> {
        let mut causes: BTreeMap<&str, Vec<&VipKey>> = BTreeMap::new();
        for (name, vip) in &self.vips {
            if let Some(why) = vip.readiness_error(now) {
                causes.entry(why).or_default().push(name);
            }
        }
        let sentence = |(why, vips): (&str, Vec<&VipKey>)| match vips.as_slice() {
            [vip] => format!("{vip}: {why}"),
            vips => format!("{} VIPs ({}, …): {why}", vips.len(), vips[0]),
        };
        causes.into_iter().map(sentence).collect()
    }

    /// The VIP's address once it may be told of, and what keeps it from one.
    pub fn service(&self, vip: &VipKey, now: SystemTime) -> (Option<IpAddr>, Option<String>) {
        let Some(found) = self.vips.get(vip) else { return (None, None) };
        let is_good = matches!(found.phase, Phase::Bound) && !found.lost;
        let address = found.lease.as_ref().filter(|_| is_good).map(|lease| lease.address);
        let is_served = found.usage.endpoints > 0 && !found.lost;
        let address = address.or(found.usage.address.filter(|_| is_served));
        let error = found.readiness_error(now).filter(|_| address.is_none());
        (address, error.map(str::to_owned))
    }

    /// The state of one VIP.
    pub fn status_of(&self, vip: &VipKey) -> Option<VipStatus> {
        self.vips.get(vip).map(|found| status(vip, found, self.rules.hold))
    }
}

fn status(name: &VipKey, vip: &Vip, hold: Duration) -> VipStatus {
    let lease = vip.lease.as_ref().filter(|_| !vip.lost);
    VipStatus {
        vip: name.to_string(),
        address: lease.map(|lease| lease.address).or(vip.usage.address),
        state: station(vip),
        expires: lease.and_then(|lease| lease.expires).map(unix),
        error: vip.error.clone(),
        held_until: lease.and(vip.left).map(|left| unix(left + hold)),
        claimed_by: None,
        renewer: None,
    }
}

fn station(vip: &Vip) -> LeaseState {
    match vip.phase {
        _ if vip.lost => LeaseState::Expired,
        Phase::Idle if vip.damaged.is_some() => LeaseState::Failed,
        Phase::Idle | Phase::Selecting => LeaseState::Selecting,
        Phase::Probing(_) => LeaseState::Probing,
        Phase::Saving | Phase::Bound => LeaseState::Bound,
        Phase::Failed { .. } => LeaseState::Failed,
    }
}
