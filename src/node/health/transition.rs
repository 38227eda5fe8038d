//! Carries statuses into the registry and the kernel. On a thread of its own: it waits for the VIP's lock, which a plugin
//! call may hold, and no check should wait with it. What has piled up meanwhile is one change of the VIP.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;

use crate::dataplane;
use crate::membership::admission::{self, HealthStatus};
use crate::model::VipKey;
use crate::net::NodeNet;
use crate::node::Context;
use crate::node::journal::Kind;
use crate::node::subsystems::SubsystemGuard;
use crate::registry::State;

/// A replica's checks have come to a status.
#[derive(Clone, Debug)]
pub struct HealthTransition {
    /// Of which VIP.
    pub vip: VipKey,
    /// Which replica: its attachment.
    pub name: String,
    /// The status.
    pub status: HealthStatus,
    /// The pod, for messages.
    pub pod: String,
    /// What is wrong with it; empty where nothing is.
    pub why: String,
}

/// What became of a VIP's transitions: each replica's state now.
#[derive(Debug)]
pub struct Applied {
    /// The VIP.
    pub vip: VipKey,
    /// The replicas that had a status, by attachment.
    pub names: Vec<String>,
    /// The states of those that are still there; `None`: it couldn't be done, and should be tried again.
    pub states: Option<BTreeMap<String, State>>,
}

/// The transitions to carry out, and the guard of the thread that does.
pub struct Inbox<'a> {
    /// The transitions.
    pub transitions: &'a Receiver<HealthTransition>,
    /// Shows that the loop turns.
    pub guard: &'a SubsystemGuard,
}

/// Carries out transitions until the senders or the receiver of the results are dropped.
pub fn run(node: &NodeNet, context: &Context, inbox: &Inbox<'_>, tell: impl Fn(Applied) -> bool) {
    let Inbox { transitions, guard } = inbox;
    while let Some(first) = guard.receive(transitions) {
        let mut by_vip: BTreeMap<VipKey, BTreeMap<String, HealthTransition>> = BTreeMap::new();
        for transition in std::iter::once(first).chain(transitions.try_iter()) {
            by_vip.entry(transition.vip.clone()).or_default().insert(transition.name.clone(), transition);
        }
        for (vip, transitions) in by_vip {
            guard.turn();
            let states = carry_out(node, context, &vip, &transitions);
            if !tell(Applied { vip, names: transitions.into_keys().collect(), states }) {
                return;
            }
        }
    }
}

fn carry_out(
    node: &NodeNet,
    context: &Context,
    vip: &VipKey,
    transitions: &BTreeMap<String, HealthTransition>,
) -> Option<BTreeMap<String, State>> {
    let statuses = transitions.iter().map(|(name, transition)| (name.clone(), transition.status)).collect();
    match admission::apply(node, &context.registry, vip, &statuses) {
        Ok(changes) => {
            for (name, (old, new)) in &changes {
                if old != new {
                    report(context, &transitions[name], *new);
                }
            }
            Some(changes.into_iter().map(|(name, (_, new))| (name, new)).collect())
        }
        Err(error) => {
            report_error(context, vip, &error);
            None
        }
    }
}

fn report(context: &Context, transition: &HealthTransition, state: State) {
    let HealthTransition { vip, pod, why, .. } = transition;
    context.counters.health_changed(vip, state);
    let text = match state {
        State::Ready => format!("{pod} passes its check"),
        State::Draining => format!("{pod} fails its check: {why}"),
        State::Pending => return,
    };
    tracing::info!(%vip, "{text}");
    context.journal.record(Kind::Replica, Some(vip), text);
}

fn report_error(context: &Context, vip: &VipKey, error: &dataplane::Error) {
    tracing::warn!(%vip, error = error as &dyn std::error::Error, "a health check's status could not be carried out");
    let text = format!("a health check's status could not be carried out: {}", crate::with_causes(error));
    context.journal.record(Kind::Trouble, Some(vip), text);
}
