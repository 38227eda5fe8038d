//! What a lost or changed lease means to the VIP's routes. On a thread of its own: it waits for the VIP's lock, which a
//! plugin call may hold, and for the kernel.

use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;

use tokio::sync::mpsc;

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
}

impl Node {
    /// With the registry at `data_dir`.
    pub fn open(data_dir: &Path) -> net::Result<Self> {
        Ok(Self { net: NodeNet::open()?, registry: Registry::new(data_dir) })
    }
}

impl Dataplane for Node {
    fn serve(&mut self, vip: &VipKey, address: Ipv4Addr) -> vip::Result<()> {
        vip::lease::serve(&self.net, &self.registry, vip, address)
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use nix::errno::Errno;

    use super::*;

    /// Writes down what it is told, and can't withdraw.
    struct Fake(Arc<Mutex<Vec<String>>>);

    impl Dataplane for Fake {
        fn serve(&mut self, vip: &VipKey, address: Ipv4Addr) -> vip::Result<()> {
            self.0.lock().unwrap().push(format!("serve {vip} {address}"));
            Ok(())
        }

        fn withdraw(&mut self, vip: &VipKey) -> vip::Result<()> {
            self.0.lock().unwrap().push(format!("withdraw {vip}"));
            Err(net::Error::new("delete route", "x", Errno::EPERM).into())
        }
    }

    #[test]
    fn orders_are_carried_out_in_turn_and_failures_come_back() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let (failed, mut failures) = mpsc::unbounded_channel();
        let orders = start(Fake(log.clone()), failed).unwrap();
        let vip = VipKey::new("shop", "web").unwrap();
        orders.send((vip.clone(), None)).unwrap();
        orders.send((vip.clone(), Some([10, 118, 0, 7].into()))).unwrap();
        let (about, error) = failures.blocking_recv().unwrap();
        assert_eq!(about, vip);
        assert!(matches!(error, vip::Error::Net(e) if e.errno == Errno::EPERM));
        drop(orders);
        assert!(failures.blocking_recv().is_none(), "the thread ends");
        assert_eq!(*log.lock().unwrap(), ["withdraw shop/web", "serve shop/web 10.118.0.7"]);
    }
}
