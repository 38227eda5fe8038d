//! The lease state machine, without socket, disk, kernel or clock: inputs and the time go in, actions come out.
//!
//! ```text
//!            Ask                Bound             no conflict           Stored
//! (unknown) ─────▶ Selecting ────────────▶ Probing ─────────────▶ Saving ───────▶ Bound
//!                    ▲ ◀──── Decline, Restart ───────┘ conflict                   │
//!                    └──────────────────────── Expired ◀─────────────────────────────┘
//! nothing usable: Failed, asked again a minute later while a replica or a caller wants it
//! ```
//!
//! A VIP is in service while the registry has endpoints of it here, whatever its phase; `Withdraw` and `Serve` say
//! when its routes have to go and come.

mod report;
mod vip;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::api::protocol::{Grant, Refusal, code};
use crate::lease::cluster::Cluster;
use crate::lease::settings::{Backend, Limits, OnLost, Settings};
use crate::model::{Mac, VipKey};

use super::allow::Allow;
use super::grant::{Lease, News, unix};
use super::store::Record;
use vip::Vip;

/// A caller is answered within this time: a little less than the plugin's 10 s, so that it gets the reason.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(8500);
/// A remembered lease is used unconfirmed after this time: the DHCP engine has asked for it three times by then, and
/// there is time left to write it to disk and to answer.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// How many addresses in conflict are declined before giving up.
pub const MAX_DECLINES: usize = 8;
/// After giving up, nothing is asked for this long: a caller that insists would empty the server's pool by declining.
const PAUSE: Duration = Duration::from_secs(60);
/// After round upon round of offers in conflict the pause is doubled so often at most: to 32 minutes.
const MAX_DOUBLINGS: u32 = 5;
/// A host that answers for so many of the addresses offered answers for all of them.
const ANSWERS_FOR_ALL: usize = 2;
/// A lease is kept this long after a call for it, whatever `hold` says: the replica it is for registers only then.
const SETTLE: Duration = Duration::from_secs(60);

/// The configuration of the state machine.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Which addresses may be VIPs.
    pub allow: Allow,
    /// How long a lease outlives the last replica.
    pub hold: Duration,
    /// What to do when a lease is lost.
    pub on_lost: OnLost,
    /// Whether other nodes may serve the same VIPs.
    pub has_peers: bool,
    /// Whether an address that is given up is released at once, because no other node uses it for the VIP.
    pub gives_back: bool,
    /// Whether a remembered address that nobody confirms in time may be used by a VIP that isn't in service: a DHCP server's lease
    /// says until when it holds, what another node decides doesn't.
    pub trusts_memory: bool,
    /// How many VIPs may have addresses.
    pub limits: Limits,
}

impl Rules {
    /// Those of `settings`, for a node of `cluster` (none without DHCP). A pool takes nothing away; if its VIP has to move all
    /// the same (a new pin), it moves.
    pub fn of(settings: &Settings, cluster: Option<&Cluster>) -> Self {
        let on_lost = match &settings.backend {
            Backend::Dhcp(dhcp) => dhcp.on_lost,
            Backend::Pool(_) => OnLost::Withdraw,
        };
        Self {
            allow: settings.allow.clone().unwrap_or_default(),
            hold: settings.hold,
            on_lost,
            has_peers: !settings.peers.is_empty(),
            gives_back: cluster.is_none_or(|cluster| cluster.own),
            trusts_memory: true,
            limits: settings.limits,
        }
    }
}

/// What is said of a VIP's address for the sake of something else than a replica here: a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Demand {
    /// Replicas here decide.
    #[default]
    Elsewhere,
    /// It is to have one, whether it has replicas here or not.
    Wanted,
    /// It is never to have one again: without replicas it is given up at once.
    Ended,
}

/// Which node renews a lease that nodes have in one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Renewer {
    /// Another one, or that isn't known.
    #[default]
    Other,
    /// This one, for others that have it too.
    OwnForOthers,
    /// This one, which alone has it.
    OwnAlone,
}

/// Names a caller that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller(pub u64);

/// What the registry knows of a VIP on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalUsage {
    /// The address it is served at; none while it is withdrawn.
    pub address: Option<IpAddr>,
    /// How many replicas it has here.
    pub endpoints: usize,
    /// How many of them are ready.
    pub ready: usize,
    /// Addresses it had that live connections still use: no other VIP may get them meanwhile.
    pub previous: Vec<IpAddr>,
}

/// What a search for conflicts found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What is in conflict, a few words each; none: the address can be used.
    pub conflicts: Vec<String>,
    /// Whether a route to the address leads to a peer: it may be serving the VIP.
    pub at_peer: bool,
    /// Whether it is another VIP of this node that has the address.
    pub at_other_vip: bool,
    /// Who answers for it on the link.
    pub answered_by: BTreeSet<Mac>,
}

