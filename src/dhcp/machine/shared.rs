//! An identity that several clients share, on a machine each: one of them asks and renews, and tells the others what it was
//! granted. The server can't tell them apart, so what it grants to one it grants to all.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use super::{Action, Machine, State};
use crate::dhcp::{Change, Lease, Turn, timing};

/// A client whose turn it isn't asks after so long, if it has heard nothing.
const WAIT: Duration = Duration::from_secs(4);
/// An address that contradicts another client's is confirmed once in this time: where two servers grant two addresses, each
/// confirmation would bring about the next.
const DOUBT_AGAIN: Duration = Duration::from_secs(60);
/// What becomes due is sent with the next turn of the fleet, at its pace.
const SOON: Duration = Duration::from_millis(1);

/// What there is to other clients of the identity.
#[derive(Debug)]
pub(super) struct Shared {
    turn: Turn,
    /// Nothing was sent since the start, for another client's sake.
    pub(super) waits: bool,
    /// When the lease held is renewed though it is another one's turn.
    late: Option<SystemTime>,
    /// The last address that contradicted the one held, and when that was.
    doubted: Option<(IpAddr, SystemTime)>,
}

impl Shared {
    pub(super) fn new(turn: Turn) -> Self {
        Self { turn, waits: false, late: None, doubted: None }
    }
}

impl Machine {
    /// At the start: leaves the first message to others, if it is their turn.
    pub(super) fn wait_for_others(&mut self, now: SystemTime) {
        if self.shared.turn == Turn::Own {
            return;
        }
        self.shared.waits = true;
        let left = self.end().and_then(|end| end.duration_since(now).ok());
        let wait = left.map_or(WAIT, |left| WAIT.min(left / 4));
        self.deadline = Some(now + timing::about(wait, &mut self.rng).max(SOON));
    }

    pub(super) fn take_turn(&mut self, turn: Turn, now: SystemTime) {
        self.shared.turn = turn;
        match (&self.state, &self.held) {
            _ if self.shared.waits && turn == Turn::Own => self.deadline = Some(now + SOON),
            (State::Bound { confirm: false, .. }, Some(lease)) => {
                let at = if turn == Turn::Own { lease.renew } else { self.shared.late };
                self.deadline = at.map(|at| at.max(now + SOON));
            }
            _ => {}
        }
    }

    /// When this client renews a lease that it holds from now on.
    pub(super) fn renewal(&mut self, lease: &Lease) -> Option<SystemTime> {
        self.shared.late = timing::late(lease, &mut self.rng);
        if self.shared.turn == Turn::Own { lease.renew } else { self.shared.late }
    }

    /// Another client was granted this lease: it is as good as one of our own. Which of two addresses is right, the server says.
    pub(super) fn learn(&mut self, told: &Lease, now: SystemTime, actions: &mut Vec<Action>) {
        if told.expires.is_some_and(|end| end <= now) {
            return;
        }
        match (&self.held, self.state) {
            (Some(held), _) if held.address != told.address => self.doubt(told.address, now),
            // What is remembered is confirmed by it.
            (Some(held), _) if !outlasts(told, held) => {
                if self.shared.waits {
                    self.hold(&held.clone(), actions);
                }
            }
            (None, State::Requesting { address, .. }) if address != told.address => {}
            // The server has refused what others may still believe in.
            (None, _) if self.refusals > 0 => {}
            _ => self.hold(told, actions),
        }
    }

    fn hold(&mut self, told: &Lease, actions: &mut Vec<Action>) {
        let lease = Lease { told: true, ..told.clone() };
        let is_known = self.held.is_some();
        actions.push(Action::Notify(if is_known {
            Change::Renewed(lease.clone())
        } else {
            Change::Bound(lease.clone())
        }));
        (self.server, self.nak, self.unfit) = (lease.server, None, None);
        (self.confirmed, self.tries, self.shared.waits) = (true, 0, false);
        self.state = State::Bound { address: lease.address, confirm: false };
        self.deadline = self.renewal(&lease);
        self.held = Some(lease);
    }

    /// Asks for the address held, which another client's contradicts. A refusal counts at once: REBINDING would take the address
    /// back from the other one.
    fn doubt(&mut self, other: IpAddr, now: SystemTime) {
        let State::Bound { address, .. } = self.state else { return };
        let lately = |(doubted, at): (IpAddr, SystemTime)| doubted == other && now < at + DOUBT_AGAIN;
        if self.shared.doubted.is_some_and(lately) {
            return;
        }
        self.shared.doubted = Some((other, now));
        self.confirmed = false;
        self.enter(State::Rebooting { address }, now + SOON);
    }
}

/// Whether a lease of the same address ends later.
fn outlasts(told: &Lease, held: &Lease) -> bool {
    held.expires.is_some_and(|held| told.expires.is_none_or(|told| held < told))
}
