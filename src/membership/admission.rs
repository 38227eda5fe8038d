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

/// Lets replicas have new connections, or not, as the source says that made them such: by attachment. Returns the old and the new state of
/// each; those that are missing are left out.
pub fn admit(
    node: &NodeNet,
    registry: &Registry,
    vip: &VipKey,
    admitted: &BTreeMap<String, bool>,
) -> Result<BTreeMap<String, (State, State)>> {
    let mut states = BTreeMap::new();
    let Some(mut vip) = registry.vip_if_present(vip)? else { return Ok(states) };
    for (name, admitted) in admitted {
        let changed = change(&mut vip, name, |endpoint| set(endpoint, *admitted))?;
        states.extend(changed.map(|changed| (name.clone(), changed)));
    }
    reconcile_vip(node, vip, None)?;
    Ok(states)
}

/// What a source says becomes the endpoint's state.
pub(super) fn set(endpoint: &mut Endpoint, admitted: bool) {
    // Only on a change: one that has a check would lose what that has found.
    if endpoint.admitted == admitted {
        return;
    }
    endpoint.admitted = admitted;
    endpoint.state = match endpoint.state {
        State::Pending if !admitted => State::Pending,
        _ => by_hand(endpoint),
    };
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
        (_, State::Pending) if !endpoint.admitted => State::Pending,
        _ if !endpoint.admitted => State::Draining,
        (HealthStatus::Up, _) => State::Ready,
        (HealthStatus::Down, State::Pending) => State::Pending,
        (HealthStatus::Down, State::Ready | State::Draining) => State::Draining,
    }
}

/// One that has a check is ready again when that says so.
fn by_hand(endpoint: &Endpoint) -> State {
    match (endpoint.drained || !endpoint.admitted, &endpoint.health) {
        (true, _) => State::Draining,
        (false, None) => State::Ready,
        (false, Some(_)) => State::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn with(state: State, drained: bool, health: bool) -> Endpoint {
        let mut record = serde_json::json!({
            "network": "net", "addresses": ["10.1.0.1"], "node": "192.0.2.1", "gateway": null, "device": "vip0", "ifindex": 7, "nexthop": 7,
            "state": state.name(), "drained": drained, "weight": 1,
        });
        if health {
            record["health"] = "listen".into();
        }
        serde_json::from_value(record).unwrap()
    }

    #[test]
    fn what_a_source_says_becomes_the_state() {
        for (state, drained, health, said, becomes) in [
            (State::Ready, false, false, false, State::Draining),
            (State::Pending, false, false, false, State::Pending),
            (State::Ready, true, false, false, State::Draining),
        ] {
            let mut endpoint = with(state, drained, health);
            set(&mut endpoint, said);
            assert_eq!((endpoint.state, endpoint.admitted), (becomes, said), "{state:?} {drained} {health}");
            // A check that passes changes nothing of it.
            assert_eq!(state_after(&endpoint, HealthStatus::Up), becomes);
        }
        for (drained, health, becomes) in
            [(false, false, State::Ready), (false, true, State::Pending), (true, false, State::Draining)]
        {
            let mut endpoint = Endpoint { admitted: false, ..with(State::Draining, drained, health) };
            set(&mut endpoint, true);
            assert_eq!(endpoint.state, becomes);
        }
        let mut endpoint = with(State::Draining, false, true);
        assert!(endpoint.admitted, "records of before say nothing of it");
        set(&mut endpoint, true);
        assert_eq!(endpoint.state, State::Draining, "said before: its check says the rest");
    }
}
