//! Whether servers of Services' pods can be reached at the VIP: one that listens on its pod's own address only answers no packet for the VIP,
//! and the kubelet, which asks it at the pod's address, finds it ready. By the lookups that a packet has, in the pod's namespace.
//!
//! A pod none of whose ports can be reached, while one of them listens on the pod's address, gets no new connections. One on whose ports
//! nothing listens is another matter: its readiness says whether it is to have any.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::ebpf::{OnDemand, Question};
use crate::model::address::ipv4;
use crate::model::{Addresses, Family, Port, Transport, VipKey};
use crate::net::sockets::Sockets;
use crate::net::{self, Netns, NodeNet};
use crate::registry::record;

use super::desired::{Attachment, Desired, Note, Role};
use super::objects::Key;

/// What could be reached is asked again after this time, and what couldn't after the other.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));

/// What a pod's sockets take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// What comes for the VIP.
    Vip,
    /// What comes for the pod's own address alone.
    OwnAddress,
    /// Neither.
    Nothing,
}

/// A port of a pod in a VIP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// The attachment's name.
    pod: String,
    vip: VipKey,
    /// The VIP's address, with the number that the pod has in the place of the VIP's port.
    at_vip: SocketAddr,
    /// The pod's own address of the same family, with that number; none: it isn't known.
    at_pod: Option<SocketAddr>,
    port: Port,
}

/// What was found, and when.
#[derive(Clone, Copy, Debug)]
struct Found {
    reach: Reach,
    at: Instant,
}

impl Found {
    fn is_due(self, now: Instant) -> bool {
        let again = if self.reach == Reach::OwnAddress { AGAIN.1 } else { AGAIN.0 };
        now.saturating_duration_since(self.at) >= again
    }
}

/// A pod's server that can't be reached at the VIP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnAddressOnly {
    /// `<namespace>/<name>`.
    pub pod: Key,
    /// The VIP's port.
    pub port: Port,
    /// Where it listens.
    pub at: SocketAddr,
}

/// Knows who listens.
#[derive(Debug, Default)]
pub struct Listeners {
    asker: Asker,
    found: BTreeMap<Place, Found>,
}

impl Listeners {
    /// Nobody whose server can't be reached gets new connections, and each is named. `addresses`: those of the VIPs.
    pub fn hold_back(
        &mut self,
        node: &NodeNet,
        attachments: &[Attachment],
        addresses: &BTreeMap<VipKey, Addresses>,
        desired: &mut Desired,
    ) {
        let by_name: BTreeMap<&str, &Attachment> =
            attachments.iter().map(|attachment| (attachment.name.as_str(), attachment)).collect();
        let places = places(&by_name, addresses, desired);
        self.refresh(node, &by_name, &places, Instant::now());
        let reach = |place: &Place| self.found.get(place).map(|found| found.reach);
        hold_back(&places, reach, desired);
    }

    /// When something is to be asked again that may have changed for the better.
    pub fn next(&self) -> Duration {
        let is_held = self.found.values().any(|found| found.reach == Reach::OwnAddress);
        if is_held { AGAIN.1 } else { AGAIN.0 }
    }

    fn refresh(&mut self, node: &NodeNet, by_name: &BTreeMap<&str, &Attachment>, places: &[Place], now: Instant) {
        let before = std::mem::take(&mut self.found);
        let mut due: Vec<&Place> = Vec::new();
        for place in places {
            match before.get(place).filter(|found| !found.is_due(now)) {
                Some(found) => drop(self.found.insert(place.clone(), *found)),
                None => due.push(place),
            }
        }
        let due: Vec<(&Place, &record::Netns)> =
            due.into_iter().filter_map(|place| Some((place, &by_name.get(place.pod.as_str())?.netns))).collect();
        for ((place, _), reach) in due.iter().zip(self.asker.ask(node, &due)) {
            // What can't be asked is taken for what it was.
            let reach = reach.or_else(|| before.get(*place).map(|found| found.reach));
            if let Some(reach) = reach {
                self.found.insert((*place).clone(), Found { reach, at: now });
            }
        }
    }
}

