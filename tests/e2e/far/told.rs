//! What viproutectl says of replicas that other nodes have.

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV4};

use serde_json::Value;

use crate::harness::{Finished, PORT, Run};
use crate::where_::connect_from;

use super::scene::Cluster;

fn ctl(cluster: &Cluster, arguments: &[&str]) -> Finished {
    cluster.node(1).host.ctl().args(arguments).finish("")
}

#[test]
fn where_names_the_node_that_has_a_connection() {
    let cluster = Cluster::new(1);
    let vip = SocketAddrV4::new(cluster.vip, PORT);
    let mut nodes = BTreeSet::new();
    for port in 21000..21020 {
        let mut connection = connect_from(&cluster.client, port, vip);
        let name = connection.ask().expect("an answer").name;
        let from = SocketAddr::from(([192, 0, 2, 50], port)).to_string();
        let place = ctl(&cluster, &["where", &from, &vip.to_string(), "--output", "json"]).ok();
        let place: Value = serde_json::from_str(&place).expect("JSON");
        let number = name[1..2].parse::<u8>().expect("the node's number");
        let expected = if number == 1 { "connection" } else { "found" };
        assert_eq!(place["because"], expected, "{name}: {place}");
        if number != 1 {
            assert_eq!(place["replica"]["node"], format!("n{number}"), "{place}");
            let text = ctl(&cluster, &["where", &from, &vip.to_string()]).ok();
            assert!(text.contains(&format!("`viproutectl where` on n{number} names the replica")), "{text}");
        }
        nodes.insert(number);
    }
    assert_eq!(nodes.len(), 3, "twenty connections go to all nodes");
}

#[test]
fn drain_says_where_another_nodes_replicas_are_drained() {
    let cluster = Cluster::new(1);
    for name in ["node 192.0.2.2", "192.0.2.2", "n2", "node-2@peer"] {
        let refused = ctl(&cluster, &["drain", name]);
        assert_eq!(refused.status.code(), Some(1), "{name}: {refused:?}");
        let expected =
            format!("{name} is another node (n2 (192.0.2.2)), whose replicas are drained and brought back there");
        assert!(refused.stderr.contains(&expected), "{refused:?}");
    }
    let refused = ctl(&cluster, &["drain", "default/elsewhere"]);
    assert!(refused.stderr.contains("no replica on this node is default/elsewhere:"), "{refused:?}");
    let expected = "run the command there. Nodes that have replicas: n2 (192.0.2.2), n3 (192.0.2.3)";
    assert!(refused.stderr.contains(expected), "{refused:?}");
    assert_eq!(cluster.node(1).far_legs(), 2, "nothing was drained");
}

/// Asked for the way to the VIP the kernel names one leg of the group, by the addresses alone: most of them lead to another node.
#[test]
fn a_way_by_the_tunnel_is_the_vips_own() {
    let cluster = Cluster::new(1);
    for number in 1..=3 {
        let status = cluster.node(number).host.ctl().args(["status", "--output", "json"]).finish("").ok();
        let status: Value = serde_json::from_str(&status).expect("JSON");
        assert_eq!(status["vips"][0]["state"], "serving", "node {number}: {status:#}");
    }
}
