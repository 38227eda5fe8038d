//! The settings in `viprouted.toml` about VIPs' addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::VipKey;

use super::allow::Allow;
use super::beside::Beside;
use super::pools::Pools;

/// Where addresses of a family come from, and which they may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Part of every VIP's DHCP identity: clusters on one LAN keep apart by it. None: see [`super::cluster`].
    pub cluster: Option<String>,
    /// Where addresses come from.
    pub backend: Backend,
    /// Which addresses may be VIPs; none: those of the DHCP link's own prefix.
    pub allow: Option<Allow>,
    /// How many VIPs there may be.
    pub limits: Limits,
    /// How long a lease is kept after the VIP's last replica left.
    pub hold: Duration,
    /// Addresses of the cluster's nodes, this one's included.
    pub peers: Vec<IpAddr>,
    /// Pinned addresses, by VIP.
    pub pins: BTreeMap<VipKey, IpAddr>,
    /// The IPv6 addresses beside those, without a lease of their own.
    pub beside: Beside,
    /// Who is asked what gateways announce.
    pub gateways: Vec<Gateway>,
}

/// Whether these addresses are of more than one node, each of which has one of a family.
pub fn has_several(nodes: &[IpAddr]) -> bool {
    let six = nodes.iter().filter(|node| node.is_ipv6()).count();
    six.max(nodes.len() - six) > 1
}

/// A routing daemon that hears what a gateway announces, or is the gateway's own: `[[gateway]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Which program.
    pub daemon: RoutingDaemon,
    /// The unix socket that it answers on.
    pub socket: PathBuf,
}

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingDaemon {
    /// BIRD 2.
    Bird,
    /// FRR.
    Frr,
}

impl RoutingDaemon {
    /// Where it listens as Debian has it: BIRD's control socket, the one of FRR's bgpd for vtysh.
    pub fn usual_socket(self) -> &'static str {
        match self {
            Self::Bird => "/run/bird/bird.ctl",
            Self::Frr => "/run/frr/bgpd.vty",
        }
    }
}

/// How many VIPs of this node may have addresses at a time, those included that are kept for a while after their last
/// replica. More are refused: a tenant who annotates pods could take every address of a LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In one namespace.
    pub vips_per_namespace: usize,
    /// In all.
    pub vips: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { vips_per_namespace: 100, vips: 1000 }
    }
}

/// Where addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A DHCP server.
    Dhcp(Dhcp),
    /// Ranges that viprouted gives addresses out of.
    Pool(Pools),
}

impl Backend {
    /// As the file names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dhcp(_) => "dhcp",
            Self::Pool(_) => "pool",
        }
    }
}

/// The `[dhcp]` table, or `[dhcp6]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dhcp {
    /// Ask a server elsewhere for addresses of a subnet that isn't this link's.
    pub relay: Option<Relay>,
    /// Servers that count; empty: all.
    pub servers: Vec<IpAddr>,
    /// What to do with a VIP whose lease is gone.
    pub on_lost: OnLost,
}

/// `relay` there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// The DHCP server's address.
    pub server: IpAddr,
    /// Any address of the subnet VIPs come from.
    pub subnet: IpAddr,
}

/// What to do with a VIP whose lease is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLost {
    /// Stop serving it until there is an address again: it may be another host's by now.
    Withdraw,
    /// Go on serving it and ask for the same address only.
    Keep,
}
