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
    // One that a runtime never reads is no help.
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
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.1.0"] {
        patient.change(|network| network["cniVersion"] = json!(version));
        patient.is_well();
    }
    patient.change(|network| network["cniVersion"] = json!("0.2.0"));
    // Raised by a command, it might be one that the chain's other plugins refuse.
    assert!(patient.has("error", r#"has cniVersion "0.2.0": expected one of"#).cure.is_none());
    patient.change(|network| network["cniVersions"] = json!(["0.2.0", "1.0.0", "7.0.0"]));
    patient.is_well();
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

/// As libcni reads a directory: hidden files count, directories and other endings don't, and what it refuses is said.
#[test]
fn files_as_libcni_takes_them() {
    let patient = Patient::new(1);
    let net_d = patient.dir.path().join("net.d");
    fs::create_dir(net_d.join("00-a-folder.conflist")).unwrap();
    fs::write(net_d.join("00-old.conflist.bak"), "nonsense").unwrap();
    patient.is_well();
    let mut without = patient.network();
    without["plugins"].as_array_mut().unwrap().pop();
    patient.write_network(".00-hidden.conflist", &without);
    patient.has("error", "viproute is not in ");
    fs::remove_file(net_d.join(".00-hidden.conflist")).unwrap();
    for (name, text, wrong) in [
        (
            "99-list.conf",
            patient.network().to_string(),
            "99-list.conf is a list of plugins, which runtimes take from a",
        ),
        ("99-none.json", "{}".to_owned(), "99-none.json has no \"type\""),
        ("99-type.conflist", json!({ "name": "n", "plugins": [{}] }).to_string(), "has a plugin without \"type\""),
        ("99-name.conflist", json!({ "plugins": [{ "type": "ptp" }] }).to_string(), "has no \"name\""),
    ] {
        fs::write(net_d.join(name), text).unwrap();
        patient.has("error", wrong);
        fs::remove_file(net_d.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(patient.dir.path(), net_d.join("99-link.conf")).unwrap();
    patient.has("error", "99-link.conf can't be read");
}

#[test]
fn a_loopback_is_no_network() {
    let patient = Patient::new(1);
    let loopback = json!({ "cniVersion": "0.3.1", "name": "lo", "type": "loopback" });
    patient.write_network("99-loopback.conf", &loopback);
    patient.is_well();
    patient.write_network("00-loopback.conf", &loopback);
    patient.has("error", "00-loopback.conf comes first, and gives pods nothing but a loopback");
    fs::remove_file(patient.dir.file("net.d/10-pods.conflist")).unwrap();
    patient.has("error", "has no network");
}

/// istio-cni puts itself behind the last plugin with an empty "ipam".
#[test]
fn an_ipam_key_behind_viproute_is_no_fault() {
    let patient = Patient::new(1);
    let istio = json!({ "type": "istio-cni", "name": "istio-cni", "ipam": {}, "kubernetes": {} });
    patient.change(|network| network["plugins"].as_array_mut().unwrap().push(istio));
    patient.is_well();
}

#[test]
fn viproute_twice_in_a_chain() {
    let patient = Patient::new(1);
    patient.change(|network| {
        let entry = network["plugins"][1].clone();
        network["plugins"].as_array_mut().unwrap().push(entry);
    });
    assert!(patient.has("error", "viproute is 2 times in ").cure.is_none());
}

/// A cure that edits a network leaves its owner, its mode and the links that lead to it as they are.
#[test]
fn a_cure_keeps_what_a_file_is() {
    use std::os::unix::fs::MetadataExt;
    let patient = Patient::new(1);
    let (link, real) = (patient.dir.path().join("net.d/10-pods.conflist"), patient.dir.path().join("kept.conflist"));
    patient.change(|network| drop(network["plugins"][1].as_object_mut().unwrap().remove("capabilities")));
    fs::rename(&link, &real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&real, Some(7), Some(7)).unwrap();
    patient.recovers("error", r#"lacks "capabilities""#);
    let metadata = fs::metadata(&real).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o600, 7, 7));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(patient.plugins(), ["ptp", "viproute"]);
}

/// What its own configuration says is where doctor looks.
#[test]
fn paths_are_those_of_the_configuration() {
    use crate::harness::{Run, VIPROUTECTL};
    let patient = Patient::new(1);
    let text =
        format!("backend = \"dhcp\"\ndata_dir = {:?}\nsocket = {:?}\n", patient.node.data(), patient.node.socket());
    fs::write(patient.config(), text).unwrap();
    let doctor = || {
        let mut command = patient.node.ns.cmd(VIPROUTECTL);
        command.args(["doctor", "--conf-dir", &patient.dir.file("net.d"), "--bin-dir", &patient.dir.file("bin")]);
        command.args(["--config", &patient.config()]).finish("")
    };
    let said = doctor();
    assert_eq!((said.status.code(), said.stdout.as_str()), (Some(0), "Nothing is wrong.\n"));
    fs::set_permissions(patient.node.data(), fs::Permissions::from_mode(0o755)).unwrap();
    let said = doctor();
    assert!(said.stdout.contains(&format!("{} belongs to user 0 and has mode 0755", patient.node.data())), "{said:?}");
}

/// The file may say one thing and the running viprouted, started before it was edited, another.
#[test]
fn a_viprouted_that_runs_with_another_registry() {
    use crate::harness::{Lan, Node, Sidecar};
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let patient = Patient::on(lan, node, 0);
    patient.is_well();
    let elsewhere = patient.node.dir.file("elsewhere");
    patient.change(|network| network["plugins"][1]["dataDir"] = json!(elsewhere));
    let findings = patient.findings();
    assert!(findings.iter().any(|found| found.what.contains("and viprouted's configuration another data_dir")));
    let text = fs::read_to_string(patient.config()).unwrap().replace(&patient.node.data(), &elsewhere);
    fs::write(patient.config(), text).unwrap();
    let findings = patient.findings();
    let running = format!("and viprouted runs with data_dir {}", patient.node.data());
    assert!(findings.iter().any(|found| found.what.contains(&running)), "{findings:#?}");
    // What doctor is asked to read is another matter.
    assert!(findings.iter().all(|found| found.what.contains("dataDir")), "{findings:#?}");
}
