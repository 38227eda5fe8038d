//! No connection tracking for VIP traffic: an nftables table ([`table`]) whose set follows the registry.
//!
//! What isn't tracked costs no entry, and no masquerade rule can rewrite it. Only this part touches the table, the plugin
//! never does. It stays when viprouted ends, as traffic does, and goes with the node's last VIP.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Context, Journal, journal::Kind};
use crate::net::nftables::Generation;
use crate::registry::{Registry, VipKey, watch};
use crate::with_causes;

use table::Found;

/// How often the kernel is asked whether anybody has changed rules: a message of a few bytes.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure the table is tried again this much later, unless VIPs change before: `nft` may be installed meanwhile.
const AGAIN: Duration = Duration::from_secs(30);
/// How often a transaction is made anew when somebody else's came in between.
const TRIES: u32 = 4;

/// Why the table isn't as it should be.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The kernel.
    #[error("this kernel has no nftables for viprouted")]
    Kernel(#[source] crate::net::Error),
    /// The program.
    #[error(transparent)]
    Table(#[from] table::Error),
    /// Changed by somebody as often as it was put right.
    #[error("the table is changed by somebody else again and again")]
    Contested,
}

/// Starts it. Switched off it removes the table, if there is one, and ends.
pub fn start(context: &Context) -> io::Result<()> {
    let Context { registry, journal, notrack, .. } = context.clone();
    let (sender, changes) = mpsc::channel();
    if notrack {
        watch::start(registry.clone(), move |changes| sender.send(changes).is_ok())?;
    } else {
        drop(sender);
    }
    let part = Part { registry, journal, generation: None, vips: BTreeMap::new(), settled: None, trouble: None };
    // Switched off it ends in order.
    let at_work = notrack.then(|| context.parts.begin("notrack"));
    let work = move || {
        let _at_work = at_work;
        part.run(&changes);
    };
    thread::Builder::new().name("notrack".into()).spawn(work).map(drop)
}

struct Part {
    registry: Registry,
    journal: Journal,
    /// While it can be read.
    generation: Option<Generation>,
    /// The addresses of each VIP of the node.
    vips: BTreeMap<VipKey, BTreeSet<Ipv4Addr>>,
    /// The table was right at this generation of the kernel's rules; `None`: it has to be looked at.
    settled: Option<u32>,
    /// What was told last, and when the table is to be tried again.
    trouble: Option<(String, Instant)>,
}

impl Part {
    fn run(mut self, changes: &Receiver<watch::Changes>) {
        loop {
            match changes.recv_timeout(LOOK) {
                Ok(first) => {
                    for changes in std::iter::once(first).chain(changes.try_iter()) {
                        self.read(changes);
                    }
                    self.settle();
                }
                Err(RecvTimeoutError::Timeout) => {
                    if self.trouble.as_ref().is_none_or(|(_, again)| *again <= Instant::now()) {
                        self.settle();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return self.settle(),
            }
        }
    }

    /// Takes over what the registry says of these VIPs; what can't be read stays as it was.
    fn read(&mut self, changes: watch::Changes) {
        let before = self.vips.clone();
        if changes.all {
            self.vips.retain(|vip, _| changes.vips.contains(vip));
        }
        for vip in changes.vips {
            match self.registry.vip_record(&vip) {
                Ok(Some(record)) if !record.withdrawn => drop(self.vips.insert(vip, record.addresses().collect())),
                Ok(_) => drop(self.vips.remove(&vip)),
                Err(error) => tracing::debug!(%vip, error = with_causes(&error), "record passed over"),
            }
        }
        if self.vips != before {
            self.settled = None;
        }
    }

    /// Brings the table about; a failure is told once, until it is another one.
    fn settle(&mut self) {
        match self.try_settle() {
            Ok(()) => {
                if self.trouble.take().is_some() {
                    tracing::info!("VIP traffic is kept out of connection tracking again");
                }
            }
            // Nobody needs it, and without these nobody has made it.
            Err(Error::Kernel(_) | Error::Table(table::Error::NoProgram)) if self.vips.is_empty() => {
                self.trouble = None;
            }
            Err(error) => {
                let text = format!("VIP traffic is not kept out of connection tracking: {}", with_causes(&error));
                if self.trouble.as_ref().is_none_or(|(told, _)| *told != text) {
                    tracing::warn!("{text}");
                    self.journal.record(Kind::Trouble, None, &*text);
                }
                self.trouble = Some((text, Instant::now() + AGAIN));
            }
        }
    }

    fn try_settle(&mut self) -> Result<(), Error> {
        let generation = self.generation.take().map_or_else(Generation::open, Ok).map_err(Error::Kernel)?;
        self.settle_by(&generation)?;
        self.generation = Some(generation);
        Ok(())
    }

    fn settle_by(&mut self, generation: &Generation) -> Result<(), Error> {
        if self.settled.is_some_and(|settled| generation.get().is_ok_and(|now| now == settled)) {
            return Ok(());
        }
        let wanted: BTreeSet<Ipv4Addr> = self.vips.values().flatten().copied().collect();
        let was_right = self.settled.take().is_some();
        for _ in 0..TRIES {
            // Before the table is read: a change in between is looked at again.
            let now = generation.get().map_err(Error::Kernel)?;
            let found = table::read()?;
            let Some(transaction) = table::change(&found, &wanted) else {
                self.settled = Some(now);
                return Ok(());
            };
            match table::write(&transaction) {
                Ok(()) => self.tell(&found, wanted.len(), was_right),
                // Perhaps it was made for a table that somebody has changed since.
                Err(table::Error::Refused(_)) if generation.get().is_ok_and(|later| later != now) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Contested)
    }

    /// `was_right`: it was, for the same VIPs, so that somebody else has changed it.
    fn tell(&self, found: &Found, vips: usize, was_right: bool) {
        if was_right {
            let what = if *found == Found::Nothing { "gone" } else { "changed" };
            let text = format!("the nftables table viproute was {what}: made anew");
            tracing::warn!("{text}");
            self.journal.record(Kind::Repair, None, text);
        } else if vips == 0 {
            tracing::info!("the nftables table viproute is removed");
        } else if let Found::Table(_) = found {
            tracing::debug!(vips, "the set of the nftables table viproute is changed");
        } else {
            tracing::info!(vips, "VIP traffic is kept out of connection tracking");
        }
    }
}
