//! Many replicas of one VIP, many VIPs at once.

use std::thread;
use std::time::Instant;

use crate::harness::{Join, Lan, Node, Pod, allow_many_files, bare_pod, for_each, nothing_left};

#[test]
fn a_thousand_replicas_of_one_vip() {
    allow_many_files();
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let web = Join::annotated("web");
    let first = bare_pod(1);
    node.add(&first, &web).ok();
    let id = node.ns.ip_json("nexthop show proto 118 groups")[0]["id"].clone();
    let start = Instant::now();
    let mut pods = for_each(2..1001, |number| {
        let pod = bare_pod(number);
        node.add(&pod, &web).ok();
        pod
    });
    eprintln!("999 pods and their ADDs: {:?}", start.elapsed());
    let group = node.ns.ip_json(&format!("nexthop show id {id}"));
    assert_eq!(group[0]["group"].as_array().map(Vec::len), Some(1000), "the members of nexthop {id}");
    let route = node.ns.ip(&format!("route get {}", first.vip()));
    assert!(route.contains("dev vip"), "the VIP leads to a replica: {route}");
    assert!(route.contains("cwnd 1000"), "the number of replicas in {route}");
    node.check(&first, &web).ok();
    node.check(pods.last().unwrap(), &web).ok();
    pods.push(first);
    let start = Instant::now();
    for_each(0..pods.len(), |at| node.del(&pods[at], &web).ok());
    eprintln!("1000 DELs: {:?}", start.elapsed());
    nothing_left(&node);
}

/// All at the same moment, as when a node starts: nobody fails, and nobody waits for another VIP.
#[test]
fn a_hundred_vips_at_once() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pods = for_each(1..101, bare_pod);
    let join = |pod: &Pod| Join::annotated(&format!("vip-{}", pod.name));
    thread::scope(|scope| {
        let adds: Vec<_> = pods.iter().map(|pod| scope.spawn(|| node.add(pod, &join(pod)))).collect();
        for add in adds {
            add.join().expect("an ADD").ok();
        }
    });
    let mut vips: Vec<_> = pods.iter().map(Pod::vip).collect();
    vips.sort();
    vips.dedup();
    assert_eq!(vips.len(), 100, "an address of its own for each VIP");
    assert_eq!(node.ns.ip_json("nexthop show proto 118 groups").len(), 100);
    for pod in &pods {
        node.check(pod, &join(pod)).ok();
    }
    thread::scope(|scope| {
        let dels: Vec<_> = pods.iter().map(|pod| scope.spawn(|| node.del(pod, &join(pod)))).collect();
        for del in dels {
            del.join().expect("a DEL").ok();
        }
    });
    nothing_left(&node);
}
