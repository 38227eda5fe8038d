//! The links, as leases see them: where they are asked for, and which addresses these permit.

use crate::lease::allow::Allow;
use crate::lease::grant::News;
use crate::lease::search::Search;
use crate::lease::settings::{Backend, Dhcp, Settings};
use crate::model::Family;
use crate::net::link::Link;
use crate::node::problems::OTHER_LINK;
use crate::node::subsystems::ROUTES;
use crate::node::uplink;
use crate::with_causes;

use super::Daemon;
use super::events::Events;
use super::leasing::Leasing;
use super::links::{self, OneLink};

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
            lease.link = self.links.of(family).link.as_ref().map(|link| link.name.clone());
        }
        news
    }

    /// A lease that was granted on one link says nothing on another, whose servers may give its address to others.
    pub(super) fn compare_links(&self) {
        let of = |family, leasing: Option<&Leasing>| {
            let (link, leasing) = self.links.of(family).link.as_ref().zip(leasing)?;
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
            let Some(link) = self.links.of(family).link.clone() else { continue };
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

    /// Moves probes and DHCP to other links, where there are such. What can't be opened there is tried again.
    pub(super) fn rebind(&mut self, events: &mut Events) {
        for family in Family::ALL {
            let Some(link) = self.links.of_mut(family).next.take() else { continue };
            let name = link.name.clone();
            match self.bind_to(family, link.clone()) {
                Ok(heard) => *events.claims_of(family) = heard,
                Err(error) => {
                    tracing::debug!(link = name, error, "not bound to");
                    self.links.of_mut(family).next = Some(link);
                }
            }
        }
    }

    /// That is the link of a family's addresses from now on. Returns what other hosts' claims come by.
    fn bind_to(&mut self, family: Family, link: Link) -> Result<links::Claims, String> {
        let name = link.name.clone();
        let (bound, claims) = OneLink::open(Some(link)).map_err(|error| with_causes(&error))?;
        let before = std::mem::replace(self.links.of_mut(family), bound);
        let (heartbeat, told) = (self.agent.subsystems.begin(&ROUTES), self.agent.services.nodes());
        let search = match Search::new(&self.settings, &self.registry, self.links.asked(), heartbeat, told) {
            Ok(search) => search,
            Err(error) => {
                *self.links.of_mut(family) = before;
                return Err(with_causes(&error));
            }
        };
        let moved = self.links.beside(family);
        for family in Family::ALL {
            let Some(leasing) = self.leasing(family) else { continue };
            leasing.executor.search_by(search.clone());
            if moved.contains(&family) {
                leasing.executor.rebind(&name);
            }
        }
        if let Some(delegation) = self.delegation.as_ref().filter(|_| moved.contains(&Family::V6)) {
            delegation.rebind(&name);
        }
        self.permit_link();
        self.compare_links();
        Ok(claims)
    }
}
