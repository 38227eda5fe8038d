//! The link to the gateways, as leases see it: where they are asked for, and which addresses it permits.

use std::sync::Arc;

use tokio::sync::mpsc::Receiver;

use crate::lease::allow::Allow;
use crate::lease::grant::News;
use crate::lease::search::Search;
use crate::lease::settings::{Backend, Dhcp, Settings};
use crate::model::Family;
use crate::net::acd::{Acd, Claim};
use crate::net::link::Link;
use crate::node::problems::OTHER_LINK;
use crate::node::subsystems::ROUTES;
use crate::node::uplink;
use crate::with_causes;

use super::Daemon;
use super::leasing::Leasing;

impl Daemon {
    /// What a DHCP server grants is granted on the link by which it is asked.
    pub(super) fn on_link(&self, family: Family, mut news: News) -> News {
        let settings = match (family, &self.settings6) {
            (Family::V6, Some(settings)) => settings,
            _ => &self.settings,
        };
        let broadcast = matches!(&settings.backend, Backend::Dhcp(Dhcp { relay: None, .. }));
        if let News::Bound(lease) | News::Renewed(lease) = &mut news
            && broadcast
            && lease.server.is_some()
        {
            lease.link = self.link_of(family).map(|link| link.name.clone());
        }
        news
    }

    /// A lease that was granted on one link says nothing on another, whose servers may give its address to others.
    pub(super) fn compare_links(&self) {
        let of = |family, leasing: Option<&Leasing>| {
            let (link, leasing) = self.link_of(family).zip(leasing)?;
            let others: Vec<_> = leasing.state.links().into_iter().filter(|name| *name != link.name).collect();
            (!others.is_empty()).then(|| (others.join(" and "), link.name.clone()))
        };
        let other = of(Family::V4, Some(&self.v4)).or_else(|| of(Family::V6, self.v6.as_ref()));
        let problem = other.map(|(others, link)| {
            format!(
                "leases that were granted on {others} are asked for on {link} when they are to be renewed: its DHCP servers must know of them"
            )
        });
        self.agent.problems.set(OTHER_LINK, problem);
    }

    /// Where the configuration doesn't say which addresses may be VIPs, the prefixes of the link that they are leased by may: as they are now.
    pub(super) fn permit_link(&mut self) {
        let allows_link =
            |settings: &Settings| settings.allow.is_none() && matches!(settings.backend, Backend::Dhcp(_));
        let families = [(Family::V4, Some(&self.settings)), (Family::V6, self.settings6.as_ref())];
        let families = families.map(|(family, settings)| settings.is_some_and(allows_link).then_some(family));
        for family in families.into_iter().flatten() {
            let Some(link) = self.link_of(family).cloned() else { continue };
            match (uplink::prefixes(&self.node, family, link.index), self.leasing(family)) {
                (Ok(prefixes), Some(leasing)) => {
                    leasing.state.permit(Allow::of_link(&link.name, prefixes.into_iter().collect()));
                }
                (Ok(_), None) => {}
                (Err(error), _) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "addresses of {} not read", link.name);
                }
            }
        }
    }

    /// Opens the search for conflicts on a link: what receives claims there, the claims, and the search.
    pub(super) fn search_on(&self, link: &Link) -> Result<(Arc<Acd>, Receiver<Claim>, Search), String> {
        let (acd, heard) = Acd::open(link).map_err(|error| with_causes(&error))?;
        let (heartbeat, told) = (self.agent.subsystems.begin(&ROUTES), self.agent.services.nodes());
        let search = Search::new(&self.settings, &self.registry, Some((link, acd.clone())), heartbeat, told);
        Ok((acd, heard, search.map_err(|error| with_causes(&error))?))
    }

    /// Moves probes and DHCP to another link, if there is one. What can't be opened there is tried again.
    pub(super) fn rebind(&mut self, claims: &mut Option<Receiver<Claim>>) {
        let Some(link) = self.next_link.take() else { return };
        match self.search_on(&link) {
            Ok((acd, heard, search)) => {
                let is_one = self.link6.is_none();
                if let Some(leasing) = self.v6.as_mut().filter(|_| is_one) {
                    leasing.executor.rebind(search.clone(), &link.name);
                }
                if let Some(delegation) = &self.delegation {
                    delegation.rebind(&link.name);
                }
                self.v4.executor.rebind(search, &link.name);
                (self.acd, *claims) = (Some(acd), Some(heard));
                self.link = Some(link);
                self.permit_link();
                self.compare_links();
            }
            Err(error) => {
                tracing::debug!(link = link.name, error, "not bound to");
                self.next_link = Some(link);
            }
        }
    }
}
