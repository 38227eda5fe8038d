//! The node's own objects: its links, with the proxy neighbour entries on them ([`super::link`]), the nftables tables, discard routes. Settings are in
//! [`super::rounds`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ipnetwork::IpNetwork;
use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc::UnboundedSender;

use crate::dataplane::node::discard;
use crate::dataplane::node::{proxy, settings};
use crate::model::Family;
use crate::net::link::Link;
use crate::net::{self, NodeNet};
use crate::node::kubernetes::Excluded;
use crate::node::problems::{PROXIES, PROXIES6, UPLINK, UPLINK6};
use crate::node::{Context, Problems, Services};
use crate::with_causes;

use super::link::{LinkObjects, LinkSettings};
use super::notrack::Notrack;

/// The addresses that this node is to answer for on its links, by its leases. Clones are the same.
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

/// Why VIPs aren't answered for, ` on LINK`.
fn not_announced(on: &str, error: &net::Error) -> String {
    format!("VIPs are not announced{on}: {}", with_causes(error))
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
    /// The link to the gateways.
    pub uplink: LinkSettings,
    /// Another one that IPv6 addresses are leased by and answered for on; none: they are on the one to the gateways.
    pub ipv6: Option<LinkSettings>,
    /// Whether VIPs are answered for there.
    pub answers: bool,
    /// For which addresses.
    pub advertised: Advertised,
    /// Receives another link, to which sockets have to be bound: the first of both as [`Family::V4`], the second one as [`Family::V6`].
    pub links: UnboundedSender<(Family, Link)>,
    /// Of what nothing may go to a gateway.
    pub discarded: Discarded,
}

pub struct NodeObjects {
    /// The link to the gateways.
    uplink: LinkObjects,
    /// Another one, of IPv6 addresses.
    ipv6: Option<LinkObjects>,
    answers: bool,
    advertised: Advertised,
    /// What nothing may go to a gateway of is said here.
    wanted_discarded: Discarded,
    problems: Problems,
    services: Services,
    pub notrack: Notrack,
    /// The same of IPv6.
    pub notrack6: Notrack,
    /// Settings that had the value wanted.
    set: BTreeSet<String>,
    /// The networks that were to have discard routes when these were compared last.
    discarded: BTreeSet<IpNetwork>,
    /// The discard routes that there were then.
    discarding: BTreeSet<IpNetwork>,
}

impl NodeObjects {
    pub fn new(context: &Context, settings: NodeSettings) -> Self {
        let NodeSettings { uplink, ipv6, answers, advertised, links, discarded } = settings;
        let families: &[Family] = if ipv6.is_some() { &[Family::V4] } else { &Family::ALL };
        Self {
            ipv6: ipv6.map(|ipv6| LinkObjects::new(ipv6, &[Family::V6], links.clone())),
            uplink: LinkObjects::new(uplink, families, links),
            answers,
            advertised,
            wanted_discarded: discarded,
            problems: context.problems.clone(),
            services: context.services.clone(),
            notrack: Notrack::new(context, Family::V4),
            notrack6: Notrack::new(context, Family::V6),
            set: BTreeSet::new(),
            discarded: BTreeSet::new(),
            discarding: BTreeSet::new(),
        }
    }

    /// The index of the link to the gateways, as it was found last.
    pub fn link(&self) -> Option<u32> {
        self.uplink.link().map(|link| link.index)
    }

    /// The indexes of all links by which VIPs' addresses are leased and answered for.
    pub fn indexes(&self) -> BTreeSet<u32> {
        self.links().filter_map(LinkObjects::link).map(|link| link.index).collect()
    }

    fn links(&self) -> impl Iterator<Item = &LinkObjects> {
        std::iter::once(&self.uplink).chain(&self.ipv6)
    }

    /// Each with the name under which a problem with its entries is kept.
    fn links_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut LinkObjects)> {
        std::iter::once((PROXIES, &mut self.uplink)).chain(self.ipv6.as_mut().map(|link| (PROXIES6, link)))
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
        self.links().filter_map(LinkObjects::next).min()
    }

    /// Reconciles the links. `search`: the default route may be another one.
    pub fn find_links(&mut self, node: &NodeNet, search: bool) {
        let problem = self.uplink.reconcile(node, search);
        let other = self.ipv6.as_mut().map(|link| link.reconcile(node, search));
        // Where the default route leads by it, too, its trouble is said once.
        let other = other.flatten().filter(|other| problem.as_ref() != Some(other));
        self.problems.set(UPLINK, problem);
        self.problems.set(UPLINK6, other);
    }

    /// Compares the proxy neighbour entries where that is due, or others are wanted: of the addresses advertised those that
    /// `is_own` to answer for. Returns what was repaired. What can't be done is a problem of its link's.
    pub fn proxies(&mut self, node: &NodeNet, is_own: impl Fn(IpAddr) -> bool) -> Vec<String> {
        let Some(mut addresses) = self.advertised.get() else { return Vec::new() };
        addresses.retain(|address| is_own(*address));
        let addresses = Some(&addresses).filter(|_| self.answers);
        let wants: Vec<_> = self.links().map(|link| link.want(addresses)).collect();
        if !self.links().zip(&wants).any(|(link, want)| link.is_due(want)) {
            return Vec::new();
        }
        self.compare(node, wants).unwrap_or_else(|error| {
            self.problems.set(PROXIES, Some(not_announced("", &error)));
            Vec::new()
        })
    }

    fn compare(&mut self, node: &NodeNet, wants: Vec<proxy::Want>) -> net::Result<Vec<String>> {
        let problems = self.problems.clone();
        let entries = proxy::entries(node)?;
        let removed = proxy::apply(node, &proxy::orphans(&entries, &wants));
        let mut repaired = Vec::new();
        for ((part, link), want) in self.links_mut().zip(wants) {
            let made = link.proxies(node, entries.clone(), want);
            let (found, result) = made.unwrap_or_else(|error| (Vec::new(), Err(error)));
            repaired.extend(found);
            let on = link.link().map_or_else(String::new, |link| format!(" on {}", link.name));
            problems.set(part, result.err().map(|error| not_announced(&on, &error)));
        }
        removed.map(|_| repaired)
    }

    /// Has no redirects sent on the links. Returns what was repaired: not what was never set before.
    pub fn redirects(&mut self) -> net::Result<Vec<String>> {
        let mut repaired = Vec::new();
        let of_links =
            self.links().filter_map(LinkObjects::link).flat_map(|link| settings::without_redirects(&link.name));
        for (name, want) in of_links.collect::<BTreeSet<_>>() {
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
        self.wanted_discarded.get() != self.discarded
    }

    /// Reconciles the discard routes. Returns what was repaired: not what has just come to be wanted, or no longer is.
    pub fn discard(&mut self, node: &NodeNet) -> net::Result<Vec<String>> {
        let networks = self.wanted_discarded.get();
        let have = discard::read(node, &networks)?;
        let ops = discard::difference(&have, &networks);
        node.apply(&ops.iter().map(discard::Op::request).collect::<Vec<_>>())?;
        let was_there = |op: &&discard::Op| matches!(op, discard::Op::Add(prefix) if self.discarding.contains(prefix));
        let repaired = ops.iter().filter(was_there).map(discard::Op::finding).collect();
        self.discarding = have.wanted(&networks);
        self.discarded = networks;
        Ok(repaired)
    }

    /// Sends the announcements that are due.
    pub fn announce(&mut self) {
        self.links_mut().for_each(|(_, link)| link.announce());
    }
}
