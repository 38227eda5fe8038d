//! Which Services have which VIP, and which of its ports. Pure.
//!
//! A Service has the VIP of its own name, unless its annotation `viproute.io/vip` names another one. Within a namespace that is enough; the
//! VIP of a Service of another namespace takes that Service's word too (`viproute.io/shared-with`). A port that two of them have is the
//! older one's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::model::{Port, VipKey};

use super::asked::{Ask, in_cluster};
use super::desired::Note;
use super::objects::{Objects, Service};

/// By it a Service names the VIP that it joins.
pub const VIP: &str = "viproute.io/vip";
/// By it a Service lets those of other namespaces join its VIP.
pub const SHARED_WITH: &str = "viproute.io/shared-with";

/// Ports that an older Service has on the same VIP: whose.
pub type Taken = BTreeMap<Port, VipKey>;

/// A Service that has a VIP, alone or with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharer<'a> {
    /// Its own name.
    pub key: VipKey,
    /// The Service.
    pub service: &'a Service,
    /// Those of its ports that an older one has.
    pub taken: Taken,
}

impl Sharer<'_> {
    /// Whether the port is its to serve.
    pub fn has(&self, port: Port) -> bool {
        !self.taken.contains_key(&port)
    }

    /// Not all of its ports are older ones'.
    pub fn has_any(&self) -> bool {
        self.taken.is_empty()
            || self.service.ports.iter().filter_map(super::objects::ServicePort::port).any(|port| self.has(port))
    }
}

/// All VIPs of Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing<'a> {
    /// Those that have each, the oldest first.
    pub vips: BTreeMap<VipKey, Vec<Sharer<'a>>>,
    /// Services that can't have the VIP that they name, by their own names.
    pub refused: BTreeMap<VipKey, &'a Service>,
    /// The addresses that VIPs are to have, because a Service asks for them.
    pub asked: BTreeMap<VipKey, Ipv4Addr>,
    /// What there is to say of Services, by their own names.
    pub notes: BTreeMap<VipKey, BTreeSet<Note>>,
}

impl<'a> Sharing<'a> {
    /// Of all Services that there are.
    pub fn of(objects: &'a Objects) -> Self {
        let mut sharing = Self::default();
        let services = in_order(objects);
        let holders = holders(objects, &services);
        for (key, service) in services {
            match wanted(objects, &key, service) {
                Ok(vip) => match sharing.asks(objects, &holders, &vip, service) {
                    Ok(()) => sharing.add(vip, key, service),
                    Err(why) => sharing.refuse_address((vip, key), service, why),
                },
                Err(why) => {
                    sharing.notes.entry(key.clone()).or_default().insert(Note::NotShared { why });
                    sharing.refused.insert(key, service);
                }
            }
        }
        sharing
    }

    /// What the Service asks for is the VIP's from now on; an error: it can't be.
    fn asks(&mut self, objects: &Objects, holders: &Holders, vip: &VipKey, service: &Service) -> Result<(), String> {
        let address = match &service.ask {
            Ask::Any => return Ok(()),
            Ask::Refused(why) => return Err(why.clone()),
            Ask::Address(address) => *address,
        };
        in_cluster(objects, address)?;
        match self.asked.get(vip) {
            Some(agreed) if *agreed == address => return Ok(()),
            Some(agreed) => return Err(format!("a Service that shares {vip}, and is older, asks for {agreed} for it")),
            None => {}
        }
        let other = self.asked.iter().find(|(_, asked)| **asked == address).map(|(other, _)| other);
        if let Some(other) = other.or_else(|| holders.get(&address).filter(|holder| *holder != vip)) {
            return Err(format!("{address} is {other}'s, which asks for it too, and has it or is older"));
        }
        self.asked.insert(vip.clone(), address);
        Ok(())
    }

    /// Whoever asks for an address that it can't have keeps what it has, and gets none where it has none.
    fn refuse_address(&mut self, (vip, key): (VipKey, VipKey), service: &'a Service, why: String) {
        self.notes.entry(key.clone()).or_default().insert(Note::AddressRefused { why });
        if service.stated().is_some() {
            self.add(vip, key, service);
        } else {
            self.refused.insert(key, service);
        }
    }

