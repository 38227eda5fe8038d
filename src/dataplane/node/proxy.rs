//! Proxy neighbour entries: for which VIPs the kernel answers ARP, and on which link.
//!
//! It answers while the VIP's route leads out of another device. It never answers probes (sender 0.0.0.0), so a node that
//! searches for an owner of the address isn't misled by its peers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::net::link::Link;
use crate::net::{NodeNet, PROTOCOL, Request, Result, neighbour, sysctl};

/// What must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The link's index; none: no link is answered on.
    pub index: Option<u32>,
    /// The addresses answered for.
    pub addresses: BTreeSet<IpAddr>,
}

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// Entries of ours: link and address.
    pub entries: BTreeSet<(u32, IpAddr)>,
    /// Whether answers on the wanted link are put off (`proxy_delay`).
    pub delayed: bool,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Answers on a link come at once.
    NoDelay(u32),
    /// An entry that must be.
    Add(u32, IpAddr),
    /// An entry that must not be.
    Del(u32, IpAddr),
}

/// Reads the entries of all links, and the setting of `link`.
pub fn read(node: &NodeNet, link: Option<&Link>) -> Result<Have> {
    let ours = neighbour::list_all_proxies(node)?.into_iter().filter(|entry| entry.protocol == PROTOCOL);
    let entries = ours.map(|entry| (entry.index, entry.address)).collect();
    // A setting that can't be read is written.
    let delay = |link: &Link| sysctl::get(&format!("net.ipv4.neigh.{}.proxy_delay", link.name.replace('.', "/")));
    let delayed = link.is_some_and(|link| !matches!(delay(link), Ok(0)));
    Ok(Have { entries, delayed })
}

/// The steps from what is to what must be.
pub fn difference(have: &Have, want: &Want) -> Vec<Op> {
    let wanted: BTreeSet<(u32, IpAddr)> =
        want.index.iter().flat_map(|index| want.addresses.iter().map(|address| (*index, *address))).collect();
    let delay = want.index.filter(|_| have.delayed && !wanted.is_empty()).map(Op::NoDelay);
    let gone = have.entries.difference(&wanted).map(|(index, address)| Op::Del(*index, *address));
    let new = wanted.difference(&have.entries).map(|(index, address)| Op::Add(*index, *address));
    delay.into_iter().chain(gone).chain(new).collect()
}

impl Op {
    /// The request that does it.
    pub fn request(&self) -> Request {
        match self {
            Self::NoDelay(index) => neighbour::no_proxy_delay(*index),
            Self::Add(index, address) => neighbour::replace_proxy(*index, *address),
            Self::Del(index, address) => neighbour::del_proxy(*index, *address),
        }
    }

    /// What is amiss where it is needed.
    pub fn finding(&self) -> String {
        match self {
            Self::NoDelay(index) => format!("proxy_delay on link {index}: want 0, found another value"),
            Self::Add(index, address) => format!("proxy neighbour {address} on link {index} is missing"),
            Self::Del(index, address) => format!("proxy neighbour {address} on link {index} is an orphan"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 118, 0, last])
    }

    #[test]
    fn a_link_that_changes_takes_all_entries_along() {
        let have = Have { entries: [(2, address(1)), (2, address(2))].into(), delayed: true };
        let want = Want { index: Some(3), addresses: [address(2), address(3)].into() };
        let ops = [
            Op::NoDelay(3),
            Op::Del(2, address(1)),
            Op::Del(2, address(2)),
            Op::Add(3, address(2)),
            Op::Add(3, address(3)),
        ];
        assert_eq!(difference(&have, &want), ops);
        let have = Have { entries: [(3, address(2)), (3, address(3))].into(), delayed: false };
        assert_eq!(difference(&have, &want), []);
        let nothing = Want { index: None, ..want };
        assert_eq!(difference(&have, &nothing), [Op::Del(3, address(2)), Op::Del(3, address(3))]);
    }
}
