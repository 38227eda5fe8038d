//! A range of this node's own: the lowest free address, for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::Ipv4Network;

use crate::lease::clock;
use crate::lease::decider::{self, Decider};
use crate::lease::grant::{Lease, News};
use crate::lease::settings;
use crate::model::VipKey;

/// An address found in conflict isn't offered again for this long.
const QUARANTINE: Duration = Duration::from_secs(600);

/// The range and what is out of it.
#[derive(Debug)]
pub(super) struct Pool {
    cidr: Ipv4Network,
    exclude: BTreeSet<IpAddr>,
    given: BTreeMap<VipKey, IpAddr>,
    /// In conflict, until then.
    bad: BTreeMap<IpAddr, Instant>,
}

impl Pool {
    /// The range of the configuration; `pins` are kept out of it.
    pub(super) fn new(pool: &settings::Pool, pins: impl Iterator<Item = IpAddr>) -> Self {
        let exclude = pool.exclude.iter().copied().map(IpAddr::V4).chain(pins).collect();
        Self { cidr: pool.cidr, exclude, given: BTreeMap::new(), bad: BTreeMap::new() }
    }

    fn choose(&mut self, vip: &VipKey, remembered: Option<IpAddr>, others: &BTreeSet<IpAddr>) -> News {
        match remembered {
            Some(address) if !others.contains(&address) && !self.is_given(vip, address) => self.give(vip, address),
            _ => self.lowest(vip, others),
        }
    }

    fn next(&mut self, vip: &VipKey, others: &BTreeSet<IpAddr>) -> News {
        if let Some(bad) = self.given.remove(vip) {
            self.bad.insert(bad, Instant::now() + QUARANTINE);
        }
        self.lowest(vip, others)
    }

    fn lowest(&mut self, vip: &VipKey, others: &BTreeSet<IpAddr>) -> News {
        let now = Instant::now();
        self.bad.retain(|_, until| now < *until);
        let given: BTreeSet<_> = self.given.iter().filter(|(other, _)| *other != vip).map(|(_, a)| *a).collect();
        let out = [&self.exclude, &given, others];
        let free = |address: &IpAddr| !self.bad.contains_key(address) && out.iter().all(|set| !set.contains(address));
        if let Some(address) = hosts(self.cidr).find(free) {
            return self.give(vip, address);
        }
        let bad = match self.bad.len() {
            0 => String::new(),
            bad => format!(", {bad} being in conflict"),
        };
        News::Failed { why: format!("no address of pool.cidr {} is free{bad}", self.cidr), exhausted: true }
    }

    fn give(&mut self, vip: &VipKey, address: IpAddr) -> News {
        self.given.insert(vip.clone(), address);
        News::Bound(Lease::permanent(address, clock::now()))
    }

    fn is_given(&self, vip: &VipKey, address: IpAddr) -> bool {
        self.given.iter().any(|(other, given)| other != vip && *given == address)
    }
}

impl Decider for Pool {
    /// The remembered address if no other VIP has it (also one that a changed range no longer holds: it may be in
    /// service), else the lowest free one.
    fn ask(&mut self, vip: &VipKey, remembered: Option<IpAddr>, others: &BTreeSet<IpAddr>) -> Option<News> {
        Some(self.choose(vip, remembered, others))
    }

    fn another(&mut self, vip: &VipKey, others: &BTreeSet<IpAddr>) -> Option<News> {
        Some(self.next(vip, others))
    }

    fn stop(&mut self, vip: &VipKey) {
        self.given.remove(vip);
    }
}

fn hosts(cidr: Ipv4Network) -> impl Iterator<Item = IpAddr> {
    decider::hosts(cidr).map(IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::address::ipv4;

    fn full(why: &str) -> News {
        News::Failed { why: why.into(), exhausted: true }
    }

    fn vip(number: usize) -> VipKey {
        VipKey::new("shop", &format!("web{number}")).unwrap()
    }

    fn pool(cidr: &str, exclude: &[&str]) -> Pool {
        let exclude = exclude.iter().map(|a| a.parse().unwrap()).collect();
        let pool = settings::Pool { cidr: cidr.parse().unwrap(), exclude };
        Pool::new(&pool, std::iter::once([10, 118, 0, 3].into()))
    }

    fn last_octet(news: &News) -> u8 {
        match news {
            News::Bound(lease) => {
                assert_eq!((lease.expires, lease.server), (None, None));
                ipv4(lease.address).unwrap().octets()[3]
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_lowest_free_address_is_given_and_comes_back() {
        let mut pool = pool("10.118.0.0/29", &["10.118.0.1"]);
        let none = BTreeSet::new();
        // 0 network, 1 excluded, 3 pinned, 7 broadcast.
        let given: Vec<_> = (0..4).map(|n| last_octet(&pool.choose(&vip(n), None, &none))).collect();
        assert_eq!(given, [2, 4, 5, 6]);
        assert_eq!(pool.choose(&vip(4), None, &none), full("no address of pool.cidr 10.118.0.0/29 is free"));
        pool.stop(&vip(1));
        assert_eq!(last_octet(&pool.choose(&vip(4), None, &none)), 4);
    }

    #[test]
    fn a_remembered_address_is_kept_unless_another_vip_has_it() {
        let mut pool = pool("10.118.0.0/29", &[]);
        let none = BTreeSet::new();
        assert_eq!(last_octet(&pool.choose(&vip(0), Some([10, 118, 0, 5].into()), &none)), 5);
        assert_eq!(last_octet(&pool.choose(&vip(1), Some([10, 118, 0, 5].into()), &none)), 1);
        assert_eq!(last_octet(&pool.choose(&vip(2), None, &BTreeSet::from([[10, 118, 0, 2].into()]))), 4);
        assert_eq!(last_octet(&pool.choose(&vip(3), Some([10, 99, 0, 9].into()), &none)), 9);
    }

    #[test]
    fn addresses_in_conflict_are_passed_over_by_all() {
        let mut pool = pool("10.118.0.0/29", &[]);
        let none = BTreeSet::new();
        assert_eq!(last_octet(&pool.choose(&vip(0), None, &none)), 1);
        assert_eq!(last_octet(&pool.next(&vip(0), &none)), 2);
        assert_eq!(last_octet(&pool.choose(&vip(1), None, &none)), 4);
        for _ in 0..2 {
            pool.next(&vip(0), &none);
        }
        assert_eq!(
            pool.next(&vip(0), &none),
            full("no address of pool.cidr 10.118.0.0/29 is free, 4 being in conflict")
        );
    }

    #[test]
    fn small_networks() {
        let count = |cidr: &str| hosts(cidr.parse().unwrap()).count();
        assert_eq!(["10.0.0.0/32", "10.0.0.0/31", "10.0.0.0/30"].map(count), [1, 2, 2]);
    }
}
