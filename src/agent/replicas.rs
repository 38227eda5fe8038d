//! Tells what becomes of replicas, whoever does it: the plugin, a health check, somebody with `viproutectl`.

use std::collections::BTreeMap;
use std::io;

use super::{Context, Kind};
use crate::registry::{self, Registry, State, VipKey, watch};

/// A replica as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// Its pod, or where the runtime names none its attachment.
    pod: String,
    state: State,
}

type Replicas = BTreeMap<String, Seen>;

/// Starts watching the registry. What is there already is no event.
pub fn start(context: &Context) -> io::Result<()> {
    let Context { registry, journal, .. } = context.clone();
    let at_work = context.parts.begin("the watcher of replicas");
    let mut seen: Option<BTreeMap<VipKey, Replicas>> = None;
    let tell = move |changes: watch::Changes| {
        let _at_work = &at_work;
        let first = seen.is_none();
        let seen = seen.get_or_insert_default();
        let mut vips = changes.vips;
        if changes.all {
            vips.extend(seen.keys().cloned());
        }
        for vip in vips {
            let before = seen.remove(&vip).unwrap_or_default();
            // What can't be read is as it was until it can.
            let now = read(&registry, &vip, &before).unwrap_or_else(|_| before.clone());
            for text in changed(&before, &now).into_iter().filter(|_| !first) {
                journal.record(Kind::Replica, Some(&vip), text);
            }
            if !now.is_empty() {
                seen.insert(vip, now);
            }
        }
        true
    };
    watch::start(context.registry.clone(), tell)
}

/// The replicas of a VIP. Only those are looked at more closely that weren't there before.
fn read(registry: &Registry, vip: &VipKey, before: &Replicas) -> registry::Result<Replicas> {
    let mut replicas = Replicas::new();
    for (name, replica) in registry.replicas(vip)? {
        let pod = if let Some(seen) = before.get(&name) {
            seen.pod.clone()
        } else {
            let endpoint = registry.endpoint(vip, &name)?;
            endpoint.map_or_else(|| name.clone(), |endpoint| endpoint.pod_name(&name))
        };
        replicas.insert(name, Seen { pod, state: replica.state });
    }
    Ok(replicas)
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
