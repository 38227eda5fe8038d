//! What becomes of nodes.

use std::thread::sleep;
use std::time::{Duration, Instant};

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

/// The kubelet, then containerd: pods live on, and so do the connections.
#[test]
fn kubelet_and_containerd_are_killed() {
    let (mut cluster, mut web) = with_web(4);
    let (vip, pods) = (cluster.external("web"), cluster.pods("web"));
    let mut flows = Flows::open("the client", &cluster.client, vip, 100);
    let storm = Storm::start(&cluster.client, vip, 100);
    for worker in &mut cluster.workers {
        worker.containerd.machine.kill("kubelet");
        worker.containerd.kill();
        sleep(Duration::from_secs(1));
        worker.containerd.start_again();
        worker.start_kubelet();
    }
    sleep(Duration::from_secs(5));
    cluster.answer(vip, &pods);
    assert_eq!(storm.seen().failed, [""; 0]);
    drop(storm);
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None);
    web.replicas = 6;
    web.apply(&cluster.control);
    cluster.answer(vip, &cluster.pods("web"));
}

/// A node loses power: its own connections end, and after a moment all new ones are answered by the other's pods, long before the API
/// takes the node for dead.
#[test]
fn a_node_is_lost() {
    let (mut cluster, _web) = with_web(4);
    let vip = cluster.external("web");
    let mut flows = Flows::open("the client", &cluster.client, vip, 100);
    let lost = cluster.workers.pop().expect("a node");
    let pods =
        cluster.control.get(&["pods", "--selector=app=web", &format!("--field-selector=spec.nodeName={}", lost.name)]);
    let names = pods["items"].as_array().expect("pods").iter();
    let gone: Vec<_> = names.map(|pod| pod["metadata"]["name"].as_str().expect("a name").to_owned()).collect();
    assert_eq!(gone.len(), 2, "half of the pods are there");
    let staying = cluster.pods("web").into_iter().filter(|name| !gone.contains(name)).collect();
    lost.node.ns.ip("link set eth0 down");
    cluster.answer(vip, &staying);
    assert!(cluster.is_ready(&lost.name), "the API doesn't know yet");
    drop(lost);
    until("the API knows", PATIENCE * 2, || (!cluster.is_ready("n2")).then_some(()));
    cluster.answer(vip, &staying);
    assert_eq!(cluster.ingress("web"), Some(vip));
    flows.ask();
    flows.hear();
    assert!(flows.broken().keys().all(|replica| gone.iter().any(|name| name == replica)), "{:?}", flows.broken());
}

/// The label keeps connections away from the node, not from its pods.
#[test]
fn a_label_ends_attraction() {
    let (cluster, _web) = with_web(4);
    let (control, vip, pods) = (&cluster.control, cluster.external("web"), cluster.pods("web"));
    let mut flows = Flows::open("the client", &cluster.client, vip, 100);
    let answers = |name: &str| {
        let proxies = cluster.worker(name).node.ns.ip("neigh show proxy dev eth0");
        proxies.lines().any(|line| line.starts_with(&format!("{vip} ")))
    };
    for [name, other] in [["n1", "n2"], ["n2", "n1"]] {
        let label = "node.kubernetes.io/exclude-from-external-load-balancers";
        control.run(&["label", "node", name, &format!("{label}=")]);
        let begun = Instant::now();
        until(&format!("{name} answers no ARP"), PATIENCE, || (!answers(name)).then_some(()));
        let gone = begun.elapsed();
        until(&format!("{other} does"), PATIENCE, || answers(other).then_some(()));
        eprintln!(
            "after the label on {name}: it is silent after {gone:?}, {other} answers after {:?}",
            begun.elapsed()
        );
        let address = cluster.worker(other).node.ns.mac("eth0");
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
