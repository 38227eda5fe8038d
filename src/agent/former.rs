//! Ends the time of addresses that VIPs had: when no replica has a connection by one any more, or its time is over. They
//! stand in the registry, so a restart forgets none.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Context, Journal, journal::Kind};
use crate::net::sockets::Sockets;
use crate::net::{Netns, NodeNet};
use crate::registry::{Endpoint, FormerAddress, Registry, VipKey, watch};
use crate::vip::{self, lease};
use crate::with_causes;

/// How often the connections by a former address are looked at, while there is one.
const LOOK: Duration = Duration::from_secs(1);
/// Without any.
const IDLE: Duration = Duration::from_secs(3600);

/// Starts it.
pub fn start(context: &Context) -> io::Result<()> {
    let Context { registry, journal, .. } = context.clone();
    let (sender, changes) = mpsc::channel();
    watch::start(registry.clone(), move |changes| sender.send(changes).is_ok())?;
    let part = Part { registry, journal, vips: BTreeSet::new() };
    let at_work = context.parts.begin("former addresses");
    let work = move || {
        let _at_work = at_work;
        part.run(&changes);
    };
    thread::Builder::new().name("former".into()).spawn(work).map(drop)
}

struct Part {
    registry: Registry,
    journal: Journal,
    /// VIPs that had another address a moment ago.
    vips: BTreeSet<VipKey>,
}

impl Part {
    fn run(mut self, changes: &Receiver<watch::Changes>) {
        let mut last = Instant::now();
        loop {
            let wait = if self.vips.is_empty() { IDLE } else { LOOK };
            let mut due = match changes.recv_timeout(wait) {
                Ok(changes) => changes.vips,
                Err(RecvTimeoutError::Timeout) => BTreeSet::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if last.elapsed() >= LOOK {
                last = Instant::now();
                due.extend(self.vips.iter().cloned());
            }
            for key in due {
                if let Err(error) = self.look_at(&key) {
                    let text = with_causes(&error);
                    tracing::warn!(vip = %key, error = text, "its former address isn't done with");
                }
            }
        }
    }

    fn look_at(&mut self, key: &VipKey) -> vip::Result<()> {
        let record = self.registry.vip_record(key)?.filter(|record| !record.former.is_empty());
        let Some(record) = record else {
            self.vips.remove(key);
            return Ok(());
        };
        self.vips.insert(key.clone());
        let now = lease::now();
        let over = |former: &FormerAddress| former.until <= now;
        let is_done = |former: &&FormerAddress| over(former) || !self.is_in_use(key, former.address);
        let done: Vec<Ipv4Addr> = record.former.iter().filter(is_done).map(|former| former.address).collect();
        if done.is_empty() {
            return Ok(());
        }
        let node = NodeNet::open()?;
        for address in lease::retire(&node, &self.registry, key, &done)? {
            let late = record.former.iter().any(|former| former.address == address && over(former));
            let why = if late { "its time is over" } else { "nobody uses it any more" };
            tracing::info!(vip = %key, %address, why, "former address given up");
            self.journal.record(Kind::Lease, Some(key), format!("its former address {address} is given up: {why}"));
        }
        Ok(())
    }

    /// Where that can't be told it is, until its time is over.
    fn is_in_use(&self, key: &VipKey, address: Ipv4Addr) -> bool {
        is_in_use(&self.registry, key, address).unwrap_or_else(|error| {
            tracing::debug!(vip = %key, %address, error = with_causes(&error), "connections not counted");
            true
        })
    }
}

/// Whether a replica has a connection by that address. UDP can't be asked: one that serves it has its address to the end.
fn is_in_use(registry: &Registry, key: &VipKey, address: Ipv4Addr) -> vip::Result<bool> {
    for (_, endpoint) in registry.endpoints(key)? {
        // A damaged one is told of by others.
        let Ok(endpoint) = endpoint else { continue };
        if endpoint.udp_ports().next().is_some() || has_connections(&endpoint, address)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_connections(endpoint: &Endpoint, address: Ipv4Addr) -> vip::Result<bool> {
    let Some(netns) = Netns::open_if_alive(&endpoint.netns)? else { return Ok(false) };
    Ok(!Sockets::open(&netns)?.connections(address)?.is_empty())
}
