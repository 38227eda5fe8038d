//! The prefix that a `DHCPv6` server delegates to this node, in use: VIPs have the IPv6 addresses of it that end in what they lease, and what
//! comes for the rest of it is refused here (RFC 7084 section 4.2, WPD-5).

use ipnetwork::{IpNetwork, Ipv6Network};

use crate::dhcp::{self, Change, Handle};
use crate::lease::allow::Allow;
use crate::lease::clock;
use crate::lease::cluster::Cluster;
use crate::lease::settings::OnLost;
use crate::lease::source::{Notices, prefix};
use crate::lease::store::Delegated;
use crate::model::Family;
use crate::node::journal::Kind;
use crate::node::problems::PREFIX;
use crate::node::reconcile::Discarded;

use super::{Daemon, Error};

/// It, and its client.
pub(super) struct Delegation {
    handle: Handle,
    on_lost: OnLost,
    /// The prefix in use.
    pub(super) network: Option<Ipv6Network>,
    /// The one that is in use as soon as it is on disk.
    saving: Option<Ipv6Network>,
    /// Where the networks are that are refused here; none yet, at the start.
    pub(super) discarded: Option<Discarded>,
}

impl Delegation {
    /// Asks for one on the link of that name. The one of before is in use at once, unless it has run out.
    pub(super) fn start(
        on_lost: OnLost,
        (cluster, interface): (&Cluster, Option<&str>),
        (remembered, allow): (Option<&Delegated>, &Allow),
    ) -> Result<(Self, Notices), Error> {
        let (handle, notices) = prefix::start(cluster, interface, remembered)?;
        let is_in_force = |known: &&Delegated| on_lost == OnLost::Keep || known.lease.is_valid(clock::now());
        let is_permitted = |known: &&Delegated| allow.permits_all(known.network.into());
        let network = remembered.filter(is_in_force).filter(is_permitted).map(|known| known.network);
        Ok((Self { handle, on_lost, network, saving: None, discarded: None }, notices))
    }

    /// On the link of that name from now on.
    pub(super) fn rebind(&self, interface: &str) {
        self.handle.rebind(interface.to_owned());
    }

    /// Its messages.
    pub(super) fn counters(&self) -> dhcp::Counters {
        self.handle.counters()
    }
}

impl Daemon {
    /// What has become of the prefix.
    pub(super) fn prefix(&mut self, change: Change) {
        match change {
            Change::Bound(lease) | Change::Renewed(lease) => {
                if let Some(delegated) = prefix::delegated(&lease) {
                    self.delegated(delegated);
                }
            }
            Change::Lost { lease, reason } => {
                self.prefix_lost(&format!("the delegated prefix at {} is lost: {reason}", lease.address));
            }
            Change::Refused { server, why } => self.refused(None, None, server, &why),
            Change::Failed { tries, why } => {
                let what = match self.delegation.as_ref().and_then(|delegation| delegation.network) {
                    Some(network) => format!("the delegated prefix {network} isn't renewed"),
                    None => "no prefix is delegated to this node".to_owned(),
                };
                let text = format!("{what}: {} ({tries} tries)", why.said(Family::V6));
                self.agent.problems.set(PREFIX, Some(text));
            }
        }
    }

    fn delegated(&mut self, delegated: Delegated) {
        let (network, allow) = (delegated.network, self.settings.allow.clone().unwrap_or_default());
        let Some(delegation) = &mut self.delegation else { return };
        if !allow.permits_all(network.into()) {
            let text = format!("{network} is delegated to this node, and not used: allow doesn't hold it ({allow})");
            self.agent.problems.set(PREFIX, Some(text));
            if delegation.network.is_some() {
                self.use_prefix(None);
            }
            return;
        }
        delegation.saving = Some(network);
        self.v4.executor.save_prefix(Some(delegated));
    }

    /// The prefix is on disk, or why not: one that a power cut would lose isn't used. That it is lost needn't be there.
    pub(super) fn prefix_saved(&mut self, saved: Result<(), String>) {
        let Some(delegation) = &mut self.delegation else { return };
        let Some(network) = delegation.saving.take() else { return };
        let before = delegation.network;
        if let Err(why) = saved {
            let text = format!("the prefix {network} is delegated to this node, and not kept: {why}");
            return self.agent.problems.set(PREFIX, Some(text));
        }
        self.agent.problems.set(PREFIX, None);
        if before != Some(network) {
            let of = before.map(|before| format!(" in place of {before}")).unwrap_or_default();
            let text = format!("the prefix {network} is delegated to this node{of}");
            tracing::info!("{text}");
            self.agent.journal.record(Kind::Lease, None, text);
            self.use_prefix(Some(network));
        }
    }

    /// Until there is another one VIPs have no IPv6 addresses, or the ones that they have, by `dhcp.on_lost`.
    fn prefix_lost(&mut self, text: &str) {
        tracing::warn!("{text}");
        self.agent.journal.record(Kind::Lease, None, text);
        let keeps = self.delegation.as_mut().is_some_and(|delegation| {
            delegation.saving = None;
            delegation.on_lost == OnLost::Keep && delegation.network.is_some()
        });
        let text = if keeps { format!("{text}; VIPs have its addresses still") } else { text.to_owned() };
        self.agent.problems.set(PREFIX, Some(text));
        if !keeps {
            self.v4.executor.save_prefix(None);
            self.use_prefix(None);
        }
    }

    /// VIPs' addresses are of that prefix from now on; none: they have none.
    fn use_prefix(&mut self, network: Option<Ipv6Network>) {
        let Some(delegation) = &mut self.delegation else { return };
        let old = std::mem::replace(&mut delegation.network, network);
        if let Some(discarded) = &delegation.discarded {
            discarded.exchange(old.map(IpNetwork::V6), network.map(IpNetwork::V6));
        }
        self.settings.beside.set_network(network);
        self.v4.executor.beside = self.settings.beside.clone();
        self.compare_all_beside();
    }
}
