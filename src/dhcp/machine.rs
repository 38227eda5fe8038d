//! One identity's state machine (RFC 2131 section 4.4), without socket or clock: time and packets go in, messages and
//! changes come out.
//!
//! It differs from the RFC's where real servers do: renewing is an INIT-REBOOT by broadcast from T1 on, so RENEWING
//! and REBINDING are one state and T2 only sets the pace; an address got by DISCOVER is confirmed by an INIT-REBOOT
//! soon after, because Kea grants two nodes that ask at once two addresses, of which only the later is theirs.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::timing;
use super::wire::{Answer, Grant, Kind, Message, Reply};
use super::{Change, Identity, Lease, Reason};

/// The waits of an INIT-REBOOT burst; when the last is over the server counts as silent.
const REBOOT_WAITS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(2)];
/// How often an offer is accepted before it counts as withdrawn (RFC 2131 section 3.1, 5).
const SELECT_TRIES: u32 = 4;
/// So many tries without success are worth a word to the owner.
const PATIENCE: u32 = 3;
/// Between losing an address and asking for one: the owner stops using it meanwhile. A server that pings before it
/// offers would take its own client's answer for somebody else's.
const HANDS_OFF: Duration = Duration::from_millis(300);
/// An address got by DISCOVER is confirmed after so many seconds: when other nodes' first ACKs are through, and not by
/// all of them at once.
const CONFIRM_AFTER: std::ops::Range<f64> = 1.0..3.0;

/// What happens to a machine.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Time has passed.
    Timer,
    /// A reply has come, perhaps not for this machine.
    Reply(&'a Reply),
    /// The owner says the address held is somebody else's.
    Decline,
    /// The owner doesn't want the address held; others may.
    Restart,
}

/// What a machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this.
    Send(Message),
    /// Tell the owner.
    Notify(Change),
}

/// Where the machine is. `Rebooting`, `Bound` and `Renewing` may have a lease held, the others never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Asks for any address, or waits to do so.
    Selecting,
    /// Has accepted an offer.
    Requesting { address: Ipv4Addr, server: Ipv4Addr },
    /// Asks for an address again, in a short burst: at a start, after a loss, to confirm a new lease.
    Rebooting { address: Ipv4Addr },
    /// Has an address and nothing to do, until it is to be confirmed or renewed.
    Bound { address: Ipv4Addr, confirm: bool },
    /// Asks for longer.
    Renewing { address: Ipv4Addr },
}

/// The client side of one identity's lease.
#[derive(Debug)]
pub struct Machine {
    identity: Identity,
    rng: StdRng,
    state: State,
    held: Option<Lease>,
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
}

