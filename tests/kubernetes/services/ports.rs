//! A Service's port has another number in its pods.

use serde_json::json;

use super::serving;
use crate::bed::{Cluster, Deployment, Rollout};
use crate::harness::{Flows, PATIENCE, PORT, attempt, until};

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

/// A Service with a named port that some of its pods lack, and a second one on its address, with other pods: each port is answered by the
/// pods that have it. The address is the second one's when the first one is gone.
#[test]
fn services_share_an_address_and_pods_lack_a_port() {
    const SECOND: u16 = 9090;
    let cluster = serving();
    let control = &cluster.control;
    let web = Deployment { part: "shop", ..Deployment::new("web", 2) };
    let full = Deployment { second: Some(SECOND), part: "shop", ..Deployment::new("full", 2) };
    let api = Deployment { second: Some(SECOND), ..Deployment::new("api", 2) };
    for deployment in [&web, &full, &api] {
        deployment.apply(control);
    }
    let mut service = web.service("LoadBalancer", &[(CALLED, PORT), (81, SECOND)]);
    service["spec"]["selector"] = json!({ "part": "shop" });
    service["spec"]["ports"][0]["targetPort"] = json!("main");
    service["spec"]["ports"][1]["targetPort"] = json!("second");
    control.apply(&service);
    let vip = cluster.external("web");
    let all = cluster.pods("web").union(&cluster.pods("full")).cloned().collect();
    cluster.answer_at((vip, CALLED), &all);
    cluster.answer_at((vip, 81), &cluster.pods("full"));

    let mut joins = api.service("LoadBalancer", &[(443, PORT), (81, SECOND)]);
    joins["metadata"]["annotations"] = json!({ "viproute.io/vip": "web" });
    control.apply(&joins);
    assert_eq!(cluster.external("api"), vip);
    cluster.answer_at((vip, 443), &cluster.pods("api"));
    cluster.answer_at((vip, 81), &cluster.pods("full"));
    cluster.answer_at((vip, CALLED), &all);
    assert_eq!(attempt(&cluster.client, vip, 20).failed, 20, "{PORT} is no port of either");
    until("the second one's port is refused", PATIENCE, || {
        let mut events = cluster.events("api").into_iter();
        events.any(|(reason, note)| reason == "PortRefused" && note.contains("81/TCP")).then_some(())
    });

    let mut flows = Flows::on("the client", &cluster.client, (vip, 443), 60);
    control.run(&["delete", "service", "web"]);
    cluster.answer_at((vip, 81), &cluster.pods("api"));
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None);
    assert_eq!(cluster.external("api"), vip);
    control.run(&["delete", "service", "api"]);
    until("the address is given back", PATIENCE, || {
        let held = control.get(&["ipaddresses", "--selector=ipaddress.kubernetes.io/managed-by=viproute.io"]);
        held["items"].as_array().expect("addresses").is_empty().then_some(())
    });
}
