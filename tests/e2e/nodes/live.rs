//! Three nodes with two replicas each of one VIP: 300 live connections from four places, and new ones without end.

use std::net::Ipv4Addr;

use super::{Member, Scene, WEB, web};
use crate::harness::{Crowd, Flows, Netns, PATIENCE, Pod, SOON, Storm, allow_many_files, until};

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
        let server = Some(Crowd::start(&pod));
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
        allow_many_files();
        let scene = Scene::new(3);
        let replicas: Vec<Vec<Served>> = scene.members.iter().map(|at| (0..2).map(|_| at.serves()).collect()).collect();
        let on_link = ["10.118.0.0/16 dev eth0"];
        let clients = [scene.lan.client(50, &on_link), scene.lan.routed_client(), scene.lan.client(51, &on_link)];
        scene.lan.ns.ip("route add 10.118.0.0/16 dev br0");
        scene.reaches_pods();
        scene.has_all("at first", 2);
        let vip: Ipv4Addr = WEB.parse().expect("an address");
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
    fn reaches_pods(&self) {
        for number in 1..=self.members.len() {
            let others = (1..=self.members.len()).filter(|other| *other != number);
            let all = others.map(|other| &self.members[other - 1].node.ns).chain([&self.lan.ns]);
            all.for_each(|ns| drop(ns.ip(&format!("route add 10.1.{number}.0/24 via 192.0.2.{number}"))));
        }
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
