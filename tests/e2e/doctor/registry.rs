//! The registry's files.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::Patient;
use crate::harness::{Join, Lan, Node, SmallFs};

#[test]
fn a_registry_that_others_can_read() {
    let patient = Patient::new(1);
    fs::set_permissions(patient.node.data(), fs::Permissions::from_mode(0o755)).unwrap();
    patient.recovers("warning", "belongs to user 0 and has mode 0755");
    std::os::unix::fs::chown(patient.node.data(), Some(65534), None).unwrap();
    patient.recovers("warning", "belongs to user 65534 and has mode 0700");
}

#[test]
fn files_that_cannot_be_used() {
    let patient = Patient::new(2);
    let path = patient.endpoint(&patient.pods[1]);
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("\"schema\":1", "\"schema\":2")).unwrap();
    assert!(patient.has("error", "has schema 2, newer than this version's 1").cure.is_none());
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    // The DEL that the cure is takes the replica away; what it leaves is in order.
    patient.recovers("error", &format!("{} is damaged", path.display()));
    assert!(!path.exists());
}

#[test]
fn a_pod_that_is_gone() {
    let mut patient = Patient::new(2);
    let pod = patient.pods.pop().unwrap();
    let id = pod.id.clone();
    drop(pod);
    let findings = patient.findings();
    let gone = |found: &&super::Found| found.what.contains(&format!("the pod of {id}@eth0 is gone"));
    patient.take(findings.iter().find(gone).unwrap_or_else(|| panic!("{findings:#?}")));
    patient.is_well();
}

#[test]
fn a_full_disk() {
    let lan = Lan::new();
    let (node, disk) = (Node::new(&lan, 1), SmallFs::new(1024, 128));
    let data = disk.path().join("data");
    let pod = node.joined(&Join::annotated("web").key("dataDir", serde_json::json!(data)));
    std::os::unix::fs::symlink(&data, node.data()).unwrap();
    let mut patient = Patient::on(lan, node, 0);
    patient.pods.push(pod);
    patient.is_well();
    disk.fill(8, 64);
    patient.has("error", "is full: 32 KiB are free");
    disk.fill(512, 0);
    patient.has("error", "is full: no inode is free");
}

/// What is recorded of another boot is nobody's fault.
#[test]
fn after_a_reboot() {
    let lan = Lan::new();
    let mut node = Node::new(&lan, 1);
    drop(node.joined(&Join::annotated("web")));
    node.reboot(&lan);
    Patient::on(lan, node, 0).is_well();
}
