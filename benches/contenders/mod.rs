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
pub use kube_nftables::{KubeNftables, dnat_to, track_connections};
pub use nginx::Nginx;
pub use viproute::{LIMITS, Plugin, Viproute, acquire, endpoints, key, pool, sidecar};

/// The name of the row that others are compared with.
pub const DIRECT: &str = "pod's own address";
pub const VIPROUTE: &str = "viproute";
pub const WITHOUT_EXPRESS: &str = "viproute, express off";
pub const EXPRESS_SWITCHED: &str = "viproute, express switched";
pub const KUBE_IPTABLES: &str = "kube-proxy's iptables rules";
pub const KUBE_NFTABLES: &str = "kube-proxy's nftables rules";
pub const HAPROXY: &str = "HAProxy (tcp)";
pub const NGINX_STREAM: &str = "nginx (stream)";
pub const NGINX_HTTP: &str = "nginx (http)";
pub const ECMP: &str = "plain multipath route";

/// One way to a pod.
pub trait Contender {
    fn name(&self) -> &'static str;

    /// Where UDP goes of what [`Self::serve`] has given: to the first service, which is the only one that has it. `Err`: why
    /// it carries none.
    fn datagrams<'a>(&self, targets: &'a [SocketAddrV4]) -> std::result::Result<&'a [SocketAddrV4], &'static str> {
        Ok(&targets[..1])
    }

    /// Puts `services` services in front of the world's pods `replicas`, in place of what was there; where clients connect. A
    /// replica that is no longer named gets no new connections and lives on.
    fn serve(&mut self, world: &World, services: usize, replicas: &[usize]) -> Result<Vec<SocketAddrV4>>;

    /// Waits for what a change of the replicas leaves behind for a while, or ends it, so that what follows is measured in the
    /// state that lasts.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    /// Whether it still has the after-effects of a change.
    fn is_settled(&self) -> Result<bool> {
        Ok(true)
    }

    /// The processes that carry the bytes; none where the kernel does.
    fn processes(&self) -> Vec<i32> {
        Vec::new()
    }

    /// Whether its rules are kube-proxy's.
    fn has_kube_rules(&self) -> bool {
        false
    }

    /// Whether a pod is a replica from its start on, and not only when it is ready.
    fn joins_at_start(&self) -> bool {
        false
    }

    /// A pod has ended; its namespace is deleted next.
    fn pod_removed(&mut self, _world: &World, _pod: usize) -> Result<()> {
        Ok(())
    }

    /// What runs on the node is killed and started again. `Some`: why that can't be.
    fn restart(&mut self, world: &World) -> Result<Option<&'static str>>;

    /// Before and after each event, for one that is measured while its setting changes.
    fn switch(&mut self, _world: &World) -> Result<()> {
        Ok(())
    }

    /// What runs on the node reads its configuration again. `Some`: why that can't be.
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

/// A process and all that descend from it.
fn family(first: u32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((pid, parent(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))
        })
        .collect();
    let mut family = vec![first.cast_signed()];
    let mut at = 0;
    while let Some(&of) = family.get(at) {
        family.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        at += 1;
    }
    family
}

/// The parent's number in a `/proc/PID/stat`. The name before it may have blanks and parentheses.
fn parent(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_found_behind_any_name() {
        assert_eq!(parent("17 (a) S 3) R 12 17 17 0"), Some(12));
        assert_eq!(parent("17 nothing"), None);
    }
}
