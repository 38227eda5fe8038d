//! What a lost or changed lease means to the VIP's routes. On a thread of its own: it waits for the VIP's lock, which a
//! plugin call may hold, and for the kernel.

use std::net::IpAddr;
use std::sync::mpsc::{self, Sender};

use tokio::sync::mpsc::UnboundedSender;

use crate::dataplane;
use crate::lease::beside::Beside;
use crate::model::VipKey;
use crate::net::{self, NodeNet};
use crate::node::journal::Kind;
use crate::node::subsystems::DATAPLANE;
use crate::node::{Journal, Subsystems};
use crate::registry::Registry;

/// The node's routes, as far as a lease decides on them.
pub trait Dataplane: Send + 'static {
    /// Serves the VIP at `address`, renumbering its replicas if it had another.
    fn serve(&mut self, vip: &VipKey, address: IpAddr) -> dataplane::Result<()>;
    /// Takes the VIP out of the node's tables.
    fn withdraw(&mut self, vip: &VipKey) -> dataplane::Result<()>;
}

/// The real one.
#[derive(Debug)]
pub struct Node {
    net: NodeNet,
    registry: Registry,
    journal: Journal,
    beside: Beside,
}

impl Node {
    /// With this registry; `journal` records VIPs that move. `beside`: what they have beside the address that they are served at.
    pub fn open(registry: Registry, journal: Journal, beside: Beside) -> net::Result<Self> {
        Ok(Self { net: NodeNet::open()?, registry, journal, beside })
    }
}

impl Dataplane for Node {
    fn serve(&mut self, vip: &VipKey, address: IpAddr) -> dataplane::Result<()> {
        let addresses = self.beside.addresses(vip, address);
        for old in dataplane::address::serve(&self.net, &self.registry, vip, &addresses)? {
            tracing::info!(%vip, %old, %address, "renumbered");
            let now = addresses.iter().find(|now| now.is_ipv4() == old.is_ipv4()).unwrap_or(address);
            let text = format!("moved from {old} to {now}; open connections keep {old} for a minute");
            self.journal.record(Kind::Lease, Some(vip), text);
        }
        Ok(())
    }

    fn withdraw(&mut self, vip: &VipKey) -> dataplane::Result<()> {
        dataplane::address::withdraw(&self.net, &self.registry, vip)
    }
}

/// What to do; none for an address: withdraw.
pub type Order = (VipKey, Option<IpAddr>);

/// Carries orders out one after the other until all senders are dropped. What fails comes back by `failed`.
pub fn start(
    mut dataplane: impl Dataplane,
    subsystems: &Subsystems,
    failed: UnboundedSender<(VipKey, dataplane::Error)>,
) -> std::io::Result<Sender<Order>> {
    let (orders, queue) = mpsc::channel::<Order>();
    subsystems.spawn(&DATAPLANE, move |guard| {
        while let Some((vip, address)) = guard.receive(&queue) {
            let result = match address {
                Some(address) => dataplane.serve(&vip, address),
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
