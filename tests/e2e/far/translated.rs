//! On each node the pods have another number in the place of the VIP's port.

use super::evenly;
use super::scene::Cluster;
use crate::harness::{Join, PORT};

/// What the pods of a node have in the place of the VIP's port.
pub fn joining(number: u8) -> Join {
    Join::annotated("web").annotation("viproute.io/ports", &format!("{PORT}:{}/tcp", served(number)))
}

/// What their servers have.
pub fn served(number: u8) -> u16 {
    9000 + u16::from(number)
}

#[test]
fn all_replicas_of_all_nodes_have_equal_shares() {
    let cluster = Cluster::translated(2);
    for from in ["the client", "a pod on 2", "node 3"] {
        evenly(&cluster, from, 6);
    }
}

#[test]
fn live_connections_stay_where_they_are() {
    let mut cluster = Cluster::translated(2);
    let mut live = cluster.flows(100);
    cluster.unbroken_by_changes(&mut live, &[1, 2]);
}
