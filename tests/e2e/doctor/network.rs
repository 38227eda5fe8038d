//! The runtime's networks and the plugin's file.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::Patient;

impl Patient {
    fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut network = self.network();
        change(&mut network);
        self.write_network("10-pods.conflist", &network);
    }

    fn plugins(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.file("net.d/10-pods.conflist")).unwrap();
        let network: Value = serde_json::from_str(&text).unwrap();
        let types = network["plugins"].as_array().unwrap().iter().map(|plugin| plugin["type"].as_str().unwrap().into());
        types.collect()
    }
}

#[test]
fn an_entry_that_lacks_capabilities() {
    let patient = Patient::new(1);
    patient.change(|network| drop(network["plugins"][1].as_object_mut().unwrap().remove("capabilities")));
    patient.recovers("error", r#"lacks "capabilities": {"io.kubernetes.cri.pod-annotations": true}"#);
    // Of no use where the VIPs are in the conflist.
    patient.change(|network| {
        network["plugins"][1]["capabilities"] = json!({});
        network["plugins"][1]["vips"] = json!(["web"]);
    });
    patient.is_well();
}

#[test]
fn a_network_without_viproute() {
    let patient = Patient::new(1);
    patient.change(|network| drop(network["plugins"].as_array_mut().unwrap().pop()));
    let found = patient.has("error", "viproute is not in ");
    patient.take(&found);
    assert_eq!(patient.plugins(), ["ptp", "viproute"]);
    // With the defaults of an installed node, which aren't this one's.
    patient.has("warning", "has dataDir /var/lib/cni/viproute, not ");
    // One that a runtime never looks at is no help.
    patient.change(|network| drop(network["plugins"].as_array_mut().unwrap().pop()));
    patient.write_network("20-later.conflist", &patient.network());
    patient.has("error", "viproute is not in ");
    // One that containers ask for by its name is.
    let mut named = patient.network();
    named["plugins"][1]["vips"] = json!(["web"]);
    patient.write_network("20-later.conflist", &named);
    patient.is_well();
    fs::remove_dir_all(patient.dir.path().join("net.d")).unwrap();
    patient.has("error", "has no network");
}

#[test]
fn viproute_before_the_plugin_that_gives_an_address() {
    let patient = Patient::new(1);
    patient.change(|network| network["plugins"].as_array_mut().unwrap().reverse());
    patient.recovers("error", r#"viproute comes before "ptp""#);
    assert_eq!(patient.plugins(), ["ptp", "viproute"]);
}

#[test]
fn networks_that_nobody_can_use() {
    let patient = Patient::new(1);
    patient.change(|network| network["cniVersion"] = json!("0.3.1"));
    patient.recovers("error", r#"has cniVersion "0.3.1": expected one of"#);
    patient.change(|network| network["plugins"][1]["vip"] = json!("web"));
    patient.has("error", r#""vip" is not a key of viproute's"#);
    patient.change(|network| network["plugins"][1]["dataDir"] = json!("here"));
    patient.has("error", r#""dataDir" is "here": expected an absolute path"#);
    patient.change(|_| ());
    fs::write(patient.dir.file("net.d/99-torn.conflist"), "{\"cniVersion\":").unwrap();
    patient.has("error", "99-torn.conflist is not valid JSON");
    fs::write(patient.dir.file("net.d/99-torn.conflist"), "[]").unwrap();
    patient.has("error", "99-torn.conflist is not a JSON object");
}

#[test]
fn podmans_network_without_vips() {
    let patient = Patient::new(1);
    patient.change(|network| network["plugins"][0] = json!({ "type": "bridge", "bridge": "cni-podman0", "ipam": {} }));
    let found = patient.has("warning", "is podman's and has no \"vips\"");
    assert!(found.cure.is_none());
    patient.change(|network| {
        network["plugins"][0]["bridge"] = json!("cni-podman0");
        network["plugins"][1]["vips"] = json!(["web"]);
    });
    patient.is_well();
}

/// The plugin, viprouted and the tool must mean the same places.
#[test]
fn a_conflist_and_a_configuration_that_differ() {
    let patient = Patient::new(1);
    let write = |data: &str, socket: &str| {
        let text = format!("backend = \"dhcp\"\ndata_dir = {data:?}\nsocket = {socket:?}\n");
        fs::write(patient.config(), text).unwrap();
    };
    write(&patient.node.data(), &patient.node.socket());
    patient.is_well();
    write("/elsewhere", &patient.node.socket());
    patient.has("error", "and viprouted's configuration another data_dir");
    write(&patient.node.data(), "/elsewhere.sock");
    patient.has("error", "and viprouted's configuration another socket");
}

#[test]
fn a_plugin_that_is_missing_or_another() {
    let patient = Patient::new(1);
    let plugin = patient.dir.path().join("bin/viproute");
    fs::remove_file(&plugin).unwrap();
    patient.has("error", "there is no plugin viproute in ");
    let script = |text: &str| {
        fs::write(&plugin, text).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("#!/bin/sh\necho viproute 0.0.9 '(flow owner 000000000000)'\n");
    patient.has("warning", "is of version 0.0.9 (flow owner 000000000000), viproutectl of ");
    script("#!/bin/sh\necho '{\"code\": 4}'; exit 1\n");
    patient.has("warning", "is of another version than viproutectl's");
    fs::write(&plugin, "").unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o644)).unwrap();
    patient.has("error", "can't be run");
}

#[test]
fn a_flow_owner_that_cannot_be_loaded_or_is_anothers() {
    let patient = Patient::new(0);
    patient.change(|network| network["plugins"][1]["bpfDir"] = json!(patient.dir.path()));
    patient.has("error", "needs a BPF filesystem at ");
    patient.change(|network| {
        network["plugins"][1]["bpfDir"] = json!(patient.dir.path());
        network["plugins"][1]["flowOwner"] = json!("off");
    });
    patient.is_well();
    let patient = Patient::new(1);
    patient.node.make_programs_another_builds();
    let findings = patient.findings();
    assert!(findings.iter().any(|found| found.what.contains("is of another build than viproutectl")), "{findings:#?}");
}
