//! What a lost or changed lease means to the VIP's routes. On a thread of its own: it waits for the VIP's lock, which a
//! plugin call may hold, and for the kernel.

use std::sync::mpsc::{self, Sender};

use tokio::sync::mpsc::UnboundedSender;

use crate::dataplane;
use crate::model::{Addresses, VipKey};
use crate::net::{self, NodeNet};
use crate::node::journal::Kind;
use crate::node::subsystems::DATAPLANE;
use crate::node::{Journal, Subsystems};
use crate::registry::Registry;

/// The node's routes, as far as a lease decides on them.
pub trait Dataplane: Send + 'static {
    /// Serves the VIP at these addresses, renumbering its replicas if it had others.
    fn serve(&mut self, vip: &VipKey, addresses: &Addresses) -> dataplane::Result<()>;
    /// Takes the VIP out of the node's tables.
    fn withdraw(&mut self, vip: &VipKey) -> dataplane::Result<()>;
}

/// The real one.
#[derive(Debug)]
pub struct Node {
    net: NodeNet,
    registry: Registry,
    journal: Journal,
}

impl Node {
    /// With this registry; `journal` records VIPs that move.
    pub fn open(registry: Registry, journal: Journal) -> net::Result<Self> {
        Ok(Self { net: NodeNet::open()?, registry, journal })
    }
}

impl Dataplane for Node {
    fn serve(&mut self, vip: &VipKey, addresses: &Addresses) -> dataplane::Result<()> {
        for old in dataplane::address::serve(&self.net, &self.registry, vip, addresses)? {
            let now = addresses.iter().find(|now| now.is_ipv4() == old.is_ipv4());
            let text = match now {
                Some(now) => format!("moved from {old} to {now}; open connections keep {old} for a minute"),
                None => format!("it has {old} no longer; open connections keep it for a minute"),
            };
            tracing::info!(%vip, %old, ?now, "renumbered");
            self.journal.record(Kind::Lease, Some(vip), text);
        }
        Ok(())
    }

    fn withdraw(&mut self, vip: &VipKey) -> dataplane::Result<()> {
        dataplane::address::withdraw(&self.net, &self.registry, vip)
    }
}

/// What to do; none for addresses: withdraw.
pub type Order = (VipKey, Option<Addresses>);

/// Carries orders out one after the other until all senders are dropped. What fails comes back by `failed`.
pub fn start(
    mut dataplane: impl Dataplane,
    subsystems: &Subsystems,
    failed: UnboundedSender<(VipKey, dataplane::Error)>,
) -> std::io::Result<Sender<Order>> {
    let (orders, queue) = mpsc::channel::<Order>();
    subsystems.spawn(&DATAPLANE, move |guard| {
        while let Some((vip, addresses)) = guard.receive(&queue) {
            let result = match addresses {
                Some(addresses) => dataplane.serve(&vip, &addresses),
                None => dataplane.withdraw(&vip),
            };
            if let Err(error) = result {
                // Its reader is gone only while viprouted ends.
                let _ = failed.send((vip, error));
            }
        }
        guard.finish();
    })?;
    Ok(orders)
}
