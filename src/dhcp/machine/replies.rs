//! What servers' replies do to a machine.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rand::RngExt;

use super::{Action, Machine, REPORT_AFTER, State, failed};
use crate::dhcp::message::{Answer, Grant, Reply};
use crate::dhcp::{Change, Reason, Server, Trouble, timing};

/// Between losing an address and asking for one: the owner stops using it meanwhile. A server that pings before it
/// offers would take its own client's answer for another host's.
const HANDS_OFF: Duration = Duration::from_millis(300);
/// An address got by DISCOVER is confirmed after so many seconds: when other nodes' first ACKs are through, and not by
/// all of them at once.
const CONFIRM_AFTER: std::ops::Range<f64> = 1.0..3.0;

impl Machine {
    pub(super) fn on_reply(&mut self, reply: &Reply, now: SystemTime, actions: &mut Vec<Action>) {
        if !self.is_ours(reply) {
            return;
        }
        let refusal = self.refusal(&reply.answer);
        // Reported whenever it comes: which of two servers answers first is chance.
        if let (Some((server, why)), Some(_)) = (&refusal, &self.held)
            && self.server.is_some_and(|own| !own.is(server))
        {
            actions.push(Action::Notify(Change::Refused { server: server.address(), why: why.clone() }));
            return;
        }
        if self.tries == 0 {
            return; // late or repeated: the transaction is over
        }
        match (self.state, &reply.answer) {
            (State::Selecting, &Answer::Offer { address, server, .. })
                if self.wish.is_some_and(|wish| wish != address) =>
            {
                let why = Trouble::Another { server: server.address(), address };
                actions.push(failed(self.tries, why.clone()));
                self.unfit = Some(why);
            }
            (State::Selecting, &Answer::Offer { address, server, prefix }) => {
                self.state = State::Requesting { address, server };
                self.prefix = prefix;
                self.tries = 0;
                self.select(address, server, now, actions);
            }
            (_, &Answer::Unfit { server, flaw }) => {
                let server = server.map(|server| server.address());
                self.unfit = Some(Trouble::Unfit { server, flaw });
            }
            (State::Selecting | State::Bound { .. }, _) | (_, Answer::Offer { .. }) => {}
            (_, Answer::Ack(grant)) if self.expects(grant) => self.bind(grant, now, actions),
            (_, Answer::Ack(_) | Answer::Nak { .. } | Answer::Noted { .. }) => {
                if let Some((server, why)) = refusal {
                    self.on_nak(server, &why, now, actions);
                }
            }
        }
    }

    /// Whether it is for this identity, in its transaction, and lends what it asks for: an address, or a prefix.
    fn is_ours(&self, reply: &Reply) -> bool {
        let same_id = |id: &Vec<u8>| *id == self.identity.client_id;
        let lends_prefix = match &reply.answer {
            Answer::Offer { prefix, .. } | Answer::Ack(Grant { prefix, .. }) => prefix.is_some(),
            _ => self.prefix.is_some(),
        };
        reply.answers(self.xid)
            && self.identity.clients().any(|client| client == reply.client)
            && reply.client_id.as_ref().is_none_or(same_id)
            && lends_prefix == self.prefix.is_some()
    }

    /// Who says that the address asked for isn't ours, and why: a NAK does, and a REPLY of `DHCPv6` that has another one in its place.
    pub(super) fn refusal(&self, answer: &Answer) -> Option<(Server, String)> {
        match answer {
            Answer::Nak { server, why } => Some((*server, why.clone())),
            Answer::Ack(grant) if grant.address.is_ipv6() && self.address().is_some_and(|own| own != grant.address) => {
                Some((grant.server, format!("it has {} in its place", grant.address)))
            }
            _ => None,
        }
    }

    /// The address that is had or asked for.
    pub(super) fn address(&self) -> Option<IpAddr> {
        match self.state {
            State::Selecting => None,
            State::Requesting { address, .. }
            | State::Rebooting { address }
            | State::Rebinding { address }
            | State::Bound { address, .. }
            | State::Renewing { address } => Some(address),
        }
    }

    /// Whether an ACK is for the address asked for and, after an offer, from who made it.
    pub(super) fn expects(&self, grant: &Grant) -> bool {
        match self.state {
            State::Requesting { address, server } => grant.address == address && grant.server.is(&server),
            State::Rebooting { address } | State::Rebinding { address } | State::Renewing { address } => {
                grant.address == address
            }
            State::Selecting | State::Bound { .. } => false,
        }
    }

    pub(super) fn on_nak(&mut self, server: Server, why: &str, now: SystemTime, actions: &mut Vec<Action>) {
        match self.state {
            State::Requesting { server: selected, .. } if !selected.is(&server) => {}
            State::Rebooting { address } | State::Renewing { address } if self.held.is_some() && self.confirmed => {
                self.nak = Some((server, why.to_owned()));
                // Under the same transaction's id: an ACK of what was refused by one server may be on its way from another.
                self.enter(State::Rebinding { address }, now);
            }
            // Whose lease it is isn't known: the burst decides.
            State::Rebinding { .. } if self.server.is_none() => {}
            State::Rebooting { .. } if self.server.is_some_and(|own| !own.is(&server)) => {}
            _ => self.refuse(server, why, now, actions),
        }
    }

    /// An ACK for the address asked for.
    pub(super) fn bind(&mut self, grant: &Grant, now: SystemTime, actions: &mut Vec<Action>) {
        let lease = timing::lease(grant, self.asked, &mut self.rng);
        if lease.expires.is_some_and(|end| end <= now) {
            return; // came too late to be of use
        }
        let address = lease.address;
        // Only an INIT-REBOOT's ACK shows that no other node was given another address since; REBINDING would take it back
        // from a node that was.
        self.confirmed = matches!(self.state, State::Rebooting { .. } | State::Renewing { .. });
        let change = if self.held.is_some() { Change::Renewed(lease.clone()) } else { Change::Bound(lease.clone()) };
        actions.push(Action::Notify(change));
        (self.server, self.nak, self.unfit) = (Some(grant.server), None, None);
        self.prefix = grant.prefix;
        self.deadline = self.renewal(&lease);
        if self.confirmed {
            self.refusals = 0;
        } else {
            let soon = now + Duration::from_secs_f64(self.rng.random_range(CONFIRM_AFTER));
            self.deadline = Some(lease.renew.map_or(soon, |renew| renew.min(soon)));
        }
        self.state = State::Bound { address, confirm: !self.confirmed };
        self.tries = 0;
        self.held = Some(lease);
    }

    /// A NAK: DISCOVER at once, or after a while if this isn't the first.
    pub(super) fn refuse(&mut self, server: Server, why: &str, now: SystemTime, actions: &mut Vec<Action>) {
        let held = self.held.is_some();
        if let Some(lease) = self.held.take() {
            let reason = Reason::Nak { server: server.address(), why: why.to_owned() };
            actions.push(Action::Notify(Change::Lost { lease, reason }));
        }
        self.nak = None;
        let wait = match self.refusals {
            0 if held => HANDS_OFF,
            0 => Duration::ZERO,
            before => timing::backoff(before + 1, &mut self.rng),
        };
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= REPORT_AFTER {
            actions.push(failed(self.refusals, Trouble::Refused { server: server.address(), why: why.to_owned() }));
        }
        self.enter(State::Selecting, now + wait);
    }
}
