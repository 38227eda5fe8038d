//! The check `listen`: the kernel's own lookup of who would take a packet for the VIP, in the pod's namespace. One socket
//! a namespace, as long as there is something to check in it; no packet is sent.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddrV4;

use crate::net::sockets::Sockets;
use crate::net::{self, Netns};
use crate::registry::{self, Port, Transport};

use super::sighting::Subject;
use super::tally::Outcome;

/// The socket tables of pods.
#[derive(Debug, Default)]
pub struct Tables(HashMap<Identity, Table>);

/// Device and inode. A path may lead to another namespace by and by; an inode is nobody else's as long as a socket is in
/// it.
type Identity = (u64, u64);

#[derive(Debug)]
struct Table {
    sockets: Sockets,
    /// The kernel is known to show UDP sockets.
    shows_udp: bool,
}

impl Tables {
    /// Whether the table of a namespace is open.
    pub fn is_open(&self, netns: &registry::Netns) -> bool {
        self.0.contains_key(&netns.identity())
    }

    /// Whether a socket listens on each port of the replica, for its VIP. The namespace must be there still, unless its table
    /// is open.
    pub fn check(&mut self, subject: &Subject) -> Outcome {
        match self.deaf(subject) {
            Ok(None) => Outcome::Up,
            Ok(Some(port)) => Outcome::Down(format!("nobody listens on {port}")),
            Err(error) => {
                self.forget(&subject.netns);
                Outcome::Unknown(crate::with_causes(&error))
            }
        }
    }

    /// Lets go of a namespace, which would live on as long as a socket in it does.
    pub fn forget(&mut self, netns: &registry::Netns) {
        self.0.remove(&netns.identity());
    }

    /// Lets go of all others.
    pub fn keep(&mut self, namespaces: &HashSet<Identity>) {
        self.0.retain(|identity, _| namespaces.contains(identity));
    }

    /// The first port on which nobody listens.
    fn deaf<'a>(&mut self, subject: &'a Subject) -> net::Result<Option<&'a Port>> {
        let table = self.table(&subject.netns)?;
        for port in &subject.ports {
            let local = SocketAddrV4::new(subject.address, port.number);
            let is_served = match port.transport {
                Transport::Tcp => table.sockets.takes_connections(local)?,
                Transport::Udp => table.takes_datagrams(local)?,
            };
            if !is_served {
                return Ok(Some(port));
            }
        }
        Ok(None)
    }

    fn table(&mut self, netns: &registry::Netns) -> net::Result<&mut Table> {
        match self.0.entry(netns.identity()) {
            Entry::Occupied(table) => Ok(table.into_mut()),
            Entry::Vacant(place) => {
                let sockets = Sockets::open(&Netns::open(&netns.path)?)?;
                Ok(place.insert(Table { sockets, shows_udp: false }))
            }
        }
    }
}

impl Table {
    fn takes_datagrams(&mut self, local: SocketAddrV4) -> net::Result<bool> {
        if !self.shows_udp {
            self.sockets.check_udp()?;
            self.shows_udp = true;
        }
        self.sockets.takes_datagrams(local)
    }
}
