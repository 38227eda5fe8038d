//! A VIP's reservation in a DHCP server.

use serde_json::Value;

use crate::harness::{DhcpServer, Lan, Node, RANGE, Run, Sidecar, Software, VIPROUTECTL};

use super::{ctl, web};

/// The line for dnsmasq, as it is printed, with an address in its place.
#[test]
fn what_identity_prints_reserves_an_address() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::dhcp(&node, "");
    let printed = ctl(&node, &["identity", "shop/web"]);
    let line = |start: &str| {
        let found = printed.lines().find_map(|line| line.strip_prefix(start));
        found.unwrap_or_else(|| panic!("no {start:?} in {printed}")).trim().to_owned()
    };
    let reservation = line("dnsmasq").replace("ADDRESS", "192.0.2.77");
    let server = DhcpServer::dnsmasq(&lan, RANGE, "10m", &reservation);
    let pod = node.joined(&web());
    assert_eq!(pod.vip().to_string(), "192.0.2.77", "{reservation}");
    // What is printed is what is sent.
    let lease = server.leases().into_iter().find(|lease| lease.contains("192.0.2.77")).expect("a lease");
    let fields: Vec<_> = lease.split(' ').collect();
    assert_eq!((fields[1], fields[4]), (&*line("MAC"), &*line("client id")), "{lease}");
    let json: Value = serde_json::from_str(&ctl(&node, &["identity", "shop/web", "--output", "json"])).unwrap();
    assert_eq!(json["mac"], line("MAC"));
}

#[test]
fn a_pool_knows_no_identities() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let mut command = node.ns.cmd(VIPROUTECTL);
    let said = command.args(["--allocator", &node.socket(), "identity", "shop/web"]).finish("");
    assert!(!said.status.success() && said.stderr.contains("has no DHCP identity"), "{said:?}");
}

/// Names with hyphens are one VIP's all the same.
#[test]
fn two_vips_never_share_a_host_name() {
    let lan = Lan::new();
    let server = DhcpServer::quick(Software::Dnsmasq, &lan, 600);
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    let names = ["c/a-b", "b-c/a"].map(|vip| server.host_name(sidecar.acquire(vip).unwrap()));
    assert!(names[0] != names[1] && names.iter().all(|name| name.starts_with("a-b-c-")), "{names:?}");
}
