//! The pool of nodes that know each other: what [`PoolClaims`] decides to do, and what it has to know.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::lease::decider::register::Register;
use crate::lease::decider::{Order, Out, PoolClaims, Remote, Setup, Uses};
use crate::lease::grant::Report;
use crate::lease::pools::Usage;
use crate::lease::settings::Backend;
use crate::lease::source::Sources;
use crate::lease::state::State;
use crate::model::address::ipv4;
use crate::model::{Family, VipKey};
use crate::node::Services;
use crate::node::config::{Config, Membership};
use crate::with_causes;

use super::Daemon;

/// What this node's VIPs have.
struct Here<'a> {
    state: &'a State,
    pins: &'a BTreeMap<VipKey, IpAddr>,
}

impl Uses for Here<'_> {
    fn holder(&self, address: IpAddr, vip: &VipKey) -> Option<VipKey> {
        let pinned = self.pins.iter().map(|(other, pin)| (*pin, other));
        let mut all = self.state.addresses().chain(pinned);
        all.find(|(taken, other)| *taken == address && *other != vip).map(|(_, other)| other.clone())
    }

    fn has(&self, vip: &VipKey) -> bool {
        self.state.has(vip)
    }
}

/// Has the pool's addresses given out by one node for all; the orders come by the receiver. None: this node stands alone.
pub(super) fn start(
    config: &Config,
    sources: &mut Sources,
    (services, reports): (&Services, UnboundedSender<Report>),
) -> (Option<PoolClaims>, UnboundedReceiver<Order>) {
    let (orders, received) = tokio::sync::mpsc::unbounded_channel();
    // A cluster has one register already.
    if config.kubernetes.is_some() && matches!(config.lease.backend, Backend::Pool(_)) {
        sources.decide_by(Box::new(Remote(orders)));
        services.keep_pool(received, reports);
        return (None, tokio::sync::mpsc::unbounded_channel().1);
    }
    let Some(membership) = &config.membership else { return (None, received) };
    let pools = match &config.lease.backend {
        Backend::Pool(pools) => Some(pools.clone()),
        Backend::Dhcp(_) => None,
    };
    sources.decide_by(Box::new(Remote(orders)));
    let claims = PoolClaims::new(Setup {
        pools,
        pins: config.lease.pins.values().copied().collect(),
        decides: Membership::seed_addresses(membership).min(),
        register: Register::load(&config.state_dir).map_err(|error| with_causes(&error)),
    });
    (Some(claims), received)
}

impl Daemon {
    /// Does what `decide` says.
    pub(super) fn decide(&mut self, decide: impl FnOnce(&mut PoolClaims, &dyn Uses, Instant) -> Vec<Out>) {
        let Some(pool) = &mut self.pool else { return };
        let here = Here { state: &self.v4.state, pins: &self.settings.pins };
        for out in decide(pool, &here, Instant::now()) {
            match out {
                Out::Send(to, message) => self.agent.peers.send_pool(to, message),
                Out::Save(number, register) => self.v4.executor.save_register(number, register),
                Out::Report(vip, news) => self.report(Report::new(Family::V4, vip, news)),
            }
        }
    }

    /// How much of each pool is given out: by the register, where this node knows it, and to VIPs here.
    pub(super) fn pool_usage(&self) -> Vec<Usage> {
        let Backend::Pool(pools) = &self.settings.backend else { return Vec::new() };
        let mut given = self.agent.services.given();
        given.extend(self.pool.iter().flat_map(PoolClaims::given));
        given.extend(self.v4.state.addresses().filter_map(|(address, _)| ipv4(address)));
        pools.usage(&given, &self.settings.pins.values().copied().collect())
    }

    /// How long nothing is to be decided.
    pub(super) fn decide_in(&self) -> Option<Duration> {
        let next = self.pool.as_ref().and_then(PoolClaims::next_tick)?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}
