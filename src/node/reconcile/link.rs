//! A link by which VIPs' addresses are leased and answered for: as it is found, the proxy neighbour entries on it, and the announcements there.
//!
//! There is one for all addresses, to the gateways, or another one beside it for those of IPv6 (`dhcp6.interface`).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use crate::dataplane::node::{proxy, uplink};
use crate::model::Family;
use crate::net::acd::Sender;
use crate::net::link::Link;
use crate::net::{self, NodeNet};
use crate::with_causes;

use super::announcements::Announcements;

/// Between two comparisons of the entries with the kernel's: it sends no event of a deleted one.
const COMPARE: Duration = Duration::from_secs(5);

/// What the loop is started with for a link.
#[derive(Debug)]
pub struct LinkSettings {
    /// Which link it is to be.
    pub want: uplink::Want,
    /// What can't be done without it; none: nothing that is configured.
    pub purpose: Option<&'static str>,
    /// As it was found at the start: sockets are bound to it.
    pub link: Option<Link>,
}

/// What was repaired of the proxy neighbour entries, and what became of the settings that IPv6 needs.
pub type Proxies = (Vec<String>, proxy::Settings);

/// See the module.
pub struct LinkObjects {
    settings: LinkSettings,
    /// Of which families' addresses it is the link.
    families: &'static [Family],
    /// Receives another link, to which sockets have to be bound, and the first of `families`.
    links: UnboundedSender<(Family, Link)>,
    /// The link was up and had a carrier when it was last read.
    carried: bool,
    /// The entries as they were applied last.
    applied: proxy::Want,
    announcements: Announcements,
    /// Bound to the link.
    sender: Option<Sender>,
    /// When the entries are to be compared.
    compare: Instant,
}

impl LinkObjects {
    /// The link of these families' addresses. `links` receives another one, to which sockets have to be bound, and the first family.
    pub fn new(settings: LinkSettings, families: &'static [Family], links: UnboundedSender<(Family, Link)>) -> Self {
        Self {
            carried: settings.link.as_ref().is_some_and(|link| link.up && link.carrier),
            settings,
            families,
            links,
            applied: proxy::Want::default(),
            announcements: Announcements::default(),
            sender: None,
            compare: Instant::now(),
        }
    }

    /// As it was found last.
    pub fn link(&self) -> Option<&Link> {
        self.settings.link.as_ref()
    }

    /// When something is due.
    pub fn next(&self) -> Option<Instant> {
        self.announcements.next()
    }

    /// Finds the link as it is now. Returns what keeps it from being used, where that matters. `search`: the default route may be another one.
    pub fn reconcile(&mut self, node: &NodeNet, search: bool) -> Option<String> {
        match self.find(node, search) {
            Ok(have) => self.use_link(have),
            Err(error) => Some(with_causes(&error)),
        }
    }

    /// A link that is still there stays in use while there is no default route.
    fn find(&self, node: &NodeNet, search: bool) -> net::Result<uplink::Have> {
        let want = &self.settings.want;
        let again = match &self.settings.link {
            Some(link) => uplink::again(node, link)?,
            None => uplink::Have::default(),
        };
        let is_settled = again.link.is_some() && (!search || matches!(want, uplink::Want::Named { .. }));
        if is_settled {
            return Ok(again);
        }
        let found = uplink::read(node, want)?;
        let is_usable = found.link.as_ref().is_some_and(|link| link.mac.is_some());
        Ok(if is_usable { found } else { again })
    }

    fn use_link(&mut self, have: uplink::Have) -> Option<String> {
        let problem = uplink::difference(&self.settings.want, &have);
        let matters = self.settings.purpose.is_some() || matches!(self.settings.want, uplink::Want::Named { .. });
        let problem = problem.filter(|_| matters).map(|problem| match &self.settings.link {
            Some(link) if have.link.is_none() => format!("{} is gone: {problem}", link.name),
            _ => problem.to_string(),
        });
        let Some(link) = have.link.filter(|link| link.mac.is_some()) else {
            self.carried = false;
            return problem;
        };
        let carries = link.up && link.carrier;
        let is_another = self.settings.link.as_ref().is_none_or(|before| !uplink::is_same(before, &link));
        if is_another {
            self.tell(&link);
            self.sender = None;
            // Its reader is gone only while viprouted ends.
            let _ = self.links.send((self.families[0], link.clone()));
        }
        if is_another || (carries && !self.carried) {
            // With the link's going down the kernel has dropped the entries (`pneigh_ifdown_and_unlock`).
            self.compare = Instant::now();
            self.announcements.restart(Instant::now());
        }
        self.carried = carries;
        self.settings.link = Some(link);
        problem
    }

