//! What time does to a VIP.

use std::time::{Duration, SystemTime};

use crate::lease::grant::Lease;
use crate::lease::state::{ANSWER_WITHIN, CONFIRM_WITHIN, Demand, Renewer, Rules, SETTLE, not_now};

use super::{Actions, Phase, Vip};

impl Vip {
    /// Returns false when the VIP can be forgotten.
    pub(in super::super) fn tick(&mut self, rules: &Rules, now: SystemTime, act: &mut Actions) -> bool {
        self.answer_the_patient(rules, now, act);
        if matches!(self.phase, Phase::Failed { again, .. } if again <= now) && self.is_used() {
            self.ask(act);
            if self.keeps(rules) {
                self.phase = Phase::Bound;
            }
        }
        if self.unused_at(rules).is_none_or(|at| now < at) {
            return true;
        }
        self.give_up(rules, now, act);
        // A damaged file is left, and stays known.
        self.damaged.is_some()
    }

    fn answer_the_patient(&mut self, rules: &Rules, now: SystemTime, act: &mut Actions) {
        let Some((_, since)) = self.waiting.first() else { return };
        let waited = now.duration_since(*since).unwrap_or_default();
        if waited >= CONFIRM_WITHIN
            && let Some(lease) = self.unconfirmed(rules, now)
        {
            return self.accept(lease, act);
        }
        if waited < ANSWER_WITHIN {
            return;
        }
        let why = self.error.clone().unwrap_or_else(|| match &self.phase {
            Phase::Probing(lease) => format!("hosts are still asked whether one of them has {}", lease.address),
            Phase::Saving => "the lease is still being written to disk".into(),
            _ if rules.trusts_memory => "no answer from a DHCP server so far".into(),
            _ => "no answer from the node that gives out the pool's addresses so far".into(),
        });
        self.answer(&Err(not_now(format!("no address yet, still trying: {why}"))), act);
    }

    /// A remembered lease that a silent server hasn't confirmed is as good as it was (RFC 2131 section 3.2, step 4).
    fn unconfirmed(&self, rules: &Rules, now: SystemTime) -> Option<Lease> {
        let untouched =
            self.phase == Phase::Selecting && !self.lost && self.conflicts.is_empty() && rules.trusts_memory;
        self.lease.clone().filter(|lease| untouched && lease.is_valid(now))
    }

    pub(in super::super) fn next_tick(&self, rules: &Rules) -> Option<SystemTime> {
        let answer = self.waiting.first().map(|(_, since)| match self.unconfirmed(rules, *since + CONFIRM_WITHIN) {
            Some(_) => *since + CONFIRM_WITHIN,
            None => *since + ANSWER_WITHIN,
        });
        let retry = match self.phase {
            Phase::Failed { again, .. } if self.is_used() => Some(again),
            _ => None,
        };
        [answer, retry, self.unused_at(rules)].into_iter().flatten().min()
    }

    /// When it will have been unused for the hold time; none while it is in use, or while its file must not be touched.
    fn unused_at(&self, rules: &Rules) -> Option<SystemTime> {
        let idle = self.damaged.is_some() && !self.counts();
        let free = !self.is_used() && self.waiting.is_empty() && !idle;
        let left = self.left.filter(|_| free)?;
        let settled = self.called.map(|called| called + SETTLE);
        // Who renews it gives it back when the others have gone, who are about to go too: or else no one would.
        let waits = !rules.gives_back && self.renewer == Renewer::OwnForOthers;
        let hold = if self.demand == Demand::Ended && !waits { Duration::ZERO } else { rules.hold };
        settled.into_iter().chain([left + hold]).max()
    }
}
