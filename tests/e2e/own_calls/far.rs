//! Replicas on several nodes.

use crate::far::scene::Cluster;
use crate::harness::{Flows, connect};

use super::CALLS;

#[test]
fn replicas_of_all_nodes_are_reached() {
    for cluster in [Cluster::new(1), Cluster::translated(1)] {
        for number in 1..=3 {
            let pod = &cluster.node(number).pods[0];
            let tally = connect(&pod.ns, cluster.vip, CALLS);
            assert_eq!(tally.names.len(), 3, "from node {number}: {tally:?}");
        }
    }
}

#[test]
fn connections_with_itself_live_on_whatever_other_nodes_do() {
    let mut cluster = Cluster::translated(1);
    let open = |number| Flows::open("a replica", &cluster.node(number).pods[0].ns, cluster.vip, 60);
    let mut live = vec![open(1), open(2)];
    cluster.unbroken_by_changes(&mut live, &[1, 2]);
}
