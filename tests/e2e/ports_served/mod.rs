//! Replicas of one VIP that serve different ports of it: what would begin a flow comes to one that serves its port, in equal shares, and
//! to no other, though that has a socket of the number.

mod datagrams;
mod entries;
mod live;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};

use serde_json::Value;

use crate::harness::{Crowd, Join, Lan, Load, Netns, Node, PATIENCE, Pod, Run, SOON, Tally, scaled, status, until};
use crate::where_::connect_from;

/// The ports that every pod's servers have, whatever the pod serves of the VIP.
const PORTS: [u16; 2] = [8080, 9090];

/// The VIP and its replicas. Fields are dropped in this order.
struct Scene {
    servers: Vec<Crowd>,
    pods: Vec<Pod>,
    joins: Vec<Join>,
    bystander: Pod,
    client: Netns,
    node: Node,
    _lan: Lan,
    vip: Ipv4Addr,
}

fn listed(ports: &str) -> Join {
    Join::annotated("web").annotation("viproute.io/ports", ports)
}

impl Scene {
    /// A pod for each of these lists.
    fn new(lists: &[&str]) -> Self {
        Self::of(lists.iter().map(|ports| listed(ports)).collect())
    }

    fn of(joins: Vec<Join>) -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let pods: Vec<Pod> = joins.iter().map(|_| node.pod()).collect();
        let servers = pods.iter().flat_map(|pod| PORTS.map(|port| Crowd::on(pod, port))).collect();
        for (pod, join) in pods.iter().zip(&joins) {
            node.add(pod, join).ok();
        }
        let vip = pods[0].vip();
        Self { servers, bystander: node.pod(), client, node, _lan: lan, vip, pods, joins }
    }

    /// Another server of a pod.
    fn serve(&mut self, pod: usize, port: u16) {
        self.servers.push(Crowd::on(&self.pods[pod], port));
    }

    /// The server of a port of a pod ends.
    fn stop(&mut self, pod: usize, port: u16) {
        let place = PORTS.iter().position(|own| *own == port).expect("one of the ports");
        drop(self.servers.remove(pod * PORTS.len() + place));
    }

    fn callers(&self) -> [(&'static str, &Netns); 3] {
        [("the client", &self.client), ("a pod", &self.bystander.ns), ("the node", &self.node.ns)]
    }

    fn load(&self, ns: &Netns, port: u16, count: usize) -> Tally {
        ns.run(|| Load { to: (self.vip, port).into(), count, rate: None, concurrency: 4 }.run())
    }

    /// The pods, by their places from 0, have these shares of a port's new connections, in percent and within 8: five times what chance
    /// makes of the half of a thousand.
    fn shares(&self, port: u16, expected: &[(usize, u8)]) {
        const MANY: usize = 1000;
        for (from, ns) in self.callers() {
            let tally = self.load(ns, port, MANY);
            assert_eq!(tally.failed, 0, "to {port} from {from}: {tally:?}");
            let names: BTreeMap<&str, usize> =
                tally.names.iter().map(|(name, count)| (name.as_str(), *count)).collect();
            let wanted: Vec<&str> = expected.iter().map(|(pod, _)| self.pods[*pod].name.as_str()).collect();
            assert_eq!(names.keys().copied().collect::<Vec<_>>(), wanted, "to {port} from {from}: {tally:?}");
            for (pod, percent) in expected {
                let found = names[self.pods[*pod].name.as_str()] * 100 / MANY;
                let off = found.abs_diff(usize::from(*percent));
                assert!(off <= 8, "pod {pod} has {found} instead of {percent} to {port} from {from}: {tally:?}");
            }
        }
    }

    fn ctl(&self, arguments: &[&str]) {
        self.node.ctl().args(arguments).finish("").ok();
    }

    fn dial(&self, port: u16) -> std::io::Result<TcpStream> {
        let to = SocketAddr::from((self.vip, port));
        self.client.run(|| TcpStream::connect_timeout(&to, scaled(SOON)))
    }

    fn is_refused(&self, port: u16) {
        for _ in 0..20 {
            let error = self.dial(port).expect_err("a closed port");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{port}: {error}");
        }
    }
}

#[test]
fn each_port_has_pods_of_its_own() {
    let scene = Scene::new(&["8080/tcp", "9090/tcp", "8080/tcp", "9090/tcp"]);
    scene.shares(8080, &[(0, 50), (2, 50)]);
    scene.shares(9090, &[(1, 50), (3, 50)]);
    scene.is_refused(7070);
}

