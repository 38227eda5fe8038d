//! Short pools, and how many VIPs there may be.

use std::time::Duration;

use crate::harness::{DhcpServer, Join, Lan, Node, RANGE, Sidecar, Software, get, until};

use super::{SOON, ctl, web};

#[test]
fn what_is_held_for_nobody_makes_room_for_who_needs_it() {
    let lan = Lan::new();
    let server = DhcpServer::dnsmasq(&lan, "192.0.2.100,192.0.2.101", "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::dhcp(&node, "");
    let joins = ["old", "young", "new"].map(Join::annotated);
    let [old, young] = [&joins[0], &joins[1]].map(|join| (node.joined(join), join));
    let former = old.0.vip();
    for (pod, join) in [old, young] {
        node.remove(&pod, join);
        until("it is held", SOON, || ctl(&node, &["status"]).contains("held ").then_some(()));
        // The oldest is known to the second.
        std::thread::sleep(Duration::from_millis(1100));
    }
    assert!(ctl(&node, &["status"]).contains("held 9 min"), "{}", ctl(&node, &["status"]));
    let new = node.pod();
    // That the pool is empty is known after three questions, in 5 s at most; the call waits for 8.5 s.
    node.add(&new, &joins[2]).ok();
    assert_eq!(new.vip(), former, "the one that was held longest\n{}", server.log());
    assert_eq!(server.log().matches("DHCPRELEASE(").count(), 1, "{}", server.log());
}

#[test]
fn a_pools_held_addresses_too() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::pool(&node, "10.118.0.1/32");
    let first = node.joined(&web());
    let address = first.vip();
    node.remove(&first, &web());
    until("it is held", SOON, || sidecar.status("shop/web")?["held_until"].as_u64());
    let second = node.joined(&Join::annotated("other"));
    assert_eq!(second.vip(), address);
    // One in use stays.
    let error = node.add(&node.pod(), &Join::annotated("third")).error();
    assert!(error.text().contains("no address of pool default (10.118.0.1/32) is free"), "{error:?}");
}

/// Each server takes it for free; not where another node may have it.
#[test]
fn an_address_nobody_needs_any_more_is_released() {
    for software in [Software::Dnsmasq, Software::Kea, Software::Dhcpd] {
        let lan = Lan::new();
        let server = DhcpServer::quick(software, &lan, 600);
        let nodes = [Node::without_allocator(&lan, 1), Node::without_allocator(&lan, 2)];
        let _alone = Sidecar::dhcp(&nodes[0], "hold = \"1s\"");
        let _shared = Sidecar::dhcp(&nodes[1], "hold = \"1s\"\ncluster = \"blue\"");
        let ask = |node: &Node, name| {
            let join = Join::annotated(name).namespace("shop");
            let pod = node.joined(&join);
            let vip = pod.vip().to_string();
            node.remove(&pod, &join);
            vip
        };
        // Side by side: one that is released would be offered again.
        let vips = [ask(&nodes[1], "web"), ask(&nodes[0], "web")];
        let vips = [&vips[1], &vips[0]];
        let released = |vip: &str| {
            let log = server.log();
            let line = |line: &str| line.to_lowercase().contains("release") && line.contains(vip);
            log.lines().filter(|text| line(text)).count()
        };
        until(&format!("{software:?} hears that {} is free", vips[0]), SOON, || (released(vips[0]) > 0).then_some(()));
        until("the other node forgets it as well", SOON, || {
            (!ctl(&nodes[1], &["status"]).contains("shop/web")).then_some(())
        });
        assert_eq!(released(vips[1]), 0, "{software:?}: another node may have it\n{}", server.log());
    }
}

#[test]
fn a_namespace_that_wants_too_many_is_refused_by_the_limits_name() {
    let lan = Lan::new();
    let server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::dhcp(&node, "[limits]\nvips_per_namespace = 2\nvips = 3");
    // As an annotation loop does: the pods go, their VIPs' leases are held.
    for number in 0..2 {
        let join = Join::annotated(&format!("web{number}")).namespace("loop");
        let pod = node.joined(&join);
        node.remove(&pod, &join);
    }
    let error = node.add(&node.pod(), &Join::annotated("web2").namespace("loop")).error();
    assert!(error.code == 11 && error.text().contains("limits.vips_per_namespace = 2"), "{error:?}");
    node.joined(&Join::annotated("web").namespace("other"));
    until("/readyz says so", SOON, || get(&node, "/readyz").body.contains("limits.vips = 3").then_some(()));
    let error = node.add(&node.pod(), &Join::annotated("web").namespace("third")).error();
    assert!(error.code == 11 && error.text().contains("limits.vips = 3"), "{error:?}");
    server.has_leases(3);
    // Those there are, are there.
    let again = node.joined(&Join::annotated("web1").namespace("loop"));
    assert_eq!(again.vips().len(), 1);
}
