//! The node's own objects: the link to the gateways, the proxy neighbour entries on it, the nftables table, the node's
//! address in its VIPs' routes. Settings are in [`super::rounds`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc::UnboundedSender;

use crate::dataplane::node::discard;
use crate::dataplane::node::{proxy, settings, uplink};
use crate::model::Family;
use crate::net::acd::Sender;
use crate::net::link::Link;
use crate::net::{self, NodeNet};
use crate::node::kubernetes::Excluded;
use crate::node::problems::{PROXIES, UPLINK};
use crate::node::{Context, Problems, Services};
use crate::with_causes;

use super::announcements::Announcements;
use super::notrack::Notrack;

/// Between two comparisons of the entries with the kernel's: it sends no event of a deleted one.
const COMPARE: Duration = Duration::from_secs(5);

/// The addresses that this node is to answer for on the link, by its leases. Clones are the same.
#[derive(Clone, Debug)]
pub struct Advertised {
    addresses: Arc<Mutex<Option<BTreeSet<IpAddr>>>>,
    wake: Arc<EventFd>,
}

impl Advertised {
    /// None known so far: what the run before left stays until then. `wake` is written to with each change.
    pub fn new(wake: Arc<EventFd>) -> Self {
        Self { addresses: Arc::default(), wake }
    }

    /// These, and no others.
    pub fn set(&self, addresses: BTreeSet<IpAddr>) {
        let mut known = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref() != Some(&addresses) {
            *known = Some(addresses);
            // A full eventfd wakes the loop just as well.
            let _ = self.wake.write(1);
        }
    }

    fn get(&self) -> Option<BTreeSet<IpAddr>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The networks of which nothing may go to a gateway. Clones are the same.
#[derive(Clone, Debug)]
pub struct Discarded {
    networks: Arc<Mutex<BTreeSet<IpNetwork>>>,
    wake: Arc<EventFd>,
}

impl Discarded {
    /// These. `wake` is written to with each change.
    pub fn new(networks: BTreeSet<IpNetwork>, wake: Arc<EventFd>) -> Self {
        Self { networks: Arc::new(Mutex::new(networks)), wake }
    }

    /// That one in place of the other one, if there is one.
    pub fn exchange(&self, old: Option<IpNetwork>, new: Option<IpNetwork>) {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        networks.retain(|network| Some(*network) != old);
        networks.extend(new);
        // A full eventfd wakes the loop just as well.
        let _ = self.wake.write(1);
    }

    fn get(&self) -> BTreeSet<IpNetwork> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the loop is started with for the node's own objects.
#[derive(Debug)]
pub struct NodeSettings {
    /// Which link leads to the gateways.
    pub want: uplink::Want,
    /// What can't be done without it; none: nothing that is configured.
    pub purpose: Option<&'static str>,
    /// As it was found at the start: sockets are bound to it.
    pub link: Option<Link>,
    /// Whether VIPs are answered for there.
    pub answers: bool,
    /// For which addresses.
    pub advertised: Advertised,
    /// Receives another link, to which sockets have to be bound.
    pub links: UnboundedSender<Link>,
    /// Of what nothing may go to a gateway.
    pub discarded: Discarded,
}

/// What was repaired of the proxy neighbour entries, and what became of the settings that IPv6 needs.
pub type Proxies = (Vec<String>, proxy::Settings);

pub struct NodeObjects {
    settings: NodeSettings,
    problems: Problems,
    services: Services,
    pub notrack: Notrack,
    /// The same of IPv6.
    pub notrack6: Notrack,
    /// The link was up and had a carrier when it was last read.
    carried: bool,
    /// The entries as they were applied last.
    applied: proxy::Want,
    /// Settings that had the value wanted.
    set: BTreeSet<String>,
    /// The networks that were to have discard routes when these were compared last.
    discarded: BTreeSet<IpNetwork>,
    /// The discard routes that there were then.
    discarding: BTreeSet<IpNetwork>,
    announcements: Announcements,
    /// Bound to the link.
    sender: Option<Sender>,
    /// When the entries are to be compared.
    compare: Instant,
}

impl NodeObjects {
    pub fn new(context: &Context, settings: NodeSettings) -> Self {
        Self {
            carried: settings.link.as_ref().is_some_and(|link| link.up && link.carrier),
            settings,
            problems: context.problems.clone(),
            services: context.services.clone(),
            notrack: Notrack::new(context, Family::V4),
            notrack6: Notrack::new(context, Family::V6),
            applied: proxy::Want::default(),
            set: BTreeSet::new(),
            discarded: BTreeSet::new(),
            discarding: BTreeSet::new(),
            announcements: Announcements::default(),
            sender: None,
            compare: Instant::now(),
        }
    }

    /// The index of the link to the gateways, as it was found last.
    pub fn link(&self) -> Option<u32> {
        self.settings.link.as_ref().map(|link| link.index)
    }

    /// The nodes that load balancers are to pass by.
    pub fn excluded(&self) -> Excluded {
        self.services.excluded()
    }

    /// Sets or clears a problem of the node's.
    pub fn problem(&self, part: &'static str, problem: Option<String>) {
        self.problems.set(part, problem);
    }

    /// When something is due.
    pub fn next(&self) -> Option<Instant> {
        self.announcements.next()
    }

