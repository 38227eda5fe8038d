//! Retires VIPs' previous addresses: when no replica has a connection by one any more, or its time is over. The registry
//! has them, so a restart forgets none.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::dataplane::{self, address};
use crate::model::VipKey;
use crate::net::sockets::Sockets;
use crate::net::{Netns, NodeNet};
use crate::registry::watch::Update;
use crate::registry::{Endpoint, PreviousAddress, Registry};
use crate::with_causes;

use super::journal::Kind;
use super::subsystems::{RETIREMENT, SubsystemGuard};
use super::{Context, Journal};

/// How often the connections by a previous address are read, while there is one.
const LOOK: Duration = Duration::from_secs(1);

/// Starts the thread.
pub fn start(context: &Context) -> io::Result<()> {
    let Context { registry, journal, .. } = context.clone();
    let (sender, updates) = mpsc::channel();
    context.watch.subscribe(move |update| sender.send(update).is_ok());
    let retirement = Retirement { registry, journal, vips: BTreeSet::new() };
    context.subsystems.spawn(&RETIREMENT, move |guard| retirement.run(&guard, &updates))
}

struct Retirement {
    registry: Registry,
    journal: Journal,
    /// VIPs that have a previous address.
    vips: BTreeSet<VipKey>,
}

impl Retirement {
    fn run(mut self, guard: &SubsystemGuard, updates: &Receiver<Update>) {
        let mut last = Instant::now();
        loop {
            guard.turn();
            let wait = if self.vips.is_empty() { guard.period() } else { LOOK };
            let mut due = match updates.recv_timeout(wait) {
                Ok(update) => retiring(&update),
                Err(RecvTimeoutError::Timeout) => BTreeSet::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if last.elapsed() >= LOOK {
                last = Instant::now();
                due.extend(self.vips.iter().cloned());
            }
            for key in due {
                guard.turn();
                if let Err(error) = self.retire(&key) {
                    let text = with_causes(&error);
                    tracing::warn!(vip = %key, error = text, "previous address can't be retired");
                }
            }
        }
    }

    fn retire(&mut self, key: &VipKey) -> dataplane::Result<()> {
        let record = self.registry.vip_record(key)?.filter(|record| !record.previous_addresses.is_empty());
        let Some(record) = record else {
            self.vips.remove(key);
            return Ok(());
        };
        self.vips.insert(key.clone());
        let now = address::now();
        let over = |previous: &PreviousAddress| previous.until <= now;
        let is_done = |previous: &&PreviousAddress| over(previous) || !self.is_in_use(key, previous.address);
        let done: Vec<IpAddr> =
            record.previous_addresses.iter().filter(is_done).map(|previous| previous.address).collect();
        if done.is_empty() {
            return Ok(());
        }
        let node = NodeNet::open()?;
        for address in address::retire(&node, &self.registry, key, &done)? {
            let late = record.previous_addresses.iter().any(|previous| previous.address == address && over(previous));
            let why = if late { "its time is over" } else { "no connection uses it any more" };
            tracing::info!(vip = %key, %address, why, "previous address retired");
            self.journal.record(Kind::Lease, Some(key), format!("its previous address {address} is retired: {why}"));
        }
        Ok(())
    }

    /// An address whose connections can't be read counts as in use, until its time is over.
    fn is_in_use(&self, key: &VipKey, address: IpAddr) -> bool {
        is_in_use(&self.registry, key, address).unwrap_or_else(|error| {
            tracing::debug!(vip = %key, %address, error = with_causes(&error), "connections not counted");
            true
        })
    }
}

/// The changed VIPs that have an address to be retired.
fn retiring(update: &Update) -> BTreeSet<VipKey> {
    let is_retiring = |key: &&VipKey| {
        let record = update.snapshot.vips.get(*key).map(|view| view.record.as_ref());
        matches!(record, Some(Ok(Some(record))) if !record.previous_addresses.is_empty())
    };
    update.changed.iter().filter(is_retiring).cloned().collect()
}

/// Whether a replica has a connection by that address. UDP has none to read: a replica that serves it keeps the address
/// until its time is over.
fn is_in_use(registry: &Registry, key: &VipKey, address: IpAddr) -> dataplane::Result<bool> {
    for (_, endpoint) in registry.endpoints(key)? {
        // Other subsystems report a damaged record.
        let Ok(endpoint) = endpoint else { continue };
        // Another node's connections are that node's to keep.
        if !endpoint.backend.is_local() {
            continue;
        }
        if endpoint.udp_ports().next().is_some() || has_connections(&endpoint, address)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_connections(endpoint: &Endpoint, address: IpAddr) -> dataplane::Result<bool> {
    let Some(netns) = Netns::open_if_alive(&endpoint.netns)? else { return Ok(false) };
    Ok(!Sockets::open(&netns)?.connections(address)?.is_empty())
}
