//! `viproutectl where`: the replica that has a flow, or would get it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;

use crate::ebpf::{self, FlowId, FlowPlace, Maps};
use crate::model::node::NodeId;
use crate::model::port;
use crate::model::{Family, Port, Transport, VipKey};
use crate::net::sockets::Sockets;
use crate::net::{self, Netns, NodeNet};
use crate::registry::{self, Endpoint, Registry, nodes};

mod begins;

/// A flow to a VIP.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Who asks.
    pub client: SocketAddr,
    /// The VIP and its port.
    pub vip: SocketAddr,
    /// By which protocol.
    pub transport: Transport,
}

/// Where a flow is.
#[derive(Debug, Serialize)]
pub struct Place {
    /// `<namespace>/<name>`.
    pub vip: String,
    /// The VIP's address.
    pub address: IpAddr,
    /// `<address>:<port>`, `[<address>]:<port>` of IPv6.
    pub client: SocketAddr,
    /// The replica.
    pub replica: Replica,
    /// Why that one.
    pub because: Reason,
}

/// The replica that has a flow.
#[derive(Debug, Serialize)]
pub struct Replica {
    /// `<namespace>/<name>` of the pod where the runtime names it, else the container.
    pub pod: String,
    /// The pod's address.
    pub address: IpAddr,
    /// The host veth of its pair.
    pub device: String,
    /// The number that its sockets have in the place of the VIP's port; none: the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The name of the other node that it is, with all its replicas; none: it is a replica here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// What makes a flow a replica's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// A socket of the replica's has the connection.
    Connection,
    /// Its UDP flows stay, and this one began there.
    Sticky,
    /// There is no connection, and the client's flows go there (`sessionAffinity`).
    Affinity,
    /// There is no connection; the VIP's route leads there.
    Route,
    /// There is no connection; the VIP's route leads to another node, and what comes here is for the replicas here (`externalTrafficPolicy: Local`,
    /// `trafficDistribution: PreferSameNode`).
    Local,
    /// There is no connection; the VIP's route leads to one that doesn't serve the port, and of those that do the lot is this one's.
    Lot,
    /// No replica here has the connection, and it was found on another node before.
    Found,
    /// No replica here has the connection, and the VIP's route leads to another node, which chooses among its own.
    Node,
}

/// Why a flow is nowhere.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node doesn't serve it.
    #[error("no VIP on this node has the address {0}")]
    UnknownVip(IpAddr),
    /// No replica takes new connections.
    #[error("no replica of {vip} ({address}) on this node gets new connections, and none has this one")]
    NoReplica {
        /// `<namespace>/<name>`.
        vip: VipKey,
        /// The VIP's address.
        address: IpAddr,
    },
    /// Replicas serve different ports, and none this one.
    #[error("no replica of {vip} that gets new connections serves port {port}")]
    NoServer {
        /// `<namespace>/<name>`.
        vip: VipKey,
        /// The VIP's port.
        port: Port,
    },
    /// The route isn't ours, or leads elsewhere.
    #[error("{address} is not routed to a replica of {vip}: this node sends it out by {device}")]
    Elsewhere {
        /// `<namespace>/<name>`.
        vip: VipKey,
        /// The VIP's address.
        address: IpAddr,
        /// By which device it would leave.
        device: String,
    },
    /// Client and VIP are of two families.
    #[error("{client} and {address} are of two families: expected a client and a VIP of one")]
    Mixed {
        /// The client.
        client: IpAddr,
        /// The VIP's address.
        address: IpAddr,
    },
    /// The VIP has the address and isn't served by it.
    #[error("{address} is kept for {vip}, which is served by {} alone", other(*address).name())]
    Reserved {
        /// `<namespace>/<name>`.
        vip: VipKey,
        /// That address.
        address: IpAddr,
    },
    /// A new flow could go to several.
    #[error(
        "no replica of {vip} has this connection; to which one a new connection{of} would go, the kernel doesn't tell",
        of = if *is_own { " of the node's own" } else { " of IPv6" }
    )]
    Untold {
        /// `<namespace>/<name>`.
        vip: VipKey,
        /// The client is the node itself.
        is_own: bool,
    },
    /// The node has no way to that client.
    #[error("the node has no route to the client {0}")]
    UnknownClient(IpAddr),
    /// The kernel.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The flow owner's maps.
    #[error(transparent)]
    Bpf(#[from] ebpf::Error),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
}

/// Finds the replica of a flow: the one that has the connection, else the one that the kernel would choose.
pub fn find(registry: &Registry, flow: Flow) -> Result<Place, Error> {
    if flow.client.is_ipv4() != flow.vip.is_ipv4() {
        return Err(Error::Mixed { client: flow.client.ip(), address: flow.vip.ip() });
    }
    let net = NodeNet::open()?;
    let (vip, address) = (vip_of(registry, flow.vip.ip())?, flow.vip.ip());
    let record = registry.vip_record(&vip)?;
    if record.as_ref().is_some_and(|record| record.unserved_addresses().any(|reserved| reserved == address)) {
        return Err(Error::Reserved { vip, address });
    }
    let memory = record.and_then(|record| record.flow_owner).map(|dir| Memory::open(dir, flow)).transpose()?.flatten();
    // One whose file is damaged is left out: status reports it.
    let endpoints = registry.endpoints(&vip)?.into_iter().filter_map(|(name, endpoint)| Some((name, endpoint.ok()?)));
    let replicas: Vec<Named> = endpoints.collect();
    let scene = Scene { net: &net, vip: &vip, flow, replicas: &replicas, memory };
    let known = match flow.transport {
        Transport::Tcp => match scene.having()? {
            Some(replica) => Some((replica, Reason::Connection)),
            None => scene.found_far()?.map(|replica| (replica, Reason::Found)),
        },
        Transport::Udp => scene.kept()?.map(|replica| (replica, Reason::Sticky)),
    };
    let (replica, because) = match known {
        Some(known) => known,
        None => scene.begins()?,
    };
    let (name, endpoint) = replica;
    let is_local = endpoint.backend.is_local();
    let is_by_route = matches!(because, Reason::Route | Reason::Lot);
    let because = if is_by_route && !is_local { Reason::Node } else { because };
    let own = if is_local { endpoint.address() } else { endpoint.node };
    let port = at_pod(endpoint, flow).filter(|port| is_local && *port != flow.vip.port());
    let node = if is_local { None } else { Some(node_name(registry, endpoint.node)) };
    let replica = Replica { pod: endpoint.pod_name(name), address: own, device: endpoint.device.clone(), port, node };
    Ok(Place { vip: vip.to_string(), address, client: flow.client, replica, because })
}

