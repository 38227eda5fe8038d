//! Which replicas of a VIP, and which other nodes, serve which of its ports. Pure.
//!
//! The VIP's group has them all; what would begin a flow with one that doesn't serve its port goes on to one that does (`serving.h`). As a
//! rule all serve the same ports, and then there is nothing to say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::ebpf::{ByPort, MEMBERS, Server};
use crate::model::{Backend, Family, Port, Recorded, Served};
use crate::registry::Replica;

use super::owner::{is_ready, port_number};

/// What stands for all ports that no replica lists.
const OTHERS: u32 = 0;
/// A member of a group weighs so much at most.
const HEAVIEST: u32 = 255;

/// A ready replica, or another node, as far as ports go.
struct Candidate {
    ifindex: u32,
    node: [u8; 4],
    of: u32,
    served: Served,
}

impl Candidate {
    fn new(replica: &Replica) -> Option<Self> {
        let of = u32::from(replica.weight);
        let (ifindex, node, served) = match replica.backend {
            Backend::Local => (replica.ifindex, [0; 4], None),
            Backend::Remote(peer) => {
                let IpAddr::V4(id) = peer.address else { return None };
                (0, id.octets(), replica.served.as_ref().and_then(Recorded::known).cloned())
            }
        };
        let served = served.unwrap_or_else(|| {
            let mut served = Served::default();
            served.add(of, &replica.listed().collect());
            served
        });
        Some(Self { ifindex, node, of, served })
    }

    /// A node that has more than a member can weigh has as much less of each port.
    fn scaled(&self, weight: u32) -> u32 {
        let whole = self.whole();
        if weight == 0 || whole <= HEAVIEST { weight } else { (weight.saturating_mul(HEAVIEST) / whole).max(1) }
    }

    /// What all of its replicas weigh, as far as is known.
    fn whole(&self) -> u32 {
        let most = self.served.ports.values().max().copied().unwrap_or_default();
        self.of.max(most.saturating_add(self.served.all))
    }

    /// It serves every port that it serves by all that it has.
    fn is_uniform(&self) -> bool {
        let listed = !self.served.ports.is_empty();
        let of = self.whole();
        if listed { self.served.all == 0 && self.served.ports.values().all(|weight| *weight == of) } else { true }
    }

    fn server(&self, weight: u32) -> Option<Server> {
        let weight = self.scaled(weight).min(self.of);
        (weight > 0).then_some(Server { ifindex: self.ifindex, node: self.node, weight, of: self.of })
    }
}

/// Who serves which port by that family; nothing where all serve the same. `is_alone`: this node knows of no other.
pub fn by_port(replicas: &BTreeMap<String, Replica>, family: Family, is_alone: bool) -> ByPort {
    let counts =
        |replica: &&Replica| is_ready(replica) && replica.serves(family) && (!is_alone || replica.backend.is_local());
    let ready = || replicas.values().filter(counts);
    let mut lists = ready().map(|replica| (&replica.ports, &replica.served));
    let first = lists.next();
    // The usual case, of a VIP with a thousand replicas too.
    if first.is_none_or(|first| first.1.is_none() && lists.all(|list| list == first)) {
        return ByPort::new();
    }
    let candidates: Vec<Candidate> = ready().filter_map(Candidate::new).collect();
    let sets: BTreeSet<Vec<&Port>> =
        candidates.iter().map(|candidate| candidate.served.ports.keys().collect()).collect();
    if sets.len() < 2 && candidates.iter().all(Candidate::is_uniform) {
        return ByPort::new();
    }
    let ports: BTreeSet<Port> = sets.into_iter().flatten().copied().collect();
    let listed = ports.iter().map(|port| (port_number(*port), servers(&candidates, |served| served.weight(*port))));
    let others = (OTHERS, servers(&candidates, |served| served.all));
    listed.chain([others]).filter(|(_, servers)| !servers.is_empty()).collect()
}

