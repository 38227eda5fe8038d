//! Pods that keep the former form: what they send to their VIPs stays in them.

use serde_json::json;

use crate::harness::{Join, Lan, Node, PATIENCE, Pod, PodServer, Service, Sidecar, connect, until};

fn leaves(pod: &Pod) -> bool {
    !pod.ns.ip("route show table local").contains(&pod.vip().to_string())
}

/// It takes nothing from its own address, so that calls to it from there would be lost.
#[test]
fn without_the_flow_owner_a_replica_reaches_itself() {
    let service = Service::with(&Join::annotated("web").key("flowOwner", json!("off")), 2, 0);
    let pod = &service.pods[0];
    assert!(!leaves(pod));
    let tally = connect(&pod.ns, service.vip, 20);
    assert_eq!(tally.names.keys().collect::<Vec<_>>(), [&pod.name]);
}

/// A former version's pods, as viprouted finds them: it changes them under traffic.
#[test]
fn a_former_versions_pod_is_changed() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let mut sidecar = Some(Sidecar::pool(&node, "10.118.0.0/24"));
    let join = Join::annotated("web");
    let pods = [node.joined(&join), node.joined(&join)];
    let vip = pods[0].vip();
    drop(sidecar.take());
    for pod in &pods {
        pod.ns.ip("rule del iif vip0");
        pod.ns.ip(&format!("route del local {vip} table 118"));
        pod.ns.ip(&format!("route add local {vip} dev vip0 table local proto kernel scope host src {vip}"));
        pod.ns.set_sysctl("net/ipv4/ip_nonlocal_bind", "0");
        assert!(!leaves(pod));
    }
    let _servers = pods.each_ref().map(|pod| PodServer::at(pod, vip));
    assert_eq!(connect(&pods[0].ns, vip, 20).names.len(), 1, "the former form");
    sidecar = Some(Sidecar::pool(&node, "10.118.0.0/24"));
    until("the pods are changed", PATIENCE, || pods.iter().all(leaves).then_some(()));
    for pod in &pods {
        assert_eq!(connect(&pod.ns, vip, 50).names.len(), 2);
        until("CHECK passes", PATIENCE, || node.check(pod, &join).succeeded().then_some(()));
    }
    drop(sidecar);
}