impl Findings {
    /// The same of another address that is to be used together with this one.
    pub fn add(&mut self, other: Self) {
        self.conflicts.extend(other.conflicts);
        self.at_peer |= other.at_peer;
        self.at_other_vip |= other.at_other_vip;
        self.answered_by.extend(other.answered_by);
    }
}

/// An event, mostly of the VIP that comes with it.
#[derive(Debug)]
pub enum Input {
    /// What the disk has about it, or why that can't be read.
    Loaded(Result<Option<Record>, String>),
    /// An address is wanted.
    Acquire(Caller),
    /// The source of addresses reports.
    News(News),
    /// The search for conflicts is done.
    Checked(IpAddr, Findings),
    /// `Save` is done.
    Saved(Result<(), String>),
    /// Who renews its lease from now on.
    Renewer(Renewer),
    /// A Service says that the VIP has had this address.
    Stated(IpAddr),
    /// Something else than a replica wants an address, or no longer does.
    Demand(Demand),
    /// The registry says this now.
    LocalUsage(LocalUsage),
    /// The dataplane failed to execute an action.
    DataplaneFailed(String),
}

/// Something to do, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the source for an address, for the one in the lease first.
    Ask(Option<Lease>),
    /// Decline the address that the source gave, which another host has, and ask on.
    Decline,
    /// Drop the address without a message to the source, and ask on.
    Restart,
    /// Stop asking and renewing, without a message to the source.
    Stop,
    /// Stop, and release the address to its source.
    Release,
    /// Look for conflicts.
    Check(IpAddr),
    /// Write this to disk.
    Save(Record),
    /// Remove the VIP from disk.
    Erase,
    /// Answer a caller.
    Answer(Caller, Result<Grant, Refusal>),
    /// Serve the VIP at this address.
    Serve(IpAddr),
    /// Stop serving the VIP.
    Withdraw,
}

/// An action and the VIP it is about.
pub type Step = (VipKey, Action);

/// All VIPs that this node leases or serves.
#[derive(Debug)]
pub struct State {
    rules: Rules,
    vips: BTreeMap<VipKey, Vip>,
}

impl State {
    /// None yet.
    pub fn new(rules: Rules) -> Self {
        Self { rules, vips: BTreeMap::new() }
    }

    /// Whether [`Input::Loaded`] has to come before anything else about `vip`.
    pub fn needs_record(&self, vip: &VipKey) -> bool {
        self.vips.get(vip).is_none_or(|vip| vip.damaged.is_some())
    }

    /// Which addresses may be VIPs.
    pub fn allow(&self) -> &Allow {
        &self.rules.allow
    }

    /// The server that granted the VIP's address.
    pub fn server_of(&self, vip: &VipKey) -> Option<IpAddr> {
        self.vips.get(vip)?.lease.as_ref()?.server
    }

    /// The links that leases in force were last granted on, as far as that is known.
    pub fn links(&self) -> BTreeSet<&str> {
        let leases = self.vips.values().filter(|vip| !vip.lost).filter_map(|vip| vip.lease.as_ref());
        leases.filter_map(|lease| lease.link.as_deref()).collect()
    }

    /// Why no VIP could be added; none: it could.
    pub fn is_full(&self) -> Option<String> {
        let vips = self.rules.limits.vips;
        let full = self.vips.values().filter(|vip| vip.counts()).count() >= vips;
        full.then(|| format!("this node has as many VIPs with an address as limits.vips = {vips} permits"))
    }

    /// From now on these addresses may be VIPs.
    pub fn permit(&mut self, allow: Allow) {
        self.rules.allow = allow;
    }

