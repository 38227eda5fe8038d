//! `install.sh`: what it puts where, what it leaves alone, and its demo.

use std::path::Path;
use std::process::Command;

use crate::harness::{Finished, Run, TempDir, VIPROUTE};

/// `install.sh` on the programs under test, with `root` in place of `/`.
fn install_sh(root: &TempDir, arguments: &[&str]) -> Finished {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("install.sh");
    let programs = Path::new(VIPROUTE).parent().unwrap();
    Command::new(script).args(arguments).env("DESTDIR", root.path()).env("BINARIES", programs).finish("")
}

fn write(root: &TempDir, path: &str, text: &str) {
    let path = root.path().join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// The files below `root`, as paths below it.
fn installed(root: &TempDir) -> Vec<String> {
    let mut find = Command::new("find");
    find.arg(root.path()).args(["(", "-type", "f", "-o", "-type", "l", ")", "-printf", "%P\n"]);
    let mut files: Vec<_> = find.finish("").ok().lines().map(str::to_string).collect();
    files.sort();
    files
}

#[test]
fn installs_everything_and_takes_it_away_again() {
    let root = TempDir::new();
    std::fs::create_dir_all(root.path().join("usr/lib/cni")).unwrap();
    install_sh(&root, &["install"]).ok();
    let files = [
        "etc/cni/net.d/10-viproute.conflist",
        "etc/systemd/system/viprouted.service",
        "etc/viproute/viprouted.toml",
        "opt/cni/bin/viproute",
        "usr/lib/cni/viproute",
        "usr/local/bin/viproutectl",
        "usr/local/bin/viprouted",
    ];
    assert_eq!(installed(&root), files);
    install_sh(&root, &["uninstall"]).ok();
    assert_eq!(installed(&root), Vec::<String>::new());
    install_sh(&root, &["uninstall"]).ok();
}

#[test]
fn leaves_what_others_wrote() {
    let root = TempDir::new();
    write(&root, "etc/cni/net.d/10-ours.conflist", r#"{"plugins":[{"type":"bridge"}]}"#);
    write(&root, "etc/viproute/viprouted.toml", "backend = \"dhcp\"\n");
    let said = install_sh(&root, &["install"]).ok();
    assert!(said.contains(r#"{ "type": "viproute", "capabilities""#), "how to join the chain: {said}");
    assert!(!installed(&root).contains(&"etc/cni/net.d/10-viproute.conflist".to_string()));
    install_sh(&root, &["uninstall"]).ok();
    assert_eq!(installed(&root), ["etc/cni/net.d/10-ours.conflist", "etc/viproute/viprouted.toml"]);
}

/// Without the plugin a runtime can't delete the pods that have it in their chain.
#[test]
fn does_not_go_while_pods_are_attached() {
    let root = TempDir::new();
    install_sh(&root, &["install"]).ok();
    let before = installed(&root);
    write(&root, "var/lib/cni/viproute/attachments/c1@eth0.json", "{}");
    let refused = install_sh(&root, &["uninstall"]);
    assert!(!refused.status.success() && refused.stderr.contains("1 pods are attached"), "{refused:?}");
    assert!(before.iter().all(|file| installed(&root).contains(file)));
    install_sh(&root, &["uninstall", "--force"]).ok();
    assert_eq!(installed(&root), ["var/lib/cni/viproute/attachments/c1@eth0.json"]);
}

fn demo(arguments: &[&str], vip: &str) {
    let peer = Path::new(VIPROUTE).with_file_name("examples").join("peer");
    assert!(peer.exists(), "{} is missing: plain `cargo test` builds it, or cargo build --examples", peer.display());
    let said = install_sh(&TempDir::new(), arguments).ok();
    for line in [
        vip,
        "The client as the pods see it: 192.0.2.50\n",
        "    p4 #",
        "No route, no nexthop, no device of viproute is left",
    ] {
        assert!(said.contains(line), "no {line:?} in\n{said}");
    }
}

#[test]
fn demo_with_a_dhcp_server() {
    demo(&["demo"], "The VIP of shop/web is 192.0.2.1");
}

#[test]
fn demo_with_a_pool() {
    demo(&["demo", "--backend", "pool"], "The VIP of shop/web is 10.118.0.1, from the pool");
}
