//! A cluster of two nodes on a LAN, and a client there that is none of it.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::thread::{scope, sleep};
use std::time::Duration;

use serde_json::Value;

use super::control::{ControlPlane, SERVICES};
use super::parts::part;
use super::pki::Pki;
use super::worker::{Kind, Worker, pods, pods6};
use crate::harness::image::{self, Content};
use crate::harness::{DhcpServer, LONG, Lan, Netns, Run, TempDir, VIPROUTECTL, until};

/// What the tests' pods run.
pub const SERVER: &str = "viproute.test/server:1";

/// What viprouted may do.
const RIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/kubernetes-rbac.yaml");

/// What the LAN's DHCP server may give, and how many that are.
const DHCP_RANGE: &str = "192.0.2.100,192.0.2.103";
pub const DHCP_ADDRESSES: u32 = 4;

#[derive(Clone, Default)]
#[allow(clippy::struct_excessive_bools)] // each says of another thing that it is there
pub struct Setup {
    /// containerd 2, and not Debian's.
    pub second: bool,
    /// VIPs are from a DHCP server on the LAN, and not from a pool.
    pub dhcp: bool,
    /// The pools that they are from; empty: one of 10.118.0.0/24.
    pub pools: &'static str,
    /// Services of type `LoadBalancer` are served.
    pub services: bool,
    /// Nodes have nothing of viproute's.
    pub bare: bool,
    /// Nodes, pods, Services and VIPs have addresses of both families.
    pub dual: bool,
    /// kube-proxy makes rules of iptables, and not of nftables.
    pub iptables: bool,
    /// Controllers may ask the API for much in a second.
    pub busy: bool,
}

/// Dropped in this order: nodes, then the control plane.
pub struct Cluster {
    pub workers: Vec<Worker>,
    pub control: ControlPlane,
    pub client: Netns,
    _dhcp: Option<DhcpServer>,
    pub lan: Lan,
}

impl Cluster {
    pub fn new() -> Self {
        Self::with(&Setup::default())
    }

    /// Two nodes that are ready, where pods can be made.
    pub fn with(setup: &Setup) -> Self {
        let (lan, dir, pki) = (Lan::new(), TempDir::new(), Arc::new(Pki::new()));
        let dhcp = setup.dhcp.then(|| DhcpServer::dnsmasq(&lan, DHCP_RANGE, "1h", ""));
        let kind = Kind { setup: setup.clone(), key: key(&dir), pki: pki.clone() };
        let image = dir.path().join("server.tar");
        image::of(&image, &Content { name: SERVER, entrypoint: &["/bin/server"], programs: &[part("server")] });
        let (mut workers, control) = scope(|scope| {
            let worker = |number| {
                let (lan, kind, image) = (&lan, &kind, &image);
                scope.spawn(move || {
                    let worker = Worker::new(lan, number, kind);
                    worker.containerd.import(image, SERVER);
                    worker
                })
            };
            let starting = [1, 2].map(worker);
            // By this thread: its programs end with who has started them.
            let control = ControlPlane::start(&lan, pki.clone(), setup);
            (starting.map(|worker| worker.join().expect("a node")), control)
        });
        if setup.services {
            control.run(&["apply", "-f", RIGHTS]);
        }
        for worker in &mut workers {
            worker.join(&pki);
        }
        let cluster = Self { workers: workers.into(), client: client(&lan), control, _dhcp: dhcp, lan };
        cluster.connect();
        if setup.dual {
            cluster.connect_ipv6();
        }
        cluster.ready();
        cluster
    }

    /// Each knows the way to the pods of the others.
    fn connect(&self) {
        for (number, worker) in (1..).zip(&self.workers) {
            let others = self.workers.iter().filter(|other| other.name != worker.name).map(|other| &other.node.ns);
            for ns in others.chain([&self.control.ns, &self.client]) {
                ns.ip(&format!("route add {} via {}", pods(number), worker.node.address()));
            }
        }
    }

    /// By IPv6 too. For the client VIPs are on its link, as those of IPv4 are.
    fn connect_ipv6(&self) {
        for (ns, host) in [(&self.control.ns, 10), (&self.client, 50)] {
            self.lan.add_ipv6(ns, host);
        }
        for (number, worker) in (1..).zip(&self.workers) {
            let others = self.workers.iter().filter(|other| other.name != worker.name).map(|other| &other.node.ns);
            for ns in others.chain([&self.control.ns, &self.client]) {
                ns.ip(&format!("route add {} via 2001:db8::{number}", pods6(number)));
            }
        }
        self.client.ip("route add fd00:118::/96 dev eth0");
    }

    /// Pods can be made once there is the service account that they have.
    fn ready(&self) {
        until("the nodes are ready", LONG, || {
            let ready = self.workers.iter().all(|worker| self.is_ready(&worker.name))
                && self.control.find(&["serviceaccount", "default"]).is_some();
            if !ready {
                sleep(Duration::from_millis(200));
            }
            ready.then_some(())
        });
    }

    pub fn is_ready(&self, node: &str) -> bool {
        let Some(node) = self.control.find(&["node", node]) else { return false };
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    }

    pub fn worker(&self, name: &str) -> &Worker {
        self.workers.iter().find(|worker| worker.name == name).expect("a node of that name")
    }

    /// What viproutectl says of a VIP on the first node.
    pub fn vip(&self, vip: &str) -> Option<Value> {
        let status = self.workers[0].ctl(&["status"]);
        status["vips"].as_array().expect("VIPs").iter().find(|entry| entry["vip"] == vip).cloned()
    }

    /// The address that a VIP has, once it has one.
    pub fn address(&self, vip: &str) -> Ipv4Addr {
        until(&format!("{vip} has an address"), LONG, || self.vip(vip)?["address"].as_str()?.parse().ok())
    }
}

/// On the VIPs' link, with a way to Services' own addresses as an external client of node ports has it: by a node.
fn client(lan: &Lan) -> Netns {
    lan.client(50, &["10.118.0.0/16 dev eth0", &format!("{SERVICES} via 192.0.2.1")])
}

fn key(dir: &TempDir) -> String {
    let path = dir.file("membership.key");
    Command::new(VIPROUTECTL).args(["key", "new", &path]).finish("").ok();
    fs::read_to_string(path).expect("a key")
}
