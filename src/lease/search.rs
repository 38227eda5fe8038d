//! Gathers the facts for [`super::conflict`]: routes from the kernel, answers from the link.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use ipnetwork::IpNetwork;
use tokio::sync::oneshot;

use crate::lease::settings::Settings;
use crate::model::{Family, Mac, VipKey};
use crate::net::acd::{self, Acd};
use crate::net::link;
use crate::net::route::{self, Route};
use crate::net::{self, NodeNet, address, neighbour};
use crate::registry::Registry;

use super::allow::Allow;
use super::conflict::{self, Connected, Evidence};
use super::gateway::{self, Heard};
use super::heartbeat::Heartbeat;
use super::nodes::{Known, Nodes, Told};
use super::settings::Gateway;
use super::state::Findings;

/// Why an address could not be searched for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's tables can't be read.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The link can't be asked.
    #[error(transparent)]
    Acd(#[from] acd::Error),
    /// Nothing is known of what a gateway announces.
    #[error(transparent)]
    Gateway(#[from] gateway::Error),
    /// The thread that reads the kernel's tables can't be started, or is gone.
    #[error("the thread that reads routes does not run")]
    NoReader,
}

/// What the kernel has on some addresses.
#[derive(Clone, Debug, Default)]
struct Tables {
    routes: Vec<Route>,
    gateways: BTreeSet<IpAddr>,
    connected: Vec<Connected>,
    neighbours: BTreeMap<IpAddr, Mac>,
}

impl Tables {
    /// The node's addresses on the link.
    fn own(&self, link: Option<u32>) -> Vec<IpAddr> {
        self.connected.iter().filter(|on| Some(on.index) == link).map(|on| on.prefix.ip()).collect()
    }
}

type Question = (Vec<IpAddr>, oneshot::Sender<Result<Arc<Tables>, Arc<net::Error>>>);

/// Where hosts are asked for an address, by its family: on one link for both, or on one for each. None: there is no link.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// For addresses of IPv4.
    pub v4: Option<Arc<Acd>>,
    /// For those of IPv6.
    pub v6: Option<Arc<Acd>>,
}

impl Asked {
    /// What asks for the addresses of a family.
    pub fn of(&self, family: Family) -> Option<&Arc<Acd>> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    fn index(&self, family: Family) -> Option<u32> {
        self.of(family).map(|acd| acd.index())
    }

    fn is_one(&self) -> bool {
        self.index(Family::V4) == self.index(Family::V6)
    }
}

/// Searches for owners of addresses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Search {
    nodes: Nodes,
    gateways: Vec<Gateway>,
    /// One search at a time asks them: they have other things to do.
    asking: Arc<tokio::sync::Mutex<()>>,
    asked: Asked,
    /// The peers' Ethernet addresses, as far as they were ever seen.
    peer_macs: Arc<Mutex<BTreeSet<Mac>>>,
    tables: Sender<Question>,
}

impl Search {
    /// By the rules of `settings`, on the links of `asked`; `registry` knows other nodes, and so does `told`.
    pub fn new(
        settings: &Settings,
        registry: &Registry,
        asked: Asked,
        heartbeat: impl Heartbeat,
        told: Told,
    ) -> Result<Self, Error> {
        let links: BTreeSet<u32> = Family::ALL.into_iter().filter_map(|family| asked.index(family)).collect();
        let (tables, questions) = mpsc::channel();
        let node = NodeNet::open()?;
        let read = move || {
            answer(&node, &links, &questions, &heartbeat);
            heartbeat.finish();
        };
        thread::Builder::new().name("routes".into()).spawn(read).map_err(|_| Error::NoReader)?;
        Ok(Self {
            nodes: Nodes::new(registry.clone(), settings.peers.clone(), told),
            gateways: settings.gateways.clone(),
            asking: Arc::default(),
            asked,
            peer_macs: Arc::default(),
            tables,
        })
    }

    /// Whether that Ethernet address, from which something was heard of a family's address, is a peer's: peers whose address isn't known are
    /// probed.
    pub async fn is_peer(&self, family: Family, mac: Mac) -> Result<bool, Error> {
        let known = || self.peer_macs.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { addresses: peers, macs } = self.nodes.read();
        let (Some(acd), false) = (self.asked.of(family), peers.is_empty()) else { return Ok(false) };
        if macs.contains(&mac) {
            return Ok(true);
        }
        if !known().contains(&mac) {
            let answers = acd.probe(&peers).await?;
            known().extend(answers.values().flatten());
        }
        Ok(known().contains(&mac))
    }

