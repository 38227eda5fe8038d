//! All machines of an engine: which of them is due, and which one a reply is for. Without socket or clock.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::identity::Client;
use super::machine::{Action, Event, Machine};
use super::message::{Message, Reply};
use super::pace::Pace;
use super::{Acquisition, Change, Identity, Trouble};

/// Where a fleet's messages and changes go.
pub trait Outlet {
    /// Sends a message; one that can't be sent is a lost packet.
    fn send(&mut self, message: &Message, identity: &Identity);
    /// Notifies the owner of `key`.
    fn notify(&mut self, key: &str, change: Change);
}

type Key = Arc<str>;

/// Machines by when something is due for them.
type Agenda = BTreeSet<(SystemTime, Key)>;

struct Member {
    machine: Machine,
    /// Its entry in `Fleet::due`.
    due: Option<SystemTime>,
    /// Its entry in `Fleet::ends`.
    end: Option<SystemTime>,
}

/// Machines by key.
pub struct Fleet {
    members: HashMap<Key, Member>,
    by_client: HashMap<Client, Key>,
    /// By deadline.
    due: Agenda,
    /// By when the lease held runs out, which waits for no pace.
    ends: Agenda,
    pace: Pace,
    seeds: StdRng,
}

impl Fleet {
    /// An empty fleet. `seed` decides all that is random in it.
    pub fn new(seed: u64, now: SystemTime) -> Self {
        Self {
            members: HashMap::new(),
            by_client: HashMap::new(),
            due: Agenda::new(),
            ends: Agenda::new(),
            pace: Pace::new(now),
            seeds: StdRng::seed_from_u64(seed),
        }
    }

    /// Adds a machine, unless the key has one. [`Fleet::tick`] starts it.
    pub fn acquire(&mut self, key: &str, acquisition: Acquisition, now: SystemTime) -> Result<(), Trouble> {
        if self.members.contains_key(key) {
            return Ok(());
        }
        if let Some(other) = acquisition.identity.clients().find_map(|client| self.by_client.get(&client)) {
            // Replies couldn't be told apart, and udhcpd would give both the same address.
            return Err(Trouble::SameAddress { other: other.to_string() });
        }
        let key = Key::from(key);
        self.by_client.extend(acquisition.identity.clients().map(|client| (client, key.clone())));
        let machine = Machine::new(acquisition, self.seeds.random(), now);
        self.members.insert(key.clone(), Member { machine, due: None, end: None });
        self.schedule(&key);
        Ok(())
    }

    /// Removes a machine. Nothing is sent.
    pub fn forget(&mut self, key: &str) {
        if let Some((key, member)) = self.members.remove_entry(key) {
            for client in member.machine.identity().clients() {
                self.by_client.remove(&client);
            }
            enter(&mut self.due, &key, member.due, None);
            enter(&mut self.ends, &key, member.end, None);
        }
    }

    /// Removes a machine, which releases the address held.
    pub fn release(&mut self, key: &str, now: SystemTime, outlet: &mut impl Outlet) {
        self.step(key, Event::Release, now, outlet);
        self.forget(key);
    }

    /// Gives a reply to the machine it is for; false if there is none.
    pub fn reply(&mut self, reply: &Reply, now: SystemTime, outlet: &mut impl Outlet) -> bool {
        let Some(key) = self.by_client.get(&reply.client).cloned() else { return false };
        self.pace.answered();
        self.step(&key, Event::Reply(reply), now, outlet);
        true
    }

    /// Gives an event to the machine of `key`, if there is one, and executes its actions.
    pub fn step(&mut self, key: &str, event: Event<'_>, now: SystemTime, outlet: &mut impl Outlet) {
        let Some(member) = self.members.get_mut(key) else { return };
        for action in member.machine.step(event, now) {
            match action {
                Action::Send(message) => {
                    self.pace.spend();
                    outlet.send(&message, member.machine.identity());
                }
                Action::Notify(change) => outlet.notify(key, change),
            }
        }
        self.schedule(key);
    }

    /// Lets every machine that is due go on: as many as may send, none where that is in vain, and all whose lease has run out.
    pub fn tick(&mut self, now: SystemTime, outlet: &mut impl Outlet, may_send: bool) {
        while let Some(key) = first(&self.ends, now) {
            self.step(&key, Event::Timer, now, outlet);
        }
        while let Some(key) = first(&self.due, now).filter(|_| may_send) {
            if !self.pace.wait(now).is_zero() {
                return;
            }
            self.step(&key, Event::Timer, now, outlet);
        }
    }

    /// How long nothing needs doing, replies and commands aside. `None`: for ever.
    pub fn rest(&mut self, now: SystemTime) -> Option<Duration> {
        let (at, _) = self.due.first()?;
        match at.duration_since(now) {
            Ok(rest) if !rest.is_zero() => Some(rest),
            _ => Some(self.pace.wait(now)),
        }
    }

    /// Brings a machine's entries in `due` and `ends` up to date.
    fn schedule(&mut self, key: &str) {
        let Some((key, _)) = self.members.get_key_value(key) else { return };
        let key = key.clone();
        let Some(member) = self.members.get_mut(&key) else { return };
        let (due, end) = (member.machine.deadline(), member.machine.end());
        enter(&mut self.due, &key, member.due, due);
        enter(&mut self.ends, &key, member.end, end);
        (member.due, member.end) = (due, end);
    }
}

/// Moves a machine's entry from where it was to where it is to be.
fn enter(agenda: &mut Agenda, key: &Key, was: Option<SystemTime>, is: Option<SystemTime>) {
    if was == is {
        return;
    }
    if let Some(at) = was {
        agenda.remove(&(at, key.clone()));
    }
    agenda.extend(is.map(|at| (at, key.clone())));
}

/// The machine that has been due longest, if one is.
fn first(agenda: &Agenda, now: SystemTime) -> Option<Key> {
    agenda.first().filter(|(at, _)| *at <= now).map(|(_, key)| key.clone())
}

#[cfg(test)]
mod tests;
