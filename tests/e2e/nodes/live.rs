//! Three nodes with two replicas each of one VIP: 300 live connections from four places, and new ones without end.

use std::net::IpAddr;

use viproute::internals::model::Family;

use super::{CIDR6, Member, Scene, WEB, at, six, web};
use crate::harness::{Crowd, Flows, Netns, PATIENCE, PORT, Pod, SOON, Storm, allow_many_files, until};

/// Live connections from each of the places.
const LIVE: usize = 75;
/// Where they come from. Clients ask by ARP where the VIP is: node 1 answers while it can.
const PLACES: [&str; 4] = ["a client on the LAN", "a client behind the router", "a pod on node 2", "node 3 itself"];

/// A pod that serves. A server outlives nothing of its own: its connections end with it.
pub struct Served {
    pub server: Option<Crowd>,
    pub pod: Pod,
}

impl Member {
    /// Another replica of web, whose name tells the node.
    pub fn serves(&self) -> Served {
        let mut pod = self.node.pod();
        pod.name = format!("{}-{}", self.name(), pod.name);
        let server = match self.underlay {
            Family::V4 => Crowd::start(&pod),
            Family::V6 => Crowd::of_both(&pod, PORT),
        };
        let server = Some(server);
        self.node.add(&pod, &web()).ok();
        Served { server, pod }
    }
}

/// Fields are dropped in this order.
pub struct Live {
    flows: Vec<Flows>,
    storm: Storm,
    /// Those of each node.
    pub replicas: Vec<Vec<Served>>,
    /// Replicas whose connections have ended with them.
    pub gone: Vec<String>,
    _clients: [Netns; 3],
    pub scene: Scene,
}

impl Live {
    /// So many new connections a second.
    pub fn new(rate: u32) -> Self {
        Self::over(Family::V4, rate)
    }

    /// The same of nodes that have addresses of that family on the LAN, and with IPv6 no others: clients' packets go to node 1.
    pub fn over(underlay: Family, rate: u32) -> Self {
        allow_many_files();
        let scene = Scene::over(underlay, 3);
        let replicas: Vec<Vec<Served>> = scene.members.iter().map(|at| (0..2).map(|_| at.serves()).collect()).collect();
        let on_link = ["10.118.0.0/16 dev eth0"];
        let clients = [scene.lan.client(50, &on_link), scene.lan.routed_client(), scene.lan.client(51, &on_link)];
        scene.lan.ns.ip("route add 10.118.0.0/16 dev br0");
        scene.reaches_pods(underlay);
        scene.has_all("at first", 2);
        let vip: IpAddr = match underlay {
            Family::V4 => WEB.parse().expect("an address"),
            Family::V6 => scene.reached_by(&clients),
        };
        let storm = Storm::start(&clients[2], vip, rate);
        storm.next(20);
        let places = [&clients[0], &clients[1], &scene.members[1].pod.ns, &scene.members[2].node.ns];
        let flows: Vec<_> = PLACES.into_iter().zip(places).map(|(from, ns)| Flows::open(from, ns, vip, LIVE)).collect();
        for flows in &flows {
            assert_eq!(flows.live().len(), 6, "each replica has connections from {}", flows.from);
        }
        Self { flows, storm, replicas, gone: Vec::new(), _clients: clients, scene }
    }

    /// All of them are answered, each by the replica that it began with, and none of the new ones has failed.
    pub fn unbroken(&mut self, when: &str) {
        self.ask();
        self.unbroken_since(when);
        let seen = self.storm.next(20);
        assert_eq!(seen.failed, [""; 0], "{when}");
    }

    /// What came from there is of no interest any more.
    pub fn forget(&mut self, from: &str) {
        self.flows.retain(|flows| flows.from != from);
    }

    pub fn ask(&mut self) {
        self.flows.iter_mut().for_each(Flows::ask);
    }

    /// The same of what was asked before; new ones may fail.
    pub fn unbroken_since(&mut self, when: &str) {
        self.flows.iter_mut().for_each(Flows::hear);
        let complaints: Vec<_> = self.flows.iter().filter_map(|flows| flows.complaint(&self.gone)).collect();
        assert!(complaints.is_empty(), "{when}\n{}", complaints.join("\n"));
    }

    /// How new connections failed so far, those left out that were open and were not answered.
    pub fn refused(&self) -> Vec<String> {
        let is_silent = |error: &String| error.contains("os error 11");
        self.storm.seen().failed.into_iter().filter(|error| !is_silent(error)).collect()
    }

    /// So many new connections are answered.
    pub fn new_ones(&self, when: &str, count: usize) {
        let before = self.storm.seen().answers();
        until(&format!("new connections {when}"), PATIENCE, || {
            (self.storm.seen().answers() >= before + count).then_some(())
        });
    }
}

impl Scene {
    /// Nodes and the router know the way to each other's pods.
    fn reaches_pods(&self, underlay: Family) {
        for number in (1..).zip(&self.members).map(|(number, _)| number) {
            let others = (1..).zip(&self.members).filter(|(other, _)| *other != number);
            let all = others.map(|(_, member)| &member.node.ns).chain([&self.lan.ns]);
            let pods = match underlay {
                Family::V4 => format!("10.1.{number}.0/24"),
                Family::V6 => format!("fd00:1:{number}::/64"),
            };
            all.for_each(|ns| drop(ns.ip(&format!("route add {pods} via {}", at(number, underlay)))));
        }
    }

    /// Clients have addresses of IPv6, and the way to the VIP's by node 1; the second of them behind the router. Returns it.
    fn reached_by(&self, clients: &[Netns; 3]) -> IpAddr {
        let first = at(1, Family::V6);
        self.lan.ns.set_sysctl("net/ipv6/conf/all/forwarding", "1");
        self.lan.ns.ip("addr add 2001:db8:c::1/64 dev clients nodad");
        self.lan.ns.ip(&format!("route add {CIDR6} via {first}"));
        clients[1].ip("addr add 2001:db8:c::2/64 dev eth0 nodad");
        clients[1].ip("route add default via 2001:db8:c::1");
        for (client, host) in [(&clients[0], 50), (&clients[2], 51)] {
            self.lan.add_ipv6(client, host);
            client.ip(&format!("route add {CIDR6} via {first}"));
        }
        six().into()
    }

    /// Each node has a ready leg of that weight to each of the others.
    pub fn has_all(&self, when: &str, weight: u64) {
        for (at, member) in self.members.iter().enumerate() {
            let others = (0..self.members.len()).filter(|other| *other != at);
            let ids: Vec<_> = others.map(|other| format!("192.0.2.{}", other + 1)).collect();
            let expected: Vec<_> = ids.iter().map(|id| (id.as_str(), "ready", weight)).collect();
            member.has(when, &expected);
            member.leads_to(when, ids.len());
        }
    }
}

impl Member {
    /// The VIP's group has so many members on other nodes.
    pub fn leads_to(&self, when: &str, count: usize) {
        until(&format!("{} has legs to {count} nodes {when}", self.name()), SOON, || {
            let hops = self.node.ns.ip_json("nexthop show proto 118");
            let group = hops.iter().filter_map(|hop| hop["group"].as_array()).max_by_key(|members| members.len())?;
            let far = |member: &&serde_json::Value| member["id"].as_u64().is_some_and(|id| id > 0x7800_0000);
            (group.iter().filter(far).count() == count).then_some(())
        });
    }
}
