//! Settings of the node, and what of the replicas is in its kernel.

use super::Patient;
use crate::harness::{Join, Run, VIPROUTECTL, connect, serve_all};

#[test]
fn settings_of_the_node() {
    let patient = Patient::new(1);
    for (name, bad) in [("fib_multipath_hash_policy", "1"), ("fib_multipath_hash_fields", "7"), ("ip_forward", "0")] {
        patient.node.ns.set_sysctl(&format!("net/ipv4/{name}"), bad);
        patient.recovers("error", &format!("net.ipv4.{name} is {bad}, not "));
    }
}

/// The first ADD sets them.
#[test]
fn settings_of_a_node_without_pods_are_its_own() {
    let patient = Patient::new(0);
    patient.node.ns.set_sysctl("net/ipv4/fib_multipath_hash_policy", "1");
    patient.is_well();
}

#[test]
fn settings_of_a_host_end() {
    let patient = Patient::new(2);
    let device = patient.host_veth();
    for (key, bad, what) in [("rp_filter", "1", "rp_filter is 1 on"), ("forwarding", "0", "forwarding is off on")] {
        patient.node.ns.set_sysctl(&format!("net/ipv4/conf/{device}/{key}"), bad);
        patient.recovers("error", &format!("{what} {device}"));
    }
    // Where all devices are strict, a host veth's own 2 is the greater value.
    patient.node.ns.set_sysctl("net/ipv4/conf/all/rp_filter", "1");
    patient.is_well();
}

#[test]
fn settings_of_uplinks() {
    let patient = Patient::new(1);
    let ns = &patient.node.ns;
    for command in ["link add up.7 type bridge", "addr add 198.51.100.1/24 dev up.7", "link set up.7 up"] {
        ns.ip(command);
    }
    ns.set_sysctl("net/ipv4/conf/up.7/rp_filter", "1");
    patient.is_well(); // no client's requests come in there
    ns.ip("route add default via 198.51.100.254 metric 50");
    patient.recovers("warning", "rp_filter is strict on up.7");
    ns.set_sysctl("net/ipv4/conf/eth0/rp_filter", "1");
    patient.is_well(); // the best way out
    ns.set_sysctl("net/ipv4/conf/eth0/forwarding", "0");
    patient.recovers("error", "forwarding is off on eth0");
}

#[test]
fn a_node_without_an_address() {
    let patient = Patient::new(0);
    patient.node.ns.ip("addr flush dev eth0");
    let found = patient.has("error", "address");
    assert!(found.cure.is_none());
}

/// A VPN's or source routing's.
#[test]
fn rules_before_table_main() {
    let patient = Patient::new(1);
    let ns = &patient.node.ns;
    ns.ip("link add vpn0 type bridge");
    ns.ip("link set vpn0 up");
    ns.ip("addr add 10.99.0.1/24 dev vpn0");
    ns.ip("route add default via 10.99.0.2 dev vpn0 table 51820");
    ns.ip("rule add not fwmark 51820 lookup 51820 priority 100");
    let vip = patient.pods[0].vip();
    patient.recovers("error", &format!("{vip}: rule 100 takes their packets to table 51820"));
    let pods = &patient.pods;
    let _servers = serve_all(pods);
    connect(&patient.node.ns, vip, 5);
}

/// kube-proxy in IPVS mode binds the addresses of Services to one.
#[test]
fn a_vip_on_a_device_of_the_nodes_own() {
    let patient = Patient::new(1);
    let vip = patient.pods[0].vip();
    patient.node.ns.ip("link add kube-ipvs0 type bridge");
    patient.node.ns.ip(&format!("addr add {vip}/32 dev kube-ipvs0"));
    patient.recovers("error", &format!("{vip}: an address of the node's own, on kube-ipvs0"));
    connect_to(&patient, vip);
}

fn connect_to(patient: &Patient, vip: std::net::Ipv4Addr) {
    let _servers = serve_all(&patient.pods);
    connect(&patient.client, vip, 5);
}

#[test]
fn a_node_ip_that_is_none() {
    let patient = Patient::new(1);
    let mut network = patient.network();
    network["plugins"][1]["nodeIP"] = serde_json::json!("203.0.113.9");
    patient.write_network("10-pods.conflist", &network);
    patient.has("error", "\"nodeIP\" is \"203.0.113.9\": expected an address of this node");
}