    /// Something happened to `vip` at `now`.
    pub fn step(&mut self, vip: &VipKey, input: Input, now: SystemTime) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut act = Vec::new();
        if let Input::Acquire(caller) = input
            && let Some(refusal) = self.over_limit(vip)
        {
            return vec![(vip.clone(), Action::Answer(caller, Err(refusal)))];
        }
        if exhausted(&input) && self.make_room(vip, now, &mut steps) {
            if let Some(entry) = self.vips.get_mut(vip) {
                entry.ask_again(&mut act);
            }
            steps.extend(act.into_iter().map(|action| (vip.clone(), action)));
            return steps;
        }
        let known = self.vips.contains_key(vip);
        let wanted = match &input {
            Input::Loaded(_) | Input::Acquire(_) | Input::Stated(_) | Input::Demand(Demand::Wanted) => true,
            Input::LocalUsage(usage) => usage.endpoints > 0,
            _ => false,
        };
        if known || wanted {
            let entry = self.vips.entry(vip.clone()).or_insert_with(|| Vip::new(now));
            entry.step(&self.rules, input, now, &mut act);
        }
        steps.extend(act.into_iter().map(|action| (vip.clone(), action)));
        steps
    }

    /// Another address than before is to be asked for, where the VIP has none.
    pub fn ask_anew(&mut self, vip: &VipKey) -> Vec<Step> {
        let mut act = Vec::new();
        if let Some(entry) = self.vips.get_mut(vip).filter(|entry| entry.wants_an_address() && entry.running) {
            entry.ask_again(&mut act);
        }
        act.into_iter().map(|action| (vip.clone(), action)).collect()
    }

    /// Why a VIP that has no address can't have one, though there may be some.
    pub fn over_limit(&mut self, vip: &VipKey) -> Option<Refusal> {
        if self
            .vips
            .get(vip)
            .is_some_and(|known| known.counts() || known.damaged.is_some() || known.usage.endpoints > 0)
        {
            return None;
        }
        let Limits { vips_per_namespace, vips } = self.rules.limits;
        let counted = || self.vips.iter().filter(|(_, vip)| vip.counts());
        let there = counted().filter(|(name, _)| name.namespace() == vip.namespace()).count();
        let (has, limit) = if there >= vips_per_namespace {
            let namespace = vip.namespace();
            (format!("namespace {namespace} has {there}"), format!("limits.vips_per_namespace = {vips_per_namespace}"))
        } else if counted().count() >= vips {
            (format!("this node has {vips}"), format!("limits.vips = {vips}"))
        } else {
            return None;
        };
        self.vips.remove(vip);
        let unused = "those without a replica are given up when their hold is over";
        Some(not_now(format!(
            "{has} VIPs with an address, and no more may be had ({limit} in viprouted.toml); {unused}"
        )))
    }

    /// Gives up the address that has been held longest without a use, if `vip` has use for it; whether there was one.
    fn make_room(&mut self, vip: &VipKey, now: SystemTime, steps: &mut Vec<Step>) -> bool {
        let wants = self.vips.get(vip).is_some_and(Vip::wants_an_address);
        if !(wants && self.rules.gives_back) {
            return false;
        }
        let held = self.vips.iter().filter(|(name, _)| *name != vip);
        let oldest = held.filter_map(|(name, vip)| Some((vip.held_since(now)?, name))).min();
        let Some(name) = oldest.map(|(_, name)| name.clone()) else { return false };
        if let Some(mut held) = self.vips.remove(&name) {
            let mut act = Vec::new();
            held.give_up(&self.rules, now, &mut act);
            steps.extend(act.into_iter().map(|action| (name.clone(), action)));
        }
        true
    }

    /// It is `now`: answers callers that have waited long enough, asks again where a pause is over, gives up unused
    /// addresses.
    pub fn tick(&mut self, now: SystemTime) -> Vec<Step> {
        let mut steps = Vec::new();
        let rules = &self.rules;
        self.vips.retain(|name, vip| {
            let mut act = Vec::new();
            let keep = vip.tick(rules, now, &mut act);
            steps.extend(act.into_iter().map(|action| (name.clone(), action)));
            keep
        });
        steps
    }

    /// When [`State::tick`] has something to do next.
    pub fn next_tick(&self) -> Option<SystemTime> {
        self.vips.values().filter_map(|vip| vip.next_tick(&self.rules)).min()
    }

    /// The VIPs with replicas here, as last reported.
    pub fn present(&self) -> impl Iterator<Item = &VipKey> {
        self.vips.iter().filter(|(_, vip)| vip.usage.endpoints > 0).map(|(name, _)| name)
    }

    /// The addresses that this node has to answer for on the link.
    pub fn announced(&self) -> impl Iterator<Item = (IpAddr, &VipKey)> {
        self.vips.iter().filter_map(|(name, vip)| Some((vip.announced()?, name)))
    }

    /// Addresses in use by VIPs here: as leased, as served, and as served a moment ago.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, &VipKey)> {
        self.vips.iter().flat_map(|(name, vip)| {
            let leased = vip.lease.as_ref().map(|lease| lease.address);
            let served = vip.usage.address.filter(|_| vip.usage.endpoints > 0);
            let previous = vip.usage.previous.iter().copied();
            leased.into_iter().chain(served).chain(previous).map(move |address| (address, name))
        })
    }
}

/// Whether there may be no address left.
fn exhausted(input: &Input) -> bool {
    matches!(input, Input::News(News::Trouble { exhausted: true, .. } | News::Failed { exhausted: true, .. }))
}

/// A refusal after which the caller should try again (code 11).
fn not_now(msg: impl Into<String>) -> Refusal {
    Refusal { code: code::TRY_AGAIN, msg: msg.into() }
}

/// A refusal because of the disk (code 5).
fn disk(msg: impl Into<String>) -> Refusal {
    Refusal { code: code::IO, msg: msg.into() }
}

fn grant(lease: &Lease) -> Grant {
    let (address, expires) = (lease.address, lease.expires.map(unix));
    Grant { address, others: Vec::new(), expires, registry: None, policy: None, no_ipv6: None }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
