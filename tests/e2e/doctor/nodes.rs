//! Nodes that serve VIPs together.

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use serde_json::json;

use super::Patient;
use crate::harness::{Join, Lan, Netns, Node, PATIENCE, Run, SOON, Sidecar, VIPROUTECTL, until};

const TUNNEL: u16 = 8118;
const GOSSIP: u16 = 8119;

impl Patient {
    /// It knows node 2, as viprouted would have recorded it.
    fn knows_another(&self) {
        self.knows(["192.0.2.1", "192.0.2.2"]);
    }

    /// The same, by their ends of the tunnel.
    fn knows(&self, [here, there]: [&str; 2]) {
        let own = json!({ "id": "192.0.2.1", "name": "n1", "tunnel": here });
        let other = json!({ "id": "192.0.2.2", "name": "n2", "number": 1, "tunnel": there, "state": "live" });
        let text = json!({ "schema": 2, "own": own, "nodes": [other] }).to_string();
        fs::write(format!("{}/nodes.json", self.node.data()), text).expect("write nodes.json");
    }

    /// It takes part in the gossip.
    fn is_member(&self) {
        let key = self.dir.file("membership.key");
        self.node.ns.cmd(VIPROUTECTL).args(["key", "new", &key]).finish("").ok();
        let (data, socket) = (self.node.data(), self.node.socket());
        let text = format!(
            "backend = \"dhcp\"\ndata_dir = {data:?}\nsocket = {socket:?}\n[membership]\nkey_file = {key:?}\nname = \"n1\"\n"
        );
        fs::write(self.config(), text).expect("write viprouted.toml");
    }

    /// Whether a datagram from node 2 to that port arrives.
    fn hears(&self, other: &Netns, port: u16) -> bool {
        let socket = self.node.ns.run(|| UdpSocket::bind(("192.0.2.1", port))).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        other
            .run(|| UdpSocket::bind("0.0.0.0:0").and_then(|from| from.send_to(b"x", ("192.0.2.1", port))))
            .expect("send");
        socket.recv(&mut [0; 8]).is_ok()
    }

    fn rules(&self, script: &str) {
        let lock = self.dir.file("xtables.lock");
        self.node.ns.cmd("sh").args(["-euc", script]).env("XTABLES_LOCKFILE", lock).finish("").ok();
    }
}

/// A node that knew another before it had its VIP.
fn with_another() -> Patient {
    let mut patient = Patient::new(0);
    // It has a registry.
    let first = patient.node.joined(&Join::annotated("first"));
    patient.node.remove(&first, &Join::annotated("first"));
    patient.knows_another();
    patient.pods.push(patient.node.joined(&Join::annotated("web")));
    patient
}

/// One that gossips, and the other's namespace.
fn patient() -> (Patient, Netns) {
    let patient = with_another();
    patient.is_member();
    patient.is_well();
    let other = patient.lan.client(2, &[]);
    (patient, other)
}

#[test]
fn a_rule_against_the_tunnel() {
    let (patient, other) = patient();
    patient.rules(
        "nft add table inet guard
        nft 'add chain inet guard in { type filter hook input priority 0; }'
        nft 'add rule inet guard in udp dport 8000-8118 counter drop'",
    );
    assert!(!patient.hears(&other, TUNNEL) && patient.hears(&other, GOSSIP));
    let what =
        "nftables' table inet guard, chain in drops UDP 8118 (the tunnel) from 192.0.2.2 (by the rule with handle ";
    patient.recovers("error", what);
    assert!(patient.hears(&other, TUNNEL));
}

#[test]
fn a_rule_against_the_gossip() {
    let (patient, other) = patient();
    patient.rules("iptables-nft -A INPUT -s 192.0.2.0/24 -p udp -m multiport --dports 53,8119 -j REJECT");
    assert!(patient.hears(&other, TUNNEL) && !patient.hears(&other, GOSSIP));
    let found = patient.has(
        "error",
        "iptables-nft's table filter, chain INPUT drops UDP 8119 (the gossip) from 192.0.2.2 (by `-A INPUT ",
    );
    patient.take(&found);
    patient.is_well();
    assert!(patient.hears(&other, GOSSIP));
}

/// A stock firewall: in comes what belongs to a connection that it knows, SSH, and nothing else.
#[test]
fn a_policy_against_both() {
    let (patient, other) = patient();
    patient.rules(
        "iptables-nft -A INPUT -i lo -j ACCEPT
        iptables-nft -A INPUT -m addrtype --dst-type BROADCAST -j DROP
        iptables-nft -A INPUT -p tcp --dport 22 -j ACCEPT
        iptables-nft -P INPUT DROP",
    );
    assert!(!patient.hears(&other, TUNNEL) && !patient.hears(&other, GOSSIP));
    let findings = patient.findings();
    let [tunnel, gossip] = &findings[..] else { panic!("{findings:#?}") };
    assert!(tunnel.what.ends_with("UDP 8118 (the tunnel) from 192.0.2.2 (its policy is drop)"), "{tunnel:#?}");
    assert!(gossip.what.ends_with("UDP 8119 (the gossip) from 192.0.2.2 (its policy is drop)"), "{gossip:#?}");
    patient.take(tunnel);
    patient.take(gossip);
    patient.is_well();
    assert!(patient.hears(&other, TUNNEL) && patient.hears(&other, GOSSIP));
}

