//! `cni.preset`: the chart's init container, with the arguments that it is given, on the directories of these distributions, with their runtimes'
//! configurations as they write them; then its removal.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::template;
use crate::harness::{Finished, Run, TempDir, VIPROUTE, VIPROUTECTL};

/// A node's files.
struct Layout {
    root: TempDir,
    preset: &'static str,
}

impl Layout {
    fn new(preset: &'static str) -> Self {
        Self { root: TempDir::new(), preset }
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.path().join(path)).unwrap()
    }

    /// What the chart has its container run with this verb; its host is these files.
    fn run(&self, verb: &str) -> Finished {
        let rendered = template(&[&format!("cni.preset={}", self.preset)]).ok();
        let (_, container) = rendered.split_once(&format!("- node\n            - {verb}\n")).expect("the container");
        let options = container.lines().map(str::trim).take_while(|line| line.starts_with("- --"));
        // The image has both programs in one directory.
        let image = TempDir::new();
        for program in [VIPROUTE, VIPROUTECTL] {
            fs::copy(program, image.path().join(Path::new(program).file_name().unwrap())).unwrap();
        }
        let mut command = Command::new(image.path().join("viproutectl"));
        command.args(["node", verb]);
        for option in options {
            command.arg(option.trim_start_matches("- ").replace("/host", self.root.path().to_str().unwrap()));
        }
        command.finish("")
    }

    /// Where a runtime that looks there finds it.
    fn is_plugin(&self, path: &str) -> bool {
        // A link is to a path of the node's.
        let there = self.root.path().join(path);
        let target = fs::read_link(&there).map(|target| self.root.path().join(target.strip_prefix("/").unwrap()));
        fs::read(target.unwrap_or(there)).is_ok_and(|file| file == fs::read(VIPROUTE).unwrap())
    }

    /// Installed, kept by a second run, and removed.
    fn goes_round(&self, network: &str, plugin: &str) {
        let before = self.read(network);
        self.run("install").ok();
        assert!(self.read(network).contains("\"viproute\"") && self.is_plugin(plugin), "{}", self.preset);
        assert!(self.run("install").ok().contains("Nothing was done"), "{}", self.preset);
        self.run("uninstall").ok();
        assert_eq!(self.read(network), before, "{}", self.preset);
        assert!(fs::symlink_metadata(self.root.path().join(plugin)).is_err(), "{}", self.preset);
    }
}

const FLANNEL: &str = r#"{
  "name":"cbr0",
  "cniVersion":"1.0.0",
  "plugins":[
    { "type":"flannel", "delegate":{ "hairpinMode":true, "forceAddress":true, "isDefaultGateway":true } },
    { "type":"portmap", "capabilities":{ "portMappings":true } },
    { "type":"bandwidth", "capabilities":{ "bandwidth":true } }
  ]
}
"#;

/// One program has all plugins, in a directory of the release; containerd is told of one that leads there, for containerd 2 and 1.7 in another table.
#[test]
fn k3s() {
    for table in ["plugins.'io.containerd.cri.v1.runtime'.cni", "plugins.\"io.containerd.grpc.v1.cri\".cni"] {
        let layout = Layout::new("k3s");
        let (key, value) =
            if table.contains("v1.runtime") { ("bin_dirs", "[\"DIR\"]") } else { ("bin_dir", "\"DIR\"") };
        let value = value.replace("DIR", "/var/lib/rancher/k3s/data/cni");
        let networks = "/var/lib/rancher/k3s/agent/etc/cni/net.d";
        let config = format!("version = 3\n[{table}]\n  {key} = {value}\n  conf_dir = \"{networks}\"\n");
        layout.write("var/lib/rancher/k3s/agent/etc/containerd/config.toml", &config);
        layout.write("var/lib/rancher/k3s/data/3ae8/bin/cni", "one for all");
        let links = layout.root.path().join("var/lib/rancher/k3s/data/cni");
        fs::create_dir_all(&links).unwrap();
        for plugin in ["flannel", "portmap", "bandwidth", "host-local", "loopback", "bridge"] {
            symlink("/var/lib/rancher/k3s/data/3ae8/bin/cni", links.join(plugin)).unwrap();
        }
        let network = "var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist";
        layout.write(network, FLANNEL);
        layout.goes_round(network, "var/lib/rancher/k3s/data/cni/viproute");
        assert!(links.join("flannel").is_symlink(), "k3s's own stays");
    }
}

/// Its containerd is told of no directory: its own flannel, for which k3s's would be, is off.
#[test]
fn rke2() {
    let layout = Layout::new("rke2");
    let config = "version = 3\nroot = \"/var/lib/rancher/rke2/agent/containerd\"\n";
    layout.write("var/lib/rancher/rke2/agent/etc/containerd/config.toml", config);
    let network = "etc/cni/net.d/10-canal.conflist";
    layout.write(network, &FLANNEL.replace("\"flannel\"", "\"calico\"").replace("cbr0", "k8s-pod-network"));
    layout.write("opt/cni/bin/calico", "");
    layout.goes_round(network, "opt/cni/bin/viproute");
}

/// Its first network is Multus's single plugin: that is said, and nothing changed. With a list in its place all goes on.
#[test]
fn openshift() {
    let layout = Layout::new("openshift");
    let crio = "[crio.network]\nnetwork_dir = \"/etc/kubernetes/cni/net.d/\"\nplugin_dirs = [\n  \"/var/lib/cni/bin\",\n  \"/usr/libexec/cni\",\n]\n";
    layout.write("etc/crio/crio.conf.d/00-default", crio);
    layout.write("var/lib/cni/bin/multus-shim", "");
    let single = "etc/kubernetes/cni/net.d/00-multus.conf";
    let multus = r#"{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus-shim","socketDir":"/host/run/multus/socket"}"#;
    layout.write(single, multus);
    let refused = layout.run("install");
    assert!(!refused.status.success() && refused.stderr.contains("00-multus.conf"), "{refused:?}");
    assert_eq!(layout.read(single), multus);
    fs::remove_file(layout.root.path().join(single)).unwrap();
    let list = format!(r#"{{"cniVersion":"0.3.1","name":"multus-cni-network","plugins":[{multus}]}}"#);
    layout.write("etc/kubernetes/cni/net.d/00-multus.conflist", &list);
    layout.goes_round("etc/kubernetes/cni/net.d/00-multus.conflist", "var/lib/cni/bin/viproute");
}
