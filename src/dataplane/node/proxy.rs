//! Proxy neighbour entries: for which VIPs the kernel answers ARP and neighbour solicitations, and on which link.
//!
//! For IPv4 it answers while the VIP's route leads out of another device, and never to probes (sender 0.0.0.0). For IPv6 it answers whatever
//! the route, also to probes: so a node that searches for an owner of the address has to know its peers' answers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::Family;
use crate::net::link::Link;
use crate::net::{NodeNet, PROTOCOL, Result, neighbour, sysctl};

use super::settings::{EVEN_IF_FORWARDING, UNLESS_FORWARDING};

/// What must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The link's index; none: no link is answered on.
    pub index: Option<u32>,
    /// The addresses answered for.
    pub addresses: BTreeSet<IpAddr>,
}

impl Want {
    /// Addresses of that family are answered for.
    pub fn has(&self, family: Family) -> bool {
        self.index.is_some() && self.addresses.iter().any(|address| Family::of(*address) == family)
    }
}

/// What became of the settings that IPv6 needs. Entries don't wait for them: IPv4 is answered for all the same.
pub type Settings = Result<()>;

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// Entries of ours: link and address.
    pub entries: BTreeSet<(u32, IpAddr)>,
    /// For which families answers on the wanted link are put off (`proxy_delay`).
    pub delayed: Vec<Family>,
    /// Settings without which it doesn't answer for IPv6, in the order in which they are to be made.
    pub unset: Vec<Setting>,
}

/// A setting of IPv6 that an entry needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// As sysctl(8) has it.
    pub name: String,
    /// What it must be.
    pub want: i64,
    /// What it is.
    pub found: i64,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A setting.
    Set(Setting),
    /// A family's answers on a link come at once.
    NoDelay(Family, u32),
    /// An entry that must be.
    Add(u32, IpAddr),
    /// An entry that must not be.
    Del(u32, IpAddr),
}

/// Reads the entries of all links, and the settings of `link` that those of `want` need: or why one of IPv6 can't be read.
pub fn read(node: &NodeNet, link: Option<&Link>, want: &Want) -> Result<(Have, Settings)> {
    let mut have = Have::default();
    for family in Family::ALL {
        let ours = neighbour::list_all_proxies(node, family)?.into_iter().filter(|entry| entry.protocol == PROTOCOL);
        have.entries.extend(ours.map(|entry| (entry.index, entry.address)));
    }
    let Some(link) = link else { return Ok((have, Ok(()))) };
    let is_delayed = |family: &Family| {
        // A setting that can't be read is written.
        !matches!(sysctl::get(&delay_setting(*family, link)), Ok(0))
    };
    have.delayed = Family::ALL.into_iter().filter(|family| want.has(*family)).filter(is_delayed).collect();
    let unset = if want.has(Family::V6) { unset(link) } else { Ok(Vec::new()) };
    let settings = unset.map(|unset| have.unset = unset);
    Ok((have, settings))
}

/// The setting that says for how long the kernel may put answers off on a link (`ip-sysctl.rst`).
pub fn delay_setting(family: Family, link: &Link) -> String {
    sysctl::of_device(family, "neigh", &link.name, "proxy_delay")
}

/// What keeps the kernel from answering for IPv6 on a link. It answers probes of a neighbour's reachability only where all devices may
/// (`ip6_forward`), and nothing on a device that doesn't forward (`ndisc_recv_ns`).
pub fn unset(link: &Link) -> Result<Vec<Setting>> {
    let of = |device: &str, key: &str| sysctl::of_device(Family::V6, "conf", device, key);
    let of_link = |key: &str| of(&link.name, key);
    if sysctl::get(&of_link("disable_ipv6")).unwrap_or(1) != 0 {
        return Ok(Vec::new());
    }
    let forwards = sysctl::get(&of_link("forwarding"))? != 0;
    let mut wanted = vec![(of_link("proxy_ndp"), 1), (of("all", "proxy_ndp"), 1)];
    // A device that begins to forward ignores router advertisements, unless it is told not to. One that does so already is left alone:
    // a write would have the kernel drop the default routes that it has by them (`rt6_purge_dflt_routers`).
    if !forwards {
        wanted.insert(0, (of_link("forwarding"), 1));
        if sysctl::get(&of_link("accept_ra"))? == UNLESS_FORWARDING {
            wanted.insert(0, (of_link("accept_ra"), EVEN_IF_FORWARDING));
        }
    }
    let read = |(name, want): (String, i64)| {
        let found = sysctl::get(&name)?;
        Ok((found != want).then_some(Setting { name, want, found }))
    };
    wanted.into_iter().filter_map(|setting| read(setting).transpose()).collect()
}

