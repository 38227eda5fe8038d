//! Pods that name a VIP in their annotations, made by real kubelets.

use serde_json::json;

use crate::bed::{Cluster, Deployment, Rollout, Setup};
use crate::harness::{PATIENCE, PORT, attempt, connect, until};

fn annotated() -> Deployment {
    let annotations =
        json!({ "viproute.io/vip": "web", "viproute.io/ports": "8080/tcp", "viproute.io/health": "listen" });
    Deployment::new("web", 4).annotated(annotations)
}

fn serves(cluster: &Cluster) {
    let web = annotated();
    web.apply(&cluster.control);
    let (vip, expected) = (cluster.address("default/web"), cluster.pods("web"));
    assert_eq!(expected.len(), 4);
    cluster.answer(vip, &expected);
    let tally = connect(&cluster.client, vip, 100);
    assert_eq!(
        tally.clients.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.50"],
        "the client's own address"
    );
}

#[test]
fn annotated_pods_of_two_nodes_answer() {
    let mut cluster = Cluster::new();
    serves(&cluster);
    // The API is asked by nobody on a packet's way.
    let (vip, pods) = (cluster.address("default/web"), cluster.pods("web"));
    cluster.control.kill_api();
    cluster.answer(vip, &pods);
    cluster.control.start_api();
    cluster.control.wait();
}

#[test]
fn under_containerd_2_too() {
    serves(&Cluster::with(&Setup { second: true, ..Setup::default() }));
}

/// The plugin hears of a pod's end at DEL, when its server has ended: connections are refused meanwhile. A Service, whose readiness
/// is known sooner, has none.
#[test]
fn a_rolling_update_is_told_from_kube_proxys() {
    let cluster = Cluster::new();
    let web = annotated().stubborn();
    web.apply(&cluster.control);
    cluster.control.apply(&web.service("ClusterIP", &[(PORT, PORT)]));
    let (vip, expected) = (cluster.address("default/web"), cluster.pods("web"));
    cluster.answer(vip, &expected);
    let beside = cluster.internal("web");
    until("kube-proxy serves", PATIENCE, || (attempt(&cluster.client, beside, 20).failed == 0).then_some(()));

    let rollout = Rollout::watch(&cluster.client, (vip, PORT), (beside, PORT), 100);
    Deployment { revision: 2, ..web }.apply(&cluster.control);
    let (ours, theirs) = rollout.end();
    eprintln!("rolling update of 4 annotated pods: {ours}; by kube-proxy: {theirs}");
    assert!(cluster.pods("web").is_disjoint(&expected), "all pods are new");
    cluster.answer(vip, &cluster.pods("web"));
}
