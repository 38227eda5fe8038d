//! The nftables table of nodes that know each other: no tracking of what they send each other, and nobody else's packets in the tunnel.

use std::fs;
use std::net::{IpAddr, UdpSocket};

use serde_json::Value;
use viproute::internals::model::Family;

use crate::harness::{Netns, PATIENCE, Page, Run, SOON, Storm, until};

use super::evenly;
use super::hostile::{BACK, Forged, has_address_of_first};
use super::scene::{Cluster, Node};

/// So many packets of a stranger's.
const TIMES: i64 = 20;
const INVALID: &str = "table inet fw {
    chain forward { type filter hook forward priority 0; ct state invalid drop; }
    chain input { type filter hook input priority 0; ct state invalid drop; }
    chain output { type filter hook output priority 0; ct state invalid drop; }
}";

impl Node {
    fn nft(&self, commands: &str) -> String {
        self.ns().cmd("nft").args(["-f", "-"]).finish(commands).ok()
    }

    /// The family of the tunnel's own packets, as nft calls it, and what all nodes' addresses begin with.
    fn underlay(&self) -> (&'static str, &'static str) {
        if self.underlay == Some(Family::V6) { ("ip6", "2001:db8::") } else { ("ip", "192.0.2.") }
    }

    /// The table as nft shows it; empty if there is none.
    fn table(&self) -> String {
        let listed = self.ns().cmd("nft").args(["list", "table", self.underlay().0, "viproute"]).finish("");
        if listed.status.success() { listed.stdout } else { String::new() }
    }

    /// Until the table lets in exactly these nodes.
    pub fn lets_in(&self, nodes: &[u8]) {
        let (family, prefix) = self.underlay();
        let expected: Vec<String> = nodes.iter().map(|node| format!("{prefix}{node}")).collect();
        until(&format!("the set has {expected:?}"), SOON, || {
            let listed = self.ns().cmd("nft").args(["-j", "list", "set", family, "viproute", "members"]).finish("");
            let listed: Value = serde_json::from_str(&listed.stdout).ok()?;
            let objects = listed["nftables"].as_array()?;
            let elements = objects.iter().find_map(|object| object["set"]["elem"].as_array())?;
            let mut found: Vec<&str> = elements.iter().filter_map(Value::as_str).collect();
            found.sort_unstable();
            (found == expected).then_some(())
        });
    }

    /// Packets to the tunnel that the table has dropped.
    fn turned_away(&self) -> i64 {
        Page::of(&self.host).value("viproute_tunnel_denied_packets_total", &[])
    }
}

/// It tracks connections, and drops what it takes for invalid.
fn with_firewalls(cluster: Cluster) -> Cluster {
    for number in 1..=3 {
        let node = cluster.node(number);
        node.nft(INVALID);
        until("viprouted has noticed that the node tracks", SOON, || node.table().contains("notrack").then_some(()));
    }
    cluster
}

fn entries_of_the_tunnel(node: &Node) -> usize {
    let family = if node.underlay().0 == "ip6" { "ipv6" } else { "ipv4" };
    let all = node.ns().cmd("conntrack").args(["-L", "-f", family, "-p", "udp"]).finish("").ok();
    all.lines().filter(|line| line.contains("dport=8118")).count()
}

/// A node sees one direction alone of a connection with another node's replica: tracked, its packets would be invalid.
#[test]
fn firewalls_that_drop_what_is_invalid_drop_nothing() {
    let mut cluster = with_firewalls(Cluster::new(1));
    for from in ["the client", "the routed client", "a pod on 2", "node 1"] {
        evenly(&cluster, from, 3);
    }
    let mut live = cluster.flows(100);
    for number in [2, 3, 1] {
        cluster.leads_to(number);
        Cluster::unbroken(&mut live, &format!("the VIP's packets come to {number}"));
    }
    cluster.joins(3);
    cluster.drains(1);
    Cluster::unbroken(&mut live, "a replica joins on 3, and the one of node 1 drains");
    for number in 1..=3 {
        assert_eq!(entries_of_the_tunnel(cluster.node(number)), 0, "node {number} tracks the tunnel");
    }
    // Without the table it is tracked; with it again no more.
    for number in 1..=3 {
        cluster.node(number).nft("delete table ip viproute");
    }
    for number in 1..=3 {
        let is_back =
            || cluster.node(number).table().contains("udp dport 8118 ip daddr @members notrack").then_some(());
        until("the table is back", PATIENCE, is_back);
    }
    Cluster::unbroken(&mut live, "the table was deleted on all nodes");
}

