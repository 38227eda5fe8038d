//! The nftables table that keeps VIP traffic out of connection tracking, and strangers out of the tunnel: when it is reconciled, and
//! what is logged.

use std::time::{Duration, Instant};

use crate::dataplane::node::notrack::{Error, Outcome, Table, Want};
use crate::model::Family;
use crate::node::journal::Kind;
use crate::node::{Context, Journal};
use crate::with_causes;

/// After a failure the table is tried again this much later, unless VIPs change before: `nft` may be installed meanwhile.
const AGAIN: Duration = Duration::from_secs(30);

pub struct Notrack {
    family: Family,
    /// Switched on: there is to be a table while there are VIPs or other nodes.
    on: bool,
    /// Switched off, and the table is removed: viprouted never makes one again.
    done: bool,
    /// The table is to be compared.
    due: bool,
    table: Table,
    /// None before the registry was read: the table stays as it is.
    want: Option<Want>,
    journal: Journal,
    /// The failure that was logged last.
    told: Option<String>,
    /// After a failure: when the table is to be tried again.
    again: Option<Instant>,
    /// What the last comparison did; none: it failed, or there was none so far.
    last: Option<Outcome>,
}

impl Notrack {
    pub fn new(context: &Context, family: Family) -> Self {
        let (on, journal) = (context.wanted.notrack, context.journal.clone());
        let table = Table::of(family);
        Self { family, on, done: false, due: false, table, want: None, journal, told: None, again: None, last: None }
    }

    /// The VIPs of the node are these, these its addresses, and these the other nodes.
    pub fn want(&mut self, want: Want) {
        let want = if self.on { want } else { Want::default() };
        if self.want.as_ref() != Some(&want) {
            self.want = Some(want);
            self.table.want_changed();
            self.again = None;
            self.due = true;
        }
    }

    /// The VIPs' traffic is tracked: the node tracks packets, and no table keeps it out, as far as was seen last.
    pub fn leaves_tracked(&self) -> bool {
        let keeps_out = self.on && self.last.is_some() && self.table.keeps_out();
        !keeps_out && self.table.is_tracking()
    }

    /// Rules may have changed.
    pub fn look(&mut self) {
        self.due = true;
    }

    /// Reconciles the table where that is due. A failure is logged once, until it is another one.
    pub fn reconcile(&mut self) {
        self.table.forget();
        let Some(want) = self.want.as_ref().filter(|_| std::mem::take(&mut self.due)) else { return };
        if self.done || self.again.is_some_and(|again| again > Instant::now()) {
            return;
        }
        let (vips, is_nothing) = (want.vips.len(), want.is_nothing());
        let result = self.table.reconcile(want);
        self.last = result.as_ref().ok().copied();
        self.again = result.is_err().then(|| Instant::now() + AGAIN);
        match result {
            Ok(outcome) => {
                self.done = !self.on;
                self.tell(outcome, vips);
                if self.told.take().is_some() {
                    tracing::info!("{} is kept out of connection tracking again", self.traffic());
                }
            }
            // No table is needed, and without `nft` or the kernel's support there can't be one.
            Err(Error::Kernel(_) | Error::NoProgram) if is_nothing => self.told = None,
            Err(error) => {
                let text =
                    format!("{} is not kept out of connection tracking: {}", self.traffic(), with_causes(&error));
                if self.told.as_ref() != Some(&text) {
                    tracing::warn!("{text}");
                    self.journal.record(Kind::Trouble, None, &*text);
                    self.told = Some(text);
                }
            }
        }
    }

    /// What is kept out.
    fn traffic(&self) -> &'static str {
        match self.family {
            Family::V4 => "VIP traffic",
            Family::V6 => "VIPs' IPv6 traffic",
        }
    }

    fn tell(&self, outcome: Outcome, vips: usize) {
        let (traffic, table) =
            (self.traffic(), if self.family == Family::V4 { "viproute" } else { "viproute of IPv6" });
        let what = match outcome {
            Outcome::Right => return,
            Outcome::Made => return tracing::info!(vips, "{traffic} is kept out of connection tracking"),
            Outcome::Followed => return tracing::debug!(vips, "the sets of the nftables table {table} are changed"),
            Outcome::Removed => return tracing::info!("the nftables table {table} is removed"),
            Outcome::WasGone => "gone",
            Outcome::WasChanged => "changed",
        };
        let text = format!("the nftables table {table} was {what}: made anew");
        tracing::warn!("{text}");
        self.journal.record(Kind::Repair, None, text);
    }
}
