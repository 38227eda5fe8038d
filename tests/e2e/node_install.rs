//! `viproutectl node install`: the plugin where runtimes look for it, and viproute in their network.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Finished, Run, TempDir, VIPROUTE, VIPROUTECTL, tool};

const NETWORK: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;

/// A machine's files, and programs that lie elsewhere.
struct Scene {
    root: TempDir,
    programs: TempDir,
}

impl Scene {
    /// With containerd, as Debian has it.
    fn new() -> Self {
        let scene = Self { root: TempDir::new(), programs: TempDir::new() };
        let containerd = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\n";
        scene.write("etc/containerd/config.toml", containerd);
        scene.write("etc/cni/net.d/10-n.conflist", NETWORK);
        // A program asks the kernel where it is: a link won't do.
        fs::copy(VIPROUTECTL, scene.programs.path().join("viproutectl")).unwrap();
        fs::copy(VIPROUTE, scene.programs.path().join("viproute")).unwrap();
        scene
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
    }

    fn command(&self) -> Command {
        self.node("install")
    }

    fn node(&self, action: &str) -> Command {
        let mut command = Command::new(self.programs.path().join("viproutectl"));
        command.args(["node", action, "--root"]).arg(self.root.path());
        command
    }

    fn install(&self, arguments: &[&str]) -> Finished {
        self.command().args(arguments).finish("")
    }

    fn has_viproute(&self) -> bool {
        fs::read_to_string(self.path("etc/cni/net.d/10-n.conflist")).unwrap().contains("\"viproute\"")
    }

    /// Each file with its inode: one that is written anew has another.
    fn files(&self) -> String {
        let mut find = Command::new(tool("find"));
        find.arg(self.root.path()).args(["!", "-type", "d", "-printf", "%P %i %m %l\n"]).finish("").ok()
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    fs::read(one).unwrap() == fs::read(other).unwrap()
}

#[test]
fn copies_links_and_joins_once() {
    let scene = Scene::new();
    let foretold = scene.install(&["--dry-run"]).ok();
    let chain = scene.path("etc/cni/net.d/10-n.conflist");
    assert_eq!(foretold, format!("copy /opt/cni/bin/viproute\nlink /usr/lib/cni\njoin {}\n", chain.display()));
    assert!(!scene.path("opt").exists() && !scene.has_viproute());
    let said = scene.install(&[]).ok();
    for part in ["Installed: ", "Linked: ", "Joined: "] {
        assert!(said.contains(part), "{said}");
    }
    let plugin = scene.path("opt/cni/bin/viproute");
    assert!(is_same(&plugin, Path::new(VIPROUTE)) && scene.has_viproute());
    assert_eq!(fs::metadata(&plugin).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::read_link(scene.path("usr/lib/cni/viproute")).unwrap(), Path::new("/opt/cni/bin/viproute"));
    let before = scene.files();
    let refused = scene.node("leave").arg("--dry-run").finish("");
    assert!(!refused.status.success() && refused.stderr.contains("--dry-run"), "{refused:?}");
    let said = scene.install(&[]).ok();
    assert_eq!((said, scene.files()), (format!("Nothing was done: {} has viproute.\n", chain.display()), before));
    // An older plugin is replaced, and a copy where a link belongs.
    fs::write(&plugin, "old").unwrap();
    fs::remove_file(scene.path("usr/lib/cni/viproute")).unwrap();
    scene.write("usr/lib/cni/viproute", "old");
    scene.install(&[]).ok();
    assert!(is_same(&plugin, Path::new(VIPROUTE)) && scene.path("usr/lib/cni/viproute").is_symlink());
}

#[test]
fn another_directory_and_no_network() {
    let scene = Scene::new();
    scene.install(&["--bin-dir", "/var/lib/cni/bin", "--no-chain"]).ok();
    assert!(scene.path("var/lib/cni/bin/viproute").is_file() && !scene.path("opt").exists() && !scene.has_viproute());
    assert_eq!(fs::read_link(scene.path("usr/lib/cni/viproute")).unwrap(), Path::new("/var/lib/cni/bin/viproute"));
}

/// As a package has it: viproutectl is elsewhere, and the plugin is where it belongs already.
#[test]
fn a_plugin_that_is_there_will_do() {
    let scene = Scene::new();
    fs::remove_file(scene.programs.path().join("viproute")).unwrap();
    let refused = scene.install(&[]);
    assert!(refused.stderr.contains("there is no plugin") && !scene.has_viproute(), "{refused:?}");
    fs::create_dir_all(scene.path("usr/lib/cni")).unwrap();
    fs::copy(VIPROUTE, scene.path("usr/lib/cni/viproute")).unwrap();
    scene.write("etc/crio/crio.conf", "[crio.network]\nplugin_dirs = [\"/srv/crio\"]\n");
    scene.install(&[]).ok();
    assert_eq!(fs::read_link(scene.path("srv/crio/viproute")).unwrap(), Path::new("/usr/lib/cni/viproute"));
    assert!(!scene.path("usr/lib/cni/viproute").is_symlink() && scene.has_viproute());
}

/// Each pod of a network that has a plugin which can't be run fails.
#[test]
fn a_plugin_that_cannot_be_run_changes_nothing() {
    let scene = Scene::new();
    scene.write("opt/cni/bin/viproute", "the one before");
    let program = scene.programs.path().join("viproute");
    for (text, why) in [("\x7fELF of another machine", "Exec format error"), ("#!/bin/sh\nexit 7\n", "exit status: 7")]
    {
        fs::write(&program, text).unwrap();
        let refused = scene.install(&[]);
        assert!(!refused.status.success() && refused.stderr.contains(why), "{refused:?}");
        assert_eq!(fs::read_to_string(scene.path("opt/cni/bin/viproute")).unwrap(), "the one before");
        assert!(!scene.has_viproute() && !scene.path("opt/cni/bin/viproute.new").exists());
    }
    // Where a runtime would fail for another reason.
    fs::copy(VIPROUTE, &program).unwrap();
    let mut command = Command::new(tool("unshare"));
    let script = "mount -t tmpfs -o noexec tmpfs \"$0/opt/cni/bin\"; exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-ec", script]).arg(scene.root.path());
    command.arg(scene.programs.path().join("viproutectl")).args(["node", "install", "--root"]).arg(scene.root.path());
    let refused = command.finish("");
    assert!(!refused.status.success() && refused.stderr.contains("Permission denied"), "{refused:?}");
    assert!(!scene.has_viproute());
}

/// The entry says what it was asked to, and uninstall takes back all of it.
#[test]
fn pods_without_vips_are_recorded_where_that_is_asked_for() {
    let scene = Scene::new();
    let chain = scene.path("etc/cni/net.d/10-n.conflist");
    scene.install(&["--register"]).ok();
    assert!(fs::read_to_string(&chain).unwrap().contains("\"register\": true"));
    let refused = scene.node("leave").arg("--register").finish("");
    assert!(refused.stderr.contains("--register"), "{refused:?}");
    let refused = scene.install(&["--wait", "1s"]);
    assert!(refused.stderr.contains("--wait is for uninstall"), "{refused:?}");
    scene.node("leave").finish("").ok();
    assert_eq!(fs::read_to_string(&chain).unwrap(), NETWORK);
}