/// As with a named port that some pods of a Service don't have.
#[test]
fn a_port_that_some_pods_lack_is_served_by_the_others() {
    let scene = Scene::new(&["8080/tcp", "8080/tcp", "8080/tcp,9090/tcp"]);
    scene.shares(8080, &[(0, 33), (1, 33), (2, 33)]);
    scene.shares(9090, &[(2, 100)]);
}

/// A pod without a list takes every port.
#[test]
fn a_pod_that_lists_nothing_serves_what_no_other_lists() {
    let mut scene = Scene::of(vec![listed("8080/tcp"), Join::annotated("web")]);
    scene.serve(1, 7070);
    scene.shares(8080, &[(0, 50), (1, 50)]);
    scene.shares(9090, &[(1, 100)]);
    scene.shares(7070, &[(1, 100)]);
}

#[test]
fn weights_count_among_those_that_serve_the_port() {
    let heavy = listed("8080/tcp").annotation("viproute.io/weight", "3");
    let scene = Scene::of(vec![listed("9090/tcp"), listed("8080/tcp"), heavy]);
    scene.shares(8080, &[(1, 25), (2, 75)]);
    scene.shares(9090, &[(0, 100)]);
}

/// The share of one that doesn't listen goes to all others alike, and not to its neighbour.
#[test]
fn among_those_that_serve_a_port_the_ones_that_listen_have_equal_shares() {
    let mut scene = Scene::new(&["9090/tcp", "8080/tcp", "8080/tcp", "8080/tcp", "9090/tcp"]);
    scene.stop(1, 8080);
    scene.shares(8080, &[(2, 50), (3, 50)]);
    scene.shares(9090, &[(0, 50), (4, 50)]);
}

/// The same lots, drawn by the programs and by viproutectl.
#[test]
fn where_names_the_replica_that_a_new_connection_goes_to() {
    let heavy = listed("9090/tcp").annotation("viproute.io/weight", "5");
    let scene = Scene::of(vec![listed("8080/tcp"), listed("9090/tcp"), heavy, listed("8080/tcp"), listed("9090/tcp")]);
    // A bucket that has just moved may move once more.
    until("shares by weight", PATIENCE, || {
        let status = status(&scene.node, scene.vip);
        let mut replicas = status["replicas"].as_array()?.iter();
        let is_fair = |replica: &Value| {
            let (buckets, weight) = (replica["buckets"].as_f64()?, replica["weight"].as_f64()?);
            Some((buckets - weight / 9.0).abs() < 0.01)
        };
        replicas.all(|replica| is_fair(replica) == Some(true)).then_some(())
    });
    let vip = SocketAddrV4::new(scene.vip, 9090);
    let mut reasons = BTreeMap::<String, usize>::new();
    for port in 20_000..20_060 {
        let from = SocketAddrV4::new([192, 0, 2, 50].into(), port);
        let mut command = scene.node.ctl();
        command.args(["where", &from.to_string(), &vip.to_string(), "--output", "json"]);
        let place: Value = serde_json::from_str(&command.finish("").ok()).expect("JSON");
        let name = connect_from(&scene.client, port, vip).ask().expect("an answer").name;
        assert_eq!(place["replica"]["pod"], format!("default/{name}"), "{place}");
        *reasons.entry(place["because"].as_str().expect("a reason").to_owned()).or_default() += 1;
    }
    assert_eq!(reasons.keys().collect::<Vec<_>>(), ["lot", "route"], "{reasons:?}");
    let mut command = scene.node.ctl();
    command.args(["where", "192.0.2.50:20100", &format!("{}:7070", scene.vip)]);
    let refused = command.finish("");
    assert!(refused.stderr.contains("serves port 7070/tcp"), "{refused:?}");
}

/// One in the other's place: 80 is served by a pod's 8080, and 8080 by another's.
#[test]
fn a_number_that_a_pod_has_for_another_port_may_be_another_pods_port() {
    let scene = Scene::new(&["80:8080/tcp", "8080:9090/tcp"]);
    scene.shares(80, &[(0, 100)]);
    scene.shares(8080, &[(1, 100)]);
    scene.is_refused(9090);
}

#[test]
fn a_port_whose_last_pod_drains_is_closed_until_it_is_back() {
    let scene = Scene::new(&["8080/tcp", "9090/tcp", "8080/tcp"]);
    let name = format!("default/{}", scene.pods[1].name);
    scene.ctl(&["drain", &name]);
    scene.is_refused(9090);
    scene.shares(8080, &[(0, 50), (2, 50)]);
    scene.ctl(&["undrain", &name]);
    scene.shares(9090, &[(1, 100)]);
}
