//! Packet filters of every kind, with real packets: what is said to be dropped is, and what cures it does.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::Patient;
use crate::harness::{Join, PORT, PodServer, Run, attempt, connect, serve_all};

impl Patient {
    /// Shell, on the node.
    fn sh(&self, script: &str) {
        let lock = self.dir.file("xtables.lock");
        self.node.ns.cmd("sh").args(["-euc", script]).env("XTABLES_LOCKFILE", lock).finish("").ok();
    }

    /// A client's connection comes about, soon.
    fn is_reached(&self) -> bool {
        let to = SocketAddr::from((self.pods[0].vip(), PORT));
        self.client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_ok())
    }

    /// `rules` keep a client from the VIP; doctor says so by `what`, and its cure lets the client in.
    fn is_cut_off(&self, rules: &str, what: &str) {
        let vip = self.pods[0].vip();
        self.sh(rules);
        assert!(!self.is_reached(), "{rules} lets clients in");
        self.recovers("error", what);
        connect(&self.client, vip, 3);
    }
}

fn patient() -> (Patient, Vec<PodServer>) {
    let patient = Patient::new(1);
    let servers = serve_all(&patient.pods);
    connect(&patient.client, patient.pods[0].vip(), 1);
    (patient, servers)
}

#[test]
fn a_policy_of_iptables() {
    let (patient, _servers) = patient();
    let what = "iptables-nft's table filter, chain FORWARD drops packets to and from VIPs (its policy is drop)";
    patient.is_cut_off("iptables-nft -P FORWARD DROP", what);
}

/// Beside nftables the old interface is in force too; what it says is one line, whatever that does.
#[test]
fn rules_of_iptables_legacy() {
    let (patient, _servers) = patient();
    patient.sh("iptables-legacy -A FORWARD -s 203.0.113.1 -j ACCEPT");
    let found = patient.has("hint", "iptables-legacy has rules or policies, which doctor doesn't read");
    assert!(found.cure.is_none());
    patient.sh("iptables-legacy -F; iptables-legacy -P FORWARD DROP");
    patient.has("hint", "iptables-legacy has rules or policies");
    patient.sh("iptables-legacy -P FORWARD ACCEPT");
    patient.is_well();
}

/// As Docker makes it: its own devices are let through, and replies of known connections.
#[test]
fn dockers_rules() {
    let (patient, _servers) = patient();
    let rules = "iptables-nft -N DOCKER-USER
        iptables-nft -A DOCKER-USER -j RETURN
        iptables-nft -A FORWARD -j DOCKER-USER
        iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
        iptables-nft -P FORWARD DROP";
    patient.sh(rules);
    let findings = patient.findings();
    let [hint, dropped] = match &findings[..] {
        [a, b] if a.severity == "hint" => [a, b],
        [a, b] => [b, a],
        other => panic!("{other:#?}"),
    };
    assert!(hint.what.contains("conntrack follows the connections to VIPs"), "{hint:#?}");
    assert!(dropped.what.contains("drops packets to and from VIPs"), "{dropped:#?}");
    assert!(!patient.is_reached());
    patient.take(dropped);
    connect(&patient.client, patient.pods[0].vip(), 3);
    patient.has("hint", "conntrack follows the connections to VIPs");
}

#[test]
fn a_chain_of_nftables() {
    let (patient, _servers) = patient();
    let chain = "nft add table inet guard
        nft 'add chain inet guard through { type filter hook forward priority 0; policy drop; }'
        nft 'add rule inet guard through iifname \"lo\" accept'";
    let what = "nftables' table inet guard, chain through drops packets to and from VIPs (its policy is drop)";
    patient.is_cut_off(chain, what);
}

#[test]
fn a_rule_of_nftables_against_replies() {
    let (patient, _servers) = patient();
    let chain = "nft add table ip guard
        nft 'add chain ip guard through { type filter hook forward priority 0; }'
        nft 'add rule ip guard through oifname \"eth0\" ip saddr 10.118.0.0/16 counter reject'";
    patient.is_cut_off(chain, "nftables' table ip guard, chain through drops packets from VIPs");
}

