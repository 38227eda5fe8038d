//! Where a flow would begin that no replica has.

use std::net::IpAddr;

use crate::dataplane::{ids, owner};
use crate::ebpf::{self, Asked, ByPort, FlowPlace, Server};
use crate::model::address::ipv4;
use crate::model::node::NodeId;
use crate::model::{Backend, Family, Port};
use crate::net::route::{self, Hop, Packet};
use crate::net::{NodeNet, address, link};
use crate::registry::{Endpoint, State};

use super::{Error, Flow, Memory, Named, Reason, Scene, at_pod, of_node};

impl<'a> Scene<'a> {
    /// Where what begins the flow goes.
    pub(super) fn begins(&self) -> Result<(&'a Named, Reason), Error> {
        if let Some(replica) = self.of_client()? {
            return Ok((replica, Reason::Affinity));
        }
        let chosen = match self.chosen() {
            Err(Error::Untold { vip, is_own }) => {
                let only = self.only_server().ok_or(Error::Untold { vip, is_own })?;
                return Ok((only, Reason::Lot));
            }
            chosen => chosen?,
        };
        let Some(memory) = &self.memory else { return Ok((chosen, Reason::Route)) };
        let here = self.kept_here(memory)?;
        let (chosen, reason) = match here {
            Some(here) if !chosen.1.backend.is_local() => (here, Reason::Local),
            _ => (chosen, Reason::Route),
        };
        let drawn = self.drawn(memory, (chosen, here.is_some()))?;
        Ok(drawn.map_or((chosen, reason), |drawn| (drawn, Reason::Lot)))
    }

    /// The replica, or the other node, where the client's flows to this port go.
    fn of_client(&self) -> Result<Option<&'a Named>, Error> {
        let Some(memory) = &self.memory else { return Ok(None) };
        let place = ebpf::client(&memory.dir, memory.flow, self.flow.transport.protocol(), owner::now())?;
        Ok(match place {
            None => None,
            Some(FlowPlace::Node(id)) => of_node(self.replicas, id),
            Some(FlowPlace::Replica(link)) => {
                let serves = |endpoint: &Endpoint| at_pod(endpoint, self.flow).is_some();
                let takes_new = |endpoint: &Endpoint| endpoint.state != State::Draining && serves(endpoint);
                self.local(link).filter(|(_, endpoint)| takes_new(endpoint))
            }
        })
    }

    /// The replica behind that host veth.
    fn local(&self, link: u32) -> Option<&'a Named> {
        self.replicas.iter().find(|(_, endpoint)| endpoint.backend.is_local() && endpoint.ifindex == Some(link))
    }

    /// The ready replica that serves the port, where there is one alone: wherever the flow comes to, it goes on to that.
    fn only_server(&self) -> Option<&'a Named> {
        let serves = |endpoint: &Endpoint| endpoint.state == State::Ready && at_pod(endpoint, self.flow).is_some();
        let mut serving = self.replicas.iter().filter(|(_, endpoint)| serves(endpoint));
        let only = serving.next().filter(|(_, endpoint)| endpoint.backend.is_local());
        only.filter(|_| serving.next().is_none() && self.memory.is_some())
    }

    /// The replica here that gets the flow where another node's wouldn't; `None`: another node's would do, or none here is ready.
    fn kept_here(&self, memory: &Memory) -> Result<Option<&'a Named>, Error> {
        let Some(known) = memory.maps.known(memory.flow.vip)? else { return Ok(None) };
        let is_from_outside = match input(self.net, self.flow.client.ip())? {
            Some(device) => ebpf::uplinks(&memory.dir)?.contains(&device),
            None => false,
        };
        if !(known.are_all_kept_here || known.is_kept_here && is_from_outside) {
            return Ok(None);
        }
        let members = &known.members;
        let begin = asked(self.flow).begins_at(members.len());
        let mut around = members.iter().cycle().skip(begin).take(members.len());
        Ok(around.find(|member| !member.is_draining()).and_then(|member| self.local(member.ifindex)))
    }

    /// The replica that the flow's first packet would be sent to.
    ///
    /// For a flow of the node's own there is no asking where there is a choice: the kernel looks up the route of a local
    /// socket without a packet, and hashes the flow's ports and addresses once; `RTM_GETROUTE` makes up a packet, whose hash
    /// it hashes once more, as a forwarded packet's (`fib_multipath_custom_hash_fl4` and `…_skb`; measured on Linux 6.18). Of
    /// IPv6 it makes up none, and so doesn't know a forwarded packet's (`inet6_rtm_getroute`, `rt6_multipath_custom_hash_fl6`).
    fn chosen(&self) -> Result<&'a Named, Error> {
        let Flow { client, vip: to, transport } = self.flow;
        let (vip, address, from) = (self.vip.clone(), to.ip(), client.ip());
        let input = input(self.net, from)?;
        let choice = self.replicas.iter().filter(|(_, endpoint)| endpoint.state == State::Ready).count();
        let is_own = input.is_none();
        if choice > 1 && (is_own || address.is_ipv6()) {
            return Err(Error::Untold { vip, is_own });
        }
        let ports = (transport.protocol(), client.port(), to.port());
        let packet = Packet { to: address, from: Some(from), input, ports: Some(ports) };
        let Some(Hop { gateway, index: Some(index) }) = route::lookup(self.net, packet)?.map(|way| way.hop) else {
            return Err(Error::NoReplica { vip, address });
        };
        // All other nodes are behind one device.
        let is_it = |endpoint: &Endpoint| match endpoint.backend {
            Backend::Local => endpoint.ifindex == Some(index),
            Backend::Remote(peer) => {
                endpoint.ifindex == Some(index) && gateway.is_some_and(|via| is_peer(peer.address, via))
            }
        };
        if let Some(replica) = self.replicas.iter().find(|(_, endpoint)| is_it(endpoint)) {
            return Ok(replica);
        }
        let device = link::by_index(self.net, index)?.map_or_else(|| format!("link {index}"), |link| link.name);
        Err(Error::Elsewhere { vip, address, device })
    }

    /// Where what begins the flow goes on to from the replica, or node, that it has come to: one that serves its port; `is_kept`: one here, if
    /// there is one. `None`: it stays.
    fn drawn(&self, memory: &Memory, (chosen, is_kept): (&'a Named, bool)) -> Result<Option<&'a Named>, Error> {
        let by_port = memory.maps.servers(memory.flow.vip)?;
        let (vip, flow) = (self.vip, self.flow);
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
            0 => of_node(self.replicas, NodeId(appointed.node.into())),
            link => self.local(link),
        };
        replica.map(Some).ok_or_else(no_server)
    }
}

fn asked(flow: Flow) -> Asked {
    Asked { client: flow.client, port: flow.vip.port(), protocol: flow.transport.protocol() }
}

/// Whether a nexthop's gateway is another node's: its address on the tunnel's device, or where VIPs have IPv6 its second one there.
fn is_peer(peer: IpAddr, gateway: IpAddr) -> bool {
    gateway == peer || ipv4(peer).is_some_and(|id| gateway == IpAddr::V6(ids::peer_link_local(NodeId(id))))
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