fn servers(candidates: &[Candidate], weight: impl Fn(&Served) -> u32) -> Vec<Server> {
    let mut servers: Vec<Server> =
        candidates.iter().filter_map(|candidate| candidate.server(weight(&candidate.served))).collect();
    servers.sort_unstable();
    servers.truncate(MEMBERS);
    servers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Egress, Peer};
    use crate::registry::State;
    use std::net::Ipv4Addr;

    fn replica(ifindex: u32, ports: &[&str]) -> Replica {
        Replica {
            addresses: IpAddr::from([10, 1, 0, 1]).into(),
            backend: Backend::Local,
            ifindex,
            state: State::Ready,
            weight: 1,
            netns_id: Some(ifindex),
            mac: None,
            ports: ports.iter().map(|port| Recorded::Known(port.parse().unwrap())).collect(),
            udp_sticky: false,
            egress: Egress::Answer.into(),
            health: None,
            drained: false,
            families: None,
            served: None,
        }
    }

    fn far(last: u8, ready: u8, served: Option<&str>) -> Replica {
        let peer = Peer { number: last.into(), address: Ipv4Addr::new(192, 0, 2, last).into() };
        let served = served.map(|text| Recorded::Known(text.parse().unwrap()));
        Replica { backend: Backend::Remote(peer), weight: ready, served, ..replica(99, &[]) }
    }

    /// `80/tcp: 3×1 n2×1/2`
    fn shown(replicas: &[Replica]) -> Vec<String> {
        let all = replicas.iter().cloned().enumerate().map(|(n, replica)| (format!("c{n}@eth0"), replica)).collect();
        let name = |server: &Server| match server.ifindex {
            0 => format!("n{}×{}/{}", server.node[3], server.weight, server.of),
            ifindex => format!("{ifindex}×{}", server.weight),
        };
        let line = |(number, servers): (&u32, &Vec<Server>)| {
            let servers: Vec<String> = servers.iter().map(name).collect();
            format!("{}: {}", number & 0xffff, servers.join(" "))
        };
        by_port(&all, Family::V4, false).iter().map(line).collect()
    }

    #[test]
    fn where_all_serve_the_same_there_is_nothing_to_say() {
        assert!(shown(&[]).is_empty());
        assert!(shown(&[replica(3, &[]), replica(4, &[])]).is_empty());
        let web = ["80:8080/tcp", "443/tcp"];
        // The pods' own numbers don't matter, nor the order.
        assert!(shown(&[replica(3, &web), replica(4, &["443/tcp", "80:9090/tcp"])]).is_empty());
        let draining = Replica { state: State::Draining, ..replica(5, &["22/tcp"]) };
        assert!(shown(&[replica(3, &web), draining]).is_empty());
        assert!(shown(&[replica(3, &web), far(2, 3, Some("80/tcp=3,443/tcp=3"))]).is_empty());
        assert!(shown(&[replica(3, &[]), far(2, 3, None)]).is_empty());
    }

    #[test]
    fn each_port_has_those_that_list_it() {
        let both = replica(3, &["80/tcp", "443/tcp"]);
        let heavy = Replica { weight: 5, ..replica(4, &["80/tcp"]) };
        assert_eq!(shown(&[both.clone(), heavy]), ["80: 3×1 4×5", "443: 3×1"]);
        assert_eq!(shown(&[both, replica(4, &["80/udp"])]).len(), 3, "another protocol");
    }

    #[test]
    fn who_lists_nothing_serves_everything() {
        assert_eq!(shown(&[replica(3, &["80/tcp"]), replica(4, &[])]), ["0: 4×1", "80: 3×1 4×1"]);
    }

    #[test]
    fn a_node_may_serve_a_port_by_some_of_its_replicas() {
        let web = ["80/tcp", "443/tcp"];
        let served = "80/tcp=3,443/tcp=1";
        assert_eq!(shown(&[replica(3, &web), far(2, 3, Some(served))]), ["80: n2×3/3 3×1", "443: n2×1/3 3×1"]);
        // It alone has different ones.
        assert_eq!(shown(&[far(2, 3, Some(served))]), ["80: n2×3/3", "443: n2×1/3"]);
        // It serves what no replica here does.
        assert_eq!(shown(&[replica(3, &["80/tcp"]), far(2, 1, Some("443/tcp=1"))]), ["80: 3×1", "443: n2×1/1"]);
        // An earlier version says nothing of ports.
        assert_eq!(shown(&[replica(3, &["80/tcp"]), far(2, 2, None)]), ["0: n2×2/2", "80: n2×2/2 3×1"]);
    }

    #[test]
    fn a_node_of_more_replicas_than_a_member_weighs_has_its_part_of_each_port() {
        let shown = shown(&[replica(3, &["80/tcp"]), far(2, 255, Some("80/tcp=1000,443/tcp=500"))]);
        assert_eq!(shown, ["80: n2×255/255 3×1", "443: n2×127/255"]);
    }

    #[test]
    fn a_node_that_stands_alone_counts_its_own_alone() {
        let all = BTreeMap::from([
            ("a@eth0".to_owned(), replica(3, &["80/tcp"])),
            ("node-2@peer".to_owned(), far(2, 1, Some("443/tcp=1"))),
        ]);
        assert!(by_port(&all, Family::V4, true).is_empty());
        assert!(by_port(&all, Family::V6, false).is_empty(), "the other node has no address of it");
    }
}