    fn add(&mut self, vip: VipKey, key: VipKey, service: &'a Service) {
        let sharers = self.vips.entry(vip).or_default();
        let mut taken = Taken::new();
        for of_service in &service.ports {
            let Some(port) = of_service.port() else { continue };
            let has_it = |older: &&Sharer<'_>| {
                older.has(port) && older.service.ports.iter().any(|other| other.port() == Some(port))
            };
            let Some(older) = sharers.iter().find(has_it) else { continue };
            taken.insert(port, older.key.clone());
        }
        sharers.push(Sharer { key, service, taken });
    }

    /// All of them with their VIPs, VIP by VIP.
    pub fn all(&self) -> impl Iterator<Item = (&VipKey, &Sharer<'a>)> {
        self.vips.iter().flat_map(|(vip, sharers)| sharers.iter().map(move |sharer| (vip, sharer)))
    }

    /// The same, the oldest first.
    pub fn in_order(&self) -> Vec<(&VipKey, &Sharer<'a>)> {
        let mut all: Vec<_> = self.all().collect();
        all.sort_by_key(|(_, sharer)| (sharer.service.created, &sharer.key));
        all
    }
}

/// The oldest first: its pods join it before they join a later one, and its ports are its own.
fn in_order(objects: &Objects) -> Vec<(VipKey, &Service)> {
    let read = |(key, service): (&String, _)| Some((key.parse::<VipKey>().ok()?, service));
    let mut services: Vec<(VipKey, &Service)> = objects.services.iter().filter_map(read).collect();
    services.sort_by(|one, other| (one.1.created, &one.0).cmp(&(other.1.created, &other.0)));
    services.retain(|(_, service)| !service.is_ending);
    services
}

/// Who has an address that it asks for.
type Holders = BTreeMap<Ipv4Addr, VipKey>;

fn holders(objects: &Objects, services: &[(VipKey, &Service)]) -> Holders {
    let mut holders = Holders::new();
    for (key, service) in services {
        if let Ask::Address(address) = service.ask
            && service.stated() == Some(IpAddr::V4(address))
            && let Ok(vip) = wanted(objects, key, service)
        {
            holders.entry(address).or_insert(vip);
        }
    }
    holders
}

/// The VIP that a Service is to have; an error: it can't have the one that it names.
fn wanted(objects: &Objects, key: &VipKey, service: &Service) -> Result<VipKey, String> {
    let vip = named(key, &service.vip)?;
    if vip.namespace() == key.namespace() {
        return Ok(vip);
    }
    let owner = objects.services.get(&vip.to_string()).filter(|owner| !owner.is_ending);
    let owner = owner.filter(|owner| named(&vip, &owner.vip).is_ok_and(|own| own == vip));
    let Some(owner) = owner else {
        return Err(format!("{VIP} names {vip}, which is no Service that has an address of its own"));
    };
    let mut lets_in = owner.shared_with.split(',').map(str::trim);
    if lets_in.any(|who| who == key.namespace() || who == key.to_string()) {
        return Ok(vip);
    }
    Err(format!("{VIP} names {vip}, whose annotation {SHARED_WITH} has neither {} nor {key}", key.namespace()))
}

