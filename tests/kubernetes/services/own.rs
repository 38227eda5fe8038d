//! A pod calls the Service that it is behind.

use std::collections::BTreeSet;

use serde_json::json;

use super::serving;
use crate::bed::{Cluster, Deployment};
use crate::harness::PORT;

/// The port that clients call.
const CALLED: u16 = 80;

/// So many calls reach each of four pods but with a chance of 10^-5.
const CALLS: usize = 50;

/// The pods that answered the calls of one of them, as its own shell makes them; all must be answered.
fn called(cluster: &Cluster, pod: &str, service: &str) -> BTreeSet<String> {
    let vip = cluster.external(service);
    let script = format!(
        "for i in $(busybox seq {CALLS}); do echo who | busybox nc -w 5 {vip} {CALLED} | busybox head -n 1; done"
    );
    let answers = cluster.control.run(&["exec", pod, "--", "/bin/busybox", "sh", "-c", &script]);
    let names: Vec<_> = answers.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    assert_eq!(names.len(), CALLS, "each call of {pod} is answered: {answers}");
    names.into_iter().collect()
}

/// By another number than the pods' own; on two nodes; a second Service on the same address; and one pod alone.
#[test]
fn pods_call_their_own_service() {
    let cluster = serving();
    let mut web = Deployment::new("web", 4);
    let api = Deployment::new("api", 2);
    web.apply(&cluster.control);
    api.apply(&cluster.control);
    cluster.control.apply(&web.service("LoadBalancer", &[(CALLED, PORT)]));
    cluster.answer_at((cluster.external("web"), CALLED), &cluster.pods("web"));
    let all = cluster.pods("web");
    for pod in &all {
        assert_eq!(called(&cluster, pod, "web"), all, "from {pod}");
    }

    let mut joins = api.service("LoadBalancer", &[(443, PORT)]);
    joins["metadata"]["annotations"] = json!({ "viproute.io/vip": "web" });
    cluster.control.apply(&joins);
    cluster.answer_at((cluster.external("api"), 443), &cluster.pods("api"));
    let from = cluster.pods("api").into_iter().next().expect("a pod");
    assert_eq!(called(&cluster, &from, "web"), all, "from a pod of another Service on the address");

    web.replicas = 1;
    web.apply(&cluster.control);
    let sole = cluster.pods("web");
    cluster.answer_at((cluster.external("web"), CALLED), &sole);
    let pod = sole.first().expect("a pod");
    assert_eq!(called(&cluster, pod, "web"), sole, "alone");
}
