//! The check `listen`: the kernel's own lookup of the socket that would get a packet for the VIP, in the pod's namespace.
//! No packet is sent, no namespace is entered.
//!
//! There is one netlink socket a namespace, as long as there is something to check in it, and each question to it costs two
//! system calls that find none of their memory in the processor's caches: 1,000 a second took 2 % of a core and more. So
//! a BPF program first looks up all that are due together. A replica whose ports all have a socket by that is up; only the
//! others are looked up one by one, and where no program can be loaded, all.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::Range;

use crate::ebpf::{OnDemand, Question};
use crate::model::address::ipv4;
use crate::model::{Port, PortMap, Transport};
use crate::net::sockets::Sockets;
use crate::net::{self, Netns, NodeNet};
use crate::registry;

use super::discovery::ProbeTarget;
use super::hysteresis::Outcome;

/// The socket tables of pods.
#[derive(Debug, Default)]
pub struct Tables {
    open: HashMap<Identity, Table>,
    program: OnDemand,
}

/// Device and inode. A path may lead to another namespace later; the kernel reuses no inode while a socket is in its
/// namespace.
type Identity = (u64, u64);

#[derive(Debug)]
struct Table {
    sockets: Sockets,
    /// The namespace's id on the node, which stays its own as long as this socket is in it.
    netns_id: Option<u32>,
    /// The kernel is known to show UDP sockets.
    shows_udp: bool,
}

impl Tables {
    /// Whether the table of a namespace is open.
    pub fn is_open(&self, netns: &registry::Netns) -> bool {
        self.open.contains_key(&netns.identity())
    }

    /// For each of the replicas whether all its ports are known to have a socket. Nothing is known of one whose table isn't
    /// open.
    pub fn know<'a>(&mut self, targets: impl Iterator<Item = &'a ProbeTarget>) -> Vec<bool> {
        let (mut questions, mut asked) = (Vec::new(), Vec::new());
        for target in targets {
            let before = questions.len();
            // The program looks up IPv4 addresses only.
            if let Some(netns) = self.open.get(&target.netns.identity()).and_then(|table| table.netns_id)
                && let Some(address) = ipv4(target.address)
            {
                questions.extend(target.ports.iter().map(|listed| question(netns, address, listed.at_pod())));
            }
            asked.push(before..questions.len());
        }
        let answers = self.ask(&questions);
        let all = |range: Range<usize>| {
            !range.is_empty() && answers.get(range).is_some_and(|answers| answers.iter().all(|listens| *listens))
        };
        asked.into_iter().map(all).collect()
    }

    /// Empty: no questions, or the program can't be run.
    fn ask(&mut self, questions: &[Question]) -> Vec<bool> {
        if questions.is_empty() {
            return Vec::new();
        }
        self.program.ask(questions).unwrap_or_default()
    }

    /// Whether a socket listens on each port of the replica, for its VIP. The namespace must be there still, unless its table
    /// is open.
    pub fn check(&mut self, node: &NodeNet, target: &ProbeTarget) -> Outcome {
        match self.deaf(node, target) {
            Ok(None) => Outcome::Up,
            Ok(Some(listed)) => Outcome::Down(format!("no socket listens on {}", shown(*listed))),
            Err(error) => {
                self.forget(&target.netns);
                Outcome::Unknown(crate::with_causes(&error))
            }
        }
    }

    /// Lets go of a namespace, which would live on as long as a socket in it does.
    pub fn forget(&mut self, netns: &registry::Netns) {
        self.open.remove(&netns.identity());
    }

    /// Lets go of all others.
    pub fn keep(&mut self, namespaces: &HashSet<Identity>) {
        self.open.retain(|identity, _| namespaces.contains(identity));
    }

    /// The first port on which no socket listens.
    fn deaf<'a>(&mut self, node: &NodeNet, target: &'a ProbeTarget) -> net::Result<Option<&'a PortMap>> {
        let table = self.table(node, &target.netns)?;
        for listed in &target.ports {
            let port = listed.at_pod();
            let local = SocketAddr::new(target.address, port.number);
            let is_served = match port.transport {
                Transport::Tcp => table.sockets.takes_connections(local)?,
                Transport::Udp => table.takes_datagrams(local)?,
            };
            if !is_served {
                return Ok(Some(listed));
            }
        }
        Ok(None)
    }

    fn table(&mut self, node: &NodeNet, netns: &registry::Netns) -> net::Result<&mut Table> {
        match self.open.entry(netns.identity()) {
            Entry::Occupied(table) => Ok(table.into_mut()),
            Entry::Vacant(place) => {
                let netns = Netns::open(&netns.path)?;
                let sockets = Sockets::open(&netns)?;
                Ok(place.insert(Table { sockets, netns_id: netns.id(node)?, shows_udp: false }))
            }
        }
    }
}

/// The pod's port, and the VIP's where that is another.
fn shown(listed: PortMap) -> String {
    let vips = if listed.is_translated() { format!(", which has the place of {}", listed.port) } else { String::new() };
    format!("{}{vips}", listed.at_pod())
}

fn question(netns: u32, address: Ipv4Addr, port: Port) -> Question {
    Question { netns, to: SocketAddrV4::new(address, port.number), protocol: port.transport.protocol() }
}

impl Table {
    fn takes_datagrams(&mut self, local: SocketAddr) -> net::Result<bool> {
        if !self.shows_udp {
            self.sockets.check_udp()?;
            self.shows_udp = true;
        }
        self.sockets.takes_datagrams(local)
    }
}
