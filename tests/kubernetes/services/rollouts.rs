//! Rolling updates: new and live connections to the VIP, and to kube-proxy beside it.

use std::thread::sleep;
use std::time::Duration;

use super::with;
use crate::bed::{Deployment, Outcome, Rollout};
use crate::harness::{Flows, PORT, Storm};

/// 200 new connections a second and 300 live ones through a rolling update of 4 pods.
fn update(kind: &str, web: Deployment) -> Outcome {
    let (cluster, web) = with(web);
    let (vip, old) = (cluster.external("web"), cluster.pods("web"));
    let mut flows = Flows::open("the client", &cluster.client, vip, 300);
    let rollout = Rollout::watch(&cluster.client, (vip, PORT), (cluster.internal("web"), PORT), 200);
    Deployment { revision: 2, ..web }.apply(&cluster.control);
    let (ours, theirs) = rollout.end();
    eprintln!("rolling update of 4 pods that {kind}: {ours}; by kube-proxy: {theirs}");
    assert!(cluster.pods("web").is_disjoint(&old), "all pods are new");
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&old.into_iter().collect::<Vec<_>>()), None, "only pods themselves end connections");
    ours
}

#[test]
fn of_servers_that_ignore_sigterm() {
    let ours = update("ignore SIGTERM", Deployment::new("web", 4).stubborn());
    assert!(ours.failed.is_empty(), "{ours}");
}

/// A connection that is open when its server exits is reset by the pod; none is refused, or lost.
#[test]
fn of_servers_that_exit_at_sigterm() {
    let ours = update("exit at SIGTERM", Deployment::new("web", 4));
    assert!(ours.failed.iter().all(|end| end.contains("reset by peer")), "{ours}");
}

/// Where no endpoint is ready, one that is ending and still serves gets the connections.
#[test]
fn the_last_pod_is_answered_for_as_long_as_it_serves() {
    let (cluster, web) = with(Deployment { grace: 20, ..Deployment::new("web", 1).stubborn() });
    let vip = cluster.external("web");
    let storm = Storm::start(&cluster.client, vip, 50);
    cluster.control.run(&["scale", "deployment", "web", "--replicas=0"]);
    sleep(Duration::from_secs(16));
    let seen = storm.seen();
    assert!(seen.failed.is_empty(), "{:?}", seen.failed);
    assert!(seen.answers() > 400, "{}", seen.answers());
    drop(storm);
    assert!(cluster.pods("web").is_empty(), "it is ending");
    cluster.is_silent(vip);
    // The Service keeps its address, and has a pod again.
    assert_eq!(cluster.ingress("web"), Some(vip));
    web.apply(&cluster.control);
    cluster.answer(vip, &cluster.pods("web"));
}
