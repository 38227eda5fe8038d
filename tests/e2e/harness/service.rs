//! A VIP with its replicas and all who call it: an outside client, a pod that is no replica, the node itself.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use serde_json::{Value, json};

use super::bare::bare_pod;
use super::bed::stub::Stub;
use super::command::Run;
use super::crowd::Crowd;
use super::files::allow_many_files;
use super::flows::Flows;
use super::join::Join;
use super::lan::Lan;
use super::netns::Netns;
use super::node::{Families, Node};
use super::pod::Pod;
use super::traffic::PORT;

/// The VIP and its pods, of which some have joined. Fields are dropped in this order.
pub struct Service {
    _servers: Vec<Crowd>,
    pub pods: Vec<Pod>,
    pub bystander: Pod,
    pub client: Netns,
    pub node: Node,
    pub lan: Lan,
    pub join: Join,
    pub vip: Ipv4Addr,
    /// Its other address, where it has one of both families.
    pub vip6: Option<Ipv6Addr>,
    /// Each pod has another number in the place of the VIP's port.
    is_translated: bool,
}

/// What a service is made of.
struct Scene<'a> {
    join: &'a Join,
    joined: usize,
    is_translated: bool,
    /// The VIP has an address of each family, and pods' own addresses are of these.
    pods_have: Option<Families>,
}

impl Service {
    /// `joined` replicas; `spare` pods more that serve already and haven't joined.
    pub fn new(joined: usize, spare: usize) -> Self {
        Self::with(&Join::annotated("web"), joined, spare)
    }

    pub fn with(join: &Join, joined: usize, spare: usize) -> Self {
        Self::of(&Scene { join, joined, is_translated: false, pods_have: None }, pods(joined + spare))
    }

    /// Of pods whose servers have another number in the place of [`PORT`], each its own: [`Service::target`].
    pub fn translated(join: &Join, joined: usize, spare: usize) -> Self {
        Self::of(&Scene { join, joined, is_translated: true, pods_have: None }, pods(joined + spare))
    }

    /// So many replicas that pods made by a base plugin would take too long.
    pub fn of_many(replicas: usize) -> Self {
        let join = &Join::annotated("web");
        let scene = Scene { join, joined: replicas, is_translated: false, pods_have: None };
        Self::of(&scene, |_| (1..=replicas).map(bare_pod).collect())
    }

    /// A VIP of both families, whose servers have one socket for both. `pods_have`: of which families pods' own addresses are; without IPv6
    /// the pod that is no replica calls by IPv4 alone.
    pub fn dual(join: &Join, joined: usize, spare: usize, pods_have: Families) -> Self {
        let pods_have = Some(pods_have);
        Self::of(&Scene { join, joined, is_translated: false, pods_have }, pods(joined + spare))
    }

    /// The same as [`Service::translated`] has it.
    pub fn dual_translated(join: &Join, joined: usize, spare: usize) -> Self {
        let pods_have = Some(Families::Both);
        Self::of(&Scene { join, joined, is_translated: true, pods_have }, pods(joined + spare))
    }

