//! Many replicas of one VIP, many VIPs at once.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Join, Lan, Node, Pod, allow_many_files, until};

const THREADS: usize = 4;

/// A pod whose `eth0` and result are made by hand: a base plugin would take most of the test's time.
fn pod(number: usize) -> Pod {
    let pod = Pod::new(number);
    pod.ns.ip("link add eth0 type bridge");
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 2, 0, 0)) + u32::try_from(number).unwrap());
    *pod.base.lock().unwrap() = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "eth0", "sandbox": pod.ns.path() }],
        "ips": [{ "interface": 0, "address": format!("{address}/16") }],
    });
    pod
}

/// `work` for every number of the range, on a few threads.
fn for_each<T: Send>(numbers: Range<usize>, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let start = |first| numbers.clone().skip(first).step_by(THREADS).map(work).collect::<Vec<_>>();
        let workers: Vec<_> = (0..THREADS).map(|first| scope.spawn(move || start(first))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    })
}

#[test]
fn a_thousand_replicas_of_one_vip() {
    allow_many_files();
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let web = Join::annotated("web");
    let first = pod(1);
    node.add(&first, &web).ok();
    let id = node.ns.ip_json("nexthop show proto 118 groups")[0]["id"].clone();
    let start = Instant::now();
    let mut pods = for_each(2..1001, |number| {
        let pod = pod(number);
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
    let pods = for_each(1..101, pod);
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

fn nothing_left(node: &Node) {
    assert_eq!(node.ns.ip("route show proto 118") + &node.ns.ip("nexthop show proto 118"), "");
    assert_eq!(node.records(), Vec::<String>::new());
    // The kernel takes a deleted pair away in its own time.
    until("the devices are gone", Duration::from_secs(5), || {
        let links = node.ns.ip_json("link");
        (!links.iter().any(|link| link["ifname"].as_str().unwrap_or_default().starts_with("vip"))).then_some(())
    });
}
