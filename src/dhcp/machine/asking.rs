//! What a machine sends, and when it sends the next message.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rand::RngExt;

use super::{Action, Machine, REPORT_AFTER, State, failed};
use crate::dhcp::message::{Kind, Message};
use crate::dhcp::{Server, Trouble, timing};

/// The waits of an INIT-REBOOT burst; when the last is over the server counts as silent.
const REBOOT_WAITS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(2)];
/// The waits of a REBINDING burst after a NAK.
const REBIND_WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(1)];

impl Machine {
    pub(super) fn discover(&mut self, now: SystemTime, actions: &mut Vec<Action>) {
        if self.tries == 0 {
            self.began = now;
            self.xid = self.rng.random();
            self.unfit = None;
        }
        if self.tries >= REPORT_AFTER {
            actions.push(self.unanswered());
        }
        self.clock(now);
        self.send(Kind::Discover { wish: self.wish }, actions);
        self.deadline = Some(now + timing::backoff(self.tries, &mut self.rng));
    }

    /// Accepts an offer, under its transaction's id and `secs` (RFC 2131 section 4.4.1).
    pub(super) fn select(&mut self, address: IpAddr, server: Server, now: SystemTime, actions: &mut Vec<Action>) {
        if self.tries == 0 {
            self.asked = now;
        }
        self.send(Kind::Select { address, server }, actions);
        self.deadline = Some(now + timing::backoff(self.tries, &mut self.rng));
    }

    /// Sends the next INIT-REBOOT of the burst. When that is over, a silent server doesn't take an unexpired lease
    /// away; without one any address will do.
    pub(super) fn reboot(&mut self, address: IpAddr, now: SystemTime, actions: &mut Vec<Action>) {
        let wait = usize::try_from(self.tries).ok().and_then(|tries| REBOOT_WAITS.get(tries));
        match (wait, &self.held) {
            (Some(&wait), _) => {
                self.ask_for(address, self.tries == 0, now, actions);
                self.deadline = Some(now + timing::about(wait, &mut self.rng));
            }
            (None, Some(lease)) => {
                // With the transaction left open: the answer may only be slow.
                self.deadline = Some(now + timing::renewal_wait(lease, now, &mut self.rng));
                self.state = State::Renewing { address };
            }
            (None, None) => {
                self.enter(State::Selecting, now);
                self.discover(now, actions);
            }
        }
    }

    /// Sends an INIT-REBOOT as a transaction of its own: tries lie so far apart that the lease must count from each.
    pub(super) fn renew(&mut self, address: IpAddr, now: SystemTime, actions: &mut Vec<Action>) {
        let Some(lease) = &self.held else {
            return self.enter(State::Rebooting { address }, now + Duration::from_secs(1));
        };
        self.deadline = Some(now + timing::renewal_wait(lease, now, &mut self.rng));
        if self.tries >= REPORT_AFTER {
            actions.push(self.unanswered());
        }
        self.ask_for(address, true, now, actions);
    }

    /// Sends the next REBINDING request of the burst after a NAK. When that is over, the NAK counts.
    pub(super) fn rebind(&mut self, address: IpAddr, now: SystemTime, actions: &mut Vec<Action>) {
        let wait = usize::try_from(self.tries).ok().and_then(|tries| REBIND_WAITS.get(tries));
        match (wait, self.nak.take()) {
            (Some(&wait), nak) => {
                self.nak = nak;
                self.clock(now);
                self.send(Kind::Rebind { address }, actions);
                self.deadline = Some(now + timing::about(wait, &mut self.rng));
            }
            (None, Some((server, why))) => self.refuse(server, &why, now, actions),
            (None, None) => self.enter(State::Rebooting { address }, now + REBIND_WAITS[0]),
        }
    }

    pub(super) fn unanswered(&self) -> Action {
        failed(self.tries, self.unfit.clone().unwrap_or(Trouble::Silence))
    }

    /// Sends an INIT-REBOOT, as the first of a transaction or as its repetition.
    pub(super) fn ask_for(&mut self, address: IpAddr, anew: bool, now: SystemTime, actions: &mut Vec<Action>) {
        if self.tries == 0 {
            self.began = now;
        }
        if anew {
            self.asked = now;
            self.xid = self.rng.random();
        }
        self.clock(now);
        self.send(Kind::Reboot { address }, actions);
    }

    /// Brings `secs` up to date.
    pub(super) fn clock(&mut self, now: SystemTime) {
        let elapsed = now.duration_since(self.began).unwrap_or_default().as_secs();
        self.secs = u16::try_from(elapsed).unwrap_or(u16::MAX);
    }

    pub(super) fn send(&mut self, kind: Kind, actions: &mut Vec<Action>) {
        self.tries = self.tries.saturating_add(1);
        actions.push(Action::Send(Message { kind, xid: self.xid, secs: self.secs, prefix: self.prefix }));
    }
}
