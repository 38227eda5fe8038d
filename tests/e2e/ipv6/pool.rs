//! VIPs' IPv6 addresses from `[pool] cidr6` and pins.

use std::net::Ipv6Addr;

use crate::harness::{Crowd, Flows, Join, Lan, Node, PORT, REPAIRED, Sidecar, connect, until};

use super::web;

const V4: &str = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";
const BOTH: &str = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\ncidr6 = \"fd00:118::/96\"";

#[test]
fn a_vip_has_the_address_that_ends_in_its_own_or_a_pinned_one() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    lan.add_ipv6(&node.ns, 1);
    let pins = "[[pin]]\nvip = \"default/dns\"\naddress = \"10.118.0.53\"\naddress6 = \"fd00:53::53\"";
    let _sidecar = Sidecar::start(&node, &format!("{BOTH}\n{pins}"));
    let pod = node.joined(&Join::annotated("web,dns"));
    let wanted: [Ipv6Addr; 2] = ["fd00:53::53", "fd00:118::10.118.0.1"].map(|text| text.parse().unwrap());
    assert_eq!(pod.vips6(), wanted);
    node.check(&pod, &Join::annotated("web,dns")).ok();
}

/// Each pool's VIPs have addresses of its own network; of a pool without one they have none.
#[test]
fn each_of_several_pools_has_its_own_network() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    lan.add_ipv6(&node.ns, 1);
    let pool = |number: u8, more: &str| {
        format!("[[pool]]\nname = \"p{number}\"\ncidr = \"10.{number}.0.0/24\"\nnamespaces = [\"ns{number}\"]\n{more}")
    };
    let cidr6 = |network: &str| format!("cidr6 = \"{network}\"\n");
    let pools = [pool(118, &cidr6("fd00:118::/96")), pool(119, ""), pool(120, &cidr6("fd00:120::/64"))].concat();
    let _sidecar = Sidecar::start(&node, &format!("backend = \"pool\"\n{pools}"));
    for (number, wanted) in [(118, Some("fd00:118::10.118.0.1")), (119, None), (120, Some("fd00:120::10.120.0.1"))] {
        let join = web().namespace(&format!("ns{number}"));
        let pod = node.joined(&join);
        let wanted: Vec<Ipv6Addr> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(pod.vips6(), wanted, "of pool {number}");
        node.check(&pod, &join).ok();
    }
}

/// A configuration that gets `cidr6`, and loses it again, under live connections of IPv4.
#[test]
fn a_vip_in_service_gets_an_ipv6_address_and_loses_it() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    lan.add_ipv6(&node.ns, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    lan.add_ipv6(&client, 50);
    client.ip("route add fd00:118::/96 via 2001:db8::1");
    let sidecar = Sidecar::start(&node, V4);
    let pods: Vec<_> = (0..3).map(|_| node.pod()).collect();
    let _servers: Vec<_> = pods.iter().map(|pod| Crowd::of_both(pod, PORT)).collect();
    for pod in &pods {
        node.add(pod, &web()).ok();
    }
    let vip = pods[0].vip();
    let mut flows = Flows::open("the client", &client, vip, 200);
    sidecar.stop();
    let sidecar = Sidecar::start(&node, BOTH);
    let vip6: Ipv6Addr = format!("fd00:118::{vip}").parse().unwrap();
    until("each pod has it", REPAIRED, || pods.iter().all(|pod| pod.vips6() == [vip6]).then_some(()));
    until("CHECK agrees", REPAIRED, || pods.iter().all(|pod| node.check(pod, &web()).succeeded()).then_some(()));
    let tally = connect(&client, vip6, 200);
    assert_eq!(tally.names.len(), 3, "{tally:?}");
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None, "IPv4's connections");
    sidecar.stop();
    let _sidecar = Sidecar::start(&node, V4);
    until("it is advertised no more", REPAIRED, || {
        let routes = node.ns.ip("-6 route show proto 118");
        (!routes.contains("unreachable")).then_some(())
    });
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None, "IPv4's connections");
}
