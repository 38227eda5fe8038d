//! `install.sh`: what it puts where, what it leaves alone, and its demo.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{CAPABILITY, Finished, Run, TempDir, VIPROUTE, tool};

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
        "usr/local/share/bash-completion/completions/viproutectl",
        "usr/local/share/fish/vendor_completions.d/viproutectl.fish",
        "usr/local/share/man/man8/viproutectl-completions.8",
        "usr/local/share/man/man8/viproutectl-doctor.8",
        "usr/local/share/man/man8/viproutectl-drain.8",
        "usr/local/share/man/man8/viproutectl-events.8",
        "usr/local/share/man/man8/viproutectl-status.8",
        "usr/local/share/man/man8/viproutectl-undrain.8",
        "usr/local/share/man/man8/viproutectl-where.8",
        "usr/local/share/man/man8/viproutectl.8",
        "usr/local/share/man/man8/viprouted.8",
        "usr/local/share/zsh/site-functions/_viproutectl",
    ];
    assert_eq!(installed(&root), files);
    install_sh(&root, &["uninstall"]).ok();
    assert_eq!(installed(&root), Vec::<String>::new());
    install_sh(&root, &["uninstall"]).ok();
}

/// As kubeadm's users have it: odd spacing, keys nobody knows, and no newline at the end.
const THEIRS: &str = r#"{"cniVersion": "1.0.0",   "name":"cluster", "disableCheck": true,
 "plugins":[{"type":"bridge","mtu":1450,"unknown":{"b":1,"a":[null,"\u00e9"]}}, {"type": "portmap"}]}"#;

const CHAIN: &str = "etc/cni/net.d/10-theirs.conflist";

