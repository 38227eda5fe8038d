//! On each node the pods serve other ports of the VIP.

use std::collections::BTreeMap;
use std::net::UdpSocket;

use viproute::internals::model::Family;

use super::scene::Cluster;
use crate::harness::{Echo, Flows, Join, Load, PORT, SOON, Tally, scaled};

/// A second port.
const OTHER: u16 = 9090;

fn lists(lists: [&str; 3]) -> [Join; 3] {
    lists.map(|ports| Join::annotated("web").annotation("viproute.io/ports", ports))
}

fn load(cluster: &Cluster, from: &str, port: u16) -> Tally {
    let load = Load { to: (cluster.to, port).into(), count: 1200, rate: None, concurrency: 4 };
    cluster.ns(from).run(|| load.run())
}

/// Each of these pods, and no other, has its share of a port's new connections: within a quarter, which chance makes of it once in
/// thousands of times for four pods.
fn evenly(cluster: &Cluster, port: u16, pods: &[&str]) {
    for from in ["the client", "a pod on 2", "node 3"] {
        let tally = load(cluster, from, port);
        assert_eq!(tally.failed, 0, "to {port} from {from}: {tally:?}");
        assert_eq!(tally.names.keys().collect::<Vec<_>>(), pods, "to {port} from {from}");
        let fair = 1200 / pods.len();
        for (name, count) in &tally.names {
            assert!(count.abs_diff(fair) * 4 <= fair, "{name} has {count} to {port} from {from}: {tally:?}");
        }
    }
}

#[test]
fn a_port_is_served_by_the_nodes_whose_pods_have_it_by_ipv4() {
    a_port_is_served_by_the_nodes_whose_pods_have_it(Family::V4);
}

#[test]
fn a_port_is_served_by_the_nodes_whose_pods_have_it_by_ipv6() {
    a_port_is_served_by_the_nodes_whose_pods_have_it(Family::V6);
}

fn a_port_is_served_by_the_nodes_whose_pods_have_it(family: Family) {
    let cluster = Cluster::serving(family, &lists(["8080/tcp", "9090/tcp", "8080/tcp,9090/tcp"]), 2);
    evenly(&cluster, PORT, &["n1-p1", "n1-p2", "n3-p1", "n3-p2"]);
    evenly(&cluster, OTHER, &["n2-p1", "n2-p2", "n3-p1", "n3-p2"]);
    // Whichever node a packet reaches.
    cluster.leads_to(2);
    evenly(&cluster, PORT, &["n1-p1", "n1-p2", "n3-p1", "n3-p2"]);
}

/// Of a node's replicas some serve a port: the node has no more of it than they.
#[test]
fn a_node_has_a_ports_share_by_those_that_serve_it_by_ipv4() {
    a_node_has_a_ports_share_by_those_that_serve_it(Family::V4);
}

#[test]
fn a_node_has_a_ports_share_by_those_that_serve_it_by_ipv6() {
    a_node_has_a_ports_share_by_those_that_serve_it(Family::V6);
}

fn a_node_has_a_ports_share_by_those_that_serve_it(family: Family) {
    let mut cluster = Cluster::serving(family, &lists(["8080/tcp", "8080/tcp,9090/tcp", "9090/tcp"]), 1);
    cluster.joins_as(2, &Join::annotated("web").annotation("viproute.io/ports", "8080/tcp"));
    evenly(&cluster, PORT, &["n1-p1", "n2-p1", "n2-p3"]);
    evenly(&cluster, OTHER, &["n2-p1", "n3-p1"]);
}

#[test]
fn live_connections_stay_where_they_are_by_ipv4() {
    live_connections_stay_where_they_are(Family::V4);
}

#[test]
fn live_connections_stay_where_they_are_by_ipv6() {
    live_connections_stay_where_they_are(Family::V6);
}

