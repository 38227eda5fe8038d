//! One VIP's way through the phases.

mod clock;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use crate::api::protocol::{Grant, Refusal};
use crate::lease::grant::{Lease, News};
use crate::lease::settings::OnLost;
use crate::lease::store::Record;
use crate::model::Mac;

use super::{
    ANSWERS_FOR_ALL, Action, Caller, Demand, Findings, Input, LocalUsage, MAX_DECLINES, MAX_DOUBLINGS, PAUSE, Renewer,
    Rules, SETTLE, disk, grant, not_now,
};

/// The phase of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is being done about it.
    Idle,
    /// The source looks for an address.
    Selecting,
    /// The conflict search checks this one.
    Probing(Lease),
    /// The lease is good and on its way to the disk.
    Saving,
    /// The lease is good, on disk, and kept up by the source.
    Bound,
    /// Given up; the error says why.
    Failed {
        /// When it is asked for again by itself, if it has replicas.
        again: SystemTime,
        /// Whether callers have to wait for that too.
        paused: bool,
    },
}

/// The state of one VIP.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // each is about something else, in every combination
pub(super) struct Vip {
    pub(super) phase: Phase,
    /// The lease in force, or the last one known.
    pub(super) lease: Option<Lease>,
    /// Whether that lease was taken away.
    pub(super) lost: bool,
    /// Whether the source is asking or renewing.
    pub(super) running: bool,
    /// Whether no server answers the source, which backs off then.
    server_silent: bool,
    /// Whether its routes were taken out because of a lost lease.
    pub(super) withdrawn: bool,
    pub(super) usage: LocalUsage,
    /// When the last replica left; none while there is one.
    pub(super) left: Option<SystemTime>,
    /// What is said of it beside its replicas here.
    pub(super) demand: Demand,
    pub(super) renewer: Renewer,
    /// The last call for it, while no replica has come of it.
    called: Option<SystemTime>,
    /// Who waits, and since when.
    waiting: Vec<(Caller, SystemTime)>,
    /// Addresses found in conflict since the last good one, and with what.
    pub(super) conflicts: Vec<String>,
    /// How many of these each host answered for.
    answers: BTreeMap<Mac, usize>,
    /// Rounds of offers in a row that brought nothing but conflicts.
    rounds: u32,
    /// Why its file can't be understood. That stays as it is, and no new replica gets the address, until it can or is gone;
    /// a VIP in service goes on, and is renewed from what the registry has.
    pub(super) damaged: Option<String>,
    /// The last thing that went wrong.
    pub(super) error: Option<String>,
}

type Actions = Vec<Action>;

