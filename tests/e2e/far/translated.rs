//! On each node the pods have another number in the place of the VIP's port.

use super::evenly;
use super::scene::Cluster;
use crate::harness::{Join, PORT};

/// What the pods of a node have in the place of the VIP's port, where that is another number.
pub fn joining(join: &Join, number: u8, is_translated: bool) -> Join {
    if !is_translated {
        return join.clone();
    }
    join.clone().annotation("viproute.io/ports", &format!("{PORT}:{}/tcp", served(number, true)))
}

/// What their servers have.
pub fn served(number: u8, is_translated: bool) -> u16 {
    if is_translated { 9000 + u16::from(number) } else { PORT }
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
    for number in [1, 2] {
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
