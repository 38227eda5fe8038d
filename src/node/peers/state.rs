//! What this node has itself, and what it tells the others of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc;

use ipnetwork::Ipv4Network;

use crate::lease::allow::Allow;
use crate::lease::beside::Beside;
use crate::model::{Served, VipKey};
use crate::net::{NodeNet, link};
use crate::node::Context;
use crate::node::config::Membership;
use crate::registry::watch::{Update, View as VipView};
use crate::registry::{Replica, families};

use super::far::Own;
use super::key::Keys;
use super::leases::Leases;
use super::records::Desired;
use super::report;
use super::word::{Phase, Share, Word};

/// What the engine is started with.
pub struct Setup {
    pub context: Context,
    pub net: NodeNet,
    pub name: String,
    pub membership: Membership,
    pub keys: Keys,
    /// What sets the node's VIPs apart at a DHCP server.
    pub cluster: Option<String>,
    pub allow: Option<Allow>,
    /// The networks of the pools; none: addresses come from elsewhere.
    pub pools: Vec<Ipv4Network>,
    /// Which addresses of IPv6 VIPs have here.
    pub beside: Beside,
    /// A `DHCPv6` server gives VIPs theirs.
    pub leases_ipv6: bool,
    /// By the link of that name; none: the one by which other nodes are reached.
    pub leases_on: Option<String>,
    /// Their IPv6 addresses are answered for on the link of that name; none: on the one to the gateways.
    pub own_link6: Option<String>,
    /// Where what is to be recorded goes.
    pub desired: mpsc::Sender<Desired>,
}

/// What outlives a change of the node's address.
pub struct State {
    pub setup: Setup,
    /// This node's VIPs, those included that are recorded by the others' words alone.
    pub own: BTreeMap<VipKey, Own>,
    /// The addresses of their pods here.
    pub pods: BTreeMap<VipKey, BTreeSet<IpAddr>>,
    pub phase: Phase,
    /// The leases of this node's VIPs.
    pub leases: Leases,
}

impl State {
    /// With nothing yet.
    pub fn new(setup: Setup, leases: Leases) -> Self {
        Self { setup, own: BTreeMap::new(), pods: BTreeMap::new(), phase: Phase::Up, leases }
    }

    /// The VIPs that have changed.
    pub fn learn(&mut self, update: &Update) -> BTreeSet<VipKey> {
        let keys: BTreeSet<VipKey> = update.keys().into_iter().cloned().collect();
        for key in &keys {
            match update.snapshot.vips.get(key).map(|view| own(view)) {
                Some(Ok(Some((own, pods)))) => {
                    self.own.insert(key.clone(), own);
                    self.pods.insert(key.clone(), pods);
                }
                // What can't be read is as it was.
                Some(Err(())) => {}
                Some(Ok(None)) | None => {
                    self.own.remove(key);
                    self.pods.remove(key);
                }
            }
        }
        keys
    }

    /// What the others are told of this node.
    pub fn word(&self, tunnel: IpAddr) -> Word {
        let cluster = self.setup.cluster.as_deref().map_or_else(|| "-".to_owned(), report::short);
        let version = crate::RELEASE.to_owned();
        let link = self.setup.own_link6.as_ref().and_then(|name| link::by_name(&self.setup.net, name).ok().flatten());
        let mac6 = link.and_then(|link| link.mac);
        Word { name: self.setup.name.clone(), tunnel, phase: self.phase, cluster, version, mac6 }
    }

    /// What the others are told of a VIP; none: nothing of it is here.
    pub fn share(&self, key: &VipKey) -> Option<Share> {
        let own = self.own.get(key).filter(|own| own.share.replicas > 0)?;
        let ready = if own.serves && self.phase != Phase::Left { own.share.ready } else { 0 };
        Some(Share { ready, ..own.share.clone() })
    }
}

/// What the ready ones serve; `None`: every port, all of them.
fn served(local: &[&Replica]) -> Option<Served> {
    let mut served = Served::default();
    for replica in local.iter().filter(|replica| replica.state == crate::registry::State::Ready) {
        served.add(replica.weight.into(), &replica.listed().collect());
    }
    (!served.ports.is_empty()).then_some(served)
}

/// What is recorded of a VIP, and its pods. `Ok(None)`: nothing yet. An error: it can't be read.
fn own(view: &VipView) -> Result<Option<(Own, BTreeSet<IpAddr>)>, ()> {
    let (Ok(record), Ok(replicas)) = (&view.record, &view.replicas) else { return Err(()) };
    let Some(record) = record else { return Ok(None) };
    let local: Vec<_> = replicas.values().filter(|replica| replica.backend.is_local()).collect();
    let is_ready = |replica: &&&Replica| replica.state == crate::registry::State::Ready;
    let ready = local.iter().filter(is_ready).map(|replica| u32::from(replica.weight)).sum();
    let pods = local.iter().flat_map(|replica| replica.addresses.iter()).collect();
    let replicas = u32::try_from(local.len()).unwrap_or(u32::MAX);
    let udp_sticky = local.iter().any(|replica| replica.udp_sticky);
    let (address, address6) = (record.address(), record.addresses.ipv6());
    let (served, family) = (served(&local), families::only(local.iter().copied()));
    let share = Share { address, address6, ready, replicas, udp_sticky, served, family };
    Ok(Some((Own { share, serves: !record.withdrawn }, pods)))
}