/// All ports that Services' pods here are to serve.
fn places(
    by_name: &BTreeMap<&str, &Attachment>,
    addresses: &BTreeMap<VipKey, Addresses>,
    desired: &Desired,
) -> Vec<Place> {
    let mut places = Vec::new();
    for (name, roles) in &desired.recorded {
        let Some(own) = by_name.get(name.as_str()).and_then(|attachment| attachment.address) else { continue };
        for (vip, Role { ports, .. }) in &roles.vips {
            let policy = desired.policies.get(vip);
            let served = |address: &IpAddr| policy.is_none_or(|policy| policy.permits(Family::of(*address)));
            for address in addresses.get(vip).into_iter().flat_map(Addresses::iter).filter(served) {
                let is_alike = |own: &IpAddr| own.is_ipv4() == address.is_ipv4();
                places.extend(ports.iter().map(|(port, target)| Place {
                    pod: name.clone(),
                    vip: vip.clone(),
                    at_vip: SocketAddr::new(address, *target),
                    at_pod: Some(own).filter(is_alike).map(|own| SocketAddr::new(own, *target)),
                    port: *port,
                }));
            }
        }
    }
    places
}

/// Pure.
fn hold_back(places: &[Place], reach: impl Fn(&Place) -> Option<Reach>, desired: &mut Desired) {
    let mut reached: BTreeMap<(&str, &VipKey), bool> = BTreeMap::new();
    for place in places {
        let is_reached = reach(place) == Some(Reach::Vip);
        *reached.entry((&place.pod, &place.vip)).or_default() |= is_reached;
    }
    for place in places.iter().filter(|place| reach(place) == Some(Reach::OwnAddress)) {
        let Some(roles) = desired.recorded.get_mut(&place.pod) else { continue };
        let pod = roles.pod.as_ref().map_or_else(|| place.pod.clone(), |pod| pod.key.clone());
        let Some(role) = roles.vips.get_mut(&place.vip) else { continue };
        if !reached.get(&(place.pod.as_str(), &place.vip)).copied().unwrap_or_default() {
            role.is_admitted = false;
        }
        let Some(at) = place.at_pod else { continue };
        let note = Note::NotListening(OwnAddressOnly { pod, port: place.port, at });
        let service = desired.owner(&place.vip, place.port).clone();
        desired.notes.entry(service).or_default().insert(note);
    }
}

/// Asks the kernel: by one run of a program for all, and where no program can be loaded, pod by pod.
#[derive(Debug, Default)]
struct Asker {
    program: OnDemand,
    /// The namespaces' ids on the node, by device and inode. They are theirs to their end.
    ids: HashMap<(u64, u64), u32>,
}

impl Asker {
    /// One answer for each; none: it can't be known now.
    fn ask(&mut self, node: &NodeNet, places: &[(&Place, &record::Netns)]) -> Vec<Option<Reach>> {
        if places.is_empty() {
            return Vec::new();
        }
        if let Some(answers) = self.ask_program(node, places) {
            return answers;
        }
        places.iter().map(|(place, netns)| ask_sockets(place, netns).ok()).collect()
    }

    fn ask_program(&mut self, node: &NodeNet, places: &[(&Place, &record::Netns)]) -> Option<Vec<Option<Reach>>> {
        let ids: Vec<Option<u32>> = places.iter().map(|(_, netns)| self.id(node, netns)).collect();
        let mut questions = Vec::new();
        let mut asked = Vec::new();
        for ((place, _), id) in places.iter().zip(ids) {
            let both =
                id.and_then(|id| Some((question(id, place.at_vip, place)?, question(id, place.at_pod?, place)?)));
            asked.push(both.is_some());
            questions.extend(both.into_iter().flat_map(|(vip, pod)| [vip, pod]));
        }
        let answers = self.program.ask(&questions)?;
        let mut answers = answers.chunks_exact(2);
        let answered = |(asked, (place, netns)): (bool, &(&Place, &record::Netns))| {
            // Of IPv6 its sockets are asked themselves.
            if asked { answers.next().map(of_answers) } else { ask_sockets(place, netns).ok() }
        };
        Some(asked.into_iter().zip(places).map(answered).collect())
    }

