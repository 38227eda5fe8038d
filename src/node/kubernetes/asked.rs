//! Addresses that Services ask for, by `spec.loadBalancerIP` or the annotation `viproute.io/address`: which of them they may have. Pure.
//!
//! What a Service and this node's configuration decide is decided as the Service comes ([`Permitted::ask`]), what the cluster decides where
//! Services are compared ([`in_cluster`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::lease::allow::Allow;
use crate::lease::beside::Beside;
use crate::lease::pools::Pools;
use crate::lease::settings::{Backend, Settings};
use crate::model::VipKey;

use super::objects::Objects;

/// By it a Service asks for an address.
pub const ADDRESS: &str = "viproute.io/address";
/// The field that does the same.
const FIELD: &str = "spec.loadBalancerIP";

/// What a Service asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Any address.
    #[default]
    Any,
    /// This one.
    Address(Ipv4Addr),
    /// One that it can't have; why.
    Refused(String),
}

/// Which addresses the configuration lets Services ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permitted {
    allow: Allow,
    /// Where addresses come from; `None`: a DHCP server, which has its own mind.
    pools: Option<Pools>,
    /// Addresses of the configuration's own VIPs.
    pins: BTreeMap<VipKey, IpAddr>,
    /// The IPv6 addresses that go with those of IPv4.
    beside: Beside,
}

impl Permitted {
    /// Those of these settings.
    pub fn of(settings: &Settings) -> Self {
        let pools = match &settings.backend {
            Backend::Pool(pools) => Some(pools.clone()),
            Backend::Dhcp(_) => None,
        };
        let Settings { allow, pins, beside, .. } = settings.clone();
        Self { allow: allow.unwrap_or_default(), pools, pins, beside }
    }

    /// What a Service that has that VIP asks for, by its field and its annotation.
    pub fn ask(&self, vip: Option<&VipKey>, field: &str, annotation: &str) -> Ask {
        let (field, annotation) = (field.trim(), annotation.trim());
        let found = match (field.is_empty(), annotation.is_empty()) {
            (true, true) => return Ask::Any,
            (false, true) => self.address(vip, FIELD, field),
            (true, false) => self.address(vip, ADDRESS, annotation),
            (false, false) => self.both(vip, (FIELD, field), (ADDRESS, annotation)),
        };
        match found.and_then(|address| self.check(vip, address).map(|()| address)) {
            Ok(address) => Ask::Address(address),
            Err(why) => Ask::Refused(why),
        }
    }

    /// The IPv4 address that is meant by a text: by itself, by the IPv6 address that goes with it, or by both.
    fn address(&self, vip: Option<&VipKey>, key: &str, text: &str) -> Result<Ipv4Addr, String> {
        let mut meant = BTreeSet::new();
        for name in text.split(',').map(str::trim) {
            let bad = || {
                format!(
                    "{key} = {text:?}: expected one address, such as 10.118.0.7, or one of each family that go together"
                )
            };
            meant.insert(self.meant(vip, name.parse().map_err(|_| bad())?)?);
        }
        match meant.pop_first() {
            Some(address) if meant.is_empty() => Ok(address),
            _ => Err(format!(
                "{key} = {text:?}: expected one address, or an IPv6 address that goes with the IPv4 address"
            )),
        }
    }

    fn meant(&self, vip: Option<&VipKey>, address: IpAddr) -> Result<Ipv4Addr, String> {
        let pinned = vip.filter(|vip| self.beside.pins.get(*vip).map(|pin| IpAddr::V6(*pin)) == Some(address));
        if let Some(IpAddr::V4(pin)) = pinned.and_then(|vip| self.pins.get(vip)) {
            return Ok(*pin);
        }
        self.beside.leased(address).ok_or_else(|| {
            if self.beside.prefixes.is_empty() {
                return format!("{address} can't be asked for: VIPs choose no IPv6 addresses (no pool has cidr6)");
            }
            format!("{address} is no address that VIPs may have: expected one of {} that ends in an IPv4 address of the pool", self.beside)
        })
    }

    fn both(
        &self,
        vip: Option<&VipKey>,
        (first, one): (&str, &str),
        (second, other): (&str, &str),
    ) -> Result<Ipv4Addr, String> {
        let (address, again) = (self.address(vip, first, one)?, self.address(vip, second, other)?);
        if address == again {
            return Ok(address);
        }
        Err(format!(
            "{first} says {one} and the annotation {second} says {other}: let one of them be, or both say the same"
        ))
    }

    fn check(&self, vip: Option<&VipKey>, address: Ipv4Addr) -> Result<(), String> {
        if !self.allow.permits(address.into()) {
            return Err(format!("{address} is no address that VIPs may have: expected one within {}", self.allow));
        }
        let pinned = self.pins.iter().find(|(_, pin)| **pin == IpAddr::V4(address));
        match (pinned, vip.and_then(|vip| self.pins.get(vip))) {
            (Some((other, _)), _) if Some(other) != vip => {
                return Err(format!("{address} is {other}'s by a [[pin]] of viprouted.toml: ask for another one"));
            }
            (_, Some(pin)) if *pin != IpAddr::V4(address) => {
                return Err(format!("a [[pin]] of viprouted.toml gives this VIP {pin}: ask for that one, or for none"));
            }
            (_, Some(_)) => return Ok(()),
            _ => {}
        }
        let Some(pools) = &self.pools else { return Ok(()) };
        let Some(pool) = pools.of(address) else {
            return Err(format!("{address} is no address of a pool: expected one of {pools}"));
        };
        if !pool.gives(address) {
            return Err(format!(
                "{address} is one that {pool} doesn't give out (pool.exclude, or a network's own): ask for another one"
            ));
        }
        Ok(())
    }
}

