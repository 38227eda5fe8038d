//! Many pods on a node, made quickly and removed entirely.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::thread;

use serde_json::{Value, json};

use super::node::Node;
use super::pod::Pod;
use super::wait::{LONG, until};

const THREADS: usize = 4;

/// A pod whose `eth0` and result are made by hand: a base plugin would take most of the test's time.
pub fn bare_pod(number: usize) -> Pod {
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
pub fn for_each<T: Send>(numbers: Range<usize>, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let start = |first| numbers.clone().skip(first).step_by(THREADS).map(work).collect::<Vec<_>>();
        let workers: Vec<_> = (0..THREADS).map(|first| scope.spawn(move || start(first))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    })
}

/// No route, nexthop, record or device of ours.
pub fn nothing_left(node: &Node) {
    assert_eq!(node.ns.ip("route show proto 118") + &node.ns.ip("nexthop show proto 118"), "");
    assert_eq!(node.records(), Vec::<String>::new());
    // The kernel frees a deleted veth pair in its own time.
    until("the devices are gone", LONG, || {
        let links = node.ns.ip_json("link");
        let ours = |link: &Value| link["ifname"].as_str().expect("a device's name").starts_with("vip");
        (!links.iter().any(ours)).then_some(())
    });
}