impl Machine {
    /// A machine that is due at once. With `remembered`, that address is asked for first; the lease is held until it
    /// expires. `seed` decides transaction ids and jitter.
    pub fn new(identity: Identity, remembered: Option<Lease>, seed: u64, now: SystemTime) -> Self {
        let state = match &remembered {
            Some(lease) => State::Rebooting { address: lease.address },
            None => State::Selecting,
        };
        Self {
            identity,
            rng: StdRng::seed_from_u64(seed),
            state,
            held: remembered.filter(|lease| lease.expires.is_none_or(|end| now < end)),
            xid: 0,
            began: now,
            asked: now,
            secs: 0,
            tries: 0,
            refusals: 0,
            deadline: Some(now),
        }
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

    /// Makes the next thing to do due now: the clock was set back, and the deadlines are from before.
    pub fn hurry(&mut self, now: SystemTime) {
        self.deadline = Some(now);
    }

    /// Takes an event and says what to do. Afterwards the deadline is later than `now`. Sends nothing on expiry: many
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
        }
        if self.deadline.is_some_and(|at| at <= now) {
            self.on_timer(now, &mut actions);
        }
        actions
    }

    fn on_timer(&mut self, now: SystemTime, actions: &mut Vec<Action>) {
        match self.state {
            State::Selecting => self.discover(now, actions),
            State::Requesting { address, server } if self.tries >= SELECT_TRIES => {
                let why = format!("{server} offers {address} and then doesn't answer the REQUEST");
                actions.push(failed(self.tries, why));
                self.enter(State::Selecting, now);
                self.discover(now, actions);
            }
            State::Requesting { address, server } => self.select(address, server, now, actions),
            State::Rebooting { address } => self.reboot(address, now, actions),
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
        let ours = self.tries > 0
            && reply.xid == self.xid
            && reply.chaddr == self.identity.chaddr
            && reply.client_id.as_ref().is_none_or(same_id);
        if !ours {
            return;
        }
        match (self.state, &reply.answer) {
            (State::Selecting, &Answer::Offer { address, server }) => {
                self.state = State::Requesting { address, server };
                self.tries = 0;
                self.select(address, server, now, actions);
            }
            // A late or repeated answer: the transaction is over.
            (State::Selecting | State::Bound { .. }, _) | (_, Answer::Offer { .. }) => {}
            (_, Answer::Ack(grant)) => self.bind(grant, now, actions),
            // From whichever server: if two disagree, the one that says no isn't contradicted by an ACK.
            (_, Answer::Nak { why }) => self.refuse(why, now, actions),
        }
    }

    fn discover(&mut self, now: SystemTime, actions: &mut Vec<Action>) {
        if self.tries == 0 {
            self.began = now;
            self.xid = self.rng.random();
        }
        if self.tries >= PATIENCE {
            actions.push(failed(self.tries, "no server answers DISCOVER".to_owned()));
        }
        self.clock(now);
        self.send(Kind::Discover, actions);
        self.deadline = Some(now + timing::backoff(self.tries, &mut self.rng));
    }

    /// Accepts an offer, under its transaction's id and `secs` (RFC 2131 section 4.4.1).
    fn select(&mut self, address: Ipv4Addr, server: Ipv4Addr, now: SystemTime, actions: &mut Vec<Action>) {
        if self.tries == 0 {
            self.asked = now;
        }
        self.send(Kind::Select { address, server }, actions);
        self.deadline = Some(now + timing::backoff(self.tries, &mut self.rng));
    }

    /// Sends the next INIT-REBOOT of the burst. When that is over, a silent server doesn't take an unexpired lease
    /// away; without one any address will do.
    fn reboot(&mut self, address: Ipv4Addr, now: SystemTime, actions: &mut Vec<Action>) {
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
    fn renew(&mut self, address: Ipv4Addr, now: SystemTime, actions: &mut Vec<Action>) {
        let Some(lease) = &self.held else {
            return self.enter(State::Rebooting { address }, now + Duration::from_secs(1));
        };
        self.deadline = Some(now + timing::renewal_wait(lease, now, &mut self.rng));
        self.ask_for(address, true, now, actions);
    }

    /// Sends an INIT-REBOOT, as the first of a transaction or as its repetition.
    fn ask_for(&mut self, address: Ipv4Addr, anew: bool, now: SystemTime, actions: &mut Vec<Action>) {
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

    /// An ACK: the address is held, whether or not it is the one asked for.
    fn bind(&mut self, grant: &Grant, now: SystemTime, actions: &mut Vec<Action>) {
        let lease = timing::lease(grant, self.asked, &mut self.rng);
        if lease.expires.is_some_and(|end| end <= now) {
            return; // came too late to be of use
        }
        let address = lease.address;
        // Only an INIT-REBOOT's ACK for the very address shows that no other node was given another one since.
        let confirmed = matches!(self.state,
            State::Rebooting { address: wanted } | State::Renewing { address: wanted } if wanted == address);
        let change = match self.held.take() {
            Some(held) if held.address == address => Change::Renewed(lease.clone()),
            held => {
                let lost = |lease| Action::Notify(Change::Lost { lease, reason: Reason::Moved });
                actions.extend(held.map(lost));
                Change::Bound(lease.clone())
            }
        };
        actions.push(Action::Notify(change));
        self.deadline = lease.renew;
        if confirmed {
            self.refusals = 0;
        } else {
            let soon = now + Duration::from_secs_f64(self.rng.random_range(CONFIRM_AFTER));
            self.deadline = Some(lease.renew.map_or(soon, |renew| renew.min(soon)));
        }
        self.state = State::Bound { address, confirm: !confirmed };
        self.tries = 0;
        self.held = Some(lease);
    }

    /// A NAK: DISCOVER at once, or after a while if this isn't the first.
    fn refuse(&mut self, why: &str, now: SystemTime, actions: &mut Vec<Action>) {
        let lost = |lease| Action::Notify(Change::Lost { lease, reason: Reason::Nak });
        let held = self.held.is_some();
        actions.extend(self.held.take().map(lost));
        let wait = match self.refusals {
            0 if held => HANDS_OFF,
            0 => Duration::ZERO,
            before => timing::backoff(before, &mut self.rng),
        };
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= PATIENCE {
            actions.push(failed(self.refusals, format!("refused by the server: {why:?}")));
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
        self.send(Kind::Decline { address: lease.address, server: lease.server }, actions);
        self.enter(State::Selecting, now);
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

fn failed(tries: u32, why: String) -> Action {
    Action::Notify(Change::Failed { tries, why })
}

#[cfg(test)]
mod tests;
