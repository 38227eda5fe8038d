//! The link to the gateways, as leases see it: where they are asked for, and which addresses it permits.

use ipnetwork::IpNetwork;
use tokio::sync::mpsc::Receiver;

use crate::lease::allow::Allow;
use crate::lease::grant::News;
use crate::lease::search::Search;
use crate::lease::settings::{Backend, Dhcp};
use crate::model::Family;
use crate::net::acd::{Acd, Claim};
use crate::net::link::Link;
use crate::net::{self, NodeNet, address};
use crate::node::problems::OTHER_LINK;
use crate::node::subsystems::ROUTES;
use crate::with_causes;

use super::Daemon;

impl Daemon {
    /// What a DHCP server grants is granted on the link by which it is asked.
    pub(super) fn on_link(&self, mut news: News) -> News {
        let broadcast = matches!(&self.settings.backend, Backend::Dhcp(Dhcp { relay: None, .. }));
        if let News::Bound(lease) | News::Renewed(lease) = &mut news
            && broadcast
            && lease.server.is_some()
        {
            lease.link = self.link.as_ref().map(|link| link.name.clone());
        }
        news
    }

    /// A lease that was granted on one link says nothing on another, whose servers may give its address to others.
    pub(super) fn compare_links(&self) {
        let Some(link) = &self.link else { return };
        let others: Vec<_> = self.state.links().into_iter().filter(|name| *name != link.name).collect();
        let problem = format!(
            "leases that were granted on {} are asked for on {} when they are to be renewed: its DHCP servers must know of them",
            others.join(" and "),
            link.name
        );
        self.agent.problems.set(OTHER_LINK, (!others.is_empty()).then_some(problem));
    }

    /// Where the configuration doesn't say which addresses may be VIPs, the link's own prefixes may: as they are now.
    pub(super) fn permit_link(&mut self) {
        let allows_link = self.settings.allow.is_none() && matches!(self.settings.backend, Backend::Dhcp(_));
        let Some(link) = self.link.as_ref().filter(|_| allows_link) else { return };
        match link_prefixes(&self.node, link) {
            Ok(allow) => self.state.permit(allow),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "addresses of {} not read", link.name);
            }
        }
    }

    /// Moves probes and DHCP to another link, if there is one. What can't be opened there is tried again.
    pub(super) fn rebind(&mut self, claims: &mut Option<Receiver<Claim>>) {
        let Some(link) = self.next_link.take() else { return };
        let opened = Acd::open(&link).map_err(|error| with_causes(&error)).and_then(|(acd, heard)| {
            let heartbeat = self.agent.subsystems.begin(&ROUTES);
            let told = self.agent.services.nodes();
            let search = Search::new(&self.settings, &self.registry, Some((&link, acd.clone())), heartbeat, told);
            search.map(|search| (acd, heard, search)).map_err(|error| with_causes(&error))
        });
        match opened {
            Ok((acd, heard, search)) => {
                self.executor.rebind(search, &link.name);
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

/// What may be a VIP's where the configuration doesn't say: addresses of the link's own prefixes.
fn link_prefixes(node: &NodeNet, link: &Link) -> net::Result<Allow> {
    let addresses = address::list(node, Family::V4, Some(link.index))?;
    let network = |at: &address::Address| {
        let prefix = IpNetwork::new(at.address, at.prefix).ok()?;
        IpNetwork::new(prefix.network(), at.prefix).ok().filter(|_| at.global && at.prefix < 31)
    };
    Ok(Allow::of_link(&link.name, addresses.iter().filter_map(network).collect()))
}
