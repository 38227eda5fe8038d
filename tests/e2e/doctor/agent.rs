//! viprouted and its leases.

use std::fs;

use serde_json::json;

use super::Patient;
use crate::harness::{Join, Lan, Node, Run, Sidecar};

#[test]
fn a_healthy_node_with_its_sidecar() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let patient = Patient::on(lan, node, 1);
    // Its own exemptions of VIPs, where it makes them, are no firewall.
    let findings = patient.findings();
    assert!(findings.is_empty(), "{findings:#?}");
    sidecar.stop();
    patient.has("error", "viprouted can't be reached at ");
}

/// The program that runs counts, not the file that was installed since.
#[test]
fn a_viprouted_of_another_version() {
    let patient = Patient::new(1);
    patient.is_well();
    patient.node.stub(|stub| stub.is_of_version("0.0.9 (flow owner 000000000000)"));
    let found = patient
        .has("warning", "the viprouted that runs is of version 0.0.9 (flow owner 000000000000), viproutectl of ");
    // The file beside viproutectl is of its own version.
    assert_eq!(found.cure.as_deref(), Some("systemctl restart viprouted"));
    patient.node.stub(|stub| stub.is_of_version(viproute::VERSION));
    patient.is_well();
}

#[test]
fn replicas_that_wait_for_nobody() {
    let patient = Patient::new(1);
    let path = patient.endpoint(&patient.pods[0]);
    let mut endpoint: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    endpoint["health"] = json!("listen");
    endpoint["state"] = json!("pending");
    fs::remove_file(path.with_file_name("../index.json")).unwrap();
    fs::write(&path, endpoint.to_string()).unwrap();
    patient.node.gc(&[&patient.pods[0]], &Join::annotated("web")).ok();
    patient.is_well(); // the check is still to be made
    patient.node.stop_allocator();
    let findings = patient.findings();
    assert_eq!(findings.len(), 2, "{findings:#?}");
    assert!(findings[0].what.contains("can't be reached"), "{findings:#?}");
    assert!(findings[1].what.contains("1 replicas wait for their health check"), "{findings:#?}");
}

#[test]
fn a_pool_on_several_nodes() {
    let patient = Patient::new(1);
    let text = format!(
        "backend = \"pool\"\npeers = [\"192.0.2.1\", \"192.0.2.2\"]\ndata_dir = {:?}\nsocket = {:?}\n[pool]\ncidr = \"10.118.0.0/24\"\n",
        patient.node.data(),
        patient.node.socket()
    );
    // Where no VIP is pinned viprouted doesn't start at all.
    fs::write(patient.config(), &text).unwrap();
    patient.has("error", "viprouted.toml: backend = \"pool\": expected \"dhcp\" on several nodes (peers)");
    let pinned = text + "[[pin]]\nvip = \"default/other\"\naddress = \"10.118.0.99\"\n";
    fs::write(patient.config(), pinned).unwrap();
    patient.recovers("warning", "default/web has its address from a pool, on one of several nodes, and no pin");
    let written = fs::read_to_string(patient.config()).unwrap();
    assert!(written.contains(&format!("address = \"{}\"", patient.pods[0].vip())), "{written}");
    fs::write(patient.config(), "backend = \"dns\"\n").unwrap();
    patient.has("error", "viprouted.toml: backend = \"dns\": expected");
}

/// One address, two VIPs.
#[test]
fn a_vip_that_gets_no_address() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, "10.118.0.1/32");
    let patient = Patient::on(lan, node, 1);
    patient.node.add(&patient.node.pod(), &Join::annotated("other")).error();
    let found = patient.findings();
    assert!(
        found.iter().any(|found| found.severity == "error" && found.what.contains("default/other gets no address")),
        "{found:#?}"
    );
}

#[test]
fn only_root_can_see_it() {
    let patient = Patient::new(0);
    let mut command = patient.node.ns.cmd("setpriv");
    command.args(["--reuid", "65534", "--clear-groups", crate::harness::VIPROUTECTL, "doctor"]);
    let refused = command.finish("");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("doctor must be run as root"), "{refused:?}");
}
