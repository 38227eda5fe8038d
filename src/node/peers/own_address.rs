//! The address by which the others hear this node, and where its tunnel ends.
//!
//! All nodes of a cluster speak by one family: that of the seeds. Of IPv6 an address counts that lasts: no temporary one (RFC 8981), by which
//! the node would be another one each day.

use std::net::IpAddr;

use crate::dataplane::ids::HOST_ADDRESS;
use crate::dataplane::node::source;
use crate::model::Family;
use crate::net::{self, NodeNet, address, route};
use crate::node::config::Membership;
use crate::with_causes;

/// This node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnAddresses {
    /// Where the gossip is heard.
    pub gossip: IpAddr,
    /// Where the tunnel ends.
    pub tunnel: IpAddr,
}

impl OwnAddresses {
    /// As they are now. An error: why there are none. `current`: those in use. One of IPv6 stays while the node has it: a router advertisement
    /// that deprecates it, or brings a lower one, makes no other node of this.
    pub fn find(net: &NodeNet, membership: &Membership, current: Option<Self>) -> Result<Self, String> {
        if let Some(current) = current.filter(|current| current.gossip.is_ipv6())
            && route::is_local(net, current.gossip).map_err(|error| with_causes(&error))?
        {
            return Ok(current);
        }
        let gossip = gossip(net, membership)?;
        let tunnel = membership.tunnel.unwrap_or(gossip);
        let family = Family::of(gossip);
        if Family::of(tunnel) == family {
            return Ok(Self { gossip, tunnel });
        }
        let family = family.name();
        Err(format!(
            "membership.tunnel = {tunnel}: expected an address of {family}, by which the gossip is heard ({gossip})"
        ))
    }

    /// What VIPs' routes of IPv4 have as their source here: where the node is heard, if that is such an address.
    pub fn source_of_vips(self, net: &NodeNet) -> net::Result<IpAddr> {
        if self.gossip.is_ipv4() {
            return Ok(self.gossip);
        }
        let best = source::best(net, route::default_way_by_packet(net)?.as_ref())?;
        Ok(best.unwrap_or(HOST_ADDRESS))
    }
}

fn gossip(net: &NodeNet, membership: &Membership) -> Result<IpAddr, String> {
    let failed = |error: net::Error| with_causes(&error);
    if let Some(listen) = membership.listen {
        let is_here = route::is_local(net, listen).map_err(failed)?;
        return if is_here {
            Ok(listen)
        } else {
            Err(format!("membership.listen = {listen} is no address of this node"))
        };
    }
    let families: &[Family] = match membership.family() {
        Some(Family::V4) => &[Family::V4],
        Some(Family::V6) => &[Family::V6],
        None => &Family::ALL,
    };
    for family in families {
        let found = match family {
            Family::V4 => source::reached(net),
            Family::V6 => of_ipv6(net, membership),
        };
        if let Some(found) = found.map_err(failed)? {
            return Ok(found);
        }
    }
    if let [asked] = families
        && let Some(other) = of_another_family(net, *asked).map_err(failed)?
    {
        return Err(speaks_another(membership, *asked, other));
    }
    let wanted = match families {
        [Family::V4] => "IPv4 address",
        [Family::V6] => "IPv6 address that lasts, on the link that leads to the seeds",
        _ => "IPv4 or IPv6 address",
    };
    Err(format!("the node has no {wanted} (membership.listen names one)"))
}

/// An address of a node that has none of that family.
fn of_another_family(net: &NodeNet, asked: Family) -> net::Result<Option<IpAddr>> {
    let is_of_node = |at: &address::Address| at.global && at.address != HOST_ADDRESS;
    let all = Family::ALL.map(|family| address::list(net, family, None));
    let all = all.into_iter().collect::<net::Result<Vec<_>>>()?.concat();
    let all: Vec<IpAddr> = all.iter().filter(|at| is_of_node(at)).map(|at| at.address).collect();
    let has_it = all.iter().any(|address| Family::of(*address) == asked);
    Ok(all.first().filter(|_| !has_it).copied())
}

fn speaks_another(membership: &Membership, asked: Family, other: IpAddr) -> String {
    let (asked, family) = (asked.name(), Family::of(other).name());
    let key = if membership.seed_addresses().next().is_some() { "seeds" } else { "tunnel" };
    format!(
        "membership.{key} is of {asked}, and the node has addresses of {family} alone ({other}): all nodes speak by one family"
    )
}

/// A seed that is this node; else an address of the link that leads to the others.
fn of_ipv6(net: &NodeNet, membership: &Membership) -> net::Result<Option<IpAddr>> {
    let seeds: Vec<IpAddr> = membership.seed_addresses().collect();
    for seed in &seeds {
        if route::is_local(net, *seed)? {
            return Ok(Some(*seed));
        }
    }
    let mut ways = seeds.iter().map(|seed| route::lookup(net, route::Packet::to(*seed)));
    let way = ways.find_map(Result::transpose).transpose()?;
    let default = || Ok::<_, net::Error>(route::default_way_of(net, Family::V6)?.and_then(|way| way.hop.index));
    let (link, source) = way.map_or((None, None), |way| (way.hop.index, way.source));
    let Some(link) = link.map_or_else(default, |link| Ok(Some(link)))? else { return Ok(None) };
    let addresses = address::list(net, Family::V6, Some(link))?;
    let lasting = || addresses.iter().filter(|found| found.global && found.lasts).map(|found| found.address);
    // What the kernel itself sends from, where that lasts: others know the tunnel's packets by it.
    Ok(source.filter(|source| lasting().any(|found| found == *source)).or_else(|| lasting().min()))
}