/// What the flow owner remembers.
struct Memory {
    dir: PathBuf,
    maps: Maps,
    /// The flow as its maps have it.
    flow: FlowId,
}

impl Memory {
    /// `None`: its programs aren't there, or know nothing of the VIP.
    fn open(dir: PathBuf, flow: Flow) -> Result<Option<Self>, Error> {
        let Some(maps) = Maps::open(&dir)? else { return Ok(None) };
        let Some(vip) = maps.key(flow.vip.ip())? else { return Ok(None) };
        Ok(Some(Self { dir, maps, flow: FlowId { client: flow.client, vip, vip_port: flow.vip.port() } }))
    }
}

/// A flow, and what is recorded of its VIP.
struct Scene<'a> {
    net: &'a NodeNet,
    vip: &'a VipKey,
    flow: Flow,
    replicas: &'a [Named],
    /// `None`: the VIP does without the flow owner.
    memory: Option<Memory>,
}

/// The family that an address isn't of.
fn other(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V6 } else { Family::V4 }
}

fn vip_of(registry: &Registry, address: IpAddr) -> Result<VipKey, Error> {
    let mut damage = None;
    for key in registry.vips()? {
        match registry.vip_record(&key) {
            Ok(Some(record)) if record.all_addresses().any(|own| own == address) => return Ok(key),
            Ok(_) => {}
            Err(e) => damage = Some(e),
        }
    }
    Err(damage.map_or(Error::UnknownVip(address), Error::Registry))
}

/// Another node's name, as far as it is known; else its id.
fn node_name(registry: &Registry, id: IpAddr) -> String {
    let cluster = nodes::or_alone(nodes::load_others(registry));
    let known = cluster.as_ref().and_then(|cluster| cluster.by_address(id));
    known.map_or_else(|| id.to_string(), |node| node.name.clone())
}

/// A replica, by its attachment's name.
type Named = (String, Endpoint);

impl<'a> Scene<'a> {
    /// The replica with the connection: also one that gets no new ones.
    fn having(&self) -> Result<Option<&'a Named>, Error> {
        let Flow { client, vip, .. } = self.flow;
        for replica in self.replicas {
            let Some(port) = at_pod(&replica.1, self.flow) else { continue };
            let Some(netns) = Netns::open_if_alive(&replica.1.netns)? else { continue };
            if Sockets::open(&netns)?.has_connection(SocketAddr::new(vip.ip(), port), client)? {
                return Ok(Some(replica));
            }
        }
        Ok(None)
    }

    /// The replica that a UDP flow stays with, where UDP flows do (`viproute.io/udp-sticky`).
    fn kept(&self) -> Result<Option<&'a Named>, Error> {
        let Some(memory) = &self.memory else { return Ok(None) };
        Ok(match ebpf::sticky(&memory.dir, memory.flow)? {
            None => None,
            Some(FlowPlace::Replica(link)) => {
                self.replicas.iter().find(|(_, endpoint)| endpoint.udp_sticky && endpoint.ifindex == Some(link))
            }
            Some(FlowPlace::Node(id)) => of_node(self.replicas, id),
        })
    }

    /// The other node where a packet of the connection was found to belong before.
    fn found_far(&self) -> Result<Option<&'a Named>, Error> {
        let Some(memory) = &self.memory else { return Ok(None) };
        Ok(match ebpf::hint(&memory.dir, memory.flow)? {
            Some(FlowPlace::Node(id)) => of_node(self.replicas, id),
            _ => None,
        })
    }
}

/// The number by which a replica's sockets have the flow; `None`: it doesn't serve it.
fn at_pod(endpoint: &Endpoint, flow: Flow) -> Option<u16> {
    let asked = Port { number: flow.vip.port(), transport: flow.transport };
    port::at_pod(endpoint.known_ports(), asked).map(|port| port.number)
}

fn of_node(replicas: &[Named], id: NodeId) -> Option<&Named> {
    replicas.iter().find(|(_, endpoint)| !endpoint.backend.is_local() && endpoint.node == IpAddr::V4(id.0))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vip, client, replica: Replica { pod, address, device, port, node }, because, .. } = self;
        let port = port.map_or_else(String::new, |port| format!(", port {port}"));
        write!(f, "{vip} from {client}: {pod} ({address}{port}, {device}), ")?;
        f.write_str(match because {
            Reason::Connection => "which has the connection",
            Reason::Sticky => "where the flow began and stays",
            Reason::Found => "where the connection was found before",
            Reason::Affinity => "where this client's flows go",
            Reason::Local => "which is here, where it is kept",
            Reason::Route | Reason::Node => "where the route leads",
            Reason::Lot => "by lot among those that serve the port",
        })?;
        match node {
            Some(node) => write!(f, ": `viproutectl where` on {node} names the replica"),
            None => Ok(()),
        }
    }
}
