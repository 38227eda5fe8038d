//! What goes on while the API server, or viprouted, is away.

use std::thread::sleep;
use std::time::Duration;

use super::{another, with_web};
use crate::bed::Deployment;
use crate::harness::{Flows, PATIENCE, PORT, Storm, until};

/// For a minute. viprouted of one node starts anew meanwhile: it knows what it knew.
#[test]
fn the_api_is_killed_for_a_minute() {
    let (mut cluster, mut web) = with_web(4);
    let (vip, pods) = (cluster.external("web"), cluster.pods("web"));
    let mut flows = Flows::open("the client", &cluster.client, vip, 100);
    let storm = Storm::start(&cluster.client, vip, 100);
    cluster.control.kill_api();
    sleep(Duration::from_secs(10));
    cluster.workers[0].restart_viprouted();
    sleep(Duration::from_secs(50));
    cluster.answer(vip, &pods);
    cluster.control.start_api();
    cluster.control.wait();
    sleep(Duration::from_secs(10));
    assert_eq!(storm.seen().failed, [""; 0]);
    drop(storm);
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None);
    assert_eq!(cluster.ingress("web"), Some(vip));
    // It is heard again.
    web.replicas = 6;
    web.apply(&cluster.control);
    cluster.answer(vip, &cluster.pods("web"));
}

/// viprouted hangs on both nodes; meanwhile Services change, etcd forgets how, and the API server starts anew: no watch can go on where it
/// was (410).
#[test]
fn etcd_is_compacted() {
    let (mut cluster, web) = with_web(4);
    cluster.control.apply(&another(&web, "old"));
    let (vip, pods, gone) = (cluster.external("web"), cluster.pods("web"), cluster.external("old"));
    cluster.answer(gone, &pods);
    let storm = Storm::start(&cluster.client, vip, 100);
    cluster.workers.iter().for_each(|worker| worker.signal_viprouted("STOP"));
    cluster.control.run(&["delete", "service", "old"]);
    cluster.control.apply(&another(&web, "new"));
    cluster.control.compact_etcd();
    cluster.control.kill_api();
    cluster.control.start_api();
    cluster.control.wait();
    cluster.workers.iter().for_each(|worker| worker.signal_viprouted("CONT"));
    until("the Service that is gone is no VIP", PATIENCE, || cluster.vip("default/old").is_none().then_some(()));
    cluster.answer(cluster.external("new"), &pods);
    cluster.answer(vip, &pods);
    assert_eq!(storm.seen().failed, [""; 0]);
}

#[test]
fn services_change_while_viprouted_is_down() {
    let (mut cluster, mut web) = with_web(4);
    let old = Deployment { name: "old", ..web.clone() };
    cluster.control.apply(&old.service("LoadBalancer", &[(PORT, PORT)]));
    let (vip, gone) = (cluster.external("web"), cluster.external("old"));
    for worker in &cluster.workers {
        worker.kill_viprouted();
    }
    cluster.control.run(&["delete", "service", "old"]);
    web.replicas = 2;
    web.apply(&cluster.control);
    cluster.control.apply(&another(&web, "new"));
    sleep(Duration::from_secs(2));
    for worker in &mut cluster.workers {
        worker.start_viprouted();
    }
    let pods = cluster.pods("web");
    cluster.answer(vip, &pods);
    until("the Service that is gone is no VIP", PATIENCE, || cluster.vip("default/old").is_none().then_some(()));
    let address = cluster.external("new");
    cluster.answer(address, &pods);
    if address != gone {
        cluster.is_silent(gone);
    }
}
