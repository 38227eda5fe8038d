//! One VIP's way through the phases.

mod clock;

use std::net::Ipv4Addr;
use std::time::SystemTime;

use super::{Action, Caller, Findings, Input, MAX_DECLINES, PAUSE, Presence, Rules, disk, grant, not_now};
use crate::allocator::config::OnLost;
use crate::allocator::lease::{Lease, News};
use crate::allocator::protocol::{Grant, Refusal};
use crate::allocator::store::Record;

/// Where a VIP stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is being done about it.
    Idle,
    /// The source looks for an address.
    Asking,
    /// This one is being checked.
    Checking(Lease),
    /// The lease is good and on its way to the disk.
    Saving,
    /// The lease is good, on disk, and kept up by the source.
    Held,
    /// Given up; the error says why.
    Refused {
        /// When it is asked for again by itself, if it has replicas.
        again: SystemTime,
        /// Whether callers have to wait for that too.
        paused: bool,
    },
    /// Its file can't be understood: nothing is done until it can, or is gone.
    Blocked(String),
}

/// All there is to know about one VIP.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // each is about something else, in every combination
pub(super) struct Vip {
    pub(super) phase: Phase,
    /// The lease in force, or the last one known.
    pub(super) lease: Option<Lease>,
    /// Whether that lease was taken away.
    pub(super) lost: bool,
    /// Whether the source has been told to ask.
    running: bool,
    /// Whether nobody answers the source, which asks ever more seldom then.
    silence: bool,
    /// Whether its routes were taken out because of a lost lease.
    withdrawn: bool,
    pub(super) presence: Presence,
    /// When the last replica left; none while there is one.
    pub(super) left: Option<SystemTime>,
    /// The last call for it, while no replica has come of it.
    called: Option<SystemTime>,
    /// Who waits, and since when.
    waiting: Vec<(Caller, SystemTime)>,
    /// Addresses found in conflict since the last good one, and with what.
    conflicts: Vec<String>,
    /// The last thing that went wrong.
    pub(super) error: Option<String>,
}

type Acts = Vec<Action>;

