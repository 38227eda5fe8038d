//! Two authoritative servers on one LAN (two Pi-holes, an `OpenWrt` box that is plugged in), each with a range of its own:
//! each refuses what the other has given.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::harness::{DhcpServer, Join, Lan, Node, Page, Pod, RANGE, Sidecar, connect, serve_all, until};

use super::{SOON, ctl, problems, wait_until_answered_for, web};

/// T1 at 3 s, so that there are renewals to refuse.
const QUICK: &str = "dhcp-option=option:T1,3\ndhcp-option=option:T2,60";

/// The other server's range.
const OTHER_RANGE: &str = "192.0.2.60,192.0.2.69";

fn naks(server: &DhcpServer) -> usize {
    server.log().matches("DHCPNAK(").count()
}

#[test]
fn a_second_one_takes_no_vip_away_and_is_named() {
    let lan = Lan::new();
    let first = DhcpServer::dnsmasq(&lan, RANGE, "2m", QUICK);
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    let client = lan.client(50, &[]);
    let pods: Vec<_> = (0..3).map(|n| node.joined(&Join::annotated(&format!("web{n}")).namespace("shop"))).collect();
    let _servers = serve_all(&pods);
    let vips: Vec<_> = pods.iter().map(Pod::vip).collect();
    for vip in &vips {
        wait_until_answered_for(&node, *vip);
    }
    let host = lan.client(7, &[]);
    let second = DhcpServer::another(&host, OTHER_RANGE);
    let acks = first.log().matches("DHCPACK(").count();
    let began = Instant::now();
    until("each VIP has been refused more than once", Duration::from_secs(60), || {
        for (pod, vip) in pods.iter().zip(&vips) {
            assert_eq!(pod.vips(), [*vip], "after {:?}\n{}", began.elapsed(), sidecar.daemon.log());
            connect(&client, *vip, 1);
        }
        let renewed = first.log().matches("DHCPACK(").count() >= acks + 9;
        sleep(Duration::from_millis(200));
        (naks(&second) >= 9 && renewed).then_some(())
    });
    let log = sidecar.daemon.log();
    assert!(!log.contains("withdraw") && !log.contains("lost:"), "{log}");
    let said = "the DHCP server 192.0.2.7 refuses (NAK \"wrong network\") an address that 192.0.2.254 has granted";
    let named =
        |text: &str| text.contains("the DHCP server 192.0.2.7 refuses") && text.contains("192.0.2.254 has granted");
    assert_eq!(log.lines().filter(|line| named(line)).count(), 1, "once, as {said:?}: {log}");
    assert!(problems(&sidecar).iter().any(|problem| named(problem)), "{:?}", problems(&sidecar));
    assert!(named(&ctl(&node, &["status"])), "in status");
    assert!(named(&ctl(&node, &["events"])), "as an event");
    // The lease's own server is away: nothing changes before the lease's end.
    drop(first);
    let before = naks(&second);
    until("the other one goes on refusing", Duration::from_secs(60), || (naks(&second) > before + 3).then_some(()));
    for (pod, vip) in pods.iter().zip(&vips) {
        assert_eq!(pod.vips(), [*vip], "{}", sidecar.daemon.log());
    }
}

/// With both there from the beginning, a restart of viprouted keeps what it has.
#[test]
fn a_restart_between_two_keeps_the_address() {
    let lan = Lan::new();
    let _first = DhcpServer::dnsmasq(&lan, RANGE, "2m", "");
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    let pod = node.joined(&web());
    let vip = pod.vip();
    sleep(Duration::from_secs(4)); // confirmed
    sidecar.stop();
    let host = lan.client(7, &[]);
    let second = DhcpServer::another(&host, OTHER_RANGE);
    let sidecar = Sidecar::dhcp(&node, "");
    until("the other server refuses it", SOON, || (naks(&second) > 0).then_some(()));
    until("its own confirms it", SOON, || sidecar.daemon.log().contains(&format!("renewed: {vip}")).then_some(()));
    assert_eq!((pod.vips(), sidecar.acquire("shop/web").unwrap()), (vec![vip], vip));
}

#[test]
fn with_pinned_servers_no_other_one_counts() {
    let lan = Lan::new();
    let host = lan.client(7, &[]);
    let rogue = DhcpServer::another(&host, OTHER_RANGE);
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "[dhcp]\nservers = [\"192.0.2.254\"]");
    let error = sidecar.acquire("shop/web").unwrap_err();
    assert!(rogue.log().contains("DHCPOFFER("), "{}", rogue.log());
    assert!(error.code == 11 && error.msg.contains("no DHCP server answers"), "{error:?}");
    let foreign = [("direction", "received"), ("type", "foreign")];
    assert!(Page::of(&node).value("viproute_dhcp_messages_total", &foreign) > 0);
    let _first = DhcpServer::dnsmasq(&lan, RANGE, "2m", "");
    for number in 0..4 {
        let address = sidecar.acquire(&format!("shop/vip{number}")).unwrap();
        assert!((100..=150).contains(&address.octets()[3]), "{address}");
    }
    assert!(problems(&sidecar).is_empty(), "{:?}", problems(&sidecar));
}
