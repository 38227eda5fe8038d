//! Pools of this node's own: the lowest free address, for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::lease::clock;
use crate::lease::decider::Decider;
use crate::lease::grant::{Lease, News};
use crate::lease::pools::{Pools, Wish, used_up};
use crate::model::VipKey;

/// An address found in conflict isn't offered again for this long.
const QUARANTINE: Duration = Duration::from_secs(600);

/// The pools and what is out of them.
#[derive(Debug)]
pub(super) struct Pool {
    pools: Pools,
    pins: BTreeSet<IpAddr>,
    given: BTreeMap<VipKey, IpAddr>,
    /// In conflict, until then.
    bad: BTreeMap<IpAddr, Instant>,
}

impl Pool {
    /// Those of the configuration; `pins` are kept out of them.
    pub(super) fn new(pools: Pools, pins: impl Iterator<Item = IpAddr>) -> Self {
        Self { pools, pins: pins.collect(), given: BTreeMap::new(), bad: BTreeMap::new() }
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
        let out = [&self.pins, &given, others];
        let free = |address: &IpAddr| !self.bad.contains_key(address) && out.iter().all(|set| !set.contains(address));
        let serving = match self.pools.serving(&Wish::of(vip)) {
            Ok(serving) => serving,
            Err(unserved) => return News::Failed { why: unserved.to_string(), exhausted: false },
        };
        let lowest = serving.iter().flat_map(|pool| pool.addresses()).map(IpAddr::V4).find(free);
        if let Some(address) = lowest {
            return self.give(vip, address);
        }
        let bad = match self.bad.len() {
            0 => String::new(),
            bad => format!(", {bad} being in conflict"),
        };
        News::Failed { why: format!("{}{bad}", used_up(&serving)), exhausted: true }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::pools;
    use crate::model::address::ipv4;

    fn full(why: &str) -> News {
        News::Failed { why: why.into(), exhausted: true }
    }

    fn vip(number: usize) -> VipKey {
        VipKey::new("shop", &format!("web{number}")).unwrap()
    }

    fn pool(cidr: &str, exclude: &[&str]) -> Pool {
        let exclude = exclude.iter().map(|a| a.parse().unwrap()).collect();
        let pool = pools::Pool::open("default", vec![cidr.parse().unwrap()], exclude);
        Pool::new(Pools::new(vec![pool]), std::iter::once([10, 118, 0, 3].into()))
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
        assert_eq!(pool.choose(&vip(4), None, &none), full("no address of pool default (10.118.0.0/29) is free"));
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
            full("no address of pool default (10.118.0.0/29) is free, 4 being in conflict")
        );
    }

    #[test]
    fn a_namespace_gets_what_serves_it() {
        let of = |name, cidr: &str| pools::Pool::open(name, vec![cidr.parse().unwrap()], Vec::new());
        let shop = pools::Pool { namespaces: ["shop".to_owned()].into(), ..of("shop", "10.118.1.7-10.118.1.8") };
        let mut pool = Pool::new(Pools::new(vec![shop.clone(), of("all", "10.118.0.0/24")]), std::iter::empty());
        let (none, other) = (BTreeSet::new(), VipKey::new("pay", "web").unwrap());
        assert_eq!(
            [vip(0), vip(1), vip(2), other.clone()].map(|vip| last_octet(&pool.choose(&vip, None, &none))),
            [7, 8, 1, 2]
        );
        let mut pool = Pool::new(Pools::new(vec![shop]), std::iter::empty());
        let News::Failed { why, exhausted: false } = pool.choose(&other, None, &none) else { panic!() };
        assert!(why.starts_with("no pool serves namespace pay"), "{why}");
    }
}
