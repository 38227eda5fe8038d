//! The harness itself, which every other test relies on.

use std::time::Duration;

use crate::harness::{DhcpServer, KEA_POOL, Lan, Node, PORT, PodServer, RANGE, attempt, connect};

/// A pod of the base plugin alone is reached by its own address, and a closed port is a failed connection, not a success.
#[test]
fn a_pod_answers_and_a_dead_end_does_not() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let client = lan.client(50, &["10.1.1.0/24 via 192.0.2.1"]);
    let pod = node.pod();
    let server = PodServer::start(&pod);
    let tally = connect(&client, pod.address(), 20);
    assert_eq!(tally.names.get("p1"), Some(&20));
    assert_eq!(server.clients(), ["192.0.2.50".parse::<std::net::IpAddr>().unwrap()]);
    drop(server);
    assert_eq!(attempt(&client, pod.address(), 3).failed, 3, "port {PORT} is closed now");
}

/// A snapshot shows a link, an address, a rule, a route, a nexthop, a neighbour and a file more.
#[test]
fn a_snapshot_sees_each_kind_of_object() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let before = node.snapshot(&[]);
    before.assert_same(&node.snapshot(&[]), "nothing");
    node.ns.ip("link add name extra type veth peer name arte");
    node.ns.ip("link set extra up");
    node.ns.ip("link set arte up");
    node.ns.ip("addr add 10.9.9.1/24 dev extra");
    node.ns.ip("rule add from 10.9.9.9 lookup 99");
    node.ns.ip("nexthop add id 5 via 10.9.9.2 dev extra onlink");
    node.ns.ip("route add 10.8.8.8/32 nhid 5");
    node.ns.ip("neigh add 10.9.9.2 lladdr 02:00:00:00:00:01 dev extra nud permanent");
    node.ns.ip("neigh add proxy 10.9.9.3 dev extra");
    node.ns.set_sysctl("net/ipv4/fib_multipath_hash_policy", "1");
    std::fs::create_dir(node.data()).unwrap();
    let changes = before.changes(&node.snapshot(&[])).join("\n");
    for section in ["link", "addr", "rule", "nexthop", "route", "neigh", "proxy", "sysctl"] {
        assert!(changes.contains(&format!("+ node {section}: ")), "no {section} in\n{changes}");
    }
    assert!(changes.contains("+ files: "), "no files in\n{changes}");
}

/// The three DHCP servers start on a LAN.
#[test]
fn dhcp_servers_start() {
    let dnsmasq = DhcpServer::dnsmasq(&Lan::new(), RANGE, "2m", "");
    let kea = DhcpServer::kea(&Lan::new(), 10, Some(KEA_POOL));
    let dhcpd = DhcpServer::dhcpd(&Lan::new(), 10);
    assert!([dnsmasq.log(), kea.log(), dhcpd.log()].iter().all(|log| !log.is_empty()));
}

/// What a test waits for in vain fails it.
#[test]
#[should_panic(expected = "in vain: the moon")]
fn waiting_has_an_end() {
    crate::harness::until("the moon", Duration::from_millis(50), || None::<()>);
}