    /// All of the VIP's addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        std::iter::once(self.vip.into()).chain(self.vip6.map(IpAddr::V6)).collect()
    }

    /// Who can call that address, by name.
    pub fn callers_of(&self, address: IpAddr) -> Vec<(&'static str, &Netns)> {
        let family = if address.is_ipv4() { "-4" } else { "-6" };
        let has_way = |ns: &Netns| !ns.ip(&format!("{family} route show default")).is_empty() || self.is_client(ns);
        self.callers().into_iter().filter(|(_, ns)| has_way(ns)).collect()
    }

    /// Those of them whose connections are spread.
    pub fn sharers_of(&self, address: IpAddr) -> Vec<(&'static str, &Netns)> {
        let is_spread = |from: &str| address.is_ipv4() || from != "the node" || hashes_own_ports();
        self.callers_of(address).into_iter().filter(|(from, _)| is_spread(from)).collect()
    }

    fn is_client(&self, ns: &Netns) -> bool {
        std::ptr::eq(ns, &raw const self.client)
    }

    fn of(scene: &Scene<'_>, pods: impl FnOnce(&Node) -> Vec<Pod>) -> Self {
        let Scene { join, joined, is_translated, pods_have } = *scene;
        allow_many_files();
        let lan = Lan::new();
        let node = pods_have.map_or_else(|| Node::new(&lan, 1), |families| Node::dual(&lan, 1, families));
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        if pods_have.is_some() {
            lan.add_ipv6(&client, 50);
            client.ip(&format!("route add {} via 2001:db8::1", Stub::NETWORK6));
        }
        let pods = pods(&node);
        // Servers first: a replica that is in the group is taken to be ready.
        let serve = if pods_have.is_some() { Crowd::of_both } else { Crowd::on };
        let port = |pod| if is_translated { target(pod) } else { PORT };
        let servers = pods.iter().map(|pod| serve(pod, port(pod))).collect();
        for pod in &pods[..joined] {
            node.add(pod, &joining(join, pod, is_translated)).ok();
        }
        let (vip, vip6, join) = (pods[0].vips()[0], pods[0].vips6().first().copied(), join.clone());
        assert_eq!(vip6.is_some(), pods_have.is_some(), "whether the pod has an IPv6 address of the VIP");
        let bystander = node.pod();
        Self { _servers: servers, bystander, client, node, lan, join, vip, vip6, is_translated, pods }
    }

    /// What the pod's server has in the place of the VIP's port.
    pub fn target(&self, pod: &Pod) -> u16 {
        if self.is_translated { target(pod) } else { PORT }
    }

    /// All who call, by name.
    pub fn callers(&self) -> [(&'static str, &Netns); 3] {
        [("the client", &self.client), ("a pod", &self.bystander.ns), ("the node", &self.node.ns)]
    }

    /// `count` live connections from each caller, to each of the VIP's addresses.
    pub fn flows(&self, count: usize) -> Vec<Flows> {
        let to =
            |address| self.callers_of(address).into_iter().map(move |(from, ns)| Flows::open(from, ns, address, count));
        self.addresses().into_iter().flat_map(to).collect()
    }

    pub fn add(&self, pod: &Pod) {
        self.node.add(pod, &joining(&self.join, pod, self.is_translated)).ok();
    }

    /// DEL: the pod's connections are lost.
    pub fn remove(&self, pod: &Pod) {
        self.node.remove(pod, &self.join);
    }

    /// No new connection from now on; the pod keeps those it has.
    pub fn drain(&self, pod: &Pod) {
        self.edit(pod, |endpoint| endpoint["state"] = json!("draining"));
        self.sync();
    }

    pub fn undrain(&self, pod: &Pod) {
        self.edit(pod, |endpoint| endpoint["state"] = json!("ready"));
        self.sync();
    }

    pub fn weigh(&self, pod: &Pod, weight: u8) {
        self.edit(pod, |endpoint| endpoint["weight"] = json!(weight));
        self.sync();
    }

    /// Makes the kernel match the registry: a GC to which everything is valid.
    pub fn sync(&self) {
        let pods: Vec<_> = self.pods.iter().collect();
        self.node.gc(&pods, &self.join).ok();
    }

    /// Changes the pod's endpoint records as the plugin would: under each VIP's lock, the index removed before.
    fn edit(&self, pod: &Pod, change: impl Fn(&mut Value)) {
        let mut found = false;
        for vip in fs::read_dir(Path::new(&self.node.data()).join("vips")).expect("the registry's VIPs").flatten() {
            let endpoint = vip.path().join(format!("endpoints/{}@eth0.json", pod.id));
            let lock = File::open(vip.path().join("lock")).expect("the VIP's lock");
            lock.lock().expect("lock the VIP");
            let Ok(text) = fs::read_to_string(&endpoint) else { continue };
            let mut record = serde_json::from_str(&text).expect("an endpoint's record is JSON");
            change(&mut record);
            let _ = fs::remove_file(vip.path().join("index.json"));
            fs::write(&endpoint, record.to_string()).expect("write an endpoint's record");
            found = true;
        }
        assert!(found, "no endpoint of {}", pod.name);
    }

    /// What `viproutectl status` says of the VIP.
    pub fn status(&self) -> Value {
        status(&self.node, self.vip)
    }

    /// One of the flow owner's counters.
    pub fn counter(&self, name: &str) -> u64 {
        let status = self.status();
        status["flows"][name].as_u64().unwrap_or_else(|| panic!("no counter {name:?} of the VIP's flows in {status}"))
    }
}

fn pods(count: usize) -> impl FnOnce(&Node) -> Vec<Pod> {
    move |node| (0..count).map(|_| node.pod()).collect()
}

/// A number of the pod's own, behind the `p` of its name.
fn target(pod: &Pod) -> u16 {
    let number: u16 = pod.name.trim_start_matches('p').parse().expect("the number of a pod");
    9000 + number
}

fn joining(join: &Join, pod: &Pod, is_translated: bool) -> Join {
    if !is_translated {
        return join.clone();
    }
    let target = target(pod);
    join.clone().annotation("viproute.io/ports", &format!("{PORT}:{target}/tcp,{PORT}:{target}/udp"))
}

/// What a node sends itself by IPv6 has its source port in its hash: since Linux 6.16 (65e9024643c7).
pub fn hashes_own_ports() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(16))
}

/// What `viproutectl status` says of one VIP of a node.
pub fn status(node: &Node, vip: Ipv4Addr) -> Value {
    let mut command = node.ctl();
    command.args(["status", "--output", "json"]);
    let report: Value = serde_json::from_str(&command.finish("").ok()).expect("status --output json is JSON");
    let vips = report["vips"].as_array().expect("a list of VIPs");
    vips.iter()
        .find(|entry| entry["address"] == json!(vip))
        .unwrap_or_else(|| panic!("{vip} is not in {report}"))
        .clone()
}