    /// Reconciles the link to the gateways. `search`: the default route may be another one.
    pub fn uplink(&mut self, node: &NodeNet, search: bool) {
        match self.find(node, search) {
            Ok(have) => self.use_link(have),
            Err(error) => self.problems.set(UPLINK, Some(with_causes(&error))),
        }
    }

    /// A link that is still there stays in use while there is no default route.
    fn find(&self, node: &NodeNet, search: bool) -> net::Result<uplink::Have> {
        let want = &self.settings.want;
        let again = match &self.settings.link {
            Some(link) => uplink::again(node, link)?,
            None => uplink::Have::default(),
        };
        let is_settled = again.link.is_some() && (!search || matches!(want, uplink::Want::Named(_)));
        if is_settled {
            return Ok(again);
        }
        let found = uplink::read(node, want)?;
        let is_usable = found.link.as_ref().is_some_and(|link| link.mac.is_some());
        Ok(if is_usable { found } else { again })
    }

    fn use_link(&mut self, have: uplink::Have) {
        let problem = uplink::difference(&self.settings.want, &have);
        let matters = self.settings.purpose.is_some() || matches!(self.settings.want, uplink::Want::Named(_));
        let problem = problem.filter(|_| matters).map(|problem| match &self.settings.link {
            Some(link) if have.link.is_none() => format!("{} is gone: {problem}", link.name),
            _ => problem.to_string(),
        });
        self.problems.set(UPLINK, problem);
        let Some(link) = have.link.filter(|link| link.mac.is_some()) else {
            self.carried = false;
            return;
        };
        let carries = link.up && link.carrier;
        let is_another = self.settings.link.as_ref().is_none_or(|before| !uplink::is_same(before, &link));
        if is_another {
            self.tell(&link);
            self.sender = None;
            // Its reader is gone only while viprouted ends.
            let _ = self.settings.links.send(link.clone());
        }
        if is_another || (carries && !self.carried) {
            // With the link's going down the kernel has dropped the entries (`pneigh_ifdown_and_unlock`).
            self.compare = Instant::now();
            self.announcements.restart(Instant::now());
        }
        self.carried = carries;
        self.settings.link = Some(link);
    }

    fn tell(&self, now: &Link) {
        let address = |link: &Link| link.mac.map_or_else(String::new, |mac| mac.to_string());
        let before = self.settings.link.as_ref();
        let (before_name, before_mac) = before.map_or_else(Default::default, |link| (link.name.clone(), address(link)));
        tracing::warn!(
            before = before_name,
            before_mac,
            now = now.name,
            now_mac = address(now),
            "the link to the gateways is another one: DHCP, probes and proxy entries move to it"
        );
    }

    /// Compares the proxy neighbour entries where that is due, or others are wanted: of the addresses advertised those that
    /// `is_own` to answer for. Returns what was repaired, and what became of the settings that IPv6 needs.
    pub fn proxies(&mut self, node: &NodeNet, is_own: impl Fn(IpAddr) -> bool) -> net::Result<Proxies> {
        let Some(mut addresses) = self.settings.advertised.get() else { return Ok((Vec::new(), Ok(()))) };
        addresses.retain(|address| is_own(*address));
        let index = self.settings.link.as_ref().filter(|_| self.settings.answers).map(|link| link.index);
        let want = proxy::Want { index, addresses };
        if want == self.applied && self.compare > Instant::now() {
            return Ok((Vec::new(), Ok(())));
        }
        let (have, read) = proxy::read(node, self.settings.link.as_ref(), &want)?;
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
        if want.index.is_some() {
            self.announcements.set(&want.addresses, Instant::now());
        }
        self.applied = want;
        Ok((repaired, settings))
    }

    /// Has no redirects sent on the link to the gateways. Returns what was repaired: not what was never set before.
    pub fn redirects(&mut self) -> net::Result<Vec<String>> {
        let mut repaired = Vec::new();
        let Some(link) = &self.settings.link else { return Ok(repaired) };
        for (name, want) in settings::without_redirects(&link.name) {
            if let Some(change) = settings::read((&name, want))? {
                change.apply()?;
                repaired.extend(self.set.contains(&name).then(|| change.finding()));
            }
            self.set.insert(name);
        }
        Ok(repaired)
    }

    /// Whether other networks are to have discard routes than a moment ago.
    pub fn discards_others(&self) -> bool {
        self.settings.discarded.get() != self.discarded
    }

    /// Reconciles the discard routes. Returns what was repaired: not what has just come to be wanted, or no longer is.
    pub fn discard(&mut self, node: &NodeNet) -> net::Result<Vec<String>> {
        let networks = self.settings.discarded.get();
        let have = discard::read(node, &networks)?;
        let ops = discard::difference(&have, &networks);
        node.apply(&ops.iter().map(discard::Op::request).collect::<Vec<_>>())?;
        let was_there = |op: &&discard::Op| matches!(op, discard::Op::Add(prefix) if self.discarding.contains(prefix));
        let repaired = ops.iter().filter(was_there).map(discard::Op::finding).collect();
        self.discarding = have.wanted(&networks);
        self.discarded = networks;
        Ok(repaired)
    }

    /// Sets or clears the node's problem with the entries.
    pub fn proxies_failed(&self, error: Option<&net::Error>) {
        let text = error.map(|error| format!("VIPs are not announced: {}", with_causes(error)));
        self.problems.set(PROXIES, text);
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
