//! What is deleted or changed by hand of a VIP's IPv6 is found by CHECK and comes back.

use crate::harness::{Families, REPAIRED, Service, Sidecar, connect, until};

use super::{BOTH, vip6, web};

type Deed = (&'static str, fn(&Service));

/// What the kernel tells of.
const TOLD: [Deed; 9] = [
    ("the data route", |s| drop(s.node.ns.ip(&format!("-6 route del {} metric 1", vip6(s))))),
    ("the route that is advertised", |s| drop(s.node.ns.ip(&format!("-6 route del unreachable {} metric 3", vip6(s))))),
    ("the pod's address", |s| drop(pod(s).ip(&format!("addr del {}/128 dev vip0", vip6(s))))),
    ("the pod's rule", |s| drop(pod(s).ip(&format!("-6 rule del from {} lookup 118", vip6(s))))),
    ("the pod's route", |s| drop(pod(s).ip("-6 route del default table 118"))),
    ("vip0 down and up", |s| {
        pod(s).ip("link set vip0 down");
        pod(s).ip("link set vip0 up");
    }),
    ("the program for what comes", |s| {
        let veth = host_veth(s);
        s.node.ns.cmd("tc").args(["filter", "del", "dev", &veth, "egress", "pref", "117"]).status().expect("tc");
    }),
    ("vip0", |s| drop(pod(s).ip("link del vip0"))),
    ("the nexthop", |s| drop(s.node.ns.ip(&format!("nexthop del id {}", 0x7600_0000 + index(s))))),
];

/// What a full round finds.
const UNTOLD: [Deed; 3] = [
    ("the pod's neighbour", |s| drop(pod(s).ip("neigh del fe80::1 dev vip0"))),
    ("the host veth's neighbour", |s| drop(s.node.ns.ip(&format!("neigh del fe80::2 dev {}", host_veth(s))))),
    ("a setting of vip0's", |s| pod(s).set_sysctl("net/ipv6/conf/vip0/accept_ra", "1")),
];

fn index(service: &Service) -> u32 {
    let veth = host_veth(service);
    let links = service.node.ns.ip_json("link");
    let link = links.iter().find(|link| link["ifname"] == veth.as_str()).expect("the host veth");
    link["ifindex"].as_u64().and_then(|index| index.try_into().ok()).expect("an index")
}

fn pod(service: &Service) -> &crate::harness::Netns {
    &service.pods[0].ns
}

fn host_veth(service: &Service) -> String {
    let result = service.pods[0].result.lock().unwrap();
    let interfaces = result.as_ref().expect("a result")["interfaces"].as_array().expect("interfaces").clone();
    let mut names = interfaces.iter().filter_map(|interface| interface["name"].as_str());
    names.rfind(|name| name.len() == 14 && name.starts_with("vip")).expect("the host veth").to_owned()
}

#[test]
fn what_is_deleted_is_found_and_comes_back() {
    let service = Service::dual(&web(), 2, 0, Families::Both);
    service.node.stop_allocator();
    let node = &service.node;
    let sidecar = Sidecar::start(node, BOTH);
    let is_right = || service.pods.iter().all(|pod| node.check(pod, &service.join).succeeded());
    until("all is right", REPAIRED, || is_right().then_some(()));
    for (what, deed) in TOLD {
        deed(&service);
        until(&format!("{what} is back"), REPAIRED, || is_right().then_some(()));
        connect(&service.client, vip6(&service), 20);
    }
    sidecar.stop();
    for (what, deed) in TOLD.into_iter().chain(UNTOLD) {
        deed(&service);
        assert!(!is_right(), "CHECK doesn't find that {what} is missing");
        let again = Sidecar::start(node, BOTH);
        until(&format!("{what} is back after a start"), REPAIRED, || is_right().then_some(()));
        again.stop();
    }
}
