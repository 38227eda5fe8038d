//! What a request can go through on its way to a pod.

mod direct;
mod ecmp;
mod haproxy;
mod kube;
mod kube_iptables;
mod kube_nftables;
mod nginx;
mod viproute;

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;

use crate::load::PORT;
use crate::stage::World;

pub use direct::Direct;
pub use ecmp::Ecmp;
pub use haproxy::Haproxy;
pub use kube_iptables::KubeIptables;
pub use kube_nftables::KubeNftables;
pub use nginx::Nginx;
pub use viproute::{Agent, Plugin, Viproute, acquire, endpoints, environment, key};

/// The name of the row that others are compared with.
pub const DIRECT: &str = "pod's own address";
pub const VIPROUTE: &str = "viproute";
pub const KUBE_IPTABLES: &str = "kube-proxy's iptables rules";
pub const KUBE_NFTABLES: &str = "kube-proxy's nftables rules";
pub const HAPROXY: &str = "HAProxy (tcp)";

/// One way to a pod.
pub trait Contender {
    fn name(&self) -> &'static str;

    /// Where UDP goes of what [`Self::serve`] has given: to the first service, which is the only one that has it. `Err`: why
    /// it carries none.
    fn datagrams<'a>(&self, targets: &'a [SocketAddrV4]) -> std::result::Result<&'a [SocketAddrV4], &'static str> {
        Ok(&targets[..1])
    }

    /// Puts `services` services in front of the world's pods `replicas`, in place of what stood; where clients connect. A
    /// replica that is no longer named gets no new connections and lives on.
    fn serve(&mut self, world: &World, services: usize, replicas: &[usize]) -> Result<Vec<SocketAddrV4>>;

    /// A pod has ended; its namespace goes next.
    fn gone(&mut self, _world: &World, _pod: usize) -> Result<()> {
        Ok(())
    }

    /// What runs on the node is killed and started again. `Some`: why that can't be.
    fn restart(&mut self, world: &World) -> Result<Option<&'static str>>;

    /// What runs on the node is told to read its configuration again. `Some`: why that can't be.
    fn reload(&mut self, _world: &World) -> Result<Option<&'static str>> {
        Ok(Some("it has no reload"))
    }
}

/// The address of the service at that place, for contenders that choose it themselves.
fn service(place: usize) -> Ipv4Addr {
    let first = u32::from(Ipv4Addr::new(10, 96, 0, 1));
    Ipv4Addr::from(first + u32::try_from(place).unwrap_or(0))
}

fn targets(services: usize) -> Vec<SocketAddrV4> {
    (0..services).map(|place| SocketAddrV4::new(service(place), PORT)).collect()
}