/// The VIP that a Service's annotation names, or that of its own name.
pub(super) fn named(key: &VipKey, annotation: &str) -> Result<VipKey, String> {
    let text = annotation.trim();
    if text.is_empty() {
        return Ok(key.clone());
    }
    let found = if text.contains('/') { text.parse() } else { VipKey::new(key.namespace(), text) };
    found.map_err(|error| format!("{VIP}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::super::objects::ServicePort;
    use super::*;
    use proptest::prelude::*;

    fn service(created: i64, vip: &str, ports: &[(u16, &str)]) -> Service {
        let port = |(number, protocol): &(u16, &str)| ServicePort {
            name: number.to_string(),
            number: *number,
            protocol: (*protocol).into(),
        };
        let (uid, vip) = (format!("u{created}"), vip.to_owned());
        Service { uid, created, vip, ports: ports.iter().map(port).collect(), ..Service::default() }
    }

    fn objects(services: &[(&str, Service)]) -> Objects {
        let services = services.iter().map(|(key, service)| ((*key).to_owned(), service.clone()));
        Objects { services: services.collect(), ..Objects::default() }
    }

    /// `shop/web: shop/web shop/api(80 of shop/web)`
    fn shown(objects: &Objects) -> Vec<String> {
        let sharer = |sharer: &Sharer<'_>| {
            let taken: Vec<_> = sharer.taken.iter().map(|(port, whose)| format!("{port} of {whose}")).collect();
            if taken.is_empty() { sharer.key.to_string() } else { format!("{}({})", sharer.key, taken.join(", ")) }
        };
        let line = |(vip, sharers): (&VipKey, &Vec<Sharer<'_>>)| {
            format!("{vip}: {}", sharers.iter().map(sharer).collect::<Vec<_>>().join(" "))
        };
        Sharing::of(objects).vips.iter().map(line).collect()
    }

    #[test]
    fn a_service_has_the_vip_of_its_name_or_joins_another_of_its_namespace() {
        let web = service(1, "", &[(80, "TCP")]);
        let joins = |vip| service(2, vip, &[(443, "TCP"), (80, "UDP")]);
        for vip in ["web", "shop/web", " shop/web "] {
            let both = objects(&[("shop/web", web.clone()), ("shop/api", joins(vip))]);
            assert_eq!(shown(&both), ["shop/web: shop/web shop/api"], "{vip}");
            assert!(Sharing::of(&both).notes.is_empty());
        }
        // The VIP's own Service may be gone, and others keep it.
        assert_eq!(shown(&objects(&[("shop/api", joins("web"))])), ["shop/web: shop/api"]);
        let ending = Service { is_ending: true, ..web };
        assert_eq!(shown(&objects(&[("shop/web", ending), ("shop/api", joins("web"))])), ["shop/web: shop/api"]);
        let bad = objects(&[("shop/api", joins("Web!"))]);
        assert!(shown(&bad).is_empty());
        assert!(
            matches!(Sharing::of(&bad).notes.values().flatten().next(), Some(Note::NotShared { why }) if why.contains("Web!"))
        );
    }

    #[test]
    fn another_namespaces_vip_takes_the_word_of_its_service() {
        let api = service(2, "shop/web", &[(443, "TCP")]);
        let owner = |shared_with: &str| Service { shared_with: shared_with.into(), ..service(1, "", &[(80, "TCP")]) };
        let with = |shared_with| objects(&[("shop/web", owner(shared_with)), ("pay/api", api.clone())]);
        for fine in ["pay", "ops, pay", "pay/api"] {
            assert_eq!(shown(&with(fine)), ["shop/web: shop/web pay/api"], "{fine}");
        }
        for not in ["", "ops", "pay/web", "shop", "*"] {
            let found = with(not);
            assert_eq!(shown(&found), ["shop/web: shop/web"], "{not}");
            let notes = Sharing::of(&found).notes;
            assert_eq!(notes.keys().map(ToString::to_string).collect::<Vec<_>>(), ["pay/api"], "{not}");
        }
        // Nobody is there to agree; nor one who has joined another VIP itself.
        assert!(shown(&objects(&[("pay/api", api.clone())])).is_empty());
        let guest = Service { vip: "other".into(), ..owner("pay") };
        assert_eq!(shown(&objects(&[("shop/web", guest), ("pay/api", api)])), ["shop/other: shop/web"]);
    }

    #[test]
    fn a_port_that_two_have_is_the_older_ones() {
        let web = service(5, "", &[(80, "TCP")]);
        let older = service(1, "web", &[(80, "TCP"), (53, "UDP")]);
        let both = objects(&[("shop/web", web.clone()), ("shop/api", older)]);
        assert_eq!(shown(&both), ["shop/web: shop/api shop/web(80/tcp of shop/api)"]);
        let sharing = Sharing::of(&both);
        let owner = &sharing.vips[&"shop/web".parse().unwrap()][1];
        assert!(!owner.has_any(), "it has no other");
        // Of the same second the name decides; another protocol is another port.
        let twin = service(5, "web", &[(80, "TCP"), (80, "UDP")]);
        let both = objects(&[("shop/web", web), ("shop/zoo", twin)]);
        assert_eq!(shown(&both), ["shop/web: shop/web shop/zoo(80/tcp of shop/web)"]);
    }

    #[test]
    fn an_address_that_is_asked_for_is_one_vips() {
        let asking = |created, vip, last| {
            let ask = Ask::Address([10, 118, 0, last].into());
            Service { ask, ..service(created, vip, &[(u16::try_from(created).unwrap(), "TCP")]) }
        };
        let asked = |objects: &Objects| {
            let sharing = Sharing::of(objects);
            let asked: Vec<_> = sharing.asked.iter().map(|(vip, asked)| format!("{vip} {asked}")).collect();
            (asked, sharing.refused.keys().map(ToString::to_string).collect::<Vec<_>>())
        };
        let two = objects(&[("shop/web", asking(1, "", 7)), ("shop/api", asking(2, "", 7))]);
        assert_eq!(asked(&two), (vec!["shop/web 10.118.0.7".to_owned()], vec!["shop/api".to_owned()]));
        // Who has it keeps it, however young.
        let ingress = vec![super::super::objects::Ingress { ip: "10.118.0.7".into(), ..Default::default() }];
        let holder = Service { ingress, ..asking(2, "", 7) };
        let two = objects(&[("shop/web", asking(1, "", 7)), ("shop/api", holder.clone())]);
        assert_eq!(asked(&two), (vec!["shop/api 10.118.0.7".to_owned()], vec!["shop/web".to_owned()]));
        // Who asks for what it can't have keeps what it has.
        let moves = Service { ask: Ask::Refused("no".into()), ..holder };
        let one = objects(&[("shop/api", moves)]);
        assert_eq!((asked(&one), shown(&one)), ((vec![], vec![]), vec!["shop/api: shop/api".to_owned()]));
        // Those that share a VIP ask for one.
        let shared = objects(&[("shop/web", asking(1, "", 7)), ("shop/api", asking(2, "web", 8))]);
        assert_eq!(asked(&shared), (vec!["shop/web 10.118.0.7".to_owned()], vec!["shop/api".to_owned()]));
        let shared = objects(&[("shop/web", service(1, "", &[(80, "TCP")])), ("shop/api", asking(2, "web", 8))]);
        assert_eq!(asked(&shared), (vec!["shop/web 10.118.0.8".to_owned()], vec![]));
    }

    proptest! {
        /// Whoever comes and goes: a port of a VIP has one Service at most, and exactly one where any has it.
        #[test]
        fn a_port_has_one_service(made in proptest::collection::vec((0u8..5, 0i64..4, 0u8..3, proptest::collection::vec(1u16..4, 0..3)), 0..8)) {
            let names = ["shop/a", "shop/b", "pay/a", "pay/b", "ops/c"];
            let vips = ["", "shop/a", "a"];
            let services: Vec<(&str, Service)> = made.iter().map(|(name, created, vip, ports)| {
                let ports: Vec<_> = ports.iter().map(|port| (*port, "TCP")).collect();
                let shared_with = "pay".to_owned();
                (names[usize::from(*name)], Service { shared_with, ..service(*created, vips[usize::from(*vip)], &ports) })
            }).collect();
            let objects = objects(&services);
            let sharing = Sharing::of(&objects);
            for sharers in sharing.vips.values() {
                let all: BTreeSet<Port> = sharers.iter().flat_map(|sharer| &sharer.service.ports).filter_map(ServicePort::port).collect();
                for port in all {
                    let named = |sharer: &&Sharer<'_>| sharer.service.ports.iter().any(|own| own.port() == Some(port));
                    prop_assert_eq!(sharers.iter().filter(named).filter(|sharer| sharer.has(port)).count(), 1);
                }
                prop_assert!(sharers.is_sorted_by_key(|sharer| (sharer.service.created, sharer.key.clone())));
            }
            let placed = sharing.all().count();
            prop_assert_eq!(placed + sharing.refused.len(), objects.services.len());
        }
    }
}
