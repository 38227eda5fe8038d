//! What becomes of nodes.

use super::with_web;
use crate::harness::{Flows, PATIENCE, Storm, until};

/// A cordon keeps pods away, not connections.
#[test]
fn a_cordon_changes_nothing() {
    let (cluster, _web) = with_web(4);
    let (control, vip, pods) = (&cluster.control, cluster.external("web"), cluster.pods("web"));
    let mut flows = Flows::open("the client", &cluster.client, vip, 100);
    let storm = Storm::start(&cluster.client, vip, 100);
    for name in ["n1", "n2"] {
        control.run(&["cordon", name]);
        cluster.answer(vip, &pods);
        control.run(&["uncordon", name]);
    }
    assert_eq!(storm.seen().failed, [""; 0]);
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None);
}

/// The label keeps connections away from the node, not from its pods.
#[test]
fn a_label_ends_attraction() {
    let (cluster, _web) = with_web(4);
    let (control, vip, pods) = (&cluster.control, cluster.external("web"), cluster.pods("web"));
    let mut flows = Flows::open("the client", &cluster.client, vip, 100);
    for [name, other] in [["n1", "n2"], ["n2", "n1"]] {
        let label = "node.kubernetes.io/exclude-from-external-load-balancers";
        control.run(&["label", "node", name, &format!("{label}=")]);
        let links = cluster.worker(other).node.ns.ip_json("link show eth0");
        let address = links[0]["address"].as_str().expect("a MAC").to_owned();
        until(&format!("{other} answers ARP, and not {name}"), PATIENCE, || {
            cluster.client.ip("neigh flush all");
            cluster.answer(vip, &pods);
            cluster.client.ip(&format!("neigh show {vip}")).contains(&address).then_some(())
        });
        control.run(&["label", "node", name, &format!("{label}-")]);
    }
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None);
}