/// The steps from what is to what must be.
pub fn difference(have: &Have, want: &Want) -> Vec<Op> {
    let wanted: BTreeSet<(u32, IpAddr)> =
        want.index.iter().flat_map(|index| want.addresses.iter().map(|address| (*index, *address))).collect();
    let set = have.unset.iter().filter(|_| want.has(Family::V6)).cloned().map(Op::Set);
    let at_once = have.delayed.iter().copied().filter(|family| want.has(*family));
    let delay = at_once.filter_map(|family| Some(Op::NoDelay(family, want.index?)));
    let gone = have.entries.difference(&wanted).map(|(index, address)| Op::Del(*index, *address));
    let new = wanted.difference(&have.entries).map(|(index, address)| Op::Add(*index, *address));
    set.chain(delay).chain(gone).chain(new).collect()
}

/// Carries them out. IPv4 is answered for where a setting of IPv6 can't be written.
pub fn apply(node: &NodeNet, ops: &[Op]) -> Result<Settings> {
    let (mut requests, mut set) = (Vec::new(), Ok(()));
    for op in ops {
        match op {
            Op::Set(setting) => set = set.and(sysctl::ensure(&setting.name, setting.want)),
            Op::NoDelay(family, index) => requests.push(neighbour::no_proxy_delay(*family, *index)),
            Op::Add(index, address) => requests.push(neighbour::replace_proxy(*index, *address)),
            Op::Del(index, address) => requests.push(neighbour::del_proxy(*index, *address)),
        }
    }
    node.apply(&requests).map(|()| set)
}

impl Op {
    /// What is amiss where it is needed.
    pub fn finding(&self) -> String {
        match self {
            Self::Set(Setting { name, want, found }) => format!("{name} is {found}, not {want}"),
            Self::NoDelay(family, index) => {
                format!("proxy_delay of {family:?} on link {index}: want 0, found another value")
            }
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
        let have =
            Have { entries: [(2, address(1)), (2, address(2))].into(), delayed: Family::ALL.into(), unset: Vec::new() };
        let want = Want { index: Some(3), addresses: [address(2), address(3)].into() };
        let ops = [
            Op::NoDelay(Family::V4, 3),
            Op::Del(2, address(1)),
            Op::Del(2, address(2)),
            Op::Add(3, address(2)),
            Op::Add(3, address(3)),
        ];
        assert_eq!(difference(&have, &want), ops);
        let have = Have { entries: [(3, address(2)), (3, address(3))].into(), ..Have::default() };
        assert_eq!(difference(&have, &want), []);
        let nothing = Want { index: None, ..want };
        assert_eq!(difference(&have, &nothing), [Op::Del(3, address(2)), Op::Del(3, address(3))]);
    }

    #[test]
    fn settings_of_ipv6_are_made_for_its_addresses_alone() {
        let setting = Setting { name: "net.ipv6.conf.eth0.proxy_ndp".into(), want: 1, found: 0 };
        let have = Have { delayed: Family::ALL.into(), unset: vec![setting.clone()], ..Have::default() };
        let six: IpAddr = "fd00:118::7".parse().unwrap();
        let ops = difference(&have, &Want { index: Some(3), addresses: [six].into() });
        assert_eq!(ops, [Op::Set(setting), Op::NoDelay(Family::V6, 3), Op::Add(3, six)]);
        let ops = difference(&have, &Want { index: Some(3), addresses: [address(7)].into() });
        assert_eq!(ops, [Op::NoDelay(Family::V4, 3), Op::Add(3, address(7))]);
    }
}