/// Why the cluster's addresses can't be a VIP's: nodes', pods' and Services'.
pub fn in_cluster(objects: &Objects, address: Ipv4Addr) -> Result<(), String> {
    let wanted = IpAddr::V4(address);
    for (name, node) in &objects.nodes {
        if node.addresses.contains(&wanted) {
            return Err(format!("{address} is the address of node {name}: ask for another one"));
        }
        if let Some(range) = holding(&node.pod_ranges, wanted) {
            return Err(format!("{address} is of the pods' range {range} of node {name}: ask for another one"));
        }
    }
    if let Some((name, _)) = objects.pods.iter().find(|(_, pod)| pod.addresses.contains(&wanted)) {
        return Err(format!("{address} is the address of pod {name}: ask for another one"));
    }
    match objects.ranges.values().find_map(|ranges| holding(ranges, wanted)) {
        Some(range) => {
            Err(format!("{address} is of the range {range} of Services' own addresses: ask for another one"))
        }
        None => Ok(()),
    }
}

fn holding(ranges: &[String], address: IpAddr) -> Option<&str> {
    let holds = |range: &&String| range.parse::<IpNetwork>().is_ok_and(|range| range.contains(address));
    ranges.iter().find(holds).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::super::objects::{Node, Pod};
    use super::*;
    use crate::lease::beside::Prefix;
    use crate::lease::pools::Pool;

    fn permitted() -> Permitted {
        let pool = Pool::open("default", vec!["10.118.0.0/24".parse().unwrap()], vec![[10, 118, 0, 1].into()]);
        let pins = [("shop/pinned".parse().unwrap(), IpAddr::from([10, 118, 0, 9]))].into();
        Permitted {
            allow: Allow::new(vec!["10.118.0.0/16".parse().unwrap()]),
            pools: Some(Pools::new(vec![pool])),
            pins,
            beside: Beside {
                prefixes: vec![Prefix { ranges: Vec::new(), network: "fd00:118::/96".parse().unwrap() }],
                pins: [("shop/pinned".parse().unwrap(), "fd00:9::9".parse().unwrap())].into(),
            },
        }
    }

    #[test]
    fn field_and_annotation_ask_and_must_not_differ() {
        let vip = "shop/web".parse().unwrap();
        let ask = |field, annotation| permitted().ask(Some(&vip), field, annotation);
        let seven = Ask::Address([10, 118, 0, 7].into());
        assert_eq!(ask("", " "), Ask::Any);
        let six = "fd00:118::10.118.0.7";
        for (field, annotation) in [
            ("10.118.0.7", ""),
            ("", " 10.118.0.7 "),
            ("10.118.0.7", "10.118.0.7"),
            (six, ""),
            ("", six),
            ("10.118.0.7", "fd00:118::a76:7"),
            ("", "fd00:118::a76:7, 10.118.0.7"),
        ] {
            assert_eq!(ask(field, annotation), seven, "{field} {annotation}");
        }
        for (field, annotation, why) in [
            (
                "10.118.0.7",
                "10.118.0.8",
                "spec.loadBalancerIP says 10.118.0.7 and the annotation viproute.io/address says",
            ),
            ("fd00::7", "", "expected one of fd00:118::/96 that ends in an IPv4 address of the pool"),
            ("", "10.118.0.7,10.118.0.8", "expected one address, or an IPv6 address that goes with"),
            ("", "10.118.0.7,fd00:118::a76:8", "expected one address, or an IPv6 address that goes with"),
            ("web", "", "expected one address, such as 10.118.0.7"),
            ("fd00:118::10.118.1.7", "", "expected one of pool default"),
            ("192.0.2.7", "", "expected one within 10.118.0.0/16"),
            ("10.118.1.7", "", "expected one of pool default (10.118.0.0/24)"),
            ("10.118.0.255", "", "doesn't give out"),
            ("10.118.0.1", "", "doesn't give out"),
            ("10.118.0.9", "", "is shop/pinned's by a [[pin]]"),
            ("127.0.0.1", "", "no address that VIPs may have"),
        ] {
            let Ask::Refused(said) = ask(field, annotation) else { panic!("{field} {annotation}") };
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn a_pin_of_the_configuration_goes_first() {
        let vip = "shop/pinned".parse().unwrap();
        for own in ["10.118.0.9", "fd00:9::9"] {
            assert_eq!(permitted().ask(Some(&vip), own, ""), Ask::Address([10, 118, 0, 9].into()));
        }
        let Ask::Refused(said) = permitted().ask(Some(&vip), "10.118.0.7", "") else { panic!() };
        assert!(said.contains("gives this VIP 10.118.0.9"), "{said}");
    }

    #[test]
    fn addresses_of_the_cluster_are_nobodys_to_ask_for() {
        let node = Node {
            addresses: vec![[192, 0, 2, 1].into()],
            pod_ranges: vec!["10.1.1.0/24".into(), "fd00:1::/64".into()],
            ..Node::default()
        };
        let pod = Pod { addresses: vec![[10, 9, 0, 2].into()], ..Pod::default() };
        let objects = Objects {
            nodes: [("n1".to_owned(), node)].into(),
            pods: [("shop/a".to_owned(), pod)].into(),
            ranges: [("kubernetes".to_owned(), vec!["10.96.0.0/16".to_owned()])].into(),
            ..Objects::default()
        };
        for (address, why) in [
            ([192, 0, 2, 1], "of node n1"),
            ([10, 1, 1, 77], "10.1.1.0/24 of node n1"),
            ([10, 9, 0, 2], "of pod shop/a"),
            ([10, 96, 3, 3], "10.96.0.0/16 of Services' own"),
        ] {
            let said = in_cluster(&objects, address.into()).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
        assert_eq!(in_cluster(&objects, [10, 118, 0, 7].into()), Ok(()));
    }
}
