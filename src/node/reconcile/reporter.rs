//! Reports repairs to the journal and the log, and counts them.

use std::time::Duration;

use crate::model::VipKey;
use crate::node::journal::Kind;
use crate::node::{Context, Counters, Journal};
use crate::with_causes;

use super::backoff::LogDecision;

pub struct RepairReporter {
    journal: Journal,
    counters: Counters,
}

impl RepairReporter {
    pub fn new(context: &Context) -> Self {
        Self { journal: context.journal.clone(), counters: context.counters.clone() }
    }

    /// Something was repaired.
    pub fn repaired(&self, say: LogDecision, vip: Option<&VipKey>, about: &str, what: &str) {
        self.counters.repaired();
        match say {
            LogDecision::Done => {
                tracing::info!(about, what, "repaired");
                self.journal.record(Kind::Repair, vip, format!("repaired, {about}: {what}"));
            }
            LogDecision::Often => {
                tracing::warn!(about, what, "undone each time: repaired every few seconds from now on");
                let text = format!("undone each time, repaired every few seconds from now on, {about}: {what}");
                self.journal.record(Kind::Trouble, vip, text);
            }
            LogDecision::Nothing => {}
        }
    }

    /// The whole node was compared with the registry.
    pub fn full_resync(&self, taken: Duration) {
        self.counters.reconciled(taken);
    }

    /// A repair has failed.
    pub fn trouble(&self, vip: Option<&VipKey>, about: &str, error: &dyn std::error::Error) {
        let error = with_causes(error);
        tracing::warn!(about, error, "repair failed");
        self.journal.record(Kind::Trouble, vip, format!("can't be repaired, {about}: {error}"));
    }

    /// Called once, at the start. `heard`: the kernel delivers the events of pods' namespaces.
    pub fn pods_are_heard(&self, heard: bool) {
        if !heard {
            let text = "CAP_NET_BROADCAST is missing: what is deleted in a pod is repaired once a minute only";
            tracing::warn!("{text}");
            self.journal.record(Kind::Trouble, None, text);
        }
    }
}
