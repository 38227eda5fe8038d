//! `viproutectl where`: the replica that has a flow, or would get it.

use std::fmt;
use std::net::{IpAddr, SocketAddrV4};
use std::path::Path;

use serde::Serialize;

use crate::dataplane::{ids, owner};
use crate::ebpf::{self, Asked, ByPort, FlowPlace, Maps, Server};
use crate::model::address::ipv4;
use crate::model::node::NodeId;
use crate::model::port;
use crate::model::{Backend, Family, Port, Transport, VipKey};
use crate::net::route::{self, Hop, Packet};
use crate::net::sockets::Sockets;
use crate::net::{self, Netns, NodeNet, address, link};
use crate::registry::{self, Endpoint, Registry, State, nodes};

/// A flow to a VIP.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Who asks.
    pub client: SocketAddrV4,
    /// The VIP and its port.
    pub vip: SocketAddrV4,
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
    /// `<address>:<port>`.
    pub client: SocketAddrV4,
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
    /// A new flow of the node's own could go to several.
    #[error(
        "no replica of {vip} has this connection; to which one a new connection of the node's own would go, the kernel \
         doesn't tell"
    )]
    Untold {
        /// `<namespace>/<name>`.
        vip: VipKey,
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
    let net = NodeNet::open()?;
    let vip = vip_of(registry, IpAddr::V4(*flow.vip.ip()))?;
    // One whose file is damaged is left out: status reports it.
    let endpoints = registry.endpoints(&vip)?.into_iter().filter_map(|(name, endpoint)| Some((name, endpoint.ok()?)));
    let replicas: Vec<Named> = endpoints.collect();
    let known = match flow.transport {
        Transport::Tcp => match having(&replicas, flow)? {
            Some(replica) => Some((replica, Reason::Connection)),
            None => found_far(registry, &vip, &replicas, flow)?.map(|replica| (replica, Reason::Found)),
        },
        Transport::Udp => kept(registry, &vip, &replicas, flow)?.map(|replica| (replica, Reason::Sticky)),
    };
    let (replica, because) = match known {
        Some(known) => known,
        None => begins(&net, registry, (&vip, &replicas), flow)?,
    };
    let (name, endpoint) = replica;
    let is_local = endpoint.backend.is_local();
    let is_by_route = matches!(because, Reason::Route | Reason::Lot);
    let because = if is_by_route && !is_local { Reason::Node } else { because };
    let address = if is_local { endpoint.address() } else { endpoint.node };
    let port = at_pod(endpoint, flow).filter(|port| is_local && *port != flow.vip.port());
    let node = if is_local { None } else { Some(node_name(registry, endpoint.node)) };
    let replica = Replica { pod: endpoint.pod_name(name), address, device: endpoint.device.clone(), port, node };
    Ok(Place { vip: vip.to_string(), address: IpAddr::V4(*flow.vip.ip()), client: flow.client, replica, because })
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

/// The replica with the connection: also one that gets no new ones.
fn having(replicas: &[Named], flow: Flow) -> Result<Option<&Named>, Error> {
    for replica in replicas {
        let Some(port) = at_pod(&replica.1, flow) else { continue };
        let Some(netns) = Netns::open_if_alive(&replica.1.netns)? else { continue };
        let local = SocketAddrV4::new(*flow.vip.ip(), port);
        if Sockets::open(&netns)?.has_connection(local.into(), flow.client.into())? {
            return Ok(Some(replica));
        }
    }
    Ok(None)
}

/// The number by which a replica's sockets have the flow; `None`: it doesn't serve it.
fn at_pod(endpoint: &Endpoint, flow: Flow) -> Option<u16> {
    let asked = Port { number: flow.vip.port(), transport: flow.transport };
    port::at_pod(endpoint.known_ports(), asked).map(|port| port.number)
}

/// The replica that a UDP flow stays with, where UDP flows do (`viproute.io/udp-sticky`).
fn kept<'a>(registry: &Registry, vip: &VipKey, replicas: &'a [Named], flow: Flow) -> Result<Option<&'a Named>, Error> {
    let Some(dir) = registry.vip_record(vip)?.and_then(|record| record.flow_owner) else { return Ok(None) };
    Ok(match ebpf::sticky(&dir, flow.client, flow.vip)? {
        None => None,
        Some(FlowPlace::Replica(link)) => {
            replicas.iter().find(|(_, endpoint)| endpoint.udp_sticky && endpoint.ifindex == Some(link))
        }
        Some(FlowPlace::Node(id)) => of_node(replicas, id),
    })
}

