//! Proxy neighbour entries: for which VIPs the kernel answers ARP and neighbour solicitations, and on which links.
//!
//! For IPv4 it answers while the VIP's route leads out of another device, and never to probes (sender 0.0.0.0). For IPv6 it answers whatever
//! the route, also to probes: so a node that searches for an owner of the address has to know its peers' answers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::Family;
use crate::net::link::Link;
use crate::net::{NodeNet, PROTOCOL, Result, neighbour, sysctl};

use super::settings::{EVEN_IF_FORWARDING, UNLESS_FORWARDING};

/// What must be on a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The link's index; none: no link is answered on.
    pub index: Option<u32>,
    /// The addresses answered for.
    pub addresses: BTreeSet<IpAddr>,
}

impl Want {
    fn entries(&self) -> impl Iterator<Item = Entry> {
        self.index.into_iter().flat_map(|index| self.addresses.iter().map(move |address| (index, *address)))
    }

    /// Addresses of that family are answered for.
    pub fn has(&self, family: Family) -> bool {
        self.index.is_some() && self.addresses.iter().any(|address| Family::of(*address) == family)
    }
}

/// An entry of ours: the link's index, and the address.
pub type Entry = (u32, IpAddr);

/// What became of the settings that IPv6 needs. Entries don't wait for them: IPv4 is answered for all the same.
pub type Settings = Result<()>;

/// What the kernel has for a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// Entries of ours, those of all links.
    pub entries: BTreeSet<Entry>,
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

/// Reads the entries of all links.
pub fn entries(node: &NodeNet) -> Result<BTreeSet<Entry>> {
    let mut entries = BTreeSet::new();
    for family in Family::ALL {
        let ours = neighbour::list_all_proxies(node, family)?.into_iter().filter(|entry| entry.protocol == PROTOCOL);
        entries.extend(ours.map(|entry| (entry.index, entry.address)));
    }
    Ok(entries)
}

/// Reads the settings of `link` that the entries of `want` need: or why one of IPv6 can't be read. The entries are those of [`entries`].
pub fn read(entries: BTreeSet<Entry>, link: &Link, want: &Want) -> (Have, Settings) {
    let mut have = Have { entries, ..Have::default() };
    let is_delayed = |family: &Family| {
        // A setting that can't be read is written.
        !matches!(sysctl::get(&delay_setting(*family, link)), Ok(0))
    };
    have.delayed = Family::ALL.into_iter().filter(|family| want.has(*family)).filter(is_delayed).collect();
    let unset = if want.has(Family::V6) { unset(link) } else { Ok(Vec::new()) };
    let settings = unset.map(|unset| have.unset = unset);
    (have, settings)
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

/// The steps by which entries go that no link is to have: of addresses that aren't answered for any more, and those on a link of before.
pub fn orphans(entries: &BTreeSet<Entry>, wants: &[Want]) -> Vec<Op> {
    let wanted: BTreeSet<Entry> = wants.iter().flat_map(Want::entries).collect();
    entries.difference(&wanted).map(|(index, address)| Op::Del(*index, *address)).collect()
}

/// The steps by which a link comes to have what it must. What it mustn't have is of [`orphans`].
pub fn difference(have: &Have, want: &Want) -> Vec<Op> {
    let set = have.unset.iter().filter(|_| want.has(Family::V6)).cloned().map(Op::Set);
    let at_once = have.delayed.iter().copied().filter(|family| want.has(*family));
    let delay = at_once.filter_map(|family| Some(Op::NoDelay(family, want.index?)));
    let new = want.entries().filter(|entry| !have.entries.contains(entry));
    let new = new.map(|(index, address)| Op::Add(index, address));
    set.chain(delay).chain(new).collect()
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
        let ops = [Op::NoDelay(Family::V4, 3), Op::Add(3, address(2)), Op::Add(3, address(3))];
        assert_eq!(difference(&have, &want), ops);
        let gone = [Op::Del(2, address(1)), Op::Del(2, address(2))];
        assert_eq!(orphans(&have.entries, std::slice::from_ref(&want)), gone);
        let have = Have { entries: [(3, address(2)), (3, address(3))].into(), ..Have::default() };
        assert_eq!(difference(&have, &want), []);
        assert_eq!(orphans(&have.entries, std::slice::from_ref(&want)), []);
        let nothing = Want { index: None, ..want };
        assert_eq!(difference(&have, &nothing), []);
        assert_eq!(orphans(&have.entries, &[nothing]), [Op::Del(3, address(2)), Op::Del(3, address(3))]);
    }

    #[test]
    fn no_link_loses_the_entries_of_another() {
        let six: IpAddr = "fd00:118::7".parse().unwrap();
        let four = Want { index: Some(2), addresses: [address(7)].into() };
        let of_ipv6 = Want { index: Some(3), addresses: [six].into() };
        // From when both families' were on one link.
        let before: BTreeSet<Entry> = [(2, address(7)), (2, six)].into();
        assert_eq!(orphans(&before, &[four.clone(), of_ipv6.clone()]), [Op::Del(2, six)]);
        let have = Have { entries: before, ..Have::default() };
        assert_eq!((difference(&have, &four), difference(&have, &of_ipv6)), (Vec::new(), vec![Op::Add(3, six)]));
        let both: BTreeSet<Entry> = [(2, address(7)), (3, six)].into();
        assert_eq!(orphans(&both, &[four.clone(), of_ipv6.clone()]), []);
        // The second link was made anew, or is the first one by now.
        for index in [4, 2] {
            let moved = Want { index: Some(index), ..of_ipv6.clone() };
            assert_eq!(orphans(&both, &[four.clone(), moved.clone()]), [Op::Del(3, six)]);
            let have = Have { entries: both.clone(), ..Have::default() };
            assert_eq!(difference(&have, &moved), [Op::Add(index, six)]);
        }
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
