//! What VIPs have beside the address that they lease: an IPv6 address, leased by itself or derived.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::api::protocol::{Grant, Refusal, code};
use crate::lease::settings::Backend;
use crate::lease::state::{Findings, Input, LocalUsage};
use crate::model::address::ipv4;
use crate::model::{Family, VipKey};
use crate::node::journal::Kind;

use super::Daemon;
use super::usage::Batch;

/// A VIP that is served without what it is to have beside an address, or with something else.
#[derive(Debug)]
pub(super) struct Unlike {
    /// That address.
    pub served: IpAddr,
    /// Why it lacks it, as the journal has it.
    said: Option<String>,
}

impl Unlike {
    fn new(served: IpAddr) -> Self {
        Self { served, said: None }
    }

    /// Whether this hasn't been said last.
    fn is_news(&mut self, text: &str) -> bool {
        self.said.replace(text.to_owned()).is_none_or(|before| before != text)
    }
}

impl Daemon {
    /// What the VIP has beside an address: leased by itself, or derived. While its lease isn't read it keeps what it has.
    pub(super) fn beside_of(&self, vip: &VipKey, address: IpAddr) -> Option<IpAddr> {
        match &self.v6 {
            Some(leasing) if leasing.is_unread(vip) => {
                self.beside.get(vip).into_iter().flatten().copied().find(IpAddr::is_ipv6)
            }
            Some(leasing) => leasing.state.in_service(vip),
            None => self.settings.beside.of(vip, address),
        }
    }

    /// The same grant with what VIPs have beside without a lease, or why there is nothing.
    pub(super) fn with_derived(&self, vip: &VipKey, grant: Grant) -> Grant {
        let derived = self.settings.beside.of(vip, grant.address);
        let others: Vec<IpAddr> = grant.others.iter().copied().chain(derived).collect();
        let has_none = !others.iter().any(IpAddr::is_ipv6);
        let no_ipv6 = has_none.then(|| grant.no_ipv6.clone().unwrap_or_else(|| self.no_ipv6(grant.address)));
        Grant { others, no_ipv6, ..grant }
    }

    /// Why a VIP that leases this address has none of IPv6 by the configuration.
    fn no_ipv6(&self, leased: IpAddr) -> Refusal {
        if self.delegation.is_some() {
            let msg = "no prefix is delegated to this node so far (dhcp6.delegate in viprouted.toml)".to_owned();
            return Refusal { code: code::TRY_AGAIN, msg };
        }
        let from = match &self.settings.backend {
            Backend::Pool(pools) => match ipv4(leased).and_then(|leased| pools.of(leased)) {
                Some(pool) => format!("pool {} has no cidr6", pool.name),
                None => "no pool with cidr6 has its IPv4 address".to_owned(),
            },
            Backend::Dhcp(_) => "there is no [dhcp6]".to_owned(),
        };
        let msg = format!(
            "{from} in viprouted.toml, and the VIP has no address6 by a [[pin]]: set one of them, or take ipv6 out of viproute.io/families"
        );
        Refusal { code: code::INVALID, msg }
    }

    /// The registry's replicas, as far as they serve IPv6 addresses that are leased by themselves.
    pub(super) fn present_beside(&mut self, batch: &Batch, gone: &[VipKey]) {
        if self.v6.is_none() {
            return;
        }
        for (vip, usage) in &batch.vips {
            self.step_of(Family::V6, vip, Input::LocalUsage(batch.beside(vip, usage)));
        }
        for vip in gone {
            self.step_of(Family::V6, vip, Input::LocalUsage(LocalUsage::default()));
        }
    }

    /// What the registry's VIPs have beside the address that they lease. What failed is ordered again by and by.
    pub(super) fn compare_beside(&mut self, batch: &Batch) {
        let unlike: BTreeMap<_, _> = batch.unlike(|vip, address| self.beside_of(vip, address)).into_iter().collect();
        self.unlike.retain(|vip, _| unlike.contains_key(vip) || !batch.is_over(vip));
        for (vip, served) in unlike {
            self.bring_beside(&vip, served);
            self.unlike.entry(vip).or_insert_with(|| Unlike::new(served)).served = served;
        }
        self.v4.executor.keep_searches_beside(|vip| self.unlike.contains_key(vip));
    }

    /// The same of all VIPs here, where what they are to have has changed.
    pub(super) fn compare_all_beside(&mut self) {
        let present: Vec<VipKey> = self.v4.state.present().cloned().collect();
        for vip in present {
            let Some(served) = self.v4.state.served_at(&vip) else { continue };
            let has = self.beside.get(&vip).into_iter().flatten();
            if self.beside_of(&vip, served).iter().eq(has) {
                self.unlike.remove(&vip);
            } else {
                self.bring_beside(&vip, served);
                self.unlike.entry(vip).or_insert_with(|| Unlike::new(served)).served = served;
            }
        }
    }

    /// A VIP that is served at `address` gets what it is to have beside it, once a search finds no conflict, or loses what it has.
    pub(super) fn bring_beside(&mut self, vip: &VipKey, address: IpAddr) {
        match self.settings.beside.of(vip, address) {
            Some(beside) => self.v4.executor.check_beside(vip, beside, self.v4.state.allow().clone()),
            None => self.order(vip, Some(address)),
        }
    }

    /// What a search for conflicts of `beside` has found. A conflict is recorded once while it is the same.
    pub(super) fn found_beside(
        &mut self,
        vip: &VipKey,
        (served, beside): (IpAddr, IpAddr),
        found: Result<Findings, String>,
    ) {
        let conflicts = match found {
            Ok(findings) => findings.conflicts,
            Err(why) => vec![why],
        };
        if conflicts.is_empty() {
            return self.order(vip, Some(served));
        }
        let text = format!("it isn't served at {beside}: {}", conflicts.join(", "));
        if self.unlike.get_mut(vip).is_none_or(|unlike| unlike.is_news(&text)) {
            tracing::warn!(%vip, "{text}");
            self.agent.journal.record(Kind::Trouble, Some(vip), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_conflict_is_said_once() {
        let mut unlike = Unlike::new([10, 118, 0, 7].into());
        let said =
            ["a host has it", "a host has it", "a router has it", "a host has it"].map(|why| unlike.is_news(why));
        assert_eq!(said, [true, false, true, true]);
    }
}
