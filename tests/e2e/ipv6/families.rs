//! VIPs that are served by one family alone, because their replicas ask for that (`viproute.io/families`).

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{BOTH, dual, vip6, web};
use crate::harness::{Families, Flows, Join, Lan, Node, Pod, Run, SOON, Service, Sidecar, attempt, connect, until};

fn asking(families: &str) -> Join {
    web().annotation("viproute.io/families", families)
}

/// Exactly these answer the client at that address; nothing does where there are none.
fn answered(service: &Service, to: IpAddr, expected: &[&str]) {
    until(&format!("{expected:?} answer at {to}"), SOON, || {
        let tally = attempt(&service.client, to, if expected.is_empty() { 1 } else { 60 });
        (tally.names.keys().eq(expected) && (tally.failed == 0 || expected.is_empty())).then_some(())
    });
}

/// By which address `viproutectl status` has it served, and what it has reserved.
fn shown(service: &Service) -> (Value, Value) {
    let report = service.node.ctl().args(["status", "--output", "json"]).finish("").ok();
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let vip = &report["vips"][0];
    (vip["address"].clone(), vip["reserved"].clone())
}

/// As a rollout has it that changes what pods ask for: both are served until the last one of before has left.
#[test]
fn a_vip_is_served_by_what_its_replicas_ask_for() {
    let service = Service::dual(&asking("ipv6"), 1, 2, Families::Both);
    let (node, [first, second, third]) = (&service.node, [0, 1, 2].map(|at| &service.pods[at]));
    let (four, six) = (IpAddr::from(service.vip), IpAddr::from(vip6(&service)));
    let routes = || node.ns.ip("route show proto 118") + &node.ns.ip("-6 route show proto 118");
    // As viprouted has it: a client that calls what isn't served is not sent to the gateway for good.
    for link in ["all", "eth0"] {
        node.ns.set_sysctl(&format!("net/ipv4/conf/{link}/send_redirects"), "0");
    }
    answered(&service, six, &["p1"]);
    answered(&service, four, &[]);
    assert!(!routes().contains(&four.to_string()), "{}", routes());
    assert_eq!(shown(&service), (json!(six), json!([four])));
    node.check(first, &asking("ipv6")).ok();
    // It says nothing, and so asks for both.
    node.add(second, &web()).ok();
    answered(&service, four, &["p1", "p2"]);
    let mut flows = [six, four].map(|to| Flows::open("the client", &service.client, to, 60));
    node.add(third, &asking("ipv6")).ok();
    for pod in [first, second, third] {
        node.check(pod, &web()).ok();
    }
    for flows in &mut flows {
        flows.ask();
        flows.hear();
        assert_eq!(flows.complaint(&[]), None);
    }
    node.del(second, &web()).ok();
    answered(&service, four, &[]);
    answered(&service, six, &["p1", "p3"]);
    flows[0].ask();
    flows[0].hear();
    assert_eq!(flows[0].complaint(std::slice::from_ref(&second.name)), None, "by IPv6 the others' connections go on");
    let told = node.ctl().args(["where", "192.0.2.50:40000", &format!("{four}:80")]).finish("");
    assert!(told.stderr.contains("which is served by IPv6 alone"), "{told:?}");
    // By hand.
    node.ctl().args(["join", &third.id, "default/web", "--families", "ipv4,ipv6"]).finish("").ok();
    answered(&service, four, &["p1", "p3"]);
}

#[test]
fn a_vip_may_have_ipv4_alone_beside_an_address_of_ipv6() {
    let service = Service::dual(&asking("ipv4"), 2, 0, Families::Ipv4);
    assert_eq!(connect(&service.client, service.vip, 60).names.len(), 2);
    answered(&service, vip6(&service).into(), &[]);
    let routes = service.node.ns.ip("-6 route show proto 118");
    assert_eq!(routes, "");
    // Its health check asks where it is served.
    service.node.check(&service.pods[0], &service.join).ok();
    let both = dual(1);
    assert_eq!(shown(&both).1, json!(null), "nothing is reserved");
}

/// Of a VIP that is new, and of one that is served without it.
#[test]
fn what_the_allocator_cannot_give_is_refused() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::start(&node, &BOTH.replace("cidr6 = \"fd00:118::/96\"", ""));
    let refused = |pod: &Pod, families: &str, says: &str| {
        let error = node.add(pod, &asking(families)).error();
        let text = format!("{}: {}", error.msg, error.details);
        assert!(error.code == 7 && text.contains(says), "{families}: {error:?}");
    };
    let [pod, other] = [node.pod(), node.pod()];
    let whole = "viproute.io/families is \"ipv6\": VIP default/web has no IPv6 address: pool default has no cidr6 in viprouted.toml";
    refused(&pod, "ipv6", whole);
    assert_eq!(node.records(), Vec::<String>::new());
    refused(&pod, "ipv5", "viproute.io/families is \"ipv5\": expected \"ipv4\", \"ipv6\" or \"ipv4,ipv6\"");
    node.add(&pod, &asking("ipv4")).ok();
    refused(
        &other,
        "ipv4,ipv6",
        "viproute.io/families is \"ipv4,ipv6\": VIP default/web has no IPv6 address: pool default",
    );
    let joined = node.ctl().args(["join", &pod.id, "default/web", "--families", "ipv6"]).finish("");
    assert!(joined.status.code() == Some(1) && joined.stderr.contains("has no IPv6 address"), "{joined:?}");
    node.check(&pod, &asking("ipv4")).ok();
}