    fn tell(&self, now: &Link) {
        let address = |link: &Link| link.mac.map_or_else(String::new, |mac| mac.to_string());
        let before = self.settings.link.as_ref();
        let (before_name, before_mac) = before.map_or_else(Default::default, |link| (link.name.clone(), address(link)));
        let what = match self.families {
            [Family::V6] => "the link of IPv6 addresses is another one: DHCPv6, probes and proxy entries move to it",
            _ => "the link to the gateways is another one: DHCP, probes and proxy entries move to it",
        };
        tracing::warn!(before = before_name, before_mac, now = now.name, now_mac = address(now), "{what}");
    }

    /// The entries that it is to have where those of `addresses` that are of its families are answered for; none: nothing is answered for.
    pub fn want(&self, addresses: Option<&BTreeSet<IpAddr>>) -> proxy::Want {
        let Some(addresses) = addresses else { return proxy::Want::default() };
        let is_of_link = |address: &&IpAddr| self.families.contains(&Family::of(**address));
        let index = self.settings.link.as_ref().map(|link| link.index);
        proxy::Want { index, addresses: addresses.iter().filter(is_of_link).copied().collect() }
    }

    /// Whether the entries are to be compared with the kernel's.
    pub fn is_due(&self, want: &proxy::Want) -> bool {
        *want != self.applied || self.compare <= Instant::now()
    }

    /// Makes the entries of `want`, where those of `entries` are there, and the settings that they need. Returns what was repaired, and what became of
    /// the settings that IPv6 needs.
    pub fn proxies(
        &mut self,
        node: &NodeNet,
        entries: BTreeSet<proxy::Entry>,
        want: proxy::Want,
    ) -> net::Result<Proxies> {
        let Some(link) = self.settings.link.as_ref().filter(|_| want.index.is_some()) else {
            (self.compare, self.applied) = (Instant::now() + COMPARE, want);
            return Ok((Vec::new(), Ok(())));
        };
        let (have, read) = proxy::read(entries, link, &want);
        let ops = proxy::difference(&have, &want);
        let settings = read.and(proxy::apply(node, &ops)?);
        // What couldn't be set is tried again in the next round.
        self.compare = Instant::now() + settings.as_ref().map_or(Duration::ZERO, |()| COMPARE);
        let was_there = |op: &&proxy::Op| match op {
            proxy::Op::Add(index, address) => {
                self.applied.index == Some(*index) && self.applied.addresses.contains(address)
            }
            proxy::Op::NoDelay(family, index) => self.applied.index == Some(*index) && self.applied.has(*family),
            proxy::Op::Set(_) => settings.is_ok() && self.applied.index == want.index && self.applied.has(Family::V6),
            proxy::Op::Del(..) => false,
        };
        let repaired = ops.iter().filter(was_there).map(proxy::Op::finding).collect();
        self.announcements.set(&want.addresses, Instant::now());
        self.applied = want;
        Ok((repaired, settings))
    }

    /// Sends the announcements that are due.
    pub fn announce(&mut self) {
        let due = self.announcements.take_due(Instant::now());
        let Some(link) = self.settings.link.as_ref().filter(|_| self.carried && !due.is_empty()) else { return };
        let sent = match self.sender.take().map_or_else(|| Sender::open(link), Ok) {
            Ok(sender) => {
                let sent = sender.announce(&due);
                self.sender = Some(sender);
                sent
            }
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            // Sent again, to a socket opened anew.
            self.sender = None;
            tracing::debug!(error = with_causes(&error), "VIPs not announced");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.to_owned(), ..Link::default() }
    }

    fn objects(families: &'static [Family], link: Option<Link>) -> LinkObjects {
        let settings = LinkSettings { want: uplink::Want::DefaultRoute, purpose: None, link };
        LinkObjects::new(settings, families, tokio::sync::mpsc::unbounded_channel().0)
    }

    #[test]
    fn an_address_is_answered_for_on_the_link_of_its_family() {
        let (four, six): (IpAddr, IpAddr) = ([10, 118, 0, 7].into(), "fd00:118::7".parse().unwrap());
        let both: BTreeSet<IpAddr> = [four, six].into();
        let want = |families, link| objects(families, link).want(Some(&both));
        let on = |index, addresses: &[IpAddr]| proxy::Want { index, addresses: addresses.iter().copied().collect() };
        assert_eq!(want(&Family::ALL, Some(link(2, "eth0"))), on(Some(2), &[four, six]));
        assert_eq!(want(&[Family::V4], Some(link(2, "eth0"))), on(Some(2), &[four]));
        assert_eq!(want(&[Family::V6], Some(link(3, "eth1"))), on(Some(3), &[six]));
        assert_eq!(want(&[Family::V4], None).index, None);
        assert_eq!(objects(&[Family::V4], Some(link(2, "eth0"))).want(None), proxy::Want::default());
    }
}
