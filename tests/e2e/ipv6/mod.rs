//! VIPs of both families: what holds for IPv4 holds for IPv6.

mod delegated;
mod dhcp;
mod families;
mod guard;
mod headers;
mod heal;
mod lan;
mod links;
mod notrack;
mod pool;

use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use serde_json::json;

use crate::harness::{Families, Join, Lan, Netns, Node, Service, connect, share};

/// viprouted's settings for the VIP of [`Service::dual`].
const BOTH: &str =
    "backend = \"pool\"\nannounce = \"none\"\n[pool]\ncidr = \"10.118.0.0/24\"\ncidr6 = \"fd00:118::/96\"";

/// The host has the address, and says so to its link: whatever it asks for now, it asks in that address's name.
fn claims(host: &Netns, address: IpAddr) {
    host.ip(&format!("addr add {address}/128 dev eth0 nodad"));
    host.run(|| {
        UdpSocket::bind((address, 0)).and_then(|socket| socket.send_to(b"?", "[2001:db8::32]:9")).expect("send");
    });
}

fn web() -> Join {
    Join::annotated("web")
}

fn dual(replicas: usize) -> Service {
    Service::dual(&web(), replicas, 0, Families::Both)
}

fn vip6(service: &Service) -> Ipv6Addr {
    service.vip6.expect("the VIP's IPv6 address")
}

#[test]
fn the_kernel_shows_what_is_served() {
    let service = dual(2);
    let vip6 = vip6(&service);
    let routes = service.node.ns.ip_json("-6 route show proto 118");
    let of = |metric: u32| {
        routes.iter().find(|route| route["metric"] == json!(metric)).unwrap_or_else(|| panic!("{routes:?}"))
    };
    assert_eq!(routes.len(), 2, "{routes:?}");
    assert_eq!(of(1)["dst"], json!(vip6));
    // Behind the data route, whose metric is the lowest.
    assert_eq!((of(3)["dst"].clone(), of(3)["type"].clone()), (json!(vip6), json!("unreachable")));
    let nexthops = service.node.ns.ip_json("nexthop show proto 118");
    let gateways: Vec<_> = nexthops.iter().filter_map(|nexthop| nexthop["gateway"].as_str()).collect();
    assert_eq!(gateways, ["fe80::2"; 2], "one nexthop for both families");
    assert_eq!(nexthops.len(), 3, "and one group: {nexthops:?}");
    let pod = &service.pods[0].ns;
    let shown = pod.ip("-6 addr show dev vip0");
    assert!(
        shown.contains(&format!("{vip6}/128")) && shown.contains("deprecated") && !shown.contains("fe80::"),
        "{shown}"
    );
    assert!(pod.ip("-6 rule").contains(&format!("from {vip6} lookup 118")));
    assert!(pod.ip("-6 route show table 118").contains("default via fe80::1 dev vip0"));
}

/// From a client, a pod that is no replica and the node itself.
#[test]
fn three_replicas_share_evenly_and_see_the_client() {
    let service = dual(3);
    let vip6 = vip6(&service);
    for (from, ns) in service.sharers_of(vip6.into()) {
        let tally = connect(ns, vip6, 1500);
        for name in ["p1", "p2", "p3"] {
            let share = share(&tally, name);
            assert!((27.0..=40.0).contains(&share), "from {from} {name} has {share:.1} %: {tally:?}");
        }
        assert!(tally.clients.iter().all(IpAddr::is_ipv6) && tally.clients.len() == 1, "{tally:?}");
    }
    // By the same sockets.
    assert_eq!(connect(&service.client, service.vip, 300).names.len(), 3);
}

/// The pod's end of the pair is all that is needed.
#[test]
fn pods_without_ipv6_serve_a_vip_of_it() {
    let service = Service::dual(&web(), 3, 0, Families::Ipv4);
    let tally = connect(&service.client, vip6(&service), 300);
    assert_eq!(tally.names.len(), 3, "{tally:?}");
    assert!(service.pods[0].ns.ip("-6 addr show dev eth0 scope global").is_empty());
}

#[test]
fn pods_with_ipv6_alone_serve_both_families() {
    let service = Service::dual(&web(), 3, 0, Families::Ipv6);
    for to in service.addresses() {
        for (from, ns) in service.callers_of(to) {
            let tally = connect(ns, to, 200);
            assert!(tally.names.len() == 3 || from == "the node", "from {from} to {to}: {tally:?}");
        }
    }
    for pod in &service.pods {
        assert!(pod.ns.ip("-4 addr show dev eth0").is_empty());
        service.node.check(pod, &service.join).ok();
    }
    service.remove(&service.pods[0]);
    assert_eq!(connect(&service.client, service.vip, 60).names.len(), 2);
}

