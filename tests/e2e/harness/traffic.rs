//! Servers in pods, clients anywhere.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use super::load::{Load, Tally};
use super::netns::Netns;
use super::pod::Pod;
use super::serve::Server;

/// The port every pod serves.
pub const PORT: u16 = 8080;

/// A pod's TCP server, named as the pod.
pub struct PodServer {
    _server: Server,
    seen: Arc<Mutex<BTreeSet<IpAddr>>>,
}

impl PodServer {
    pub fn start(pod: &Pod) -> Self {
        Self::at(pod, Ipv4Addr::UNSPECIFIED)
    }

    /// One that is bound to this address of the pod's.
    pub fn at(pod: &Pod, address: Ipv4Addr) -> Self {
        let seen = Arc::<Mutex<BTreeSet<IpAddr>>>::default();
        let log = seen.clone();
        let listen = SocketAddr::from((address, PORT));
        let server = pod.ns.run(|| {
            Server::start(&pod.name, listen, false, move |client| {
                log.lock().unwrap().insert(client.ip());
            })
        });
        Self { _server: server.expect("a server in a pod"), seen }
    }

    /// The clients so far, as the pod sees them.
    pub fn clients(&self) -> Vec<IpAddr> {
        self.seen.lock().unwrap().iter().copied().collect()
    }
}

pub fn serve_all(pods: &[Pod]) -> Vec<PodServer> {
    pods.iter().map(PodServer::start).collect()
}

/// `count` connections from `ns` to the VIP; all of them must be answered.
pub fn connect(ns: &Netns, vip: impl Into<IpAddr>, count: usize) -> Tally {
    let vip = vip.into();
    let tally = attempt(ns, vip, count);
    assert_eq!(tally.failed, 0, "connections to {vip} failed: {tally:?}");
    tally
}

/// The same, where some may fail.
pub fn attempt(ns: &Netns, vip: impl Into<IpAddr>, count: usize) -> Tally {
    let vip = vip.into();
    ns.run(|| Load { to: (vip, PORT).into(), count, rate: None, concurrency: 4 }.run())
}

/// The share of one server, in percent of all answers.
pub fn share(tally: &Tally, name: &str) -> f64 {
    let total: usize = tally.names.values().sum();
    let count = tally.names.get(name).copied().unwrap_or_default();
    #[allow(clippy::cast_precision_loss)]
    let share = 100.0 * count as f64 / total.max(1) as f64;
    share
}
