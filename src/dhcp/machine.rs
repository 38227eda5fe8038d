//! One identity's state machine (RFC 2131 section 4.4), without socket or clock: time and packets go in, messages and
//! changes come out.
//!
//! It differs from the RFC's where real servers do: renewing is an INIT-REBOOT by broadcast from T1 on, so T2 only sets
//! the pace; an address got by DISCOVER is confirmed by an INIT-REBOOT soon after, because Kea grants two nodes that ask
//! at once two addresses, of which only the later is theirs.
//!
//! A NAK counts from the server that lent the address (or made the offer) and from no other: each authoritative server of a
//! LAN refuses what another one has given. Before a confirmed lease is given up for it, REBINDING is tried: Kea grants then
//! what it refuses to an INIT-REBOOT after it has lost its leases.

mod shared;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::message::{Answer, Grant, Kind, Message, Reply};
use super::{Acquisition, Change, Identity, Lease, Reason, Server, Trouble, Turn, timing};
use shared::Shared;

/// The waits of an INIT-REBOOT burst; when the last is over the server counts as silent.
const REBOOT_WAITS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(2)];
/// The waits of a REBINDING burst after a NAK.
const REBIND_WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(1)];
/// How often an offer is accepted before it counts as withdrawn (RFC 2131 section 3.1, 5).
const SELECT_TRIES: u32 = 4;
/// After so many tries without success the owner is notified.
const REPORT_AFTER: u32 = 3;
/// Between losing an address and asking for one: the owner stops using it meanwhile. A server that pings before it
/// offers would take its own client's answer for another host's.
const HANDS_OFF: Duration = Duration::from_millis(300);
/// An address got by DISCOVER is confirmed after so many seconds: when other nodes' first ACKs are through, and not by
/// all of them at once.
const CONFIRM_AFTER: std::ops::Range<f64> = 1.0..3.0;

/// An event of a machine.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Time has passed.
    Timer,
    /// A reply has come, perhaps not for this machine.
    Reply(&'a Reply),
    /// The owner has found that another host has the address held.
    Decline,
    /// The owner doesn't want the address held; others may.
    Restart,
    /// The owner needs the address held no longer, and no other node uses it under this identity.
    Release,
    /// Another client of the identity tells what it was granted.
    Learn(&'a Lease),
    /// Who of the identity's clients renews from now on.
    Turn(Turn),
}

/// An action that a machine requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Send(Message),
    /// Notify the owner.
    Notify(Change),
}

/// Where the machine is. `Rebooting`, `Rebinding`, `Bound` and `Renewing` may have a lease held, the others never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Asks for any address, or waits to do so.
    Selecting,
    /// Has accepted an offer.
    Requesting { address: IpAddr, server: Server },
    /// Asks for an address again, in a short burst: at a start, after a loss, to confirm a new lease.
    Rebooting { address: IpAddr },
    /// Its server has refused the address: any server is asked for it, in a short burst.
    Rebinding { address: IpAddr },
    /// Has an address and nothing to do, until it is to be confirmed or renewed.
    Bound { address: IpAddr, confirm: bool },
    /// Asks for longer.
    Renewing { address: IpAddr },
}

/// The client side of one identity's lease.
#[derive(Debug)]
pub struct Machine {
    identity: Identity,
    rng: StdRng,
    state: State,
    held: Option<Lease>,
    /// The only address that an offer is accepted of; none: any.
    wish: Option<IpAddr>,
    /// Whether an INIT-REBOOT has confirmed the lease held.
    confirmed: bool,
    /// The server that lent the address known last; none where only the address is known.
    server: Option<Server>,
    /// The NAK that REBINDING is to answer.
    nak: Option<(Server, String)>,
    /// What the last answer that couldn't be used lacked, and whose it was.
    unfit: Option<Trouble>,
    xid: u32,
    /// When the present attempt began: what `secs` counts from.
    began: SystemTime,
    /// When the REQUEST of this transaction was first sent: what a lease counts from.
    asked: SystemTime,
    secs: u16,
    /// Messages sent in this state. Zero: there is no transaction yet, whatever `xid` says.
    tries: u32,
    /// NAKs since an address was last confirmed. They slow down a server, or two nodes, that give and take in turn.
    refusals: u32,
    deadline: Option<SystemTime>,
    /// What there is to other clients of the identity.
    shared: Shared,
}

