//! The last replica of a VIP leaves a node while others still send there: what they send goes back, and on.

use std::path::Path;

use viproute::internals::ebpf::Maps;
use viproute::internals::model::Family;

use crate::harness::{Flows, SOON, Storm, until};

use super::scene::Cluster;

const MANY: usize = 300;

#[test]
fn what_comes_to_a_node_without_replicas_goes_on_by_ipv4() {
    what_comes_to_a_node_without_replicas_goes_on(Family::V4);
}

#[test]
fn what_comes_to_a_node_without_replicas_goes_on_by_ipv6() {
    what_comes_to_a_node_without_replicas_goes_on(Family::V6);
}

fn what_comes_to_a_node_without_replicas_goes_on(family: Family) {
    let mut cluster = Cluster::by(family, 1);
    cluster.leads_to(3);
    let mut live = [Flows::open("the client", &cluster.client, cluster.to, 90)];
    let gone = [cluster.node(2).pods[0].name.clone()];
    // As if its own word and the others' crossed: it knows of no other replica, and they of its last one.
    cluster.has_heard_nothing(2);
    cluster.leaves_unheard(2);
    until("node 2 has nothing of the VIP any more", SOON, || {
        let (vip, ns) = (cluster.to, cluster.node(2).ns());
        let of = if vip.is_ipv4() { "-4" } else { "-6" };
        ns.ip(&format!("{of} route show {vip}")).is_empty().then_some(())
    });
    // Where nothing is remembered of these connections.
    cluster.leads_to(1);
    Cluster::unbroken_but(&mut live, &gone, "packets go round by a node that has nothing of the VIP any more");
    let seen = Storm::start(cluster.ns("the routed client"), cluster.to, 500).next(MANY);
    assert_eq!(seen.failed, [""; 0], "none of the new connections that went there fails");
    let maps = Maps::open(Path::new(&cluster.node(2).host.bpf_dir())).expect("the maps").expect("pinned maps");
    let known = maps.vips().expect("the VIPs");
    // An address of IPv6 has a number in there.
    assert!(known.contains(&cluster.vip) && known.len() == if family == Family::V4 { 1 } else { 2 }, "{known:?}");
}

/// What is left for a minute goes at once with the other nodes.
#[test]
fn nothing_of_it_stays_on_a_node_that_stands_alone() {
    let mut cluster = Cluster::new(1);
    cluster.has_heard_nothing(2);
    cluster.leaves_unheard(2);
    let dir = cluster.node(2).host.bpf_dir();
    let known = || Maps::open(Path::new(&dir)).expect("the maps").expect("pinned maps").vips().expect("the VIPs");
    assert_eq!(known(), [cluster.vip], "it stays a while");
    cluster.stands_alone(2);
    until("it is gone", SOON, || known().is_empty().then_some(()));
}
