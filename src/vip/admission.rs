//! Which of a VIP's replicas get new connections: what a check finds and what somebody wants by hand become the
//! endpoint's state, and the VIP's group follows.

use std::collections::BTreeMap;

use crate::net::NodeNet;
use crate::registry::{Endpoint, LockedVip, Registry, State, VipKey};

use super::{Result, sync};

/// What a check says of a replica, once enough of them in a row have said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It can answer.
    Up,
    /// It can't.
    Down,
}

/// Checks of a VIP's replicas have come to verdicts. Returns the former and the present state of each; those that are gone
/// are left out.
pub fn judge(
    node: &NodeNet,
    registry: &Registry,
    vip: &VipKey,
    verdicts: &BTreeMap<String, Verdict>,
) -> Result<BTreeMap<String, (State, State)>> {
    let mut states = BTreeMap::new();
    let Some(mut vip) = registry.vip_if_present(vip)? else { return Ok(states) };
    for (name, verdict) in verdicts {
        let changed = change(&mut vip, name, |endpoint| endpoint.state = judged(endpoint, *verdict))?;
        states.extend(changed.map(|changed| (name.clone(), changed)));
    }
    // Also where nothing changed: the kernel may have refused it last time.
    sync(node, vip)?;
    Ok(states)
}

/// Somebody takes a replica out by hand, or brings back one that was. Returns its former and its present state; `None`: it
/// is gone.
pub fn drain(
    node: &NodeNet,
    registry: &Registry,
    (vip, name): (&VipKey, &str),
    drained: bool,
) -> Result<Option<(State, State)>> {
    let Some(mut vip) = registry.vip_if_present(vip)? else { return Ok(None) };
    let changed = change(&mut vip, name, |endpoint| {
        // Once more is no news: one that was never taken out would lose what its check has found.
        if endpoint.drained != drained {
            endpoint.drained = drained;
            endpoint.state = by_hand(endpoint);
        }
    })?;
    sync(node, vip)?;
    Ok(changed)
}

fn change(vip: &mut LockedVip, name: &str, set: impl FnOnce(&mut Endpoint)) -> Result<Option<(State, State)>> {
    // One without its pair is an ADD's that is still under way, or was killed: it gets nothing yet, whatever anybody says.
    let Some(mut endpoint) = vip.endpoint(name)?.filter(|endpoint| endpoint.ifindex.is_some()) else { return Ok(None) };
    let former = endpoint.clone();
    set(&mut endpoint);
    if endpoint != former {
        vip.write_endpoint(name, &endpoint)?;
    }
    Ok(Some((former.state, endpoint.state)))
}

/// One that never was up stays pending; one that was goes on with the connections it has.
fn judged(endpoint: &Endpoint, verdict: Verdict) -> State {
    match (verdict, endpoint.state) {
        _ if endpoint.drained => State::Draining,
        (Verdict::Up, _) => State::Ready,
        (Verdict::Down, State::Pending) => State::Pending,
        (Verdict::Down, State::Ready | State::Draining) => State::Draining,
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
