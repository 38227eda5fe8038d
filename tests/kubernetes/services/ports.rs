//! A Service's port has another number in its pods.

use serde_json::json;

use super::serving;
use crate::bed::{Cluster, Deployment, Rollout};
use crate::harness::{Flows, PORT, attempt};

/// The port that clients call.
const CALLED: u16 = 80;

/// 80 is the port `main` of the pods, whose number is theirs.
fn with_named() -> (Cluster, Deployment) {
    let (cluster, web) = (serving(), Deployment::new("web", 4).stubborn());
    web.apply(&cluster.control);
    let mut service = web.service("LoadBalancer", &[(CALLED, PORT)]);
    service["spec"]["ports"][0]["targetPort"] = json!("main");
    cluster.control.apply(&service);
    cluster.answer_at((cluster.external("web"), CALLED), &cluster.pods("web"));
    (cluster, web)
}

/// The pods' own number is closed on the VIP. In a rollout that changes it, there are two at once.
#[test]
fn pods_may_change_their_number_in_a_rollout() {
    let (cluster, web) = with_named();
    let (vip, old) = (cluster.external("web"), cluster.pods("web"));
    assert_eq!(attempt(&cluster.client, vip, 3).failed, 3, "{PORT} is no port of the Service");
    let mut flows = Flows::on("the client", &cluster.client, (vip, CALLED), 300);
    let rollout = Rollout::watch(&cluster.client, (vip, CALLED), (cluster.internal("web"), CALLED), 200);
    Deployment { revision: 2, port: 9090, ..web }.apply(&cluster.control);
    let (ours, theirs) = rollout.end();
    eprintln!("rolling update of 4 pods from 80:8080 to 80:9090: {ours}; by kube-proxy: {theirs}");
    let new = cluster.pods("web");
    assert!(new.is_disjoint(&old), "all pods are new");
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&old.into_iter().collect::<Vec<_>>()), None, "only pods themselves end connections");
    assert!(ours.failed.is_empty(), "{ours}");
    cluster.answer_at((vip, CALLED), &new);
}
