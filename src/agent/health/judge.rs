//! Carries verdicts into the registry and the kernel. On a thread of its own: it waits for the VIP's lock, which a plugin
//! call may hold, and no check should wait with it. What has piled up meanwhile is one change of the VIP.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;

use crate::agent::Context;
use crate::agent::journal::Kind;
use crate::net::NodeNet;
use crate::registry::{State, VipKey};
use crate::vip;
use crate::vip::admission::{self, Verdict};

/// A replica's checks have come to a verdict.
#[derive(Clone, Debug)]
pub struct Sentence {
    /// Of which VIP.
    pub vip: VipKey,
    /// Which replica: its attachment.
    pub name: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The pod, for messages.
    pub pod: String,
    /// What is wrong with it; empty where nothing is.
    pub why: String,
}

/// What became of a VIP's sentences: each replica's state now.
#[derive(Debug)]
pub struct Judged {
    /// The VIP.
    pub vip: VipKey,
    /// Whom it was about.
    pub names: Vec<String>,
    /// The states of those that are still there; `None`: it couldn't be done, and should be tried again.
    pub states: Option<BTreeMap<String, State>>,
}

/// Carries out sentences until nobody can give any more, or hear of it.
pub fn run(node: &NodeNet, context: &Context, sentences: &Receiver<Sentence>, tell: impl Fn(Judged) -> bool) {
    while let Ok(first) = sentences.recv() {
        let mut by_vip: BTreeMap<VipKey, BTreeMap<String, Sentence>> = BTreeMap::new();
        for sentence in std::iter::once(first).chain(sentences.try_iter()) {
            by_vip.entry(sentence.vip.clone()).or_default().insert(sentence.name.clone(), sentence);
        }
        for (vip, sentences) in by_vip {
            let states = carry_out(node, context, &vip, &sentences);
            if !tell(Judged { vip, names: sentences.into_keys().collect(), states }) {
                return;
            }
        }
    }
}

fn carry_out(
    node: &NodeNet,
    context: &Context,
    vip: &VipKey,
    sentences: &BTreeMap<String, Sentence>,
) -> Option<BTreeMap<String, State>> {
    let verdicts = sentences.iter().map(|(name, sentence)| (name.clone(), sentence.verdict)).collect();
    match admission::judge(node, &context.registry, vip, &verdicts) {
        Ok(changes) => {
            for (name, (former, present)) in &changes {
                if former != present {
                    announce(context, &sentences[name], *present);
                }
            }
            Some(changes.into_iter().map(|(name, (_, present))| (name, present)).collect())
        }
        Err(error) => {
            complain(context, vip, &error);
            None
        }
    }
}

fn announce(context: &Context, sentence: &Sentence, state: State) {
    let Sentence { vip, pod, why, .. } = sentence;
    context.counters.health_changed(vip, state);
    let text = match state {
        State::Ready => format!("{pod} passes its check"),
        State::Draining => format!("{pod} fails its check: {why}"),
        State::Pending => return,
    };
    tracing::info!(%vip, "{text}");
    context.journal.record(Kind::Replica, Some(vip), text);
}

fn complain(context: &Context, vip: &VipKey, error: &vip::Error) {
    tracing::warn!(%vip, error = error as &dyn std::error::Error, "a health check's verdict could not be carried out");
    let text = format!("a health check's verdict could not be carried out: {}", crate::with_causes(error));
    context.journal.record(Kind::Trouble, Some(vip), text);
}
