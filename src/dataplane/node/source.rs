//! The node's own address: `src` of its VIPs' routes. One that is no local address can't be that (`fib_valid_prefsrc`), and with
//! an address the kernel drops the routes that have it as their source (`fib_sync_down_addr`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::dataplane::ids::HOST_ADDRESS;
use crate::model::Family;
use crate::net::route::{self, Way};
use crate::net::{NodeNet, Result, address};

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// Those of the addresses asked about that are local.
    pub local: BTreeSet<IpAddr>,
    /// The address that is the node's best; none where all of them are local.
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
        let best = if local.len() == about.len() { None } else { best_by(node, link)? };
        Ok(Self { local, best })
    }
}

fn best_by(node: &NodeNet, link: Option<u32>) -> Result<Option<IpAddr>> {
    match (route::default_way(node)?, link) {
        (Some(way), _) => best(node, Some(&way)),
        (None, Some(index)) => first_address(node, Some(index)),
        (None, None) => Ok(None),
    }
}

/// The source of the default route; failing that, the first global address of its device; failing that, of the first device
/// that has one.
pub fn best(node: &NodeNet, way: Option<&Way>) -> Result<Option<IpAddr>> {
    if let Some(source) = way.and_then(|way| way.source) {
        return Ok(Some(source));
    }
    first_address(node, way.and_then(|way| way.hop.index))
}

fn first_address(node: &NodeNet, index: Option<u32>) -> Result<Option<IpAddr>> {
    let addresses = address::list(node, Family::V4, index)?;
    let of_the_node = addresses.iter().filter(|a| a.global && a.address != HOST_ADDRESS);
    Ok(of_the_node.min_by_key(|a| a.index).map(|a| a.address))
}

/// What a VIP's record must have as its node's address; none: what it has. While the node has no address at all, nothing
/// better is known.
pub fn difference(recorded: IpAddr, have: &Have) -> Option<IpAddr> {
    if have.local.contains(&recorded) { None } else { have.best }
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
    }
}