impl Vip {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            phase: Phase::Idle,
            lease: None,
            lost: false,
            running: false,
            silence: false,
            withdrawn: false,
            presence: Presence::default(),
            left: Some(now),
            called: None,
            waiting: Vec::new(),
            conflicts: Vec::new(),
            error: None,
        }
    }

    pub(super) fn step(&mut self, rules: &Rules, input: Input, now: SystemTime, act: &mut Acts) {
        match input {
            Input::Loaded(found) => self.loaded(found, now, act),
            Input::Acquire(caller) => self.acquire(caller, now, act),
            Input::News(news) => self.news(rules, news, now, act),
            Input::Checked(address, findings) => self.checked(rules, address, &findings, now, act),
            Input::Saved(result) => self.saved(result, act),
            Input::Present(presence) => self.present(rules, presence, now, act),
            Input::Stuck(why) => self.error = Some(why),
        }
    }

    /// A remembered lease is confirmed by the server before a new replica gets it.
    fn loaded(&mut self, found: Result<Option<Record>, String>, now: SystemTime, act: &mut Acts) {
        match found {
            Err(why) => {
                self.error = Some(why.clone());
                self.phase = Phase::Blocked(why);
            }
            Ok(found) => {
                self.error = None;
                self.phase = Phase::Idle;
                let Some(record) = found else { return };
                self.left = record.left.or(Some(now));
                self.lease = Some(record.lease);
                self.ask(act);
            }
        }
    }

    fn acquire(&mut self, caller: Caller, now: SystemTime, act: &mut Acts) {
        self.called = Some(now);
        match &self.phase {
            Phase::Blocked(why) => act.push(Action::Answer(caller, Err(disk(why.clone())))),
            Phase::Refused { again, paused: true } if now < *again => {
                let why = self.error.clone().unwrap_or_else(|| "no address".into());
                act.push(Action::Answer(caller, Err(not_now(why))));
            }
            Phase::Held => match &self.lease {
                Some(lease) => act.push(Action::Answer(caller, Ok(grant(lease)))),
                None => self.waiting.push((caller, now)),
            },
            Phase::Idle | Phase::Refused { .. } => {
                self.waiting.push((caller, now));
                self.ask(act);
            }
            Phase::Saving => {
                self.waiting.push((caller, now));
                if let (Some(lease), Some(_)) = (&self.lease, &self.error) {
                    act.push(Action::Save(Record { lease: lease.clone(), left: self.left }));
                }
            }
            Phase::Asking | Phase::Checking(_) => {
                // The next try by itself may be a minute away, and this caller hears no later than after 8.5 s.
                let unsettled = self.phase == Phase::Asking && (self.lease.is_none() || self.lost);
                if unsettled && self.waiting.is_empty() && std::mem::take(&mut self.silence) {
                    act.extend([Action::Stop, Action::Ask(None)]);
                }
                self.waiting.push((caller, now));
            }
        }
    }

    fn ask(&mut self, act: &mut Acts) {
        self.conflicts.clear();
        self.phase = Phase::Asking;
        if !self.running {
            self.running = true;
            act.push(Action::Ask(self.lease.clone()));
        }
    }

    fn stop(&mut self, act: &mut Acts) {
        if self.running {
            self.running = false;
            act.push(Action::Stop);
        }
    }

    fn news(&mut self, rules: &Rules, news: News, now: SystemTime, act: &mut Acts) {
        if !self.running {
            return; // said before it heard that we stopped
        }
        match news {
            News::Bound(lease) => self.bound(rules, lease, now, act),
            News::Renewed(lease) => self.renewed(rules, lease, now, act),
            News::Lost { reason } => self.lost(rules, &reason, now, act),
            News::Trouble { why } => {
                self.error = Some(self.with_conflicts(why));
                self.silence = true;
            }
            News::Failed { why } => {
                self.refuse(self.with_conflicts(why), now, act);
                // Nobody is bothered by asking a pool again.
                self.phase = Phase::Refused { again: now + PAUSE, paused: false };
            }
        }
    }

    /// What went wrong, and with which addresses before.
    fn with_conflicts(&self, why: String) -> String {
        if self.conflicts.is_empty() { why } else { format!("{why}: in conflict are {}", self.conflicts.join("; ")) }
    }

    fn renewed(&mut self, rules: &Rules, lease: Lease, now: SystemTime, act: &mut Acts) {
        if let Phase::Checking(checked) = &mut self.phase
            && checked.address == lease.address
        {
            *checked = lease; // confirmed by the server, which is no check yet
        } else if self.lease.as_ref().is_some_and(|known| known.address == lease.address) {
            self.accept(lease, act);
        } else {
            self.bound(rules, lease, now, act); // said before it heard that we turned it down
        }
    }

    /// An address this node serves needs no check: what it would find is ourselves and our peers.
    fn bound(&mut self, rules: &Rules, lease: Lease, now: SystemTime, act: &mut Acts) {
        if self.serves(lease.address) {
            return self.accept(lease, act);
        }
        if self.keeps(rules) {
            let why = format!("the server has {} for it instead of the address in service", lease.address);
            return self.insist(&why, now, act);
        }
        if !rules.allow.permits(lease.address) {
            // No DECLINE: the address is in order, just not for us, and a server would put it aside for a day.
            let why = format!("{} was offered, which lies outside allow ({})", lease.address, rules.allow);
            return self.refuse(why, now, act);
        }
        act.push(Action::Check(lease.address));
        self.phase = Phase::Checking(lease);
    }

    fn checked(&mut self, rules: &Rules, address: Ipv4Addr, found: &Findings, now: SystemTime, act: &mut Acts) {
        let lease = match &self.phase {
            Phase::Checking(lease) if lease.address == address => lease.clone(),
            _ => return, // overtaken
        };
        if found.conflicts.is_empty() {
            return self.accept(lease, act);
        }
        self.conflicts.push(format!("{address}: {}", found.conflicts.join(", ")));
        if self.conflicts.len() > MAX_DECLINES {
            let why = format!("every address offered is in conflict: {}", self.conflicts.join("; "));
            return self.refuse(why, now, act);
        }
        self.error = self.conflicts.last().map(|conflict| format!("in conflict, asking for another: {conflict}"));
        self.phase = Phase::Asking;
        let ours = self.lease.as_ref().is_some_and(|lease| lease.address == address);
        // DECLINE takes the address away from every node that has it in our common name.
        let alone = !rules.has_peers || !(ours || found.at_peer);
        act.push(if alone { Action::Decline } else { Action::Restart });
    }

    /// The lease is good: on disk first, then into use.
    fn accept(&mut self, lease: Lease, act: &mut Acts) {
        self.conflicts.clear();
        self.error = None;
        self.lost = false;
        let confirmed = self.phase == Phase::Held && self.lease.as_ref().is_some_and(|l| l.address == lease.address);
        act.push(Action::Save(Record { lease: lease.clone(), left: self.left }));
        self.lease = Some(lease);
        if confirmed {
            self.put_in_service(act);
        } else {
            self.phase = Phase::Saving;
        }
    }

    fn saved(&mut self, result: Result<(), String>, act: &mut Acts) {
        match result {
            Ok(()) if self.phase == Phase::Saving => {
                self.phase = Phase::Held;
                self.put_in_service(act);
                if let Some(lease) = self.lease.as_ref().map(grant) {
                    self.answer(&Ok(lease), act);
                }
            }
            Ok(()) => {}
            Err(why) => {
                // What runs goes on running; but nobody new gets an address that a power cut would lose.
                self.answer(&Err(disk(why.clone())), act);
                self.error = Some(why);
                if self.phase == Phase::Saving && self.presence.endpoints > 0 {
                    self.phase = Phase::Held;
                    self.put_in_service(act);
                }
            }
        }
    }

    fn put_in_service(&mut self, act: &mut Acts) {
        let Some(address) = self.lease.as_ref().map(|lease| lease.address) else { return };
        if self.presence.endpoints > 0 && (self.withdrawn || self.presence.address != Some(address)) {
            act.push(Action::Serve(address));
        }
        self.withdrawn = false;
    }

    fn lost(&mut self, rules: &Rules, reason: &str, now: SystemTime, act: &mut Acts) {
        if self.keeps(rules) {
            return self.insist(reason, now, act);
        }
        self.error = Some(format!("the lease is lost: {reason}"));
        self.lost = true;
        self.phase = Phase::Asking;
        if self.presence.endpoints > 0 && !self.withdrawn {
            self.withdrawn = true;
            act.push(Action::Withdraw);
        }
    }

    /// Whether the address in service stays, whatever the server says.
    fn keeps(&self, rules: &Rules) -> bool {
        rules.on_lost == OnLost::Keep && self.presence.endpoints > 0 && self.lease.is_some() && !self.withdrawn
    }

    /// Goes on serving, and asks for the same address again later; asking on now would bring another one.
    fn insist(&mut self, why: &str, now: SystemTime, act: &mut Acts) {
        self.lost = true;
        self.refuse(format!("still served, though the lease is lost: {why}"), now, act);
    }

    fn refuse(&mut self, why: String, now: SystemTime, act: &mut Acts) {
        self.stop(act);
        self.conflicts.clear();
        self.answer(&Err(not_now(why.clone())), act);
        self.error = Some(why);
        self.phase = Phase::Refused { again: now + PAUSE, paused: true };
    }

    fn answer(&mut self, answer: &Result<Grant, Refusal>, act: &mut Acts) {
        act.extend(self.waiting.drain(..).map(|(caller, _)| Action::Answer(caller, answer.clone())));
    }

    fn present(&mut self, rules: &Rules, presence: Presence, now: SystemTime, act: &mut Acts) {
        let before = std::mem::replace(&mut self.presence, presence);
        if matches!(self.phase, Phase::Blocked(_)) {
            return;
        }
        let left = if self.presence.endpoints > 0 { None } else { self.left.or(Some(now)) };
        if left != self.left {
            self.left = left;
            if let (Some(lease), false) = (&self.lease, self.lost) {
                act.push(Action::Save(Record { lease: lease.clone(), left }));
            }
        }
        if self.presence.endpoints == 0 {
            self.withdrawn = false; // the last replica took the routes along
            return;
        }
        if self.withdrawn && self.presence.address.is_some() {
            act.push(Action::Withdraw); // the routes are still there: it failed, or is on its way
        }
        self.called = None;
        if before.endpoints == 0 || self.phase == Phase::Idle {
            self.enter_service(rules, now, act);
        }
        if self.phase == Phase::Held && !self.withdrawn {
            self.put_in_service(act);
        }
    }

    /// Replicas are here that weren't. If the lease isn't settled (viprouted has just started), the VIP goes on with
    /// what it has while that is confirmed, unless it has certainly run out.
    fn enter_service(&mut self, rules: &Rules, now: SystemTime, act: &mut Acts) {
        if !matches!(self.phase, Phase::Idle | Phase::Asking) || !self.conflicts.is_empty() {
            return;
        }
        if self.lease.is_none() {
            self.lease = self.presence.address.map(|address| Lease::presumed(address, now));
        }
        self.ask(act);
        match &self.lease {
            Some(lease) if lease.is_valid(now) && !self.lost => self.phase = Phase::Held,
            Some(_) => self.lost(rules, "it ran out", now, act),
            None => {}
        }
    }

    fn serves(&self, address: Ipv4Addr) -> bool {
        self.presence.endpoints > 0 && self.presence.address == Some(address)
    }

    /// The address to answer ARP for. A bad lease file stops no VIP that is in service.
    pub(super) fn announced(&self) -> Option<Ipv4Addr> {
        let kept = matches!(self.phase, Phase::Refused { .. }) && self.lost && !self.withdrawn;
        let good = kept || matches!(self.phase, Phase::Held | Phase::Saving | Phase::Blocked(_));
        self.presence.address.filter(|_| good && !self.withdrawn && self.presence.ready > 0)
    }
}
