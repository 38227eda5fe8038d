//! Leases of VIPs' addresses of one family: what happens goes into their [`State`], and what that decides is carried out, but for what
//! concerns a VIP as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::lease::clock;
use crate::lease::state::{Action, Demand, Input, State, Step};
use crate::lease::store::{Contents, Record};
use crate::model::VipKey;
use crate::with_causes;

use super::event_log::LeaseEventLog;
use super::executor::Executor;
use super::usage::Batch;

/// The leases.
pub struct Leasing {
    pub state: State,
    pub executor: Executor,
    event_log: LeaseEventLog,
    /// What waits for a lease file to be read, VIP by VIP.
    unread: BTreeMap<VipKey, Vec<Input>>,
}

/// What was done, and what is left to do.
#[derive(Debug, Default)]
pub struct Acted {
    /// The VIPs that something was decided about.
    pub vips: BTreeSet<VipKey>,
    /// Answers to callers and orders to the dataplane, in their order.
    pub left: Vec<Step>,
}

impl Acted {
    fn and(&mut self, other: Self) {
        self.vips.extend(other.vips);
        self.left.extend(other.left);
    }
}

impl Leasing {
    /// Without a VIP yet.
    pub fn new(state: State, executor: Executor, event_log: LeaseEventLog) -> Self {
        Self { state, executor, event_log, unread: BTreeMap::new() }
    }

    /// Goes on with what is in use or was lately, as it is on disk, and forgets the rest. Returns which VIPs a Service wants, too.
    pub fn resume(&mut self, contents: Contents, first: &Batch, hold: Duration) -> (Acted, Vec<VipKey>) {
        let now = clock::now();
        let used: BTreeSet<_> = first.vips.iter().filter(|(_, p)| p.endpoints > 0).map(|(vip, _)| vip).collect();
        let (mut steps, mut services) = (Vec::new(), Vec::new());
        for (vip, record) in contents.records {
            let is_over = |record: &Record| record.left.is_some_and(|left| left + hold <= now);
            // What the registry has of it could not be read if the batch isn't full: nothing follows from its absence.
            let unused = first.full && !used.contains(&vip);
            match record {
                Ok(record) if unused && is_over(&record) => self.executor.erase(&vip),
                record => {
                    if record.as_ref().is_ok_and(|record| record.service) {
                        services.push(vip.clone());
                    }
                    let record = record.map(Some).map_err(|error| with_causes(&error));
                    if let Err(error) = &record {
                        tracing::warn!(%vip, %error, "lease not understood");
                    }
                    steps.extend(self.state.step(&vip, Input::Loaded(record), now));
                }
            }
        }
        // All leases are known before the first address is asked for: none of them is given to another VIP.
        (self.perform(steps), services)
    }

    /// `input` happened to `vip`; waits for the VIP's lease file if that has to be read first (none: it waits).
    pub fn step(&mut self, vip: &VipKey, input: Input) -> Option<Acted> {
        if let Some(waiting) = self.unread.get_mut(vip) {
            waiting.push(input);
            return None;
        }
        let wanted = match &input {
            Input::Acquire(_) | Input::Stated(_) => true,
            Input::LocalUsage(usage) => usage.endpoints > 0,
            Input::Demand(demand) => *demand == Demand::Wanted,
            _ => false,
        };
        if wanted && self.state.needs_record(vip) {
            self.unread.insert(vip.clone(), vec![input]);
            self.executor.load(vip);
            return None;
        }
        Some(self.advance(vip, input))
    }

    fn advance(&mut self, vip: &VipKey, input: Input) -> Acted {
        let steps = self.state.step(vip, input, clock::now());
        self.event_log.look(&self.state, vip);
        let mut acted = self.perform(steps);
        acted.vips.insert(vip.clone());
        acted
    }

    /// What the VIP's file says, or why that isn't known; and what waited for it.
    pub fn loaded(&mut self, vip: &VipKey, found: Result<Option<Record>, String>) -> Acted {
        let waiting = self.unread.remove(vip).unwrap_or_default();
        let mut acted = Acted::default();
        for input in std::iter::once(Input::Loaded(found)).chain(waiting) {
            acted.and(self.advance(vip, input));
        }
        acted
    }

    /// It is now.
    pub fn tick(&mut self) -> Acted {
        let steps = self.state.tick(clock::now());
        self.perform(steps)
    }

    /// Whether the VIP's lease file is still to be read.
    pub fn is_unread(&self, vip: &VipKey) -> bool {
        self.unread.contains_key(vip)
    }

    /// Carries out what was decided, but for answers and orders.
    pub fn perform(&mut self, steps: Vec<Step>) -> Acted {
        self.event_log.steps(&self.state, &steps);
        let vips = steps.iter().map(|(vip, _)| vip.clone()).collect();
        let (left, own) = steps
            .into_iter()
            .partition(|(_, act)| matches!(act, Action::Answer(..) | Action::Serve(_) | Action::Withdraw));
        self.executor.perform(&self.state, own);
        Acted { vips, left }
    }

    /// Another VIP that has the address.
    pub fn other_at(&self, address: IpAddr, vip: &VipKey) -> Option<&VipKey> {
        let mut others = self.state.addresses().filter(|(taken, other)| *taken == address && *other != vip);
        others.next().map(|(_, other)| other)
    }
}