/// What a firewall may accept is its owner's business: here it does, and nothing is said.
#[test]
fn a_firewall_that_lets_vips_through() {
    let (patient, _servers) = patient();
    patient.sh("nft add table inet guard
        nft 'add chain inet guard through { type filter hook forward priority 0; policy drop; }'
        nft 'add set inet guard served { type inet_service; elements = { 8080 }; }'
        nft 'add rule inet guard through tcp dport @served accept'
        nft 'add rule inet guard through tcp sport @served accept'");
    assert_eq!(attempt(&patient.client, patient.pods[0].vip(), 3).failed, 0);
    patient.is_well();
}

#[test]
fn conntracks_invalid() {
    let (patient, _servers) = patient();
    patient.sh("iptables-nft -A FORWARD -m conntrack --ctstate INVALID -j DROP");
    let hints = patient.findings();
    assert!(hints.iter().all(|found| found.severity == "hint") && hints.len() == 2, "{hints:#?}");
    assert!(hints.iter().any(|found| found.what.contains("that conntrack calls invalid")), "{hints:#?}");
    // With other nodes there are such packets.
    let config = format!(
        "backend = \"dhcp\"\npeers = [\"192.0.2.1\", \"192.0.2.2\"]\ndata_dir = {:?}\nsocket = {:?}\n",
        patient.node.data(),
        patient.node.socket()
    );
    std::fs::write(patient.config(), config).unwrap();
    assert!(patient.findings().iter().any(|found| found.severity == "warning" && found.what.contains("invalid")));
    patient.sh("nft add table ip viproute");
    patient.is_well();
}

/// What ipMasq of the base plugins does, by either backend. The replica sees who called it.
#[test]
fn masquerade_of_pods() {
    for backend in ["iptables", "nftables"] {
        let (patient, servers) = patient();
        let caller = patient.node.joined(&Join::annotated("api"));
        let address = caller.address();
        let (rules, what) = match backend {
            "iptables" => (
                format!(
                    "iptables-nft -t nat -N CNI-1
                    iptables-nft -t nat -A POSTROUTING -s {address}/32 -m comment --comment 'name: \"pods\"' -j CNI-1
                    iptables-nft -t nat -A CNI-1 -d 10.1.1.0/24 -j ACCEPT
                    iptables-nft -t nat -A CNI-1 ! -d 224.0.0.0/4 -j MASQUERADE"
                ),
                "iptables-nft's table nat, chain POSTROUTING",
            ),
            _ => (
                format!(
                    "nft add table inet masq
                    nft 'add chain inet masq pods {{ type nat hook postrouting priority 100; }}'
                    nft 'add rule inet masq pods ip saddr {address} ip daddr != 10.1.1.0/24 masquerade'"
                ),
                "nftables' table inet masq, chain pods",
            ),
        };
        patient.sh(&rules);
        connect(&caller.ns, patient.pods[0].vip(), 1);
        let seen = || servers[0].clients().contains(&address.into());
        assert!(!seen(), "{backend} rewrites it");
        let rewritten = |found: &&super::Found| {
            let whose = format!("{what}, rewrites the source of a pod ({address})");
            found.severity == "warning" && found.what.contains(&whose)
        };
        let findings = patient.findings();
        patient.take(findings.iter().find(rewritten).unwrap_or_else(|| panic!("{findings:#?}")));
        connect(&caller.ns, patient.pods[0].vip(), 1);
        assert!(seen(), "{backend}: {:?}", servers[0].clients());
        patient.has("hint", "conntrack follows the connections to VIPs");
    }
}

/// A mesh's proxy takes all connections by a port of its own; not those by an interface that it is to leave alone.
#[test]
fn rules_in_a_pod_that_lead_to_another_ports_socket() {
    // As Istio's init container has them.
    const MESH: [&str; 5] = [
        "-t nat -N ISTIO_INBOUND",
        "-t nat -N ISTIO_IN_REDIRECT",
        "-t nat -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006",
        "-t nat -A PREROUTING -p tcp -j ISTIO_INBOUND",
        "-t nat -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT",
    ];
    let patient = Patient::new(2);
    let pod = &patient.pods[0].ns;
    let what = "lead what comes for default/web to a socket of another port";
    let by = |program: &str, lines: &[&str]| {
        for line in lines {
            let lock = patient.dir.file("xtables.lock");
            pod.cmd(program).args(line.split(' ')).env("XTABLES_LOCKFILE", lock).finish("").ok();
        }
    };
    for program in ["iptables-nft", "iptables-legacy"] {
        by(program, &MESH);
        patient.has("warning", what);
        by(program, &["-t nat -I PREROUTING 1 -i vip0 -j RETURN"]);
        patient.is_well();
        by(program, &["-t nat -F", "-t nat -X"]);
    }
    let nft = |rules: &str| drop(pod.cmd("nft").args(["-f", "-"]).finish(rules).ok());
    nft(
        "table ip mesh { chain in { type nat hook prerouting priority dstnat; tcp dport 1-65535 redirect to :15006\n}\n}",
    );
    patient.has("warning", what);
    nft(
        "flush chain ip mesh in\nadd rule ip mesh in iifname \"vip0\" accept\nadd rule ip mesh in meta l4proto tcp redirect to :15006",
    );
    patient.is_well();
    // Only what the pod itself calls.
    nft(
        "delete table ip mesh\ntable ip mesh { chain out { type nat hook output priority -100; meta l4proto tcp redirect to :15001\n}\n}",
    );
    patient.is_well();
}
