//! `announce = "arp"`: this node answers ARP for the VIPs it has ready replicas of.
//!
//! A proxy neighbour entry makes the kernel answer, while the VIP's route leads out of another device. It never answers
//! probes (sender 0.0.0.0), so a node that looks for an owner of the address isn't misled by its peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arp::Arp;
use crate::net::link::Link;
use crate::net::{self, NodeNet, PROTOCOL, neighbour};

/// Gratuitous ARPs when an address comes to this node, and the time between them.
const ANNOUNCEMENTS: u32 = 3;
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);

/// The addresses announced on one link.
#[derive(Debug)]
pub struct Announcer {
    node: NodeNet,
    index: u32,
    arp: Arc<Arp>,
    /// Announcements still to be made: how many, and when the next.
    due: BTreeMap<Ipv4Addr, (u32, Instant)>,
    on: BTreeSet<Ipv4Addr>,
}

impl Announcer {
    /// On `link`. Entries of a run before stay for now: traffic goes on.
    pub fn new(link: &Link, arp: Arc<Arp>) -> net::Result<Self> {
        let node = NodeNet::open()?;
        Ok(Self { node, index: link.index, arp, due: BTreeMap::new(), on: BTreeSet::new() })
    }

    /// Makes the kernel answer for `wanted` and for nothing else of ours. Cheap when nothing changed; `verify` compares
    /// with the kernel all the same, since an interface that was down, or somebody's hand, may have taken entries away.
    pub fn set(&mut self, wanted: &BTreeSet<Ipv4Addr>, verify: bool) -> net::Result<()> {
        if !verify && *wanted == self.on {
            return Ok(());
        }
        let entries = neighbour::list_proxies(&self.node, self.index)?;
        let ours = entries.iter().filter(|entry| entry.protocol == PROTOCOL);
        let have: BTreeSet<_> = ours.map(|entry| entry.address).collect();
        let gone = have.difference(wanted).map(|address| neighbour::del_proxy(self.index, *address));
        let new = wanted.difference(&have).map(|address| neighbour::replace_proxy(self.index, *address));
        let at_once = (!wanted.is_empty()).then(|| neighbour::no_proxy_delay(self.index));
        let requests: Vec<_> = at_once.into_iter().chain(gone).chain(new).collect();
        self.node.apply(&requests)?;
        for address in wanted.difference(&self.on) {
            self.due.insert(*address, (ANNOUNCEMENTS, Instant::now()));
        }
        self.due.retain(|address, _| wanted.contains(address));
        self.on.clone_from(wanted);
        Ok(())
    }

    /// When [`Announcer::announce`] has something to do.
    pub fn next(&self) -> Option<Instant> {
        self.due.values().map(|(_, at)| *at).min()
    }

    /// Sends the gratuitous ARPs that are due.
    pub async fn announce(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self.due.iter().filter(|(_, (_, at))| *at <= now).map(|(address, _)| *address).collect();
        for address in due {
            if let Err(error) = self.arp.announce(address).await {
                tracing::warn!(%address, error = &error as &dyn std::error::Error, "not announced");
            }
            if let Some((left, at)) = self.due.get_mut(&address) {
                *left -= 1;
                *at = now + ANNOUNCE_INTERVAL;
            }
        }
        self.due.retain(|_, (left, _)| *left > 0);
    }
}
