//! The registry's files.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::Patient;
use crate::harness::{Join, Lan, Node, Sidecar, SmallFs};

#[test]
fn a_registry_that_others_can_read() {
    let patient = Patient::new(1);
    fs::set_permissions(patient.node.data(), fs::Permissions::from_mode(0o755)).unwrap();
    patient.recovers("warning", "belongs to user 0 and has mode 0755");
    std::os::unix::fs::chown(patient.node.data(), Some(65534), None).unwrap();
    patient.recovers("warning", "belongs to user 65534 and has mode 0700");
}

/// Kubernetes' `DirectoryOrCreate`, and what an installer makes.
#[test]
fn a_registry_that_others_have_made_is_closed_to_others() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let mode = || fs::metadata(node.data()).unwrap().permissions().mode() & 0o7777;
    let start = || drop(Sidecar::pool(&node, "10.118.0.0/24"));
    let open = || fs::set_permissions(node.data(), fs::Permissions::from_mode(0o755)).unwrap();
    let _ = fs::remove_dir_all(node.data());
    fs::create_dir(node.data()).unwrap();
    open();
    start();
    assert_eq!(mode(), 0o700, "an empty one");
    open();
    start();
    assert_eq!(mode(), 0o700, "a registry");
    // A wrong data_dir must not lock others out of what is theirs.
    fs::write(format!("{}/theirs", node.data()), "").unwrap();
    open();
    start();
    assert_eq!(mode(), 0o755, "somebody's directory");
}

#[test]
fn files_that_cannot_be_used() {
    let patient = Patient::new(2);
    let path = patient.endpoint(&patient.pods[1]);
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("\"schema\":2", "\"schema\":9").replace("\"schema\":1", "\"schema\":9")).unwrap();
    assert!(patient.has("error", "has schema 9, newer than this version's 2").cure.is_none());
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    // The DEL that the cure is takes the replica away; what it leaves is in order.
    patient.recovers("error", &format!("{} is damaged", path.display()));
    assert!(!path.exists());
}

#[test]
fn what_a_later_version_wrote() {
    let patient = Patient::new(1);
    let path = patient.endpoint(&patient.pods[0]);
    let mut record: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let good = record.to_string();
    record["ports"] = serde_json::json!(["8080/tcp", "90-99/tcp"]);
    fs::write(&path, record.to_string()).unwrap();
    assert!(patient.has("warning", "want a port that this version knows, found \"90-99/tcp\"").cure.is_none());
    fs::write(&path, good).unwrap();
    patient.is_well();
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

#[test]
fn two_vips_with_one_group() {
    let mut patient = Patient::new(1);
    let other = Join::annotated("other");
    let pod = patient.node.joined(&other);
    let records = ["default_web", "default_other"].map(|vip| format!("{}/vips/{vip}/vip.json", patient.node.data()));
    let [web, text] = records.each_ref().map(|path| fs::read_to_string(path).unwrap());
    let slot = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["slot"].clone();
    let edited = text.replace(&format!("\"slot\":{}", slot(&text)), &format!("\"slot\":{}", slot(&web)));
    fs::write(&records[1], edited).unwrap();
    let found = patient.has("error", "default/other and default/web are recorded with the same nexthop group");
    assert!(found.cure.is_none(), "{found:?}");
    // As the advice has it.
    patient.node.del(&pod, &other).ok();
    patient.node.add(&pod, &other).ok();
    patient.pods.push(pod);
    patient.is_well();
}

/// What is recorded of another boot is no fault.
#[test]
fn after_a_reboot() {
    let lan = Lan::new();
    let mut node = Node::new(&lan, 1);
    drop(node.joined(&Join::annotated("web")));
    node.reboot(&lan);
    Patient::on(lan, node, 0).is_well();
}
