//! Writes each change of a replica to the journal, whether the plugin, a health check or `viproutectl` made it.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc;

use crate::model::VipKey;
use crate::registry::watch::{Read, Update};
use crate::registry::{Registry, Replica, State};

use super::subsystems::EVENTS;
use super::{Context, Journal, Kind};

/// A replica as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// Its pod, or where the runtime names none its attachment.
    pod: String,
    state: State,
}

type Replicas = BTreeMap<String, Seen>;

/// Starts the thread. Replicas that exist at the start are no event.
pub fn start(context: &Context) -> io::Result<()> {
    let Context { registry, journal, .. } = context.clone();
    let (sender, updates) = mpsc::channel();
    context.watch.subscribe(move |update| sender.send(update).is_ok());
    context.subsystems.spawn(&EVENTS, move |guard| {
        let mut log = EventLog { registry, journal, seen: None };
        while let Some(update) = guard.receive(&updates) {
            log.on_update(&update);
        }
    })
}

struct EventLog {
    registry: Registry,
    journal: Journal,
    /// None before the first update.
    seen: Option<BTreeMap<VipKey, Replicas>>,
}

impl EventLog {
    fn on_update(&mut self, update: &Update) {
        let first = self.seen.is_none();
        let seen = self.seen.get_or_insert_default();
        for vip in &update.changed {
            let before = seen.remove(vip).unwrap_or_default();
            let now = match update.snapshot.vips.get(vip).map(|view| &view.replicas) {
                None => Replicas::new(),
                Some(replicas) => named(&self.registry, vip, replicas, &before),
            };
            for text in changed(&before, &now).into_iter().filter(|_| !first) {
                self.journal.record(Kind::Replica, Some(vip), text);
            }
            if !now.is_empty() {
                seen.insert(vip.clone(), now);
            }
        }
    }
}

/// The replicas of a VIP with their pods' names, for which only new ones' files are read. What can't be read is as it was.
fn named(registry: &Registry, vip: &VipKey, replicas: &Read<BTreeMap<String, Replica>>, before: &Replicas) -> Replicas {
    let Ok(replicas) = replicas else { return before.clone() };
    let pod = |name: &str| match before.get(name) {
        Some(seen) => seen.pod.clone(),
        None => match registry.endpoint(vip, name) {
            Ok(Some(endpoint)) => endpoint.pod_name(name),
            _ => name.to_owned(),
        },
    };
    replicas.iter().map(|(name, replica)| (name.clone(), Seen { pod: pod(name), state: replica.state })).collect()
}

/// What has happened, a sentence each.
fn changed(before: &Replicas, now: &Replicas) -> Vec<String> {
    let mut texts = Vec::new();
    for (name, Seen { pod, state }) in now {
        match before.get(name) {
            None => texts.push(format!("{pod} has joined and is {}", state.name())),
            Some(seen) if seen.state != *state => texts.push(format!("{pod} is {} now", state.name())),
            Some(_) => {}
        }
    }
    let gone = before.iter().filter(|(name, _)| !now.contains_key(*name));
    texts.extend(gone.map(|(_, seen)| format!("{} has left", seen.pod)));
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(of: &[(&str, State)]) -> Replicas {
        of.iter()
            .map(|(name, state)| ((*name).to_owned(), Seen { pod: format!("shop/{name}"), state: *state }))
            .collect()
    }

    #[test]
    fn each_change_is_a_sentence() {
        let before = replicas(&[("a", State::Ready), ("b", State::Ready), ("c", State::Pending)]);
        let now = replicas(&[("a", State::Ready), ("b", State::Draining), ("d", State::Pending)]);
        assert_eq!(
            changed(&before, &now),
            ["shop/b is draining now", "shop/d has joined and is pending", "shop/c has left"]
        );
        assert!(changed(&now, &now).is_empty());
    }
}
