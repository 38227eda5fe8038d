//! The node's own address: `src` of its VIPs' routes. One that is no local address can't be that (`fib_valid_prefsrc`), and with
//! an address the kernel drops the routes that have it as their source (`fib_sync_down_addr`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::dataplane::ids::HOST_ADDRESS;
use crate::model::Family;
use crate::net::link::{self, Link};
use crate::net::route::{self, Way};
use crate::net::{NodeNet, Result, address};

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// Those of the addresses asked about that are local.
    pub local: BTreeSet<IpAddr>,
    /// The address that is the node's best; none where all of them are local, and none stands in for another.
    pub best: Option<IpAddr>,
}

impl Have {
    /// Reads it, about these addresses. While there is no default route, the best address is one of `link`, which led to the
    /// gateways before: any other may be a pod's gateway.
    pub fn read(node: &NodeNet, about: &BTreeSet<IpAddr>, link: Option<u32>) -> Result<Self> {
        let mut local = BTreeSet::new();
        for address in about {
            if route::is_local(node, *address)? {
                local.insert(*address);
            }
        }
        // Only then it is searched for, among all routes of table main.
        let is_searched = local.len() < about.len() || about.contains(&HOST_ADDRESS);
        let best = if is_searched { best_by(node, link)? } else { None };
        Ok(Self { local, best })
    }
}

fn best_by(node: &NodeNet, link: Option<u32>) -> Result<Option<IpAddr>> {
    if let Some(way) = route::default_way(node)? {
        return best(node, Some(&way));
    }
    let of_link = link.map_or(Ok(None), |index| first_address(node, Some(index)))?;
    of_link.map_or_else(|| of_ipv6_uplink(node), |found| Ok(Some(found)))
}

/// The source of the default route; failing that, the first global address of its device. Without such a route that of the uplink of IPv6, or
/// of the first device that has one.
pub fn best(node: &NodeNet, way: Option<&Way>) -> Result<Option<IpAddr>> {
    if let Some(source) = way.and_then(|way| way.source) {
        return Ok(Some(source));
    }
    let index = way.and_then(|way| way.hop.index);
    if index.is_none()
        && let Some(found) = of_ipv6_uplink(node)?
    {
        return Ok(Some(found));
    }
    let first = first_address(node, index)?;
    // What else the node sends is of IPv6.
    let speaks_ipv6 = || address::list(node, Family::V6, None).map(|all| all.iter().any(|address| address.global));
    if first.is_none() && speaks_ipv6()? { Ok(Some(HOST_ADDRESS)) } else { Ok(first) }
}

/// Of a node whose default route is of IPv6 alone: an address of that device, or of another one that leads to no pod, whose gateway it would be and
/// go with it; where there is none, the one that the node's end of each pair and of the tunnel has.
fn of_ipv6_uplink(node: &NodeNet) -> Result<Option<IpAddr>> {
    let Some(index) = route::default_way_of(node, Family::V6)?.and_then(|way| way.hop.index) else { return Ok(None) };
    if let Some(found) = first_address(node, Some(index))? {
        return Ok(Some(found));
    }
    let leads_to_pod = |link: &Link| link.peer_netns.is_some();
    let pods: BTreeSet<u32> =
        link::list(node)?.iter().filter(|link| leads_to_pod(link)).map(|link| link.index).collect();
    let addresses = address::list(node, Family::V4, None)?;
    let of_the_node = addresses.iter().filter(|at| is_of_node(at) && !pods.contains(&at.index));
    Ok(Some(of_the_node.min_by_key(|at| at.index).map_or(HOST_ADDRESS, |at| at.address)))
}

/// An address of IPv4 by which others reach the node: the source of the default route, or the first address of its device; without such a
/// route the first one of any.
pub fn reached(node: &NodeNet) -> Result<Option<IpAddr>> {
    let way = route::default_way(node)?;
    let source = way.as_ref().and_then(|way| way.source);
    source.map_or_else(|| first_address(node, way.and_then(|way| way.hop.index)), |source| Ok(Some(source)))
}

fn is_of_node(address: &address::Address) -> bool {
    address.global && address.address != HOST_ADDRESS
}

fn first_address(node: &NodeNet, index: Option<u32>) -> Result<Option<IpAddr>> {
    let addresses = address::list(node, Family::V4, index)?;
    Ok(addresses.iter().filter(|at| is_of_node(at)).min_by_key(|at| at.index).map(|at| at.address))
}

/// What a VIP's record must have as its node's address; none: what it has. While the node has no address at all, nothing
/// better is known. The address of host veths is another one's place holder.
pub fn difference(recorded: IpAddr, have: &Have) -> Option<IpAddr> {
    let stays = have.local.contains(&recorded) && recorded != HOST_ADDRESS;
    have.best.filter(|best| !stays && *best != recorded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_gone_is_followed_by_the_best() {
        let (before, now) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 7]));
        let have = Have { local: [now].into(), best: Some(now) };
        assert_eq!(difference(before, &have), Some(now));
        assert_eq!(difference(now, &have), None);
        assert_eq!(difference(before, &Have::default()), None);
        // What a node has that had no address of IPv4 for a while.
        let again = Have { local: [HOST_ADDRESS].into(), best: Some(now) };
        assert_eq!(difference(HOST_ADDRESS, &again), Some(now));
        assert_eq!(difference(HOST_ADDRESS, &Have { best: Some(HOST_ADDRESS), ..again }), None);
    }
}