impl Machine {
    /// A machine that is due at once, unless it is another client's turn. With a remembered lease, that address is asked for
    /// first; the lease is held until it expires. `seed` decides transaction ids and jitter.
    pub fn new(acquisition: Acquisition, seed: u64, now: SystemTime) -> Self {
        let Acquisition { identity, remembered, wish, turn } = acquisition;
        let state = match &remembered {
            Some(lease) => State::Rebooting { address: lease.address },
            None => State::Selecting,
        };
        let mut machine = Self {
            identity,
            rng: StdRng::seed_from_u64(seed),
            state,
            confirmed: true,
            server: remembered.as_ref().and_then(|lease| lease.server),
            nak: None,
            unfit: None,
            wish,
            held: remembered.filter(|lease| lease.expires.is_none_or(|end| now < end)),
            xid: 0,
            began: now,
            asked: now,
            secs: 0,
            tries: 0,
            refusals: 0,
            deadline: Some(now),
            shared: Shared::new(turn),
        };
        machine.wait_for_others(now);
        machine
    }

    /// Whose machine this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When [`Event::Timer`] is due. `None`: an infinite lease is held, there is nothing to wait for.
    pub fn deadline(&self) -> Option<SystemTime> {
        [self.deadline, self.end()].into_iter().flatten().min()
    }

    /// When the lease held runs out.
    pub fn end(&self) -> Option<SystemTime> {
        self.held.as_ref().and_then(|lease| lease.expires)
    }

