//! What a firewall says holds for what goes straight.

use std::thread;
use std::time::Duration;

use super::{Flow, SILENCE, Source, Switch, TCP_LEASE, Talk, UDP_LEASE, counts, nft, read, service, since};
use crate::harness::{Crowd, Echo, Join, Lan, Node, PATIENCE, Run, SOON, Sidecar, until};

const SHUT: [&str; 2] = ["ip daddr 10.118.0.0/16 drop", "ip saddr 10.118.0.0/16 drop"];

fn forward(node: &Node, rule: &str) {
    nft(node, &format!("table ip shut {{ chain forward {{ type filter hook forward priority 0; {rule}; }}\n}}"));
}

fn open_again(node: &Node) {
    nft(node, "delete table ip shut");
}

/// The agent has been told of the rule: nothing passes it any more.
#[test]
fn a_rule_holds_at_once_where_the_generation_changes() {
    let service = service(2, 0);
    let _servers: Vec<_> = service.pods.iter().map(|pod| Echo::start(pod, service.vip)).collect();
    let switch = Switch::on(&service.node);
    let (mut talk, flow) = (Talk::with(&service.client, service.vip), Flow::with(&service.client, service.vip));
    for rule in SHUT {
        for _ in 0..10 {
            talk.ask();
            flow.ask().expect("an answer");
        }
        forward(&service.node, rule);
        switch.bump();
        let before = switch.counts();
        assert_eq!(flow.ask(), None, "{rule}");
        talk.try_ask(SILENCE).expect_err("no answer past the rule");
        let (requests, answers) = since(switch.counts(), before);
        assert_eq!(if rule.contains("daddr") { requests } else { answers }, 0, "{rule}");
        open_again(&service.node);
        switch.bump();
        // TCP sends again.
        crate::harness::hear(&mut talk.0, crate::harness::deadline(SOON)).expect("the answer at last");
    }
}

/// The agent isn't told of every rule (iptables-legacy): then the lease isn't renewed.
#[test]
fn a_rule_holds_when_the_lease_ends() {
    let service = service(2, 0);
    let _servers: Vec<_> = service.pods.iter().map(|pod| Echo::start(pod, service.vip)).collect();
    let switch = Switch::on(&service.node);
    for rule in SHUT {
        let (mut talk, flow) = (Talk::with(&service.client, service.vip), Flow::with(&service.client, service.vip));
        for _ in 0..10 {
            talk.ask();
            flow.ask().expect("an answer");
        }
        forward(&service.node, rule);
        thread::scope(|scope| {
            scope.spawn(|| {
                until("the datagrams' lease ends", UDP_LEASE * 2, || {
                    thread::sleep(Duration::from_millis(20));
                    flow.ask().is_none().then_some(())
                });
            });
            scope.spawn(|| {
                until("the connection's lease ends", TCP_LEASE * 2, || {
                    thread::sleep(Duration::from_millis(20));
                    talk.try_ask(SILENCE).is_err().then_some(())
                });
            });
        });
        let before = switch.counts();
        assert_eq!(flow.ask(), None, "{rule}");
        let (requests, answers) = since(switch.counts(), before);
        assert_eq!(if rule.contains("daddr") { requests } else { answers }, 0, "{rule}");
        open_again(&service.node);
    }
}

/// A node that drops what connection tracking doesn't know.
#[test]
fn connection_tracking_finds_nothing_invalid() {
    const SIZE: usize = 20_000_000;
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    nft(
        &node,
        "table ip firewall {
            chain postrouting { type nat hook postrouting priority 100; ip saddr 10.1.0.0/16 masquerade; }
            chain forward { type filter hook forward priority 0; ct state invalid counter drop; }
         }",
    );
    let _sidecar = Sidecar::start(&node, "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n");
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pods = [node.joined(&Join::annotated("web")), node.joined(&Join::annotated("web"))];
    let _crowds: Vec<_> = pods.iter().map(Crowd::start).collect();
    let _sources: Vec<_> = pods.iter().map(|pod| Source::start(&pod.ns, SIZE)).collect();
    let vip = pods[0].vip();
    let download = |number: usize| {
        assert_eq!(read(&mut Source::download(&client, vip), usize::MAX), SIZE, "download {number}");
    };
    // viprouted has switched express on.
    until("packets go straight", PATIENCE, || {
        download(0);
        (counts(&node).out_packets > 100).then_some(())
    });
    let before = counts(&node);
    for number in 1..=5 {
        download(number);
        if number == 3 {
            node.ns.ip("route add 198.51.100.0/24 via 192.0.2.254");
        }
    }
    assert!(since(counts(&node), before).1 > 100, "most of it went straight");
    let rules = node.ns.cmd("nft").args(["list", "table", "ip", "firewall"]).finish("").ok();
    assert!(rules.contains("counter packets 0 "), "{rules}");
}
