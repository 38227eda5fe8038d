//! Rolling updates: new and live connections to the VIP, and to kube-proxy beside it.

use super::with;
use crate::bed::{Deployment, Outcome, Rollout};
use crate::harness::{Flows, PORT};

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
