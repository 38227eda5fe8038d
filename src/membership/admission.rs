//! Which of a VIP's replicas get new connections: a check's statuses and an operator's drain become the endpoint's state,
//! and the VIP's group follows.

use std::collections::BTreeMap;

use crate::dataplane::{Result, reconcile_vip};
use crate::model::VipKey;
use crate::net::NodeNet;
use crate::registry::{Endpoint, LockedVip, Registry, State};

/// What a check says of a replica, once enough of them in a row have said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthStatus {
    /// It can answer.
    Up,
    /// It can't.
    Down,
}

/// Applies the statuses of checks to a VIP's replicas. Returns the old and the new state of each; those that are missing are
/// left out.
pub fn apply(
    node: &NodeNet,
    registry: &Registry,
    vip: &VipKey,
    statuses: &BTreeMap<String, HealthStatus>,
) -> Result<BTreeMap<String, (State, State)>> {
    let mut states = BTreeMap::new();
    let Some(mut vip) = registry.vip_if_present(vip)? else { return Ok(states) };
    for (name, status) in statuses {
        let changed = change(&mut vip, name, |endpoint| endpoint.state = state_after(endpoint, *status))?;
        states.extend(changed.map(|changed| (name.clone(), changed)));
    }
    // Also where nothing changed: the kernel may have refused it last time.
    reconcile_vip(node, vip, None)?;
    Ok(states)
}

/// Drains a replica for an operator, or ends its drain. Returns its old and its new state; `None`: it is missing.
pub fn drain(
    node: &NodeNet,
    registry: &Registry,
    (vip, name): (&VipKey, &str),
    drained: bool,
) -> Result<Option<(State, State)>> {
    let Some(mut vip) = registry.vip_if_present(vip)? else { return Ok(None) };
    let changed = change(&mut vip, name, |endpoint| {
        // Only on a change: a replica that was never drained would lose what its check has found.
        if endpoint.drained != drained {
            endpoint.drained = drained;
            endpoint.state = by_hand(endpoint);
        }
    })?;
    reconcile_vip(node, vip, None)?;
    Ok(changed)
}

fn change(vip: &mut LockedVip, name: &str, set: impl FnOnce(&mut Endpoint)) -> Result<Option<(State, State)>> {
    // One without its pair belongs to an ADD that is under way or was killed: it gets nothing yet, whatever its check or
    // an operator says.
    let Some(mut endpoint) = vip.endpoint(name)?.filter(|endpoint| endpoint.ifindex.is_some()) else { return Ok(None) };
    let old = endpoint.clone();
    set(&mut endpoint);
    if endpoint != old {
        vip.write_endpoint(name, &endpoint)?;
    }
    Ok(Some((old.state, endpoint.state)))
}

/// One that never was up stays pending; one that was keeps its connections.
fn state_after(endpoint: &Endpoint, status: HealthStatus) -> State {
    match (status, endpoint.state) {
        _ if endpoint.drained => State::Draining,
        (HealthStatus::Up, _) => State::Ready,
        (HealthStatus::Down, State::Pending) => State::Pending,
        (HealthStatus::Down, State::Ready | State::Draining) => State::Draining,
    }
}

/// One that has a check is ready again when that says so.
fn by_hand(endpoint: &Endpoint) -> State {
    match (endpoint.drained, &endpoint.health) {
        (true, _) => State::Draining,
        (false, None) => State::Ready,
        (false, Some(_)) => State::Pending,
    }
}
