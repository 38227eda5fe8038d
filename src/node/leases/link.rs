//! The link to the gateways, as leases see it: where they are asked for, and which addresses it permits.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use tokio::sync::mpsc::Receiver;

use crate::lease::allow::Allow;
use crate::lease::grant::News;
use crate::lease::search::Search;
use crate::lease::settings::{Backend, Dhcp, Settings};
use crate::model::Family;
use crate::model::address::is_unicast;
use crate::net::acd::{Acd, Claim};
use crate::net::link::Link;
use crate::net::route::{self, Filter, Kind, Route};
use crate::net::{self, NodeNet, PROTOCOL, address};
use crate::node::problems::OTHER_LINK;
use crate::node::subsystems::ROUTES;
use crate::with_causes;

use super::Daemon;

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
            lease.link = self.link.as_ref().map(|link| link.name.clone());
        }
        news
    }

    /// A lease that was granted on one link says nothing on another, whose servers may give its address to others.
    pub(super) fn compare_links(&self) {
        let Some(link) = &self.link else { return };
        let links: BTreeSet<_> = self.families().flat_map(|leasing| leasing.state.links()).collect();
        let others: Vec<_> = links.into_iter().filter(|name| *name != link.name).collect();
        let problem = format!(
            "leases that were granted on {} are asked for on {} when they are to be renewed: its DHCP servers must know of them",
            others.join(" and "),
            link.name
        );
        self.agent.problems.set(OTHER_LINK, (!others.is_empty()).then_some(problem));
    }

    /// Where the configuration doesn't say which addresses may be VIPs, the link's own prefixes may: as they are now.
    pub(super) fn permit_link(&mut self) {
        let Some(link) = self.link.clone() else { return };
        let allows_link =
            |settings: &Settings| settings.allow.is_none() && matches!(settings.backend, Backend::Dhcp(_));
        let families = [(Family::V4, Some(&self.settings)), (Family::V6, self.settings6.as_ref())];
        let families = families.map(|(family, settings)| settings.is_some_and(allows_link).then_some(family));
        for family in families.into_iter().flatten() {
            match (link_prefixes(&self.node, family, &link), self.leasing(family)) {
                (Ok(allow), Some(leasing)) => leasing.state.permit(allow),
                (Ok(_), None) => {}
                (Err(error), _) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "addresses of {} not read", link.name);
                }
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
                if let Some(leasing) = &mut self.v6 {
                    leasing.executor.rebind(search.clone(), &link.name);
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

/// What may be a VIP's where the configuration doesn't say: addresses of the link's own prefixes. Those of IPv6 may stand in routes alone: an
/// address by `DHCPv6` is a /128, and router advertisements say which prefixes are on the link (RFC 5942 section 4).
fn link_prefixes(node: &NodeNet, family: Family, link: &Link) -> net::Result<Allow> {
    let addresses = address::list(node, family, Some(link.index))?;
    let network = |at: &address::Address| {
        let prefix = IpNetwork::new(at.address, at.prefix).ok()?;
        let has_room = at.prefix + 1 < family.bits();
        IpNetwork::new(prefix.network(), at.prefix).ok().filter(|_| at.global && has_room)
    };
    let mut prefixes: BTreeSet<IpNetwork> = addresses.iter().filter_map(network).collect();
    if family == Family::V6 {
        let filter = Filter { family, table: Some(route::MAIN), ..Filter::default() };
        prefixes.extend(route::list(node, filter)?.iter().filter_map(|route| on_link(route, link.index)));
    }
    Ok(Allow::of_link(&link.name, prefixes.into_iter().collect()))
}

/// The prefix of a route that says which global addresses are on the link: none of a single host's, of a gateway's, or of a VIP's.
fn on_link(route: &Route, link: u32) -> Option<IpNetwork> {
    let Kind::Via(hops) = &route.kind else { return None };
    let is_there = hops.iter().any(|hop| hop.gateway.is_none() && hop.index == Some(link));
    let length = route.prefix.prefix();
    let is_network = length > 0 && length + 1 < Family::V6.bits() && is_unicast(route.prefix.network());
    (is_there && is_network && route.protocol != PROTOCOL).then_some(route.prefix)
}

#[cfg(test)]
mod tests {
    use crate::net::route::Hop;

    use super::*;

    #[test]
    fn a_prefix_by_router_advertisement_is_the_links() {
        let prefix = |prefix: &str, protocol: u8, gateway: Option<&str>, index: u32| {
            let gateway = gateway.map(|gateway| gateway.parse().unwrap());
            let kind = Kind::Via(vec![Hop { gateway, index: Some(index) }]);
            let (prefix, source) = (prefix.parse().unwrap(), None);
            let route = Route { prefix, table: route::MAIN, protocol, tos: 0, metric: 256, source, advmss: None, kind };
            on_link(&route, 2).map(|prefix| prefix.to_string())
        };
        let (kernel, router) = (2, Some("fe80::fe"));
        assert_eq!(prefix("2001:db8::/64", kernel, None, 2).as_deref(), Some("2001:db8::/64"));
        for other in ["2001:db8::9/128", "2001:db8::8/127", "fe80::/64", "ff00::/8", "::/0"] {
            assert_eq!(prefix(other, kernel, None, 2), None, "{other}");
        }
        assert_eq!(prefix("2001:db8::/64", kernel, None, 3), None, "another link");
        assert_eq!(prefix("2001:db8:1::/48", kernel, router, 2), None, "behind a router");
        assert_eq!(prefix("2001:db8::/64", PROTOCOL, None, 2), None, "one of this project's");
    }
}