    /// Takes an event and returns the actions. Afterwards the deadline is later than `now`. Sends nothing on expiry: many
    /// leases may expire at once.
    pub fn step(&mut self, event: Event<'_>, now: SystemTime) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.end().is_some_and(|end| end <= now) {
            self.expire(now, &mut actions);
        }
        match event {
            Event::Timer => {}
            Event::Reply(reply) => self.on_reply(reply, now, &mut actions),
            Event::Decline => self.decline(now, &mut actions),
            Event::Restart => self.restart(now),
            Event::Release => self.release(&mut actions),
            Event::Learn(lease) => self.learn(lease, now, &mut actions),
            Event::Turn(turn) => self.take_turn(turn, now),
        }
        if self.deadline.is_some_and(|at| at <= now) {
            self.on_timer(now, &mut actions);
        }
        actions
    }

    fn on_timer(&mut self, now: SystemTime, actions: &mut Vec<Action>) {
        self.shared.waits = false;
        match self.state {
            State::Selecting => self.discover(now, actions),
            State::Requesting { address, server } if self.tries >= SELECT_TRIES => {
                let server = server.address();
                actions.push(failed(self.tries, Trouble::Withdrawn { server, address }));
                self.enter(State::Selecting, now);
                self.discover(now, actions);
            }
            State::Requesting { address, server } => self.select(address, server, now, actions),
            State::Rebooting { address } => self.reboot(address, now, actions),
            State::Rebinding { address } => self.rebind(address, now, actions),
            State::Bound { address, confirm: true } => {
                self.enter(State::Rebooting { address }, now);
                self.reboot(address, now, actions);
            }
            State::Bound { address, confirm: false } => {
                self.enter(State::Renewing { address }, now);
                self.renew(address, now, actions);
            }
            State::Renewing { address } => self.renew(address, now, actions),
        }
    }

    fn on_reply(&mut self, reply: &Reply, now: SystemTime, actions: &mut Vec<Action>) {
        let same_id = |id: &Vec<u8>| *id == self.identity.client_id;
        let ours = reply.answers(self.xid)
            && self.identity.clients().any(|client| client == reply.client)
            && reply.client_id.as_ref().is_none_or(same_id);
        if !ours {
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
            (State::Selecting, &Answer::Offer { address, server }) if self.wish.is_some_and(|wish| wish != address) => {
                let why = Trouble::Another { server: server.address(), address };
                actions.push(failed(self.tries, why.clone()));
                self.unfit = Some(why);
            }
            (State::Selecting, &Answer::Offer { address, server }) => {
                self.state = State::Requesting { address, server };
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

    /// Who says that the address asked for isn't ours, and why: a NAK does, and a REPLY of `DHCPv6` that has another one in its place.
    fn refusal(&self, answer: &Answer) -> Option<(Server, String)> {
        match answer {
            Answer::Nak { server, why } => Some((*server, why.clone())),
            Answer::Ack(grant) if grant.address.is_ipv6() && self.address().is_some_and(|own| own != grant.address) => {
                Some((grant.server, format!("it has {} in its place", grant.address)))
            }
            _ => None,
        }
    }

    /// The address that is had or asked for.
    fn address(&self) -> Option<IpAddr> {
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
    fn expects(&self, grant: &Grant) -> bool {
        match self.state {
            State::Requesting { address, server } => grant.address == address && grant.server.is(&server),
            State::Rebooting { address } | State::Rebinding { address } | State::Renewing { address } => {
                grant.address == address
            }
            State::Selecting | State::Bound { .. } => false,
        }
    }

    fn on_nak(&mut self, server: Server, why: &str, now: SystemTime, actions: &mut Vec<Action>) {
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

    fn discover(&mut self, now: SystemTime, actions: &mut Vec<Action>) {
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
    fn select(&mut self, address: IpAddr, server: Server, now: SystemTime, actions: &mut Vec<Action>) {
        if self.tries == 0 {
            self.asked = now;
        }
        self.send(Kind::Select { address, server }, actions);
        self.deadline = Some(now + timing::backoff(self.tries, &mut self.rng));
    }

    /// Sends the next INIT-REBOOT of the burst. When that is over, a silent server doesn't take an unexpired lease
    /// away; without one any address will do.
    fn reboot(&mut self, address: IpAddr, now: SystemTime, actions: &mut Vec<Action>) {
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
    fn renew(&mut self, address: IpAddr, now: SystemTime, actions: &mut Vec<Action>) {
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
    fn rebind(&mut self, address: IpAddr, now: SystemTime, actions: &mut Vec<Action>) {
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

    fn unanswered(&self) -> Action {
        failed(self.tries, self.unfit.clone().unwrap_or(Trouble::Silence))
    }

    /// Sends an INIT-REBOOT, as the first of a transaction or as its repetition.
    fn ask_for(&mut self, address: IpAddr, anew: bool, now: SystemTime, actions: &mut Vec<Action>) {
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

    /// An ACK for the address asked for.
    fn bind(&mut self, grant: &Grant, now: SystemTime, actions: &mut Vec<Action>) {
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
    fn refuse(&mut self, server: Server, why: &str, now: SystemTime, actions: &mut Vec<Action>) {
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

    fn expire(&mut self, now: SystemTime, actions: &mut Vec<Action>) {
        let Some(lease) = self.held.take() else { return };
        let address = lease.address;
        actions.push(Action::Notify(Change::Lost { lease, reason: Reason::Expired }));
        let wait = Duration::from_secs_f64(self.rng.random_range(0.01..1.0));
        self.enter(State::Rebooting { address }, now + wait);
    }

    fn decline(&mut self, now: SystemTime, actions: &mut Vec<Action>) {
        let Some(lease) = self.held.take() else { return };
        self.xid = self.rng.random();
        self.secs = 0;
        if let Some(server) = told(&lease) {
            self.send(Kind::Decline { address: lease.address, server }, actions);
        }
        self.enter(State::Selecting, now);
    }

    /// The lease names the server to send it to: one of which only the address is known runs out by itself.
    fn release(&mut self, actions: &mut Vec<Action>) {
        self.deadline = None;
        let Some(lease) = self.held.take() else { return };
        self.xid = self.rng.random();
        self.secs = 0;
        if let Some(server) = told(&lease) {
            self.send(Kind::Release { address: lease.address, server }, actions);
        }
        self.state = State::Selecting;
    }

    fn restart(&mut self, now: SystemTime) {
        if matches!(self.state, State::Selecting | State::Requesting { .. }) {
            return; // already asks for any address
        }
        self.held = None;
        self.enter(State::Selecting, now);
    }

    /// Goes to a state whose first message is due at `due`. Answers to earlier messages no longer count.
    fn enter(&mut self, state: State, due: SystemTime) {
        self.state = state;
        self.tries = 0;
        self.deadline = Some(due);
    }

    /// Brings `secs` up to date.
    fn clock(&mut self, now: SystemTime) {
        let elapsed = now.duration_since(self.began).unwrap_or_default().as_secs();
        self.secs = u16::try_from(elapsed).unwrap_or(u16::MAX);
    }

    fn send(&mut self, kind: Kind, actions: &mut Vec<Action>) {
        self.tries = self.tries.saturating_add(1);
        actions.push(Action::Send(Message { kind, xid: self.xid, secs: self.secs }));
    }
}

/// The server that can be told of what becomes of a lease: in `DHCPv6` by its name.
fn told(lease: &Lease) -> Option<Server> {
    lease.server.filter(|server| lease.address.is_ipv4() || !server.duid().is_empty())
}

fn failed(tries: u32, why: Trouble) -> Action {
    Action::Notify(Change::Failed { tries, why })
}

#[cfg(test)]
mod tests;
