//! The steps by which the tunnel comes to be as it must be.

use std::net::IpAddr;

use crate::dataplane::Result;
use crate::dataplane::attachment::{self, Namespace, RP_FILTER_LOOSE, side};
use crate::dataplane::ids::{HOST_ADDRESS, TUNNEL_DEVICE, TUNNEL_PORT};
use crate::ebpf::{self, Hook, Programs};
use crate::model::node::NodeId;
use crate::net::link::{self, End, Setting};
use crate::net::nexthop::{self, Nexthop};
use crate::net::route::{self, TableRoute};
use crate::net::{NodeNet, Request, address, filter, neighbour, rule};

use super::former::FORMER_RULE;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The device, new.
    AddLink(NodeId, u32),
    /// A device of ours that can't be changed into the right one, gone.
    DelLink(u32),
    /// The device's MTU.
    SetMtu(u32, u32),
    /// Loose source checks and forwarding, and no IPv6 address.
    Configure(u32),
    /// Its settings of IPv6.
    Settle(attachment::Wrong),
    /// The host veths' address.
    AddAddress(u32),
    /// A program.
    Attach(u32, Hook),
    /// The device goes up.
    Up(u32),
    /// A node's address on the device.
    SetNeighbour(u32, IpAddr, NodeId),
    /// A node's nexthop.
    AddNexthop(Nexthop),
    /// A nexthop that leads elsewhere, or to a node that this one doesn't know.
    DelNexthop(u32),
    /// An earlier build's rule goes.
    DelRule,
    /// And what it had in its table.
    DelRoute(TableRoute),
}

impl Op {
    pub(super) fn take(&self, node: &NodeNet, programs: Option<&Programs>) -> Result<()> {
        match self {
            Self::Settle(settings) => node.set(settings)?,
            other => node.apply(&other.requests(programs)?)?,
        }
        Ok(())
    }

    fn requests(&self, programs: Option<&Programs>) -> ebpf::Result<Vec<Request>> {
        Ok(match self {
            Self::AddLink(own, mtu) => {
                vec![link::add_vxlan(End { name: TUNNEL_DEVICE, mac: own.mac() }, *mtu, TUNNEL_PORT)]
            }
            Self::DelLink(index) => vec![link::del_index(*index)],
            Self::SetMtu(index, mtu) => vec![link::set_mtu(*index, *mtu)],
            Self::Configure(index) => {
                let settings = [(Setting::RpFilter, RP_FILTER_LOOSE), (Setting::Forwarding, 1)];
                vec![link::no_ipv6_addresses(*index), link::configure(*index, &settings)]
            }
            Self::Settle(_) => Vec::new(),
            Self::AddAddress(index) => vec![address::add(*index, HOST_ADDRESS)],
            Self::Attach(index, hook) => {
                let program = programs.and_then(|all| all.iter().find(|program| program.spec.hook == *hook));
                let Some(program) = program else { return Ok(Vec::new()) };
                vec![filter::add_clsact(*index), filter::replace(*index, side(*hook), program.fd()?)]
            }
            Self::Up(index) => vec![link::set_up(*index)],
            Self::SetNeighbour(index, address, id) => vec![neighbour::replace(*index, *address, id.mac())],
            Self::AddNexthop(nexthop) => vec![nexthop::add(*nexthop)],
            Self::DelNexthop(id) => vec![nexthop::del(*id)],
            Self::DelRule => vec![rule::del(FORMER_RULE)],
            Self::DelRoute(route) => vec![route::del(*route)],
        })
    }

    /// What is amiss where this step is needed.
    pub fn finding(&self) -> String {
        match self {
            Self::AddLink(..) => format!("link {TUNNEL_DEVICE} is missing"),
            Self::DelLink(_) => format!("link {TUNNEL_DEVICE} should not be there, or not like this"),
            Self::SetMtu(_, mtu) => format!("{TUNNEL_DEVICE} has another MTU than {mtu}"),
            Self::Configure(_) => format!("{TUNNEL_DEVICE} has other settings"),
            Self::Settle(wrong) => match wrong.first() {
                Some((name, value)) => format!("sysctl {name} is not {value}"),
                None => String::new(),
            },
            Self::AddAddress(_) => format!("address {HOST_ADDRESS} on {TUNNEL_DEVICE} is missing"),
            Self::Attach(_, hook) => format!("the program on {TUNNEL_DEVICE}, {}, is missing", side(*hook)),
            Self::Up(_) => format!("{TUNNEL_DEVICE} is down"),
            Self::SetNeighbour(_, address, _) => format!("neighbour {address} on {TUNNEL_DEVICE} is missing"),
            Self::AddNexthop(nexthop) => format!("nexthop {} via {} is missing", nexthop.id, nexthop.gateway),
            Self::DelNexthop(id) => format!("nexthop {id} leads to no node that is known"),
            Self::DelRule => format!("rule {FORMER_RULE} should not be there"),
            Self::DelRoute(route) => format!("route {route} should not be there"),
        }
    }
}
