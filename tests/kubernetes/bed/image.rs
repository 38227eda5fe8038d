//! viproute's image, of the programs under test, on the nodes of a cluster.

use std::process::Command;

use super::cluster::Cluster;
use crate::harness::machine::binaries;
use crate::harness::{Machine, PATIENCE, Run, TempDir, tool, until};

/// The directory of the programs under test.
pub fn programs() -> &'static str {
    binaries().to_str().expect("a path")
}

/// The tag of an image of them.
pub fn tag() -> String {
    let said = Command::new(binaries().join("viproutectl")).arg("--version").finish("").ok();
    said.split(' ').nth(1).expect("a version").replace('+', "-")
}

impl Cluster {
    /// Has packaging/image.sh make it, and imports it on each node, also by a second name and by the chart's version; the first two tags.
    pub fn import_viproute(&self) -> [String; 2] {
        let dir = TempDir::new();
        let mut copy = Command::new(tool("cp"));
        copy.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-r", "packaging", "LICENSE"]).arg(dir.path());
        copy.finish("").ok();
        let mut script = Command::new(dir.path().join("packaging/image.sh"));
        let made = script.arg(std::env::consts::ARCH).env("BINARIES", programs()).finish("").ok();
        let tag = tag();
        let others = [format!("{tag}.second"), env!("CARGO_PKG_VERSION").to_owned()];
        let name = format!("localhost/viproute:{tag}");
        for worker in &self.workers {
            worker.containerd.import(&dir.path().join(made.trim()), &name);
            for other in others.each_ref().map(|tag| format!("localhost/viproute:{tag}")) {
                give_name(&worker.containerd.machine, &name, &other);
            }
        }
        let [second, _] = others;
        [tag, second]
    }
}

/// The CRI learns of it by an event, and would otherwise ask a registry.
fn give_name(machine: &Machine, name: &str, other: &str) {
    machine.sh(&format!("ctr -n k8s.io images tag --force {name} {other}"));
    let listed = || machine.sh("ctr -n k8s.io images ls -q 'labels.\"io.cri-containerd.image\"==managed'");
    let is_listed = || listed().lines().any(|line| line == other);
    until("the CRI knows the other name", PATIENCE, || is_listed().then_some(()));
}
