//! A world: a client, a node, its pods. Each contender has one of its own, all of them alike, so that no contender's
//! rules or hooks cost another anything.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::Result;

use super::bed::bpffs::BpfFs;
use super::bed::command::Run;
use super::bed::netns::Netns;
use super::bed::tempdir::TempDir;
use super::pod::{Pod, PodKind};

/// The node's address.
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The client's, which is also the node's default gateway.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
/// The node's gateway.
pub const GATEWAY: Ipv4Addr = CLIENT;
/// Where pods have their own addresses.
pub const POD_NET: &str = "10.1.0.0/16";
/// The node, as the pods see it.
pub const GATEWAY_OF_PODS: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// The VIPs' network, and of IPv6 the one whose addresses end in theirs.
pub const VIPS: &str = "10.118.0.0/16";
pub const VIPS6: &str = "fd00:118::/96";

/// The IPv6 address that goes with a pod's own, or with a VIP.
pub fn as_ipv6(address: Ipv4Addr) -> Ipv6Addr {
    let second = if address.octets()[1] == 118 { 0x118 } else { 0x10 };
    let [high, low] = [address.to_bits() >> 16, address.to_bits() & 0xffff].map(|bits| bits as u16);
    Ipv6Addr::new(0xfd00, second, 0, 0, 0, 0, high, low)
}

/// The number of the pod that calls and serves nothing.
const BYSTANDER: usize = 60_000;

pub struct World {
    pub name: String,
    pub pods: Vec<Pod>,
    /// A pod that is no replica.
    pub bystander: Pod,
    pub client: Netns,
    pub node: Netns,
    /// Files of whatever runs on the node.
    pub dir: TempDir,
    /// Where its programs are pinned.
    pub bpf: BpfFs,
}

impl World {
    pub fn new(name: &str, pods: usize, kind: PodKind) -> Result<Self> {
        let (node, client) = (Netns::new(), Netns::new());
        node.ip_lines(&format!("link add eth0 type veth peer name eth0 netns {}", client.path()))?;
        node.ip_lines(&format!("addr add {NODE}/24 dev eth0\nlink set eth0 up\n"))?;
        client
            .ip_lines(&format!("addr add {CLIENT}/24 dev eth0\nlink set eth0 up\nroute add 10.0.0.0/8 via {NODE}\n"))?;
        node.ip_lines(&format!("route add default via {GATEWAY}"))?;
        node.set_sysctl("net/ipv4/ip_forward", "1");
        if kind == PodKind::Dual {
            node.ip_lines("addr add 2001:db8::1/64 dev eth0 nodad\n")?;
            client.ip_lines("addr add 2001:db8::32/64 dev eth0 nodad\nroute add fd00::/16 via 2001:db8::1\n")?;
            node.set_sysctl("net/ipv6/conf/all/forwarding", "1");
        }
        let bystander = Pod::new(name, &node, BYSTANDER, PodKind::Connected)?;
        // A client that opens 100,000 connections in a few seconds needs its ports back, all at once: those it must wait for
        // would slow down who asks one address (a service's) more than who asks many (the pods' own), and no path is to blame.
        for ns in [&client, &node, &bystander.ns] {
            ns.set_sysctl("net/ipv4/ip_local_port_range", "1024 65535");
            ns.set_sysctl("net/ipv4/tcp_max_tw_buckets", "0");
        }
        let (dir, bpf) = (TempDir::new(), BpfFs::new());
        let mut world = Self { name: name.to_owned(), pods: Vec::new(), bystander, client, node, dir, bpf };
        world.grow(pods, kind)?;
        Ok(world)
    }

    /// More pods, `count` in all.
    pub fn grow(&mut self, count: usize, kind: PodKind) -> Result<()> {
        for number in self.pods.len() + 1..=count {
            self.pods.push(Pod::new(&self.name, &self.node, number, kind)?);
        }
        Ok(())
    }

    /// A file of the node's.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The connections the node's kernel tracks.
    pub fn tracked(&self) -> Result<u32> {
        // Absent where the module isn't loaded: then there are none.
        let count = self.node.sysctls(&["net/netfilter/nf_conntrack_count".to_owned()]).remove(0);
        Ok(count.map_or(Ok(0), |count| count.parse())?)
    }

    /// Forgets them, so that the next measurement begins like the first.
    pub fn forget_tracked(&self) -> Result<()> {
        if self.tracked()? == 0 {
            return Ok(());
        }
        self.node.cmd("conntrack").arg("-F").output_of("").map(drop)
    }
}
