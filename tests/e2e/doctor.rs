//! `viproutectl doctor`: each fault is named with its cure, and the cure, where it is a command, cures it.

mod agent;
mod express;
mod firewall;
mod modules;
mod network;
mod node;
mod nodes;
mod registry;
mod routing;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{CAPABILITY, Finished, Join, Lan, Netns, Node, Pod, Run, TempDir, VIPROUTE};

/// A node on which nothing is wrong: pods of a VIP, a runtime's network, the plugin. Fields are dropped in this order.
struct Patient {
    pods: Vec<Pod>,
    client: Netns,
    node: Node,
    lan: Lan,
    /// `net.d` and `bin` are in it.
    dir: TempDir,
}

/// A thing that was found.
#[derive(Debug)]
struct Found {
    severity: String,
    what: String,
    /// The command; none where there is advice.
    cure: Option<String>,
}

impl Patient {
    /// The allocator is a stub: nothing is reconciled meanwhile.
    fn new(pods: usize) -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        Self::on(lan, node, pods)
    }

    fn on(lan: Lan, node: Node, pods: usize) -> Self {
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let pods = (0..pods).map(|_| node.joined(&Join::annotated("web"))).collect();
        let patient = Self { pods, client, node, lan, dir: TempDir::new() };
        for dir in ["net.d", "bin"] {
            fs::create_dir(patient.dir.path().join(dir)).expect("a directory");
        }
        std::os::unix::fs::symlink(VIPROUTE, patient.dir.file("bin/viproute")).expect("a link to the plugin");
        patient.write_network("10-pods.conflist", &patient.network());
        patient
    }

    /// The conflist of its runtime.
    fn network(&self) -> Value {
        let mut entry = json!({ "type": "viproute", "capabilities": { CAPABILITY: true } });
        entry["dataDir"] = json!(self.node.data());
        entry["allocator"] = json!(self.node.socket());
        entry["bpfDir"] = json!(self.node.bpf_dir());
        let base = json!({ "type": "ptp", "ipMasq": true, "ipam": { "type": "host-local" } });
        json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [base, entry] })
    }

    fn write_network(&self, name: &str, network: &Value) {
        fs::write(self.dir.path().join("net.d").join(name), network.to_string()).expect("write a network");
    }

    /// Where viprouted's configuration is, if there is one.
    fn config(&self) -> String {
        self.node.dir.file("viprouted.toml")
    }

    fn doctor(&self, output: &str) -> Finished {
        self.doctor_with(output, &[])
    }

    fn doctor_with(&self, output: &str, environment: &[(&str, &str)]) -> Finished {
        let mut command = self.node.ctl();
        command.args(["doctor", "--conf-dir", &self.dir.file("net.d"), "--bin-dir", &self.dir.file("bin")]);
        command.args(["--config", &self.config(), "--output", output]).envs(environment.iter().copied()).finish("")
    }

    /// All that is found; the exit status must say how bad it is.
    fn findings(&self) -> Vec<Found> {
        let finished = self.doctor("json");
        let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let read = |finding: &Value| {
            assert!(!text(&finding["why"]).is_empty() && !text(&finding["group"]).is_empty(), "{finding}");
            let cure = finding["cure"]["command"].as_str().map(str::to_owned);
            assert!(cure.is_some() || finding["cure"]["advice"].is_string(), "{finding}");
            Found { severity: text(&finding["severity"]), what: text(&finding["what"]), cure }
        };
        let findings: Vec<_> = report["findings"].as_array().expect("a list").iter().map(read).collect();
        let any = |severity: &str| findings.iter().any(|found| found.severity == severity);
        let status = if any("error") {
            4
        } else if any("warning") {
            3
        } else {
            0
        };
        assert_eq!(finished.status.code(), Some(status), "{finished:?}");
        findings
    }

    fn is_well(&self) {
        let findings = self.findings();
        assert!(findings.is_empty(), "{findings:#?}");
    }

    /// What is found is this alone.
    fn has(&self, severity: &str, what: &str) -> Found {
        let mut findings = self.findings();
        assert_eq!(findings.len(), 1, "{what:?} and nothing else: {findings:#?}");
        let found = findings.remove(0);
        assert!(found.what.contains(what) && found.severity == severity, "{severity} {what:?}: {found:#?}");
        found
    }

    /// What is found is this alone, and its command is the cure.
    fn recovers(&self, severity: &str, what: &str) {
        self.take(&self.has(severity, what));
        self.is_well();
    }

    /// Runs the cure, as it is printed, in root's shell on the node.
    fn take(&self, found: &Found) {
        let cure = found.cure.as_ref().unwrap_or_else(|| panic!("no command: {found:?}"));
        // There is no systemd here.
        let cure = cure.trim_end_matches(" && systemctl restart viprouted");
        self.node.ns.cmd("sh").args(["-euc", cure]).finish("").ok();
    }

    fn host_veth(&self) -> String {
        let links = self.node.ns.ip_json("link");
        let mut names = links.iter().filter_map(|link| link["ifname"].as_str());
        names.find(|name| name.starts_with("vip")).expect("a host veth").to_owned()
    }

    fn endpoint(&self, pod: &Pod) -> std::path::PathBuf {
        Path::new(&self.node.data()).join(format!("vips/default_web/endpoints/{}@eth0.json", pod.id))
    }
}

#[test]
fn finds_nothing_on_a_healthy_node() {
    let patient = Patient::new(2);
    patient.is_well();
    let said = patient.doctor("text");
    assert_eq!((said.status.code(), said.stdout.as_str()), (Some(0), "Nothing is wrong.\n"));
    let before = patient.node.snapshot(&[&patient.pods[0]]);
    patient.is_well();
    before.assert_same(&patient.node.snapshot(&[&patient.pods[0]]), "doctor");
}

#[test]
fn finds_nothing_on_a_node_without_pods() {
    Patient::new(0).is_well();
}

/// For people: what, why and the cure.
#[test]
fn tells_in_words() {
    let patient = Patient::new(1);
    patient.node.ns.set_sysctl("net/ipv4/ip_forward", "0");
    let said = patient.doctor("text");
    assert_eq!(said.status.code(), Some(4));
    let expected = "ERROR (node): net.ipv4.ip_forward is 0, not 1
    No packet from outside reaches a pod.
    cure: sysctl -w net.ipv4.ip_forward=1\n";
    assert_eq!(said.stdout, expected);
}
