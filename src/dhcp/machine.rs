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

mod asking;
mod replies;
mod shared;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::message::{Kind, Message, Reply};
use super::{Acquisition, Change, Identity, Lease, Reason, Server, Trouble, Turn};
use shared::Shared;

/// How often an offer is accepted before it counts as withdrawn (RFC 2131 section 3.1, 5).
const SELECT_TRIES: u32 = 4;
/// After so many tries without success the owner is notified.
const REPORT_AFTER: u32 = 3;

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
    /// The bits of the prefix that is asked for or had; none: it is about an address.
    prefix: Option<u8>,
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
        let Acquisition { identity, remembered, wish, turn, prefix } = acquisition;
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
            prefix: remembered.as_ref().and_then(|lease| lease.prefix).or(prefix),
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
