//! What is said of repairs: to the journal and the log, and how many there were.

use std::time::Duration;

use super::patience::Say;
use crate::agent::journal::Kind;
use crate::agent::{Context, Counters, Journal};
use crate::registry::VipKey;
use crate::with_causes;

pub struct Teller {
    journal: Journal,
    counters: Counters,
}

impl Teller {
    pub fn new(context: &Context) -> Self {
        Self { journal: context.journal.clone(), counters: context.counters.clone() }
    }

    /// Something was put right.
    pub fn repaired(&self, say: Say, vip: Option<&VipKey>, about: &str, what: &str) {
        self.counters.repaired();
        match say {
            Say::Done => {
                tracing::info!(about, what, "put right");
                self.journal.record(Kind::Repair, vip, format!("put right, {about}: {what}"));
            }
            Say::Often => {
                tracing::warn!(about, what, "undone by somebody each time: put right every few seconds from now on");
                let text =
                    format!("undone by somebody each time, put right every few seconds from now on, {about}: {what}");
                self.journal.record(Kind::Trouble, vip, text);
            }
            Say::Nothing => {}
        }
    }

    /// The whole node was compared with the registry.
    pub fn looked_at_everything(&self, taken: Duration) {
        self.counters.reconciled(taken);
    }

    /// Something can't be put right.
    pub fn trouble(&self, vip: Option<&VipKey>, about: &str, error: &dyn std::error::Error) {
        let error = with_causes(error);
        tracing::warn!(about, error, "not as it should be");
        self.journal.record(Kind::Trouble, vip, format!("can't be put right, {about}: {error}"));
    }

    /// Said once, at the start.
    pub fn pods_are_heard(&self, heard: bool) {
        if !heard {
            let text = "CAP_NET_BROADCAST is missing: what is deleted in a pod is put right once a minute only";
            tracing::warn!("{text}");
            self.journal.record(Kind::Trouble, None, text);
        }
    }
}
