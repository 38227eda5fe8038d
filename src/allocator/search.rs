//! Gathers what [`super::conflict`] judges: routes from the kernel, answers from the link.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot};

use super::allow::Allow;
use super::arp::{self, Arp};
use super::config::Config;
use super::conflict::{self, Evidence};
use super::state::Findings;
use crate::net::link::{Link, Mac};
use crate::net::route::Route;
use crate::net::{self, NodeNet, address, neighbour, route};

/// Why an address could not be searched for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's tables can't be read.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The link can't be asked.
    #[error(transparent)]
    Arp(#[from] arp::Error),
    /// The thread that reads the kernel's tables can't be started, or is gone.
    #[error("the thread that reads routes does not run")]
    NoReader,
}

/// What the kernel has on some addresses.
#[derive(Clone, Debug, Default)]
struct Tables {
    routes: Vec<Route>,
    own: Vec<Ipv4Addr>,
    neighbours: BTreeMap<Ipv4Addr, Mac>,
}

type Question = (Ipv4Addr, oneshot::Sender<Result<Arc<Tables>, Arc<net::Error>>>);

/// Searches for owners of addresses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Search {
    allow: Allow,
    peers: Vec<Ipv4Addr>,
    link: Option<u32>,
    arp: Option<Arc<Arp>>,
    tables: mpsc::UnboundedSender<Question>,
}

impl Search {
    /// By the rules of `config`, on `link` if there is one.
    pub fn new(config: &Config, link: Option<(&Link, Arc<Arp>)>) -> Result<Self, Error> {
        let index = link.as_ref().map(|(link, _)| link.index);
        let (tables, questions) = mpsc::unbounded_channel();
        let node = NodeNet::open()?;
        let read = move || answer(&node, index, questions);
        thread::Builder::new().name("routes".into()).spawn(read).map_err(|_| Error::NoReader)?;
        Ok(Self {
            allow: config.allow.clone(),
            peers: config.peers.clone(),
            link: index,
            arp: link.map(|(_, arp)| arp),
            tables,
        })
    }

    /// Looks for routes to `candidate` and for a host that has it: 0.6 s, most of it waiting for answers.
    pub async fn run(&self, candidate: Ipv4Addr) -> Result<Findings, Error> {
        let mut answers = self.probe(candidate).await?;
        // The routes last: they are to be those of now.
        let (reply, tables) = oneshot::channel();
        self.tables.send((candidate, reply)).map_err(|_| Error::NoReader)?;
        let tables = tables.await.map_err(|_| Error::NoReader)?.map_err(|e| copy(&e))?;
        let known = self.peers.iter().filter_map(|peer| tables.neighbours.get(peer).copied());
        let answered = self.peers.iter().filter_map(|peer| answers.get(peer)).flatten().copied();
        let evidence = Evidence {
            peer_macs: known.chain(answered).collect(),
            routes: tables.routes.clone(),
            link: self.link,
            own: tables.own.clone(),
            answers: answers.remove(&candidate).unwrap_or_default(),
            peers: self.peers.clone(),
        };
        Ok(conflict::judge(candidate, &self.allow, &evidence))
    }

    /// Who has the candidate, and who the peers are: a host answers probes for its own address whoever asks.
    async fn probe(&self, candidate: Ipv4Addr) -> Result<BTreeMap<Ipv4Addr, BTreeSet<Mac>>, Error> {
        let Some(arp) = &self.arp else { return Ok(BTreeMap::new()) };
        let addresses: Vec<_> = std::iter::once(candidate).chain(self.peers.iter().copied()).collect();
        Ok(arp.probe(&addresses).await?)
    }
}

/// Reads the tables once for all who ask meanwhile: with a full table of the internet's it takes a second, and 200 VIPs
/// may ask together.
fn answer(node: &NodeNet, link: Option<u32>, mut questions: mpsc::UnboundedReceiver<Question>) {
    while let Some(first) = questions.blocking_recv() {
        let mut batch = vec![first];
        while let Ok(next) = questions.try_recv() {
            batch.push(next);
        }
        let candidates: Vec<_> = batch.iter().map(|(candidate, _)| *candidate).collect();
        let tables = read(node, link, &candidates).map(Arc::new).map_err(Arc::new);
        for (_, reply) in batch {
            // Whoever gave up waiting needs no answer.
            let _ = reply.send(tables.clone());
        }
    }
}

fn read(node: &NodeNet, link: Option<u32>, candidates: &[Ipv4Addr]) -> net::Result<Tables> {
    let mut tables = Tables { routes: route::covering(node, candidates)?, ..Tables::default() };
    if let Some(index) = link {
        tables.own = address::list(node, Some(index))?.iter().map(|address| address.address).collect();
        let neighbours = neighbour::list(node, index)?;
        tables.neighbours = neighbours.iter().filter_map(|n| Some((n.address, n.mac?))).collect();
    }
    Ok(tables)
}

/// An error that several wait for.
fn copy(error: &net::Error) -> net::Error {
    net::Error { op: error.op, object: error.object.clone(), hint: error.hint.clone(), errno: error.errno }
}
