//! The state as `leases` and `status` show it.

use super::State;
use super::vip::{Phase, Vip};
use crate::allocator::lease::unix;
use crate::allocator::protocol::{LeaseEntry, LeaseState, VipStatus};
use crate::registry::VipKey;

impl State {
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
            })
        };
        self.vips.iter().filter_map(entry).collect()
    }

    /// How every VIP stands.
    pub fn status(&self) -> Vec<VipStatus> {
        self.vips.iter().map(|(name, vip)| status(name, vip)).collect()
    }

    /// How one stands.
    pub fn status_of(&self, vip: &VipKey) -> Option<VipStatus> {
        self.vips.get(vip).map(|found| status(vip, found))
    }
}

fn status(name: &VipKey, vip: &Vip) -> VipStatus {
    let lease = vip.lease.as_ref().filter(|_| !vip.lost);
    VipStatus {
        vip: name.to_string(),
        address: lease.map(|lease| lease.address).or(vip.presence.address),
        state: station(vip),
        expires: lease.and_then(|lease| lease.expires).map(unix),
        error: vip.error.clone(),
    }
}

fn station(vip: &Vip) -> LeaseState {
    match vip.phase {
        _ if vip.lost => LeaseState::Lost,
        Phase::Idle | Phase::Asking => LeaseState::Asking,
        Phase::Checking(_) => LeaseState::Checking,
        Phase::Saving | Phase::Held => LeaseState::Held,
        Phase::Refused { .. } | Phase::Blocked(_) => LeaseState::Refused,
    }
}