    fn id(&mut self, node: &NodeNet, netns: &record::Netns) -> Option<u32> {
        let identity = netns.identity();
        if let Some(id) = self.ids.get(&identity) {
            return Some(*id);
        }
        let id = Netns::open(&netns.path).and_then(|netns| netns.id(node)).ok().flatten()?;
        // Pods come and go; who is asked about again is found again.
        if self.ids.len() >= MOST_IDS {
            self.ids.clear();
        }
        self.ids.insert(identity, id);
        Some(id)
    }
}

/// More pods than a node has.
const MOST_IDS: usize = 4096;

fn of_answers(answers: &[bool]) -> Reach {
    match answers {
        [true, ..] => Reach::Vip,
        [false, true] => Reach::OwnAddress,
        _ => Reach::Nothing,
    }
}

/// The program looks up IPv4 addresses only.
fn question(netns: u32, to: SocketAddr, place: &Place) -> Option<Question> {
    let to = SocketAddrV4::new(ipv4(to.ip())?, to.port());
    Some(Question { netns, to, protocol: place.port.transport.protocol() })
}

fn ask_sockets(place: &Place, netns: &record::Netns) -> net::Result<Reach> {
    let sockets = Sockets::open(&Netns::open(&netns.path)?)?;
    let takes = |at: SocketAddr| match place.port.transport {
        Transport::Tcp => sockets.takes_connections(at),
        Transport::Udp => sockets.check_udp().and_then(|()| sockets.takes_datagrams(at)),
    };
    Ok(of_answers(&[takes(place.at_vip)?, place.at_pod.map_or(Ok(false), takes)?]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::desired::{PodId, Roles};
    use super::*;

    fn vip() -> VipKey {
        "shop/web".parse().unwrap()
    }

    /// A pod that is to serve these ports.
    fn wanted(ports: &[u16]) -> Desired {
        let port = |number: &u16| (Port { number: *number, transport: Transport::Tcp }, number + 8000);
        let role = Role { ports: ports.iter().map(port).collect(), is_admitted: true };
        let pod = PodId { key: "shop/p1".into(), uid: "u1".into(), address: [10, 1, 0, 1].into() };
        let roles = Roles { pod: Some(pod), vips: BTreeMap::from([(vip(), role)]) };
        Desired { recorded: BTreeMap::from([("c1@eth0".to_owned(), roles)]), ..Desired::default() }
    }

    fn asked(desired: &Desired) -> Vec<Place> {
        asked_at(desired, IpAddr::from([10, 118, 0, 7]).into())
    }

    fn asked_at(desired: &Desired, addresses: Addresses) -> Vec<Place> {
        let netns = record::Netns { path: "/run/netns/c1".into(), device: 4, inode: 1 };
        let attachment = Attachment {
            name: "c1@eth0".into(),
            pod: record::Pod::default(),
            address: Some([10, 1, 0, 1].into()),
            netns,
            vips: BTreeMap::new(),
        };
        let addresses = BTreeMap::from([(vip(), addresses)]);
        places(&BTreeMap::from([("c1@eth0", &attachment)]), &addresses, desired)
    }

    fn held(desired: &Desired) -> (bool, usize) {
        let role = &desired.recorded["c1@eth0"].vips[&vip()];
        (!role.is_admitted, desired.notes.get(&vip()).map_or(0, std::collections::BTreeSet::len))
    }

    #[test]
    fn a_port_is_asked_about_by_the_pods_own_number() {
        let desired = wanted(&[80]);
        let [place] = &asked(&desired)[..] else { panic!() };
        assert_eq!(
            (place.at_vip.to_string(), place.at_pod.map(|at| at.to_string())),
            ("10.118.0.7:8080".into(), Some("10.1.0.1:8080".into()))
        );
    }

    /// What listens at the pod's address of one family says nothing of the other's.
    #[test]
    fn each_address_of_a_vip_is_asked_about() {
        let both: Vec<IpAddr> = ["10.118.0.7", "fd00:118::7"].map(|text| text.parse().unwrap()).into();
        let places = asked_at(&wanted(&[80]), both.try_into().unwrap());
        let shown: Vec<_> = places.iter().map(|place| (place.at_vip.to_string(), place.at_pod.is_some())).collect();
        assert_eq!(shown, [("10.118.0.7:8080".to_owned(), true), ("[fd00:118::7]:8080".to_owned(), false)]);
    }

    #[test]
    fn who_listens_on_its_own_address_alone_is_held_back() {
        for (reach, expected) in [
            (vec![Some(Reach::OwnAddress)], (true, 1)),
            (vec![Some(Reach::Vip)], (false, 0)),
            (vec![Some(Reach::Nothing)], (false, 0)),
            (vec![None], (false, 0)),
            // A pod with a port that can be reached serves that one.
            (vec![Some(Reach::Vip), Some(Reach::OwnAddress)], (false, 1)),
            (vec![Some(Reach::Nothing), Some(Reach::OwnAddress)], (true, 1)),
            (vec![Some(Reach::OwnAddress), Some(Reach::OwnAddress)], (true, 2)),
        ] {
            let ports: Vec<u16> = (80..).take(reach.len()).collect();
            let mut desired = wanted(&ports);
            let places = asked(&desired);
            hold_back(&places, |place| reach[usize::from(place.port.number - 80)], &mut desired);
            assert_eq!(held(&desired), expected, "{reach:?}");
        }
    }

    #[test]
    fn it_is_told_at_the_service_whose_port_it_is() {
        let mut desired = wanted(&[80, 443]);
        let port = Port { number: 443, transport: Transport::Tcp };
        desired.owners.insert(vip(), BTreeMap::from([(port, "shop/api".parse().unwrap())]));
        let places = asked(&desired);
        hold_back(&places, |_| Some(Reach::OwnAddress), &mut desired);
        let told: Vec<_> = desired.notes.iter().map(|(service, notes)| (service.to_string(), notes.len())).collect();
        assert_eq!(told, [("shop/api".to_owned(), 1), ("shop/web".to_owned(), 1)]);
    }

    proptest! {
        /// Nobody gets connections by it who is to have none, and only who is named loses them.
        #[test]
        fn it_only_takes_away(reach in proptest::collection::vec(0usize..4, 1..6), is_admitted in any::<bool>()) {
            let ports: Vec<u16> = (80..).take(reach.len()).collect();
            let mut desired = wanted(&ports);
            for roles in desired.recorded.values_mut() {
                roles.vips.values_mut().for_each(|role| role.is_admitted = is_admitted);
            }
            let (before, places) = (desired.clone(), asked(&desired));
            let of = |place: &Place| [None, Some(Reach::Vip), Some(Reach::OwnAddress), Some(Reach::Nothing)]
                [reach[usize::from(place.port.number - 80)]];
            hold_back(&places, of, &mut desired);
            let (is_held, named) = held(&desired);
            prop_assert!(is_admitted || is_held);
            let own_only = reach.iter().copied().filter(|reach| *reach == 2);
            prop_assert_eq!(named, own_only.count());
            if is_admitted && is_held {
                prop_assert!(named > 0 && !reach.contains(&1));
            }
            let once = desired.clone();
            hold_back(&places, of, &mut desired);
            prop_assert_eq!(&once, &desired);
            prop_assert_eq!(
                &before.recorded["c1@eth0"].vips[&vip()].ports,
                &desired.recorded["c1@eth0"].vips[&vip()].ports
            );
        }
    }
}