/// Sends from an address of its own.
fn send(stranger: &Netns, (from, to): (IpAddr, IpAddr), forged: Forged) {
    stranger.run(|| {
        let socket = UdpSocket::bind((from, 0)).expect("a socket");
        for _ in 0..TIMES {
            socket.send_to(&forged.bytes(), (to, 8118)).expect("send");
        }
    });
}

/// Where nothing is tracked and where all is, and where nodes have addresses of IPv6 alone.
#[test]
fn who_is_no_member_is_turned_away() {
    let scenes: [(bool, fn() -> Cluster); 3] = [
        (false, || Cluster::new(1)),
        (true, || with_firewalls(Cluster::new(1))),
        (true, || with_firewalls(Cluster::over_ipv6(1))),
    ];
    for (tracked, scene) in scenes {
        let cluster = scene();
        let node = cluster.node(2);
        node.lets_in(&[1, 3]);
        assert_eq!(node.table().contains("notrack"), tracked, "{}", node.table());
        let stranger = has_address_of_first(&cluster);
        let (receiver, origin, to) = (cluster.id(2), cluster.id(1), cluster.to);
        let ethertype = if to.is_ipv4() { 0x0800 } else { 0x86dd };
        let forged = Forged { kind: BACK, hop: 0, receiver, origin, ethertype, to };
        let seen = || cluster.counts(2)["stranger"];
        let own: IpAddr =
            if cluster.at(1).is_ipv4() { "192.0.2.60" } else { "2001:db8::3c" }.parse().expect("an address");
        send(&stranger, (own, cluster.at(2)), forged);
        until("it is counted", SOON, || (node.turned_away() == TIMES).then_some(()));
        assert_eq!(seen(), 0, "none of it has come into the tunnel");
        // A member's gets in: there the program says what it is worth.
        send(&stranger, (cluster.at(1), cluster.at(2)), forged);
        until("the program has it", SOON, || (seen() == TIMES.cast_unsigned()).then_some(()));
        assert_eq!(node.turned_away(), TIMES);
        evenly(&cluster, "the client", 3);
        assert_eq!(entries_of_the_tunnel(node), 0);
    }
}

/// What is changed by hand is changed back.
#[test]
fn the_set_of_nodes_heals() {
    let cluster = Cluster::new(1);
    let node = cluster.node(1);
    node.lets_in(&[2, 3]);
    let made = node.table();
    let faults = [
        "flush ruleset",
        "delete table ip viproute",
        "delete element ip viproute members { 192.0.2.3 }",
        "add element ip viproute members { 192.0.2.99 }",
        "flush set ip viproute members",
        "flush chain ip viproute tunnel",
        "insert rule ip viproute tunnel accept",
    ];
    for fault in faults {
        node.nft(fault);
        until(&format!("{fault:?} is undone"), PATIENCE, || (node.table() == made).then_some(()));
    }
    evenly(&cluster, "the client", 3);
}

#[test]
fn the_set_follows_the_nodes() {
    let mut cluster = Cluster::new(1);
    let live = cluster.flows(20);
    for (number, others) in [(1, [2, 3]), (2, [1, 3]), (3, [1, 2])] {
        cluster.node(number).lets_in(&others);
    }
    // One is forgotten, and joins again.
    cluster.stands_alone(3);
    cluster.node(1).lets_in(&[2]);
    until("the one that stands alone has no such rules", SOON, || {
        let table = cluster.node(3).table();
        (table.contains("@vips") && !table.contains("8118") && !table.contains("members")).then_some(())
    });
    cluster.knows_others(3);
    cluster.node(1).lets_in(&[2, 3]);
    cluster.node(3).lets_in(&[1, 2]);
    // Another address, as the membership would record it.
    let path = format!("{}/nodes.json", cluster.node(1).host.data());
    let text = fs::read_to_string(&path).expect("nodes.json");
    fs::write(format!("{path}.tmp"), text.replace(r#""tunnel":"192.0.2.3""#, r#""tunnel":"192.0.2.33""#))
        .expect("write");
    fs::rename(format!("{path}.tmp"), &path).expect("rename");
    cluster.node(1).lets_in(&[2, 33]);
    cluster.tell_all();
    cluster.node(1).lets_in(&[2, 3]);
    drop(live);
    assert_eq!(Storm::start(cluster.ns("the client"), cluster.vip, 500).next(300).failed, [""; 0]);
    // The last VIP goes: others are known still.
    cluster.everything_leaves(2);
    until("the table lets other nodes in, and no VIP is in it", SOON, || {
        let table = cluster.node(2).table();
        (table.contains("@members") && !table.contains("10.118.0.1")).then_some(())
    });
    cluster.stands_alone(2);
    until("the table is gone", SOON, || cluster.node(2).table().is_empty().then_some(()));
}
