//! Replicas that something else than a Service made such (an annotation, the conflist, a person), and that a policy of the network selects:
//! they get no connections by VIPs either. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Source, VipKey};

use super::desired::Attachment;
use super::objects::{Key, Objects};
use super::policies;

/// Which of them are to be let in, or not any more, by VIP and attachment.
pub fn changes(objects: &Objects, attachments: &[Attachment]) -> BTreeMap<VipKey, BTreeMap<String, bool>> {
    let mut found: BTreeMap<VipKey, BTreeMap<String, bool>> = BTreeMap::new();
    for attachment in attachments {
        let others = attachment.vips.iter().filter(|(_, member)| member.source != Source::Service);
        let changed: BTreeSet<(&VipKey, bool)> = others
            .filter_map(|(vip, member)| {
                let is_admitted = !is_blocked(objects, attachment)?;
                (member.is_admitted != is_admitted).then_some((vip, is_admitted))
            })
            .collect();
        for (vip, is_admitted) in changed {
            found.entry(vip.clone()).or_default().insert(attachment.name.clone(), is_admitted);
        }
    }
    found
}

/// The pods of this node that a policy selects, and the first one that does.
pub fn kept_out(objects: &Objects) -> BTreeMap<Key, Key> {
    let selected = objects.pods.iter().filter_map(|(key, pod)| {
        let policy = policies::selecting(&objects.policies, key, pod.labels.as_ref())?;
        Some((key.clone(), policy.clone()))
    });
    selected.collect()
}

/// `None`: the API names no such pod, at least not yet.
fn is_blocked(objects: &Objects, attachment: &Attachment) -> Option<bool> {
    let key = format!("{}/{}", attachment.pod.namespace, attachment.pod.name);
    let pod = objects.pods.get(&key)?;
    let is_it = attachment.pod.uid.is_empty() || pod.is_mirror || attachment.pod.uid == pod.uid;
    is_it.then(|| policies::selecting(&objects.policies, &key, pod.labels.as_ref()).is_some())
}
