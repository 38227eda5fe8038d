//! The express path.

use std::fs;

use super::Patient;
use crate::harness::tcx::{self, Tcx};
use crate::harness::{Lan, Node, Run, SOON, Sidecar, connect, serve_all, until};
use crate::uplinks::add_filter;

const POOL: &str = "[pool]\ncidr = \"10.118.0.0/24\"";

fn patient(settings: &str) -> (Sidecar, Patient) {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::start(&node, &format!("backend = \"pool\"\n{settings}\n{POOL}"));
    (sidecar, Patient::on(lan, node, 1))
}

/// Takes the cure, and starts viprouted with what the configuration is then.
fn cured(sidecar: Sidecar, patient: &Patient, what: &str) -> Sidecar {
    let found = until(&format!("a finding: {what}"), SOON, || {
        patient.findings().into_iter().find(|found| found.what.contains(what) && found.severity == "hint")
    });
    patient.take(&found);
    sidecar.stop();
    let written = fs::read_to_string(patient.config()).expect("the configuration");
    let own = ["socket", "state_dir", "data_dir", "metrics"];
    let settings = written.lines().filter(|line| !own.iter().any(|key| line.starts_with(&format!("{key} ="))));
    let sidecar = Sidecar::start(&patient.node, &settings.collect::<Vec<_>>().join("\n"));
    until("nothing is found any more", SOON, || patient.findings().is_empty().then_some(()));
    sidecar
}

#[test]
fn anothers_program_on_an_uplink() {
    let (sidecar, patient) = patient("");
    let program = tcx::passing("another");
    let named = if tcx::is_known() {
        tcx::attach(&patient.node.ns, "eth0", Tcx::Ingress, &program);
        "another (program "
    } else {
        add_filter(&patient.node.ns, "ingress");
        "bpf"
    };
    let what = format!("the express path is off on eth0: others are there: {named}");
    let _sidecar = cured(sidecar, &patient, &what);
    let written = fs::read_to_string(patient.config()).expect("the configuration");
    assert!(written.contains("express = \"off\""), "{written}");
}

#[test]
fn vips_that_are_tracked() {
    let (sidecar, patient) = patient("notrack = false");
    let rules = "add table ip t\nadd chain ip t c { type filter hook prerouting priority 0; }\nadd rule ip t c ct state new accept\n";
    patient.node.ns.cmd("nft").args(["-f", "-"]).finish(rules).ok();
    let _servers = serve_all(&patient.pods);
    connect(&patient.client, patient.pods[0].vip(), 10);
    let _sidecar = cured(sidecar, &patient, "the express path is off: this node tracks its VIPs' connections");
    let written = fs::read_to_string(patient.config()).expect("the configuration");
    assert!(written.contains("notrack = true") && !written.contains("notrack = false"), "{written}");
}