impl Vip {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            phase: Phase::Idle,
            lease: None,
            lost: false,
            running: false,
            server_silent: false,
            withdrawn: false,
            usage: LocalUsage::default(),
            left: Some(now),
            demand: Demand::default(),
            renewer: Renewer::default(),
            called: None,
            waiting: Vec::new(),
            conflicts: Vec::new(),
            answers: BTreeMap::new(),
            rounds: 0,
            damaged: None,
            error: None,
        }
    }

    pub(super) fn step(&mut self, rules: &Rules, input: Input, now: SystemTime, act: &mut Actions) {
        match input {
            Input::Loaded(found) => self.loaded(found, now, act),
            Input::Acquire(caller) => self.acquire(caller, now, act),
            Input::News(news) => self.news(rules, news, now, act),
            Input::Checked(address, findings) => self.checked(rules, address, &findings, now, act),
            Input::Saved(result) => self.saved(result, act),
            Input::Renewer(renewer) => self.renewer = renewer,
            Input::Stated(address) => self.stated(rules, address, now),
            Input::Demand(demand) => self.demanded(demand, now, act),
            Input::LocalUsage(usage) => self.present(rules, usage, now, act),
            Input::DataplaneFailed(why) => self.error = Some(why),
        }
    }

    /// What is only said of an address that nothing is known of otherwise is asked for first, and not used before it is confirmed.
    fn stated(&mut self, rules: &Rules, address: IpAddr, now: SystemTime) {
        let is_unknown = self.lease.is_none() && self.phase == Phase::Idle && self.usage.endpoints == 0;
        if is_unknown && self.damaged.is_none() && rules.allow.permits(address) {
            self.lease = Some(Lease { expires: Some(now), ..Lease::presumed(address, now) });
            self.lost = true;
        }
    }

    /// A Service wants an address, or wants it no longer.
    fn demanded(&mut self, demand: Demand, now: SystemTime, act: &mut Actions) {
        let before = std::mem::replace(&mut self.demand, demand);
        let is_said = self.follow_use(now, act);
        if !is_said && (before == Demand::Wanted) != (demand == Demand::Wanted) {
            self.save(act);
        }
        let is_idle = matches!(self.phase, Phase::Idle | Phase::Failed { paused: false, .. });
        if demand == Demand::Wanted && is_idle && self.damaged.is_none() {
            self.ask(act);
        }
    }

    /// It has replicas here, or a Service wants it.
    pub(super) fn is_used(&self) -> bool {
        self.usage.endpoints > 0 || self.demand == Demand::Wanted
    }

    /// Since when it isn't used, on disk too. Whether that was written.
    fn follow_use(&mut self, now: SystemTime, act: &mut Actions) -> bool {
        let left = if self.is_used() { None } else { self.left.or(Some(now)) };
        let is_other = left != self.left;
        if is_other {
            self.left = left;
            self.save(act);
        }
        is_other
    }

    /// A remembered lease is confirmed by the server before a new replica gets it.
    fn loaded(&mut self, found: Result<Option<Record>, String>, now: SystemTime, act: &mut Actions) {
        let found = match found {
            Err(why) => {
                if !self.running {
                    self.error = Some(why.clone());
                }
                self.damaged = Some(why);
                return;
            }
            Ok(found) => found,
        };
        self.error = None;
        if self.damaged.take().is_some() && self.running {
            return self.save(act); // it went on without its file
        }
        let Some(record) = found else { return };
        self.left = record.left.or(Some(now));
        self.lease = Some(record.lease);
        self.ask(act);
    }

    /// Writes down what is known, if that is of worth and there is nothing in the way.
    fn save(&self, act: &mut Actions) {
        if let (Some(lease), false, None) = (&self.lease, self.lost, &self.damaged) {
            act.push(Action::Save(Record {
                lease: lease.clone(),
                left: self.left,
                service: self.demand == Demand::Wanted,
            }));
        }
    }

    fn acquire(&mut self, caller: Caller, now: SystemTime, act: &mut Actions) {
        self.called = Some(now);
        if let (Some(why), 0) = (&self.damaged, self.usage.endpoints) {
            return act.push(Action::Answer(caller, Err(disk(why.clone()))));
        }
        match &self.phase {
            Phase::Failed { again, paused: true } if now < *again => {
                let why = self.error.clone().unwrap_or_else(|| "no address".into());
                act.push(Action::Answer(caller, Err(not_now(why))));
            }
            Phase::Bound => match &self.lease {
                Some(lease) => act.push(Action::Answer(caller, Ok(grant(lease)))),
                None => self.waiting.push((caller, now)),
            },
            Phase::Idle | Phase::Failed { .. } => {
                self.waiting.push((caller, now));
                self.ask(act);
            }
            Phase::Saving => {
                self.waiting.push((caller, now));
                if self.error.is_some() {
                    self.save(act);
                }
            }
            Phase::Selecting | Phase::Probing(_) => {
                // The next try by itself may be a minute away, and this caller is answered after 8.5 s at the latest.
                let undecided = self.phase == Phase::Selecting && (self.lease.is_none() || self.lost);
                if undecided && self.waiting.is_empty() && std::mem::take(&mut self.server_silent) {
                    act.extend([Action::Stop, Action::Ask(None)]);
                }
                self.waiting.push((caller, now));
            }
        }
    }

    fn ask(&mut self, act: &mut Actions) {
        self.forget_conflicts();
        self.phase = Phase::Selecting;
        if !self.running {
            self.running = true;
            act.push(Action::Ask(self.lease.clone()));
        }
    }

    /// Asks from the beginning: there may be an address where there was none a moment ago.
    pub(super) fn ask_again(&mut self, act: &mut Actions) {
        self.stop(act);
        self.ask(act);
    }

    fn forget_conflicts(&mut self) {
        self.conflicts.clear();
        self.answers.clear();
    }

    fn stop(&mut self, act: &mut Actions) {
        if self.running {
            self.running = false;
            act.push(Action::Stop);
        }
    }

    fn news(&mut self, rules: &Rules, news: News, now: SystemTime, act: &mut Actions) {
        if !self.running {
            return; // sent before the source was stopped
        }
        match news {
            News::Bound(lease) => self.bound(rules, lease, now, act),
            News::Renewed(lease) => self.renewed(rules, lease, now, act),
            News::Lost { reason } => self.lost(rules, &reason, now, act),
            News::Refused { .. } => {} // changes nothing
            News::Trouble { why, .. } => {
                self.error = Some(self.with_conflicts(why));
                self.server_silent = true;
            }
            News::Failed { why, .. } => {
                self.refuse(self.with_conflicts(why), now, act);
                // Asking a pool again burdens no server.
                self.phase = Phase::Failed { again: now + PAUSE, paused: false };
            }
        }
    }

    /// The error, with the addresses found in conflict before.
    fn with_conflicts(&self, why: String) -> String {
        if self.conflicts.is_empty() { why } else { format!("{why}: in conflict are {}", self.conflicts.join("; ")) }
    }

    fn renewed(&mut self, rules: &Rules, lease: Lease, now: SystemTime, act: &mut Actions) {
        if let Phase::Probing(checked) = &mut self.phase
            && checked.address == lease.address
        {
            *checked = lease; // confirmed by the server, which is no check yet
        } else if self.lease.as_ref().is_some_and(|known| known.address == lease.address) {
            self.accept(lease, act);
        } else {
            self.bound(rules, lease, now, act); // sent before the source received our refusal
        }
    }

    /// An address this node serves needs no check: what it would find is ourselves and our peers.
    fn bound(&mut self, rules: &Rules, lease: Lease, now: SystemTime, act: &mut Actions) {
        if self.serves(lease.address) {
            return self.accept(lease, act);
        }
        if self.keeps(rules) {
            let why = format!("the server has {} for it instead of the address in service", lease.address);
            return self.insist(&why, now, act);
        }
        if !rules.allow.permits(lease.address) {
            // No DECLINE: the address is in order, just not for us, and a server would put it aside for a day.
            let why = format!("{} was offered, which allow doesn't hold ({})", lease.address, rules.allow);
            return self.refuse(why, now, act);
        }
        act.push(Action::Check(lease.address));
        self.phase = Phase::Probing(lease);
    }

    fn checked(&mut self, rules: &Rules, address: IpAddr, found: &Findings, now: SystemTime, act: &mut Actions) {
        let lease = match &self.phase {
            Phase::Probing(lease) if lease.address == address => lease.clone(),
            _ => return, // overtaken
        };
        if found.conflicts.is_empty() {
            return self.accept(lease, act);
        }
        self.conflicts.push(format!("{address}: {}", found.conflicts.join(", ")));
        for mac in &found.answered_by {
            *self.answers.entry(*mac).or_default() += 1;
        }
        if self.conflicts.len() > MAX_DECLINES || self.answers.values().any(|count| *count >= ANSWERS_FOR_ALL) {
            return self.give_up_the_round(now, act);
        }
        self.error = self.conflicts.last().map(|conflict| format!("in conflict, asking for another: {conflict}"));
        self.phase = Phase::Selecting;
        let ours = self.lease.as_ref().is_some_and(|lease| lease.address == address);
        // DECLINE takes the address away from every node that has it in our common name, and from our other VIP.
        let alone = !found.at_other_vip && (!rules.has_peers || !(ours || found.at_peer));
        act.push(if alone { Action::Decline } else { Action::Restart });
    }

    /// Each address declined is lost to its server for a day, so the next round is not asked for soon.
    fn give_up_the_round(&mut self, now: SystemTime, act: &mut Actions) {
        let everywhere =
            self.answers.iter().find(|(_, count)| **count >= ANSWERS_FOR_ALL).map(|(mac, _)| mac.to_string());
        let why = match everywhere {
            Some(mac) => format!("{mac} answers for whatever is offered (proxy ARP or proxy NDP, perhaps)"),
            None => "every address offered is in conflict".to_owned(),
        };
        let pause = PAUSE * 2_u32.pow(self.rounds.min(MAX_DOUBLINGS));
        self.rounds += 1;
        let seconds = pause.as_secs();
        self.refuse(format!("{why}: {}; asked again in {seconds} s", self.conflicts.join("; ")), now, act);
        self.phase = Phase::Failed { again: now + pause, paused: true };
    }

    /// The lease is good: on disk first, then into use.
    fn accept(&mut self, lease: Lease, act: &mut Actions) {
        self.forget_conflicts();
        self.rounds = 0;
        self.lost = false;
        self.server_silent = false;
        let confirmed = self.phase == Phase::Bound && self.lease.as_ref().is_some_and(|l| l.address == lease.address);
        self.lease = Some(lease);
        self.error = self.damaged.as_ref().map(|why| format!("{why}: its lease is renewed, and not kept on disk"));
        if self.damaged.is_some() {
            self.phase = Phase::Bound;
            self.put_in_service(act);
            return self.answer_granted(act);
        }
        self.save(act);
        if confirmed {
            self.put_in_service(act);
        } else {
            self.phase = Phase::Saving;
        }
    }

    fn saved(&mut self, result: Result<(), String>, act: &mut Actions) {
        match result {
            Ok(()) if self.phase == Phase::Saving => {
                self.phase = Phase::Bound;
                self.put_in_service(act);
                self.answer_granted(act);
            }
            Ok(()) => {}
            Err(why) => {
                // Replicas that run go on; but no new one gets an address that a power cut would lose.
                self.answer(&Err(disk(why.clone())), act);
                self.error = Some(why);
                if self.phase == Phase::Saving && self.usage.endpoints > 0 {
                    self.phase = Phase::Bound;
                    self.put_in_service(act);
                }
            }
        }
    }

    fn answer_granted(&mut self, act: &mut Actions) {
        if let Some(lease) = self.lease.as_ref().map(grant) {
            self.answer(&Ok(lease), act);
        }
    }

    fn put_in_service(&mut self, act: &mut Actions) {
        let Some(address) = self.lease.as_ref().map(|lease| lease.address) else { return };
        if self.usage.endpoints > 0 && (self.withdrawn || self.usage.address != Some(address)) {
            act.push(Action::Serve(address));
        }
        self.withdrawn = false;
    }

    fn lost(&mut self, rules: &Rules, reason: &str, now: SystemTime, act: &mut Actions) {
        if self.keeps(rules) {
            return self.insist(reason, now, act);
        }
        self.error = Some(format!("the lease is lost: {reason}"));
        self.lost = true;
        self.phase = Phase::Selecting;
        if self.usage.endpoints > 0 && !self.withdrawn {
            self.withdrawn = true;
            act.push(Action::Withdraw);
        }
    }

    /// Whether the address in service stays, whatever the server says.
    fn keeps(&self, rules: &Rules) -> bool {
        rules.on_lost == OnLost::Keep && self.usage.endpoints > 0 && self.lease.is_some() && !self.withdrawn
    }

    /// Goes on serving, and asks for the same address again later; asking on now would bring another one.
    fn insist(&mut self, why: &str, now: SystemTime, act: &mut Actions) {
        self.lost = true;
        self.refuse(format!("still served, though the lease is lost: {why}"), now, act);
    }

    fn refuse(&mut self, why: String, now: SystemTime, act: &mut Actions) {
        self.stop(act);
        self.forget_conflicts();
        self.answer(&Err(not_now(why.clone())), act);
        self.error = Some(why);
        self.phase = Phase::Failed { again: now + PAUSE, paused: true };
    }

    fn answer(&mut self, answer: &Result<Grant, Refusal>, act: &mut Actions) {
        act.extend(self.waiting.drain(..).map(|(caller, _)| Action::Answer(caller, answer.clone())));
    }

    fn present(&mut self, rules: &Rules, usage: LocalUsage, now: SystemTime, act: &mut Actions) {
        let before = std::mem::replace(&mut self.usage, usage);
        self.follow_use(now, act);
        if self.usage.endpoints == 0 {
            self.withdrawn = false; // the last replica took the routes along
            return;
        }
        if self.withdrawn && self.usage.address.is_some() {
            act.push(Action::Withdraw); // the routes are still there: it failed, or is on its way
        }
        self.called = None;
        if before.endpoints == 0 || self.phase == Phase::Idle {
            self.enter_service(rules, now, act);
        }
        if self.phase == Phase::Bound && !self.withdrawn {
            self.put_in_service(act);
        }
    }

    /// Replicas are here that weren't. If the lease isn't settled (viprouted has just started), the VIP goes on with
    /// what it has while that is confirmed, unless it has certainly run out.
    fn enter_service(&mut self, rules: &Rules, now: SystemTime, act: &mut Actions) {
        if !matches!(self.phase, Phase::Idle | Phase::Selecting) || !self.conflicts.is_empty() {
            return;
        }
        if self.lease.is_none() {
            self.lease = self.usage.address.map(|address| Lease::presumed(address, now));
        }
        self.ask(act);
        match &self.lease {
            Some(lease) if lease.is_valid(now) && !self.lost => self.phase = Phase::Bound,
            Some(_) => self.lost(rules, "it ran out", now, act),
            None => {}
        }
    }

    fn serves(&self, address: IpAddr) -> bool {
        self.usage.endpoints > 0 && self.usage.address == Some(address)
    }

    /// Whether it has an address, or is about to.
    pub(super) fn counts(&self) -> bool {
        self.running || self.lease.is_some()
    }

    /// Whether a caller waits for an address, or a replica has none.
    pub(super) fn wants_an_address(&self) -> bool {
        let has = self.lease.is_some() && !self.lost;
        !has && (self.is_used() || !self.waiting.is_empty())
    }

    /// Since when its address has been held without a replica; none where it is in use, or may be soon.
    pub(super) fn held_since(&self, now: SystemTime) -> Option<SystemTime> {
        let called = self.called.is_some_and(|called| now < called + SETTLE);
        let held = self.phase == Phase::Bound && self.lease.is_some() && self.damaged.is_none();
        self.left.filter(|_| held && !called && !self.is_used() && self.waiting.is_empty())
    }

    /// Gives up the unused address.
    pub(super) fn give_up(&mut self, rules: &Rules, now: SystemTime, act: &mut Actions) {
        let valid = !self.lost && self.lease.as_ref().is_some_and(|lease| lease.is_valid(now));
        let is_the_last = self.demand == Demand::Ended && self.renewer == Renewer::OwnAlone;
        if (rules.gives_back || is_the_last) && valid && self.running {
            self.running = false;
            act.push(Action::Release);
        } else {
            self.stop(act);
        }
        if self.lease.take().is_some() && self.damaged.is_none() {
            act.push(Action::Erase);
        }
        self.phase = Phase::Idle;
    }

    /// What keeps it from an address, where it is asked for and none is to be had.
    pub(super) fn readiness_error(&self, now: SystemTime) -> Option<&str> {
        let failed = matches!(self.phase, Phase::Failed { again, .. } if now < again || self.is_used());
        self.error.as_deref().filter(|_| failed || (self.running && self.server_silent))
    }

    /// The address to answer for on the link. A bad lease file stops no VIP that is in service.
    pub(super) fn announced(&self) -> Option<IpAddr> {
        let kept = matches!(self.phase, Phase::Failed { .. }) && self.lost && !self.withdrawn;
        // While it is searched whether it may have another one, it has the one of before.
        let has = !self.lost && self.lease.as_ref().is_some_and(|lease| Some(lease.address) == self.usage.address);
        let moves = has && matches!(self.phase, Phase::Probing(_));
        let good = kept || moves || matches!(self.phase, Phase::Bound | Phase::Saving);
        self.usage.address.filter(|_| good && !self.withdrawn && self.usage.ready > 0)
    }
}
