//! VIPs' IPv6 traffic is kept out of the node's connection tracking, by a table of its own.

use crate::harness::{Families, PATIENCE, Run, Service, Sidecar, connect, until};

use super::{BOTH, vip6, web};

/// It asks connection tracking about every packet, and drops answers that it can't tell.
const FIREWALL: &str = "table ip6 firewall {
    chain forward { type filter hook forward priority 0; ct state new counter; }
    chain input { type filter hook input priority 0; ct state invalid drop; }
    chain output { type filter hook output priority 0; ct state new counter; }
}";

/// The table as nft shows it; empty if there is none.
fn table(service: &Service) -> String {
    let listed = service.node.ns.cmd("nft").args(["list", "table", "ip6", "viproute"]).finish("");
    if listed.status.success() { listed.stdout } else { String::new() }
}

/// Entries of connection tracking that have to do with the VIP.
fn entries(service: &Service) -> usize {
    let vip = vip6(service);
    let all = service.node.ns.cmd("conntrack").args(["-L", "-f", "ipv6"]).finish("").ok();
    all.lines().filter(|line| line.contains(&format!("={vip} "))).count()
}

#[test]
fn connections_leave_no_entry() {
    let service = Service::dual(&web(), 2, 0, Families::Both);
    service.node.stop_allocator();
    service.node.ns.cmd("nft").args(["-f", "-"]).finish(FIREWALL).ok();
    let tracked = connect(&service.client, vip6(&service), 20);
    assert!(entries(&service) >= 20, "without the table they are tracked: {tracked:?}");
    let sidecar = Sidecar::start(&service.node, BOTH);
    until("the table keeps the VIP out", PATIENCE, || {
        let table = table(&service);
        (table.contains(&vip6(&service).to_string()) && table.contains("notrack")).then_some(())
    });
    service.node.ns.cmd("conntrack").args(["-F"]).finish("").ok();
    for ns in [&service.client, &service.bystander.ns, &service.pods[0].ns] {
        connect(ns, vip6(&service), 100);
    }
    assert_eq!(entries(&service), 0);
    connect(&service.node.ns, vip6(&service), 20);
    let own = entries(&service);
    assert!(own > 0 && own <= 20, "{own} entries of 20 connections of the node's own");
    service.node.ns.cmd("nft").args(["delete", "table", "ip6", "viproute"]).finish("").ok();
    until("what somebody removed is back", PATIENCE, || (!table(&service).is_empty()).then_some(()));
    for pod in &service.pods {
        service.remove(pod);
    }
    until("it goes with the last VIP", PATIENCE, || table(&service).is_empty().then_some(()));
    sidecar.stop();
}
