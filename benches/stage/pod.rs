//! Pods: a namespace and the address a base plugin would have given it.

use std::net::Ipv4Addr;

use anyhow::Result;
use serde_json::{Value, json};

use super::bed::cni::{Container, Environment};
use super::bed::join::Join;
use super::bed::netns::Netns;
use super::world::{GATEWAY_OF_PODS, POD_NET, as_ipv6};

/// How a pod is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodKind {
    /// As `ptp` does it: a veth pair, routed on both sides.
    Connected,
    /// The same by both families.
    Dual,
    /// Not at all; `eth0` is a bridge of its own. For counting calls, where a thousand pods must be made quickly.
    Bare,
    /// Not even that: a base plugin is yet to come.
    Empty,
}

pub struct Pod {
    pub ns: Netns,
    /// The container ID.
    pub id: String,
    /// 1, 2, …
    pub number: usize,
    /// Its own address.
    pub address: Ipv4Addr,
    /// The host veth of its pair.
    pub host: String,
    kind: PodKind,
}

impl Pod {
    /// Pod `number` of the world `world`, whose node is `node`.
    pub fn new(world: &str, node: &Netns, number: usize, kind: PodKind) -> Result<Self> {
        let (ns, id) = (Netns::new(), format!("bench-{world}-{number}"));
        // .0.1 is the node's.
        let offset = u32::try_from(number + 1)?;
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + offset);
        let host = format!("pod{number}");
        let pod = Self { ns, id, number, address, host, kind };
        match kind {
            PodKind::Connected => pod.connect(node)?,
            PodKind::Dual => {
                pod.connect(node)?;
                pod.connect_by_ipv6(node)?;
            }
            PodKind::Bare => drop(pod.ns.ip_lines("link add eth0 type bridge")?),
            PodKind::Empty => {}
        }
        Ok(pod)
    }

    /// The neighbours are permanent on both sides: the kernel keeps 1,024 others (`gc_thresh3`) for all namespaces of the
    /// machine together, and several worlds of hundreds of pods have more.
    fn connect(&self, node: &Netns) -> Result<()> {
        let Self { host, address, ns, .. } = self;
        let [high, low] = u16::try_from(self.number)?.to_be_bytes();
        let [host_mac, pod_mac] = ["02:b0", "02:b1"].map(|start| format!("{start}:00:00:{high:02x}:{low:02x}"));
        node.ip_lines(&format!(
            "link add {host} address {host_mac} type veth peer name eth0 address {pod_mac} netns {}\n\
             addr add {GATEWAY_OF_PODS}/32 dev {host}\nlink set {host} up\nroute add {address}/32 dev {host} scope host\n\
             neigh add {address} lladdr {pod_mac} dev {host} nud permanent\n",
            ns.path()
        ))?;
        ns.ip_lines(&format!(
            "addr add {address}/16 dev eth0 noprefixroute\nlink set eth0 up\n\
             neigh add {GATEWAY_OF_PODS} lladdr {host_mac} dev eth0 nud permanent\n\
             route add {GATEWAY_OF_PODS} dev eth0 scope link src {address}\n\
             route add {POD_NET} via {GATEWAY_OF_PODS} dev eth0 src {address}\n\
             route add default via {GATEWAY_OF_PODS} dev eth0\n"
        ))?;
        Ok(())
    }

    fn connect_by_ipv6(&self, node: &Netns) -> Result<()> {
        let (Self { host, ns, .. }, address, gateway) = (self, as_ipv6(self.address), as_ipv6(GATEWAY_OF_PODS));
        let [high, low] = u16::try_from(self.number)?.to_be_bytes();
        let [host_mac, pod_mac] = ["02:b0", "02:b1"].map(|start| format!("{start}:00:00:{high:02x}:{low:02x}"));
        node.ip_lines(&format!(
            "addr add {gateway}/128 dev {host} nodad\nroute add {address}/128 dev {host}\n\
             neigh add {address} lladdr {pod_mac} dev {host} nud permanent\n"
        ))?;
        ns.ip_lines(&format!(
            "addr add {address}/96 dev eth0 nodad noprefixroute\n\
             neigh add {gateway} lladdr {host_mac} dev eth0 nud permanent\n\
             route add {gateway}/128 dev eth0\nroute add default via {gateway} dev eth0\n"
        ))?;
        Ok(())
    }

    /// A runtime's variables for a call about it.
    pub fn environment(&self, verb: &str) -> Environment {
        let container = Container { id: &self.id, pod: &self.name(), netns: self.ns.path() };
        Environment::about(verb, container, &Join::nothing().namespace("bench"))
    }

    /// What the base plugin has said of it.
    pub fn base_result(&self) -> Value {
        let mut ips = vec![json!({
            "interface": 0, "address": format!("{}/16", self.address), "gateway": GATEWAY_OF_PODS,
        })];
        if self.kind == PodKind::Dual {
            let (address, gateway) = (as_ipv6(self.address), as_ipv6(GATEWAY_OF_PODS));
            ips.push(json!({ "interface": 0, "address": format!("{address}/96"), "gateway": gateway }));
        }
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "sandbox": self.ns.path() }],
            "ips": ips,
        })
    }

    /// Its servers' name: what they answer.
    pub fn name(&self) -> String {
        format!("p{}", self.number)
    }
}