fn live_connections_stay_where_they_are(family: Family) {
    let mut cluster = Cluster::serving(family, &lists(["8080/tcp", "9090/tcp", "8080/tcp,9090/tcp"]), 2);
    let froms = ["the client", "a pod on 2", "node 1"];
    let mut live: Vec<Flows> =
        froms.into_iter().map(|from| Flows::open(from, cluster.ns(from), cluster.to, 60)).collect();
    live.extend(froms.map(|from| Flows::on(from, cluster.ns(from), (cluster.to, OTHER), 60)));
    for number in [1, 2, 3] {
        cluster.joins(number);
        Cluster::unbroken(&mut live, &format!("a replica joins on {number}"));
        cluster.drains(number);
        Cluster::unbroken(&mut live, &format!("a replica drains on {number}"));
        cluster.leaves(number);
        Cluster::unbroken(&mut live, &format!("the drained replica leaves {number}"));
    }
    for number in [2, 3, 1] {
        cluster.leads_to(number);
        Cluster::unbroken(&mut live, &format!("the VIP's packets come to {number}"));
    }
}

/// Who answers a datagram from a new socket, of so many.
fn answers(cluster: &Cluster, from: &str, port: u16, count: usize) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for _ in 0..count {
        let any = Family::of(cluster.to).unspecified();
        let socket = cluster.ns(from).run(|| UdpSocket::bind((any, 0))).expect("a socket");
        socket.connect((cluster.to, port)).expect("connect to the VIP");
        socket.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
        let mut said = Vec::new();
        // Twice: a flow that stays is answered by the one that it began with.
        for _ in 0..2 {
            let mut buffer = [0; 64];
            socket.send(b"x").expect("send");
            let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("to {port} from {from}: {error}"));
            said.push(String::from_utf8_lossy(&buffer[..length]).split(' ').next().unwrap_or_default().to_owned());
        }
        assert_eq!(said[0], said[1], "to {port} from {from}");
        *names.entry(said.remove(0)).or_default() += 1;
    }
    names
}

fn datagrams_come_to_those_that_serve_their_port(family: Family, joins: &[Join; 3]) {
    let cluster = Cluster::serving(family, joins, 1);
    let on = |number: u8, port| Echo::on(&cluster.node(number).pods[0], cluster.to, port);
    let _servers: Vec<_> = (1..=3).flat_map(|number| [on(number, PORT), on(number, OTHER)]).collect();
    for from in ["the client", "a pod on 2", "node 3"] {
        for (port, pods) in [(PORT, ["n1-p1", "n3-p1"]), (OTHER, ["n2-p1", "n3-p1"])] {
            let answers = answers(&cluster, from, port, 200);
            assert_eq!(answers.keys().collect::<Vec<_>>(), pods, "to {port} from {from}");
            // Half of 200, and five times what chance makes of it.
            assert!(answers.values().all(|count| (65..=135).contains(count)), "to {port} from {from}: {answers:?}");
        }
    }
}

#[test]
fn datagrams_come_to_the_nodes_whose_pods_serve_their_port_by_ipv4() {
    datagrams_come_to_the_nodes_whose_pods_serve_their_port(Family::V4);
}

#[test]
fn datagrams_come_to_the_nodes_whose_pods_serve_their_port_by_ipv6() {
    datagrams_come_to_the_nodes_whose_pods_serve_their_port(Family::V6);
}

fn datagrams_come_to_the_nodes_whose_pods_serve_their_port(family: Family) {
    datagrams_come_to_those_that_serve_their_port(family, &lists(["8080/udp", "9090/udp", "8080/udp,9090/udp"]));
}

#[test]
fn flows_that_stay_begin_there_too_by_ipv4() {
    flows_that_stay_begin_there_too(Family::V4);
}

#[test]
fn flows_that_stay_begin_there_too_by_ipv6() {
    flows_that_stay_begin_there_too(Family::V6);
}

fn flows_that_stay_begin_there_too(family: Family) {
    let sticky = |join: Join| join.annotation("viproute.io/udp-sticky", "true");
    let joins = lists(["8080/udp", "9090/udp", "8080/udp,9090/udp"]).map(sticky);
    datagrams_come_to_those_that_serve_their_port(family, &joins);
}