fn read(root: &TempDir, path: &str) -> String {
    std::fs::read_to_string(root.path().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn joins_the_chain_a_runtime_uses_and_leaves_it_as_it_was() {
    let root = TempDir::new();
    write(&root, CHAIN, THEIRS);
    // Not the first: no runtime reads them while the other is there. In a locale's order `9` might come earlier.
    write(&root, "etc/cni/net.d/20-later.conflist", "{}");
    write(&root, "etc/cni/net.d/9-later.conf", "{}");
    install_sh(&root, &["install"]).ok();
    let mut expected: Value = serde_json::from_str(THEIRS).unwrap();
    let entry = json!({ "type": "viproute", "capabilities": { CAPABILITY: true } });
    expected["plugins"].as_array_mut().unwrap().push(entry);
    let joined = read(&root, CHAIN);
    assert_eq!(serde_json::from_str::<Value>(&joined).unwrap(), expected);
    let networks = || -> Vec<_> { installed(&root).into_iter().filter(|file| file.starts_with("etc/cni")).collect() };
    assert_eq!(networks(), [CHAIN, "etc/cni/net.d/20-later.conflist", "etc/cni/net.d/9-later.conf"]);

    let before = installed(&root);
    let said = install_sh(&root, &["install"]).ok();
    assert!(said.contains("has viproute already"), "{said}");
    assert_eq!((installed(&root), read(&root, CHAIN)), (before, joined), "run twice");

    install_sh(&root, &["uninstall"]).ok();
    assert_eq!(read(&root, CHAIN), THEIRS);
    assert_eq!(installed(&root), networks(), "nothing but their networks is left");
}

#[test]
fn a_chain_that_was_edited_since_is_kept() {
    let root = TempDir::new();
    write(&root, CHAIN, THEIRS);
    install_sh(&root, &["install"]).ok();
    let edited = read(&root, CHAIN).replace("1450", "1400");
    write(&root, CHAIN, &edited);
    let said = install_sh(&root, &["uninstall"]).ok();
    assert_eq!(read(&root, CHAIN), edited);
    let original = "etc/viproute/10-theirs.conflist.orig";
    assert_eq!(read(&root, original), THEIRS);
    for part in [CHAIN, original, r#"Take the entry with "type": "viproute" out of"#] {
        assert!(said.contains(part), "no {part} in\n{said}");
    }
    // Once they have taken it out there is nothing more to say or to keep.
    let without = THEIRS.replace("1450", "1400");
    write(&root, CHAIN, &without);
    install_sh(&root, &["uninstall"]).ok();
    assert_eq!((installed(&root), read(&root, CHAIN)), (vec![CHAIN.to_string()], without));
}

#[test]
fn refuses_a_chain_it_does_not_understand() {
    let list = |version: &str| format!(r#"{{"cniVersion":"{version}","name":"n","plugins":[{{"type":"bridge"}}]}}"#);
    let cases = [
        ("10-one.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#.to_string(), "no .conflist"),
        ("10-n.conflist", r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"#.to_string(), "not valid JSON"),
        ("10-n.conflist", String::new(), "not one JSON object"),
        ("10-n.conflist", format!("{0}{0}", list("1.0.0")), "not one JSON object"),
        ("10-n.conflist", "[]".to_string(), "not one JSON object"),
        ("10-n.conflist", r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#.to_string(), "no list of \"plugins\""),
        ("10-n.conflist", r#"{"cniVersion":"1.0.0","plugins":[]}"#.to_string(), "no list of \"plugins\""),
        ("10-n.conflist", r#"{"cniVersion":"1.0.0","plugins":[{"name":"x"}]}"#.to_string(), "no \"type\""),
        ("10-n.conflist", list("0.3.1"), "its cniVersion is 0.3.1"),
        ("10-n.conflist", r#"{"plugins":[{"type":"bridge"}]}"#.to_string(), "its cniVersion is missing"),
    ];
    for (name, text, reason) in cases {
        let root = TempDir::new();
        let path = format!("etc/cni/net.d/{name}");
        write(&root, &path, &text);
        let refused = install_sh(&root, &["install"]);
        assert!(!refused.status.success(), "{text} was taken: {refused:?}");
        assert!(refused.stderr.contains(reason) && refused.stderr.contains(name), "no {reason:?} in {refused:?}");
        assert_eq!((installed(&root), read(&root, &path)), (vec![path], text), "a refused install");
    }
}

#[test]
fn leaves_what_others_wrote() {
    let root = TempDir::new();
    let plain = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#;
    write(&root, "etc/cni/net.d/10-ours.conf", plain);
    write(&root, "etc/viproute/viprouted.toml", "backend = \"dhcp\"\n");
    let said = install_sh(&root, &["install", "--no-chain"]).ok();
    assert!(said.contains(r#"{ "type": "viproute", "capabilities""#), "how to join the chain: {said}");
    assert_eq!(read(&root, "etc/cni/net.d/10-ours.conf"), plain);
    install_sh(&root, &["uninstall"]).ok();
    assert_eq!(installed(&root), ["etc/cni/net.d/10-ours.conf", "etc/viproute/viprouted.toml"]);
}

/// A machine of its own: this one's files, with every change to them kept in memory and gone with the script.
const MACHINE: &str = r#"
set -eu
cd "$TMPDIR"
mount -t tmpfs tmpfs .
cd "$TMPDIR"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
for dir in /proc /dev "$SOURCE" "$BINARIES"; do mkdir -p "root$dir"; mount --rbind "$dir" "root$dir"; done
rm -rf root/etc/cni root/run/systemd
mkdir -p root/etc/cni/net.d root/run/systemd/system
printf %s "$THEIRS" >root/etc/cni/net.d/10-theirs.conflist
exec chroot root /bin/sh -euc "$0"
"#;

/// Where there is systemd, and a runtime with its network: the real places and the real systemctl.
#[test]
fn on_a_machine_that_has_a_runtime() {
    let (temporary, source) = (TempDir::new(), env!("CARGO_MANIFEST_DIR"));
    tool("systemctl");
    let script = r#"
        wants=/etc/systemd/system/multi-user.target.wants/viprouted.service
        "$SOURCE/install.sh" install
        cmp "$BINARIES/viproute" /opt/cni/bin/viproute
        cmp "$SOURCE/conf/viprouted.service" $wants
        grep '"viproute"' /etc/cni/net.d/10-theirs.conflist
        "$SOURCE/install.sh" install
        "$SOURCE/install.sh" uninstall
        [ ! -e $wants ] && [ ! -L $wants ] && [ ! -e /opt/cni/bin/viproute ]
        printf %s "$THEIRS" | cmp - /etc/cni/net.d/10-theirs.conflist
        echo as it was
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", MACHINE, script]);
    command.env_remove("DESTDIR").env("TMPDIR", temporary.path()).env("SOURCE", source);
    command.env("BINARIES", Path::new(VIPROUTE).parent().unwrap()).env("THEIRS", THEIRS);
    // What package builds set: units are enabled, and no systemd is asked to start them.
    command.env("SYSTEMD_OFFLINE", "1");
    let said = command.finish("").ok();
    assert!(said.ends_with("as it was\n"), "{said}");
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