/// The other node where a packet of the connection was found to belong before.
fn found_far<'a>(
    registry: &Registry,
    vip: &VipKey,
    replicas: &'a [Named],
    flow: Flow,
) -> Result<Option<&'a Named>, Error> {
    let Some(dir) = registry.vip_record(vip)?.and_then(|record| record.flow_owner) else { return Ok(None) };
    Ok(match ebpf::hint(&dir, flow.client, flow.vip)? {
        Some(FlowPlace::Node(id)) => of_node(replicas, id),
        _ => None,
    })
}

fn of_node(replicas: &[Named], id: NodeId) -> Option<&Named> {
    replicas.iter().find(|(_, endpoint)| !endpoint.backend.is_local() && endpoint.node == IpAddr::V4(id.0))
}

/// Where what begins the flow goes.
fn begins<'a>(
    net: &NodeNet,
    registry: &Registry,
    (vip, replicas): (&VipKey, &'a [Named]),
    flow: Flow,
) -> Result<(&'a Named, Reason), Error> {
    let dir = registry.vip_record(vip)?.and_then(|record| record.flow_owner);
    if let Some(dir) = &dir
        && let Some(replica) = of_client(dir, replicas, flow)?
    {
        return Ok((replica, Reason::Affinity));
    }
    let chosen = chosen(net, vip, replicas, flow)?;
    let Some(maps) = dir.as_deref().map(Maps::open).transpose()?.flatten() else { return Ok((chosen, Reason::Route)) };
    let here = match &dir {
        Some(dir) => kept_here(net, (&maps, dir), replicas, flow)?,
        None => None,
    };
    let (chosen, reason) = match here {
        Some(here) if !chosen.1.backend.is_local() => (here, Reason::Local),
        _ => (chosen, Reason::Route),
    };
    Ok(drawn((&maps, vip), replicas, flow, (chosen, here.is_some()))?
        .map_or((chosen, reason), |drawn| (drawn, Reason::Lot)))
}

/// The replica, or the other node, where the client's flows to this port go.
fn of_client<'a>(dir: &Path, replicas: &'a [Named], flow: Flow) -> Result<Option<&'a Named>, Error> {
    let number = u32::from(flow.transport.protocol()) << 16 | u32::from(flow.vip.port());
    let place = ebpf::client(dir, (*flow.client.ip(), *flow.vip.ip()), number, owner::now())?;
    Ok(match place {
        None => None,
        Some(FlowPlace::Node(id)) => of_node(replicas, id),
        Some(FlowPlace::Replica(link)) => {
            let is_it = |endpoint: &Endpoint| endpoint.backend.is_local() && endpoint.ifindex == Some(link);
            let takes_new = |endpoint: &Endpoint| endpoint.state != State::Draining && at_pod(endpoint, flow).is_some();
            replicas.iter().find(|(_, endpoint)| is_it(endpoint) && takes_new(endpoint))
        }
    })
}

/// The replica here that gets the flow where another node's wouldn't; `None`: another node's would do, or none here is ready.
fn kept_here<'a>(
    net: &NodeNet,
    (maps, dir): (&Maps, &Path),
    replicas: &'a [Named],
    flow: Flow,
) -> Result<Option<&'a Named>, Error> {
    let Some(known) = maps.known(*flow.vip.ip())? else { return Ok(None) };
    let is_from_outside = match input(net, IpAddr::V4(*flow.client.ip()))? {
        Some(device) => ebpf::uplinks(dir)?.contains(&device),
        None => false,
    };
    if !(known.are_all_kept_here || known.is_kept_here && is_from_outside) {
        return Ok(None);
    }
    let members = &known.members;
    let begin = asked(flow).begins_at(members.len());
    let mut around = members.iter().cycle().skip(begin).take(members.len());
    let member = around.find(|member| !member.is_draining());
    let is_it = |endpoint: &Endpoint| member.is_some_and(|member| endpoint.ifindex == Some(member.ifindex));
    Ok(replicas.iter().find(|(_, endpoint)| endpoint.backend.is_local() && is_it(endpoint)))
}

fn asked(flow: Flow) -> Asked {
    Asked { client: flow.client, port: flow.vip.port(), protocol: flow.transport.protocol() }
}

