//! A VIP that is for a node's own replicas, as far as clients outside go (`externalTrafficPolicy: Local`).

use std::collections::BTreeSet;
use std::fs::{self, File};

use serde_json::{Value, json};
use viproute::internals::model::Family;

use super::{Cluster, evenly};
use crate::harness::{Load, PORT, SOON, hashes_own_ports, until, vip_dir};

impl Cluster {
    /// Each node's record says so, as viprouted writes it for Services.
    fn keeps(&self, policy: &Value) {
        for number in 1..=3 {
            let dir = vip_dir(&self.node(number).host);
            let lock = File::open(format!("{dir}/lock")).expect("the VIP's lock file");
            lock.lock().expect("the VIP's lock");
            let path = format!("{dir}/vip.json");
            let mut record: Value = serde_json::from_str(&fs::read_to_string(&path).expect("vip.json")).expect("JSON");
            record["policy"] = policy.clone();
            fs::write(format!("{dir}/.vip.json.tmp"), record.to_string()).expect("write a record");
            fs::rename(format!("{dir}/.vip.json.tmp"), path).expect("put it in its place");
        }
    }

    fn pods_of(&self, number: u8, joined: usize) -> BTreeSet<String> {
        self.node(number).pods.iter().take(joined).map(|pod| pod.name.clone()).collect()
    }

    /// Connections of the client are answered by these pods, each of them, and by no others.
    fn answered_by(&self, from: &str, pods: &BTreeSet<String>) {
        until(&format!("{from} is answered by {pods:?}"), SOON, || {
            let load = Load { to: (self.to, PORT).into(), count: 100, rate: None, concurrency: 4 };
            let tally = self.ns(from).run(|| load.run());
            (tally.failed == 0 && tally.names.keys().eq(pods.iter())).then_some(())
        });
    }
}

#[test]
fn clients_outside_are_served_where_they_come_and_all_others_by_everybody_by_ipv4() {
    clients_outside_are_served_where_they_come_and_all_others_by_everybody(Family::V4);
}

#[test]
fn clients_outside_are_served_where_they_come_and_all_others_by_everybody_by_ipv6() {
    clients_outside_are_served_where_they_come_and_all_others_by_everybody(Family::V6);
}

fn clients_outside_are_served_where_they_come_and_all_others_by_everybody(family: Family) {
    let cluster = Cluster::by(family, 2);
    let mut live = cluster.flows(60);
    cluster.keeps(&json!({ "local": true }));
    cluster.answered_by("the client", &cluster.pods_of(1, 2));
    Cluster::unbroken(&mut live, "new connections go to one node's replicas");
    evenly(&cluster, "the client", 2);
    for from in ["a pod on 2", "node 1", "node 3"] {
        // What the node sends itself before Linux 6.16 has no source port in IPv6's hash.
        if family == Family::V4 || !from.starts_with("node") || hashes_own_ports() {
            evenly(&cluster, from, 6);
        }
    }
    cluster.leads_to(3);
    cluster.answered_by("the client", &cluster.pods_of(3, 2));
    Cluster::unbroken(&mut live, "and the VIP's packets come to 3");
    let vip = cluster.to;
    cluster.keeps(&json!({}));
    cluster.leads_to(1);
    until("all nodes' replicas answer again", SOON, || {
        let load = Load { to: (vip, PORT).into(), count: 200, rate: None, concurrency: 4 };
        (cluster.client.run(|| load.run()).names.len() == 6).then_some(())
    });
}

#[test]
fn everybody_is_served_by_the_node_they_reach_where_that_is_preferred() {
    let cluster = Cluster::new(2);
    cluster.keeps(&json!({ "prefers_node": true }));
    for (from, node) in [("the client", 1), ("node 1", 1), ("a pod on 2", 2), ("node 3", 3)] {
        cluster.answered_by(from, &cluster.pods_of(node, 2));
    }
}

#[test]
fn a_node_without_ready_replicas_attracts_nobody_by_ipv4() {
    a_node_without_ready_replicas_attracts_nobody(Family::V4);
}

#[test]
fn a_node_without_ready_replicas_attracts_nobody_by_ipv6() {
    a_node_without_ready_replicas_attracts_nobody(Family::V6);
}

/// Not even as the last resort; what comes to it all the same goes on.
fn a_node_without_ready_replicas_attracts_nobody(family: Family) {
    let mut cluster = Cluster::by(family, 1);
    cluster.keeps(&json!({ "local": true, "prefers_node": true }));
    cluster.leads_to(3);
    cluster.answered_by("the client", &cluster.pods_of(3, 1));
    cluster.drains(3);
    let vip = cluster.to;
    let of = if vip.is_ipv4() { "-4" } else { "-6" };
    until("it isn't advertised there", SOON, || {
        let routes = cluster.node(3).ns().ip(&format!("{of} route show {vip} proto 118"));
        (!routes.contains("unreachable") && routes.contains("nhid")).then_some(())
    });
    for from in ["the client", "node 3"] {
        if family == Family::V4 || !from.starts_with("node") || hashes_own_ports() {
            evenly(&cluster, from, 2);
        }
    }
}