    /// Looks for routes to `candidates`, which `allow` holds and `vip` is to have, here and at the gateways, and for hosts that
    /// have them: 0.6 s, most of it waiting for answers.
    pub async fn run(&self, vip: &VipKey, candidates: &[IpAddr], allow: &Allow) -> Result<Findings, Error> {
        let peers = self.nodes.read().addresses;
        let mut answers = self.probe(candidates, &peers).await?;
        let mut heard = Vec::new();
        for candidate in candidates {
            heard.push(self.heard(*candidate).await?);
        }
        // The routes last, so that they are the newest.
        let (reply, tables) = oneshot::channel();
        self.tables.send((candidates.to_vec(), reply)).map_err(|_| Error::NoReader)?;
        let tables = tables.await.map_err(|_| Error::NoReader)?.map_err(|e| copy(&e))?;
        let known = peers.iter().filter_map(|peer| tables.neighbours.get(peer).copied());
        let answered = peers.iter().filter_map(|peer| answers.get(peer)).flatten().copied();
        let peer_macs: BTreeSet<Mac> = known.chain(answered).chain(self.nodes.read().macs).collect();
        self.peer_macs.lock().unwrap_or_else(PoisonError::into_inner).extend(&peer_macs);
        let mut evidence = Evidence {
            peer_macs,
            routes: tables.routes.clone(),
            connected: tables.connected.clone(),
            gateways: tables.gateways.clone(),
            name_servers: name_servers(),
            peers,
            ..Evidence::default()
        };
        let mut findings = Findings::default();
        for (candidate, heard) in candidates.iter().zip(heard) {
            evidence.link = self.asked.index(Family::of(*candidate));
            evidence.own = tables.own(evidence.link);
            evidence.heard = heard;
            evidence.served_elsewhere = self.nodes.serve(vip, *candidate);
            evidence.answers = answers.remove(candidate).unwrap_or_default();
            findings.add(conflict::judge(*candidate, allow, &evidence));
        }
        Ok(findings)
    }

    /// What the gateways announce that leads to the candidate.
    async fn heard(&self, candidate: IpAddr) -> Result<Vec<Heard>, Error> {
        let mut heard = Vec::new();
        for gateway in &self.gateways {
            let _turn = self.asking.lock().await;
            heard.extend(gateway::ask(gateway, candidate).await?);
        }
        Ok(heard)
    }

    /// Which hosts have the candidates, and which the peers' addresses: a host answers every probe for its own address.
    async fn probe(&self, candidates: &[IpAddr], peers: &[IpAddr]) -> Result<BTreeMap<IpAddr, BTreeSet<Mac>>, Error> {
        let (four, six): (Vec<_>, Vec<_>) = candidates.iter().copied().partition(IpAddr::is_ipv4);
        let (four, six) = if self.asked.is_one() { (candidates.to_vec(), Vec::new()) } else { (four, six) };
        let [of_ipv4, of_ipv6] = [(Family::V4, four), (Family::V6, six)].map(|(family, candidates)| async move {
            let Some(acd) = self.asked.of(family).filter(|_| !candidates.is_empty()) else {
                return Ok(BTreeMap::new());
            };
            acd.probe(&[&candidates[..], peers].concat()).await
        });
        let (mut answers, others) = tokio::try_join!(of_ipv4, of_ipv6)?;
        for (address, macs) in others {
            answers.entry(address).or_default().extend(macs);
        }
        Ok(answers)
    }
}

/// Reads the tables once for all searches that ask meanwhile: with a full table of the internet's it takes a second, and 200 VIPs
/// may ask together.
fn answer(node: &NodeNet, links: &BTreeSet<u32>, questions: &Receiver<Question>, heartbeat: &impl Heartbeat) {
    while let Some(first) = heartbeat.receive(questions) {
        let mut batch = vec![first];
        while let Ok(next) = questions.try_recv() {
            batch.push(next);
        }
        let candidates: Vec<_> = batch.iter().flat_map(|(candidates, _)| candidates).copied().collect();
        let tables = read(node, links, &candidates).map(Arc::new).map_err(Arc::new);
        for (_, reply) in batch {
            // A search that has timed out needs no answer.
            let _ = reply.send(tables.clone());
        }
    }
}

fn read(node: &NodeNet, links: &BTreeSet<u32>, candidates: &[IpAddr]) -> net::Result<Tables> {
    let (routes, gateways) = route::covering(node, candidates)?;
    let mut tables = Tables { routes, gateways, ..Tables::default() };
    let names: BTreeMap<u32, String> = link::list(node)?.into_iter().map(|link| (link.index, link.name)).collect();
    // Peers have addresses of either family, whatever the candidates' is.
    for family in Family::ALL {
        tables.connected.extend(connected(node, family, &names)?);
        for index in links {
            let neighbours = neighbour::list(node, family, *index)?;
            tables.neighbours.extend(neighbours.iter().filter_map(|n| Some((n.address, n.mac?))));
        }
    }
    Ok(tables)
}

/// The prefixes that are on links of the node (which have these names), by the addresses it has there.
fn connected(node: &NodeNet, family: Family, names: &BTreeMap<u32, String>) -> net::Result<Vec<Connected>> {
    let addresses = address::list(node, family, None)?;
    let of = |address: &address::Address| {
        let prefix = IpNetwork::new(address.address, address.prefix).ok()?;
        let link = names.get(&address.index)?.clone();
        Some(Connected { prefix, index: address.index, link })
    };
    Ok(addresses.iter().filter_map(of).collect())
}

/// Of `resolv.conf(5)`; none where that can't be read.
fn name_servers() -> BTreeSet<IpAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server = |line: &str| line.strip_prefix("nameserver")?.trim().parse().ok();
    text.lines().filter_map(server).collect()
}

/// An error that several searches get.
fn copy(error: &net::Error) -> net::Error {
    let net::Error { op, missing, errno, .. } = *error;
    net::Error { op, object: error.object.clone(), hint: error.hint.clone(), missing, errno }
}