/// A pod that may have no IPv6 on new devices gets it on `vip0` alone.
#[test]
fn a_pod_with_ipv6_switched_off_serves_a_vip_of_it() {
    let service = Service::dual(&web(), 1, 1, Families::Ipv4);
    let pod = &service.pods[1];
    pod.ns.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    pod.ns.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    service.add(pod);
    assert_eq!(pod.vips6(), [vip6(&service)]);
    service.remove(&service.pods[0]);
    let tally = connect(&service.client, vip6(&service), 20);
    assert_eq!(tally.names.keys().collect::<Vec<_>>(), ["p2"]);
}

#[test]
fn check_agrees_and_the_last_del_leaves_nothing() {
    let service = dual(2);
    for pod in &service.pods {
        service.node.check(pod, &service.join).ok();
    }
    service.remove(&service.pods[0]);
    assert_eq!(connect(&service.client, vip6(&service), 30).names.keys().collect::<Vec<_>>(), ["p2"]);
    service.remove(&service.pods[1]);
    let left = service.node.ns.ip("-6 route show proto 118") + &service.node.ns.ip("nexthop show proto 118");
    assert_eq!(left, "");
    assert_eq!(service.node.records(), Vec::<String>::new());
    let dump = format!("{:?}", service.node.snapshot(&[]));
    assert!(!dump.contains("fd00:118"), "{dump}");
}

/// DEL takes the VIP out of a pod that lives on.
#[test]
fn a_pod_that_left_has_nothing_of_the_vip() {
    let service = dual(2);
    let pod = &service.pods[0];
    service.node.del(pod, &service.join).ok();
    assert!(!pod.ns.ip("-6 rule").contains("118"), "{}", pod.ns.ip("-6 rule"));
    assert!(!pod.ns.has_device("vip0"));
}

/// One that is in a VIP of IPv4 joins one of both families: its nexthop changes in place, and no connection of the other breaks.
#[test]
fn a_vip_gets_its_ipv6_address_under_live_connections() {
    let service = Service::new(2, 0);
    let node = &service.node;
    let mut flows = service.flows(100);
    node.stub(crate::harness::Stub::is_dual);
    node.viprouted_has_run();
    service.lan.add_ipv6(&node.ns, 1);
    // The same pods in a second VIP, which has both.
    let both = Join::annotated("web,api");
    let pod = node.pod();
    node.add(&pod, &both).ok();
    assert_eq!((pod.vips().len(), pod.vips6().len()), (2, 1), "the first VIP has one of IPv4");
    for flows in &mut flows {
        flows.ask();
        flows.hear();
        assert_eq!(flows.complaint(&[]), None);
    }
    node.check(&pod, &both).ok();
    for pod in &service.pods {
        node.check(pod, &service.join).ok();
    }
}

#[test]
fn what_is_not_there_for_ipv6_is_refused() {
    let lan = Lan::new();
    let node = Node::dual(&lan, 1, Families::Ipv4);
    let pod = node.pod();
    let narrow = web().key("mtu", json!(1200));
    let refused = node.call("ADD", &pod, &narrow).error();
    assert!(refused.msg.contains("IPv6 needs 1280"), "{refused:?}");
    node.del(&pod, &narrow).ok();
    assert_eq!(node.records(), Vec::<String>::new());
}

/// The kernel forgets the default routes of router advertisements as soon as a node forwards: it is told to keep them before.
#[test]
fn a_node_keeps_its_default_route_by_router_advertisement() {
    let lan = Lan::new();
    let node = Node::dual(&lan, 1, Families::Ipv4);
    keeps_its_default_route(&node, ("1", "2"));
}

/// Where another program reads the advertisements the kernel isn't told to.
#[test]
fn a_node_whose_kernel_takes_no_router_advertisements_goes_on_so() {
    let lan = Lan::new();
    let node = Node::dual(&lan, 1, Families::Ipv4);
    keeps_its_default_route(&node, ("0", "0"));
}

/// `accept_ra` before and after.
fn keeps_its_default_route(node: &Node, (before, after): (&str, &str)) {
    node.ns.ip("-6 route del default");
    node.ns.set_sysctl("net/ipv6/conf/all/forwarding", "0");
    node.ns.set_sysctl("net/ipv6/conf/eth0/accept_ra", before);
    node.ns.ip("-6 route add default via 2001:db8::fe dev eth0 proto ra metric 1024");
    let advertised = || node.ns.ip("-6 route show default proto ra");
    assert!(!advertised().is_empty());
    let pods: Vec<_> = (0..3).map(|_| node.joined(&web())).collect();
    assert!(!advertised().is_empty(), "after ADD");
    assert_eq!(node.ns.sysctl("net/ipv6/conf/eth0/accept_ra"), after);
    assert_eq!(node.ns.sysctl("net/ipv6/conf/all/forwarding"), "1");
    drop(pods);
}
