//! What viprouted decides, without socket, disk, kernel or clock: inputs and the time go in, actions come out.
//!
//! ```text
//!            Ask                Bound             no conflict           Stored
//! (unknown) ─────▶ Asking ─────────────▶ Checking ─────────────▶ Saving ───────▶ Held
//!                    ▲ ◀──── Decline, Restart ───────┘ conflict                   │
//!                    └──────────────────────── Lost ◀─────────────────────────────┘
//! nothing usable: Refused, asked again a minute later while a replica or a caller wants it
//! ```
//!
//! A VIP is in service while the registry has endpoints of it here, whatever its phase; `Withdraw` and `Serve` say
//! when its routes have to go and come.

mod report;
mod vip;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use super::allow::Allow;
use super::config::{Backend, Config, OnLost};
use super::lease::{Lease, News, unix};
use super::protocol::{Grant, Refusal, code};
use super::store::Record;
use crate::registry::VipKey;
use vip::{Phase, Vip};

/// A caller hears something within this time: a little less than the plugin's 10 s, so that it hears why.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(8500);
/// A remembered lease is used unconfirmed after this time: the DHCP engine has asked for it three times by then, and
/// there is time left to write it to disk and to answer.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// How many addresses in conflict are declined before giving up.
pub const MAX_DECLINES: usize = 8;
/// After giving up, nothing is asked for this long: a caller that insists would empty the server's pool by declining.
const PAUSE: Duration = Duration::from_secs(60);
/// A lease is kept this long after a call for it, whatever `hold` says: the replica it is for registers only then.
const SETTLE: Duration = Duration::from_secs(60);

/// What the configuration says about all this.
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
}

impl Rules {
    /// Those of `config`. A pool takes nothing away; if its VIP has to move all the same (a new pin), it moves.
    pub fn of(config: &Config) -> Self {
        let on_lost = match &config.backend {
            Backend::Dhcp(dhcp) => dhcp.on_lost,
            Backend::Pool(_) => OnLost::Withdraw,
        };
        Self { allow: config.allow.clone(), hold: config.hold, on_lost, has_peers: !config.peers.is_empty() }
    }
}

/// Names a caller that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller(pub u64);

/// What the registry knows of a VIP on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// The address it is served at; none while it is withdrawn.
    pub address: Option<Ipv4Addr>,
    /// How many replicas it has here.
    pub endpoints: usize,
    /// How many of them are ready.
    pub ready: usize,
    /// Addresses it had that live connections still use: nobody else may get them meanwhile.
    pub former: Vec<Ipv4Addr>,
}

/// What a search for conflicts found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What is in conflict, a few words each; none: the address can be used.
    pub conflicts: Vec<String>,
    /// Whether a route to the address leads to a peer: it may be serving the VIP.
    pub at_peer: bool,
}

/// Something that happened, most of it to the VIP it comes with.
#[derive(Debug)]
pub enum Input {
    /// What the disk has about it, or why that can't be told.
    Loaded(Result<Option<Record>, String>),
    /// An address is wanted.
    Acquire(Caller),
    /// The source of addresses speaks.
    News(News),
    /// The search for conflicts is done.
    Checked(Ipv4Addr, Findings),
    /// `Save` is done.
    Saved(Result<(), String>),
    /// The registry says this now.
    Present(Presence),
    /// The dataplane failed at what it was told.
    Stuck(String),
}

/// Something to do, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the source for an address, for the one in the lease first.
    Ask(Option<Lease>),
    /// Tell the source that the address it gave is somebody else's, and ask on.
    Decline,
    /// Give the address up without a word, and ask on.
    Restart,
    /// Stop asking and renewing, without a word.
    Stop,
    /// Look for conflicts.
    Check(Ipv4Addr),
    /// Write this to disk.
    Save(Record),
    /// Remove the VIP from disk.
    Erase,
    /// Answer a caller.
    Answer(Caller, Result<Grant, Refusal>),
    /// Serve the VIP at this address.
    Serve(Ipv4Addr),
    /// Stop serving the VIP.
    Withdraw,
}

/// An action and the VIP it is about.
pub type Step = (VipKey, Action);

/// All VIPs this node has to do with.
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
        self.vips.get(vip).is_none_or(|vip| matches!(vip.phase, Phase::Blocked(_)))
    }

    /// Something happened to `vip` at `now`.
    pub fn step(&mut self, vip: &VipKey, input: Input, now: SystemTime) -> Vec<Step> {
        let mut act = Vec::new();
        let known = self.vips.contains_key(vip);
        let wanted = match &input {
            Input::Loaded(_) | Input::Acquire(_) => true,
            Input::Present(presence) => presence.endpoints > 0,
            _ => false,
        };
        if known || wanted {
            let entry = self.vips.entry(vip.clone()).or_insert_with(|| Vip::new(now));
            entry.step(&self.rules, input, now, &mut act);
        }
        act.into_iter().map(|action| (vip.clone(), action)).collect()
    }

    /// It is `now`: answers what has waited long enough, asks again where a pause is over, lets go what nobody uses.
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

    /// The VIPs with replicas here, as last heard.
    pub fn present(&self) -> impl Iterator<Item = &VipKey> {
        self.vips.iter().filter(|(_, vip)| vip.presence.endpoints > 0).map(|(name, _)| name)
    }

    /// The addresses this node has to answer ARP for.
    pub fn announced(&self) -> BTreeSet<Ipv4Addr> {
        self.vips.values().filter_map(Vip::announced).collect()
    }

    /// Addresses in use by VIPs here: as leased, as served, and as served a moment ago.
    pub fn addresses(&self) -> impl Iterator<Item = (Ipv4Addr, &VipKey)> {
        self.vips.iter().flat_map(|(name, vip)| {
            let leased = vip.lease.as_ref().map(|lease| lease.address);
            let served = vip.presence.address.filter(|_| vip.presence.endpoints > 0);
            let former = vip.presence.former.iter().copied();
            leased.into_iter().chain(served).chain(former).map(move |address| (address, name))
        })
    }
}

/// "No, but ask again."
fn not_now(msg: impl Into<String>) -> Refusal {
    Refusal { code: code::TRY_AGAIN, msg: msg.into() }
}

/// "No, the disk."
fn disk(msg: impl Into<String>) -> Refusal {
    Refusal { code: code::IO, msg: msg.into() }
}

fn grant(lease: &Lease) -> Grant {
    Grant { address: lease.address, expires: lease.expires.map(unix) }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
