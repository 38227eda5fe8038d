//! What is said of repairs: to the journal and the log, and how many there were.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::patience::Say;
use crate::agent::journal::Kind;
use crate::agent::{Context, Journal};
use crate::registry::VipKey;
use crate::with_causes;

/// How many times something was put right since the start. Clones are the same count.
#[derive(Clone, Debug, Default)]
pub struct Repairs(Arc<AtomicU64>);

impl Repairs {
    /// So many.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub struct Teller {
    journal: Journal,
    repairs: Repairs,
}

impl Teller {
    pub fn new(context: &Context) -> Self {
        Self { journal: context.journal.clone(), repairs: context.repairs.clone() }
    }

    /// Something was put right.
    pub fn repaired(&self, say: Say, vip: Option<&VipKey>, about: &str, what: &str) {
        self.repairs.0.fetch_add(1, Ordering::Relaxed);
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
