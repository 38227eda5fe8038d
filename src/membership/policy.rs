//! What Services ask of a VIP, in its record.

use crate::dataplane::{Result, reconcile_vip};
use crate::model::{VipKey, VipPolicy};
use crate::net::NodeNet;
use crate::registry::{Registry, VipRecord};

/// Has the record of a VIP say what is asked of it, and the kernel follow. False: it did, or there is none. Only what differs takes the
/// VIP's lock.
pub fn set(node: &NodeNet, registry: &Registry, key: &VipKey, policy: &VipPolicy) -> Result<bool> {
    let differs = |record: &VipRecord| record.policy != *policy;
    if !registry.vip_record(key)?.as_ref().is_some_and(differs) {
        return Ok(false);
    }
    let Some(mut vip) = registry.vip_if_present(key)? else { return Ok(false) };
    let Some(record) = vip.record.clone().filter(differs) else { return Ok(false) };
    vip.write_record(VipRecord { policy: policy.clone(), ..record })?;
    reconcile_vip(node, vip, None)?;
    Ok(true)
}
