//! A VIP with replicas here: what its lease means to its routes, and the registry to its lease.

use std::net::Ipv4Addr;
use std::time::SystemTime;

use super::vip::{Acts, Phase, Vip};
use super::{Action, Presence, Rules};
use crate::allocator::config::OnLost;
use crate::allocator::lease::Lease;
use crate::allocator::store::Record;

impl Vip {
    pub(super) fn put_in_service(&mut self, act: &mut Acts) {
        let Some(address) = self.lease.as_ref().map(|lease| lease.address) else { return };
        if self.presence.endpoints > 0 && (self.withdrawn || self.presence.address != Some(address)) {
            act.push(Action::Serve(address));
        }
        self.withdrawn = false;
    }

    pub(super) fn lost(&mut self, rules: &Rules, reason: &str, now: SystemTime, act: &mut Acts) {
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
    pub(super) fn keeps(&self, rules: &Rules) -> bool {
        rules.on_lost == OnLost::Keep && self.presence.endpoints > 0 && self.lease.is_some() && !self.withdrawn
    }

    /// Goes on serving, and asks for the same address again later; asking on now would bring another one.
    pub(super) fn insist(&mut self, why: &str, now: SystemTime, act: &mut Acts) {
        self.lost = true;
        self.refuse(format!("still served, though the lease is lost: {why}"), now, act);
    }

    pub(super) fn present(&mut self, rules: &Rules, presence: Presence, now: SystemTime, act: &mut Acts) {
        let before = std::mem::replace(&mut self.presence, presence);
        if matches!(self.phase, Phase::Blocked(_)) {
            return;
        }
        let left = if presence.endpoints > 0 { None } else { self.left.or(Some(now)) };
        if left != self.left {
            self.left = left;
            if let (Some(lease), false) = (&self.lease, self.lost) {
                act.push(Action::Save(Record { lease: lease.clone(), left }));
            }
        }
        if presence.endpoints == 0 {
            self.withdrawn = false; // the last replica took the routes along
            return;
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
    pub(super) fn enter_service(&mut self, rules: &Rules, now: SystemTime, act: &mut Acts) {
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

    pub(super) fn serves(&self, address: Ipv4Addr) -> bool {
        self.presence.endpoints > 0 && self.presence.address == Some(address)
    }

    /// The address to answer ARP for. A bad lease file stops no VIP that is in service.
    pub(super) fn announced(&self) -> Option<Ipv4Addr> {
        let kept = matches!(self.phase, Phase::Refused { .. }) && self.lost && !self.withdrawn;
        let good = kept || matches!(self.phase, Phase::Held | Phase::Saving | Phase::Blocked(_));
        self.presence.address.filter(|_| good && !self.withdrawn && self.presence.ready > 0)
    }
}