/// Who is let in may depend on what isn't known: then nothing is said. Neither is it of a node that stands alone.
#[test]
fn firewalls_that_let_other_nodes_in() {
    let (patient, other) = patient();
    patient.rules(
        "nft add table inet guard
        nft 'add chain inet guard in { type filter hook input priority 0; policy drop; }'
        nft 'add set inet guard nodes { type ipv4_addr; elements = { 192.0.2.2 }; }'
        nft 'add rule inet guard in ip saddr @nodes accept'",
    );
    assert!(patient.hears(&other, TUNNEL) && patient.hears(&other, GOSSIP));
    patient.is_well();
    patient.rules("nft flush chain inet guard in");
    assert_eq!(patient.findings().len(), 2);
    fs::remove_file(patient.config()).expect("the configuration");
    fs::remove_file(format!("{}/nodes.json", patient.node.data())).expect("nodes.json");
    patient.is_well();
}

#[test]
fn connections_that_are_tracked_between_nodes() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let pool = |notrack: &str| format!("backend = \"pool\"\n{notrack}\n[pool]\ncidr = \"10.118.0.0/24\"");
    let sidecar = Sidecar::start(&node, &pool("notrack = false"));
    let patient = Patient::on(lan, node, 1);
    patient.knows_another();
    // The tunnel to it is there.
    until("nothing is found", PATIENCE, || patient.findings().is_empty().then_some(()));
    patient.rules(
        "nft add table ip t
        nft 'add chain ip t c { type filter hook forward priority 0; }'
        nft 'add rule ip t c ct state invalid counter'",
    );
    let what = "notrack is off, on a node that tracks connections and serves VIPs together with other nodes";
    let is_it = |found: &super::Found| found.what == what && found.severity == "error";
    let found = until("it is found", SOON, || patient.findings().into_iter().find(is_it));
    patient.take(&found);
    let written = fs::read_to_string(patient.config()).expect("the configuration");
    assert!(written.contains("notrack = true") && !written.contains("notrack = false"), "{written}");
    sidecar.stop();
    let _sidecar = Sidecar::start(&patient.node, &pool("notrack = true"));
    patient.knows_another();
    until("nothing is found any more", SOON, || patient.findings().is_empty().then_some(()));
}

#[test]
fn a_tunnel_of_another_mtu() {
    let patient = with_another();
    patient.node.ns.ip("link add viptun0 mtu 1400 type vxlan external dstport 8118");
    patient.recovers("warning", "viptun0 has MTU 1400, the network under it 1500");
    patient.node.ns.ip("link add narrow mtu 1300 type veth peer name other");
    patient.node.ns.ip("link set other up");
    patient.node.ns.ip("link set narrow up");
    patient.node.ns.ip("route add 192.0.2.2/32 dev narrow");
    let found =
        patient.has("warning", "node n2 (192.0.2.2) is reached by narrow, whose MTU is 1300, and 192.0.2.1 has 1500");
    assert_eq!(found.cure, None);
}

/// VIPs' packets of IPv6 need 1,280 bytes in the tunnel, whose own headers are of IPv6 here.
#[test]
fn a_network_too_narrow_for_ipv6() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1).with_ipv6(&lan);
    let settings = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\ncidr6 = \"fd00:118::/96\"";
    let _sidecar = Sidecar::start(&node, settings);
    let patient = Patient::on(lan, node, 1);
    patient.node.ns.ip("link set eth0 mtu 1349");
    patient.knows(["2001:db8::1", "2001:db8::2"]);
    let what = "eth0 has MTU 1349, and viptun0 carries packets of VIPs' IPv6 over 1350 and more alone";
    let found = until("it is found", SOON, || {
        let findings = patient.findings();
        findings.into_iter().find(|found| found.what == what && found.severity == "error")
    });
    patient.take(&found);
    until("nothing is found any more", SOON, || patient.findings().is_empty().then_some(()));
}

/// What can't be asked is said, and doctor comes to its end.
#[test]
fn programs_that_hang() {
    let patient = Patient::new(1);
    let dir = patient.dir.file("hanging");
    patient.rules(&format!(
        "mkdir {dir}
        printf '#!/bin/sh\nsleep 1000\n' >{dir}/nft
        chmod +x {dir}/nft
        rm {bin}/viproute
        cp {dir}/nft {bin}/viproute",
        bin = patient.dir.file("bin")
    ));
    let path = format!("{dir}:{}", std::env::var("PATH").expect("PATH"));
    let said = patient.doctor_with("json", &[("PATH", &path)]);
    let report: serde_json::Value = serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{e}: {said:?}"));
    let found: Vec<&str> =
        report["findings"].as_array().expect("a list").iter().filter_map(|f| f["what"].as_str()).collect();
    let expected = "`nft --json list ruleset` could not be asked for its rules: it did not end within 10 s";
    assert!(found.contains(&expected), "{found:#?}");
    assert!(found.iter().any(|what| what.ends_with("viproute can't be run: it did not end within 10 s")), "{found:#?}");
}