/// Hundreds of replicas, on paper.
#[test]
fn routes_too_long_to_be_listed() {
    let patient = Patient::new(1);
    let endpoint = patient.endpoint(&patient.pods[0]);
    for number in 1..300 {
        std::fs::copy(&endpoint, endpoint.with_file_name(format!("paper{number}@eth0.json"))).expect("a copy");
    }
    patient.node.ns.set_sysctl("net/ipv4/nexthop_compat_mode", "1");
    patient.recovers("hint", "default/web has 300 replicas here and net.ipv4.nexthop_compat_mode is 1");
}

#[test]
fn late_answers_to_arp() {
    let patient = Patient::new(1);
    let vip = patient.pods[0].vip();
    patient.node.ns.ip(&format!("neigh add proxy {vip} dev eth0"));
    patient.recovers("warning", "net.ipv4.neigh.eth0.proxy_delay is 80, not 0");
}

#[test]
fn what_is_missing_in_the_kernel() {
    let patient = Patient::new(2);
    let (vip, device) = (patient.pods[0].vip(), patient.host_veth());
    let web = Join::annotated("web");
    patient.node.ns.ip(&format!("route del {vip} proto 118 metric 0"));
    patient.has("error", &format!("default/web is not in the kernel as the registry has it: route {vip}/32 nhid"));
    patient.node.gc(&[&patient.pods[0], &patient.pods[1]], &web).ok();
    patient.is_well();
    patient.node.ns.cmd("tc").args(["filter", "del", "dev", &device, "egress"]).finish("").ok();
    patient.has("error", &format!("the flow owner's filter on {device}, tc egress: want owner"));
    patient.node.ns.ip(&format!("addr del 169.254.118.1/32 dev {device}"));
    let findings = patient.findings();
    let address = format!("address 169.254.118.1 on {device} is missing");
    assert!(findings.iter().any(|found| found.what.contains(&address)), "{findings:#?}");
}

#[test]
fn what_is_missing_in_a_pod() {
    let patient = Patient::new(1);
    let (pod, vip) = (&patient.pods[0], patient.pods[0].vip());
    pod.ns.ip(&format!("rule del from {vip} lookup 118"));
    patient.has("error", &format!("default/{}: in the pod: rule from {vip} lookup 118", pod.name));
    pod.ns.ip("link set vip0 down");
    assert!(patient.findings().iter().any(|found| found.what.contains("in the pod: ")), "{:#?}", patient.findings());
    pod.ns.ip("link del vip0");
    let findings = patient.findings();
    assert!(
        findings.iter().any(|found| found.what.contains(&format!("of default/{} is missing", pod.name))),
        "{findings:#?}"
    );
}

#[test]
fn a_vip_whose_replicas_were_all_taken_out() {
    let patient = Patient::new(1);
    let _servers = serve_all(&patient.pods);
    let name = format!("default/{}", patient.pods[0].name);
    let tool = |verb: &str| format!("{} --data-dir {} {verb}", VIPROUTECTL, patient.node.data());
    let drain =
        super::Found { severity: String::new(), what: String::new(), cure: Some(tool(&format!("drain {name}"))) };
    patient.take(&drain);
    let mut found =
        patient.has("warning", &format!("no replica of default/web gets new connections, and {name} was taken out"));
    // The tool isn't installed here, nor the registry where it is by default.
    found.cure = found.cure.map(|cure| cure.replace("viproutectl", &tool("")));
    patient.take(&found);
    patient.is_well();
    connect(&patient.client, patient.pods[0].vip(), 1);
}

/// Whatever took the routes of all VIPs away is one fault.
#[test]
fn many_vips_that_lost_their_routes() {
    let mut patient = Patient::new(0);
    let vips = (1..=8).map(|number| format!("web{number}")).collect::<Vec<_>>().join(",");
    patient.pods.push(patient.node.joined(&Join::annotated(&vips)));
    patient.is_well();
    for vip in patient.pods[0].vips() {
        patient.node.ns.ip(&format!("route del {vip} proto 118 metric 0"));
    }
    patient.has("error", "8 VIPs (default/web1, default/web2, default/web3 and 5 more) are not in the kernel as the");
}
