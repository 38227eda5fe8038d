//! What a lost or changed lease means to the VIP's routes. On a thread of its own: it waits for the VIP's lock, which a
//! plugin call may hold, and for the kernel.

use std::net::Ipv4Addr;
use std::thread;

use tokio::sync::mpsc;

use crate::agent::Journal;
use crate::agent::journal::Kind;
use crate::net::{self, NodeNet};
use crate::registry::{Registry, VipKey};
use crate::vip;

/// The node's routes, as far as a lease decides on them.
pub trait Dataplane: Send + 'static {
    /// Serves the VIP at `address`, renumbering its replicas if it had another.
    fn serve(&mut self, vip: &VipKey, address: Ipv4Addr) -> vip::Result<()>;
    /// Takes the VIP out of the node's tables.
    fn withdraw(&mut self, vip: &VipKey) -> vip::Result<()>;
}

/// The real one.
#[derive(Debug)]
pub struct Node {
    net: NodeNet,
    registry: Registry,
    journal: Journal,
}

impl Node {
    /// With this registry; `journal` is told of VIPs that move.
    pub fn open(registry: Registry, journal: Journal) -> net::Result<Self> {
        Ok(Self { net: NodeNet::open()?, registry, journal })
    }
}

impl Dataplane for Node {
    fn serve(&mut self, vip: &VipKey, address: Ipv4Addr) -> vip::Result<()> {
        if let Some(former) = vip::lease::serve(&self.net, &self.registry, vip, address)? {
            tracing::info!(%vip, %former, %address, "renumbered");
            let text = format!("moved from {former} to {address}; open connections keep {former} for a minute");
            self.journal.record(Kind::Lease, Some(vip), text);
        }
        Ok(())
    }

    fn withdraw(&mut self, vip: &VipKey) -> vip::Result<()> {
        vip::lease::withdraw(&self.net, &self.registry, vip)
    }
}

/// What to do; none for an address: withdraw.
pub type Order = (VipKey, Option<Ipv4Addr>);

/// Carries orders out one after the other until nobody can give any more. What fails comes back by `failed`.
pub fn start(
    mut dataplane: impl Dataplane,
    failed: mpsc::UnboundedSender<(VipKey, vip::Error)>,
) -> std::io::Result<mpsc::UnboundedSender<Order>> {
    let (orders, mut queue) = mpsc::unbounded_channel::<Order>();
    let work = move || {
        while let Some((vip, address)) = queue.blocking_recv() {
            let result = match address {
                Some(address) => dataplane.serve(&vip, address),
                None => dataplane.withdraw(&vip),
            };
            if let Err(error) = result {
                // Its reader is gone only while viprouted ends.
                let _ = failed.send((vip, error));
            }
        }
    };
    thread::Builder::new().name("dataplane".into()).spawn(work)?;
    Ok(orders)
}