/// The replica that the flow's first packet would be sent to.
///
/// For a flow of the node's own there is no asking where there is a choice: the kernel looks up the route of a local
/// socket without a packet, and hashes the flow's ports and addresses once; `RTM_GETROUTE` makes up a packet, whose hash
/// it hashes once more, as a forwarded packet's (`fib_multipath_custom_hash_fl4` and `…_skb`; measured on Linux 6.18).
fn chosen<'a>(net: &NodeNet, vip: &VipKey, replicas: &'a [Named], flow: Flow) -> Result<&'a Named, Error> {
    let (vip, address) = (vip.clone(), IpAddr::V4(*flow.vip.ip()));
    let ports = (flow.transport.protocol(), flow.client.port(), flow.vip.port());
    let from = IpAddr::V4(*flow.client.ip());
    let input = input(net, from)?;
    let choice = replicas.iter().filter(|(_, endpoint)| endpoint.state == State::Ready).count();
    if input.is_none() && choice > 1 {
        return Err(Error::Untold { vip });
    }
    let packet = Packet { to: address, from: Some(from), input, ports: Some(ports) };
    let Some(Hop { gateway, index: Some(index) }) = route::lookup(net, packet)?.map(|way| way.hop) else {
        return Err(Error::NoReplica { vip, address });
    };
    // All other nodes are behind one device.
    let is_it = |endpoint: &Endpoint| match endpoint.backend {
        Backend::Local => endpoint.ifindex == Some(index),
        Backend::Remote(peer) => {
            endpoint.ifindex == Some(index) && gateway.is_some_and(|via| is_peer(peer.address, via))
        }
    };
    if let Some(replica) = replicas.iter().find(|(_, endpoint)| is_it(endpoint)) {
        return Ok(replica);
    }
    let device = link::by_index(net, index)?.map_or_else(|| format!("link {index}"), |link| link.name);
    Err(Error::Elsewhere { vip, address, device })
}

/// Whether a nexthop's gateway is another node's: its address on the tunnel's device, or where VIPs have IPv6 its second one there.
fn is_peer(peer: IpAddr, gateway: IpAddr) -> bool {
    gateway == peer || ipv4(peer).is_some_and(|id| gateway == IpAddr::V6(ids::peer_link_local(NodeId(id))))
}

/// Where what begins the flow goes on to from the replica, or node, that it has come to: one that serves its port; `is_kept`: one here, if there
/// is one. `None`: it stays.
fn drawn<'a>(
    (maps, vip): (&Maps, &VipKey),
    replicas: &'a [Named],
    flow: Flow,
    (chosen, is_kept): (&'a Named, bool),
) -> Result<Option<&'a Named>, Error> {
    let by_port = maps.servers(*flow.vip.ip())?;
    let port = Port { number: flow.vip.port(), transport: flow.transport };
    let mut listed = chosen.1.known_ports().map(|map| map.port).peekable();
    let serves = chosen.1.backend.is_local() && (listed.peek().is_none() || listed.any(|own| own == port));
    if by_port.is_empty() || serves {
        return Ok(None);
    }
    let via = match (chosen.1.backend, chosen.1.node) {
        (Backend::Remote(_), IpAddr::V4(id)) => Some(NodeId(id)),
        _ => None,
    };
    let no_server = || Error::NoServer { vip: vip.clone(), port };
    let here = is_kept.then(|| ebpf::appointed(&only_here(&by_port), &asked(flow), via)).flatten();
    let appointed = here.or_else(|| ebpf::appointed(&by_port, &asked(flow), via)).ok_or_else(no_server)?;
    let replica = match appointed.ifindex {
        0 => of_node(replicas, NodeId(appointed.node.into())),
        link => replicas.iter().find(|(_, endpoint)| endpoint.backend.is_local() && endpoint.ifindex == Some(link)),
    };
    replica.map(Some).ok_or_else(no_server)
}

fn only_here(by_port: &ByPort) -> ByPort {
    let here = |servers: &Vec<Server>| servers.iter().filter(|server| server.ifindex != 0).copied().collect();
    by_port.iter().map(|(number, servers)| (*number, here(servers))).collect()
}

/// The device a client's packets come in by: the one its answers leave by. `None`: the client is the node itself.
fn input(net: &NodeNet, client: IpAddr) -> Result<Option<u32>, Error> {
    if address::list(net, Family::of(client), None)?.iter().any(|own| own.address == client) {
        return Ok(None);
    }
    let way = route::lookup(net, Packet::to(client))?;
    way.and_then(|way| way.hop.index).map(Some).ok_or(Error::UnknownClient(client))
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
