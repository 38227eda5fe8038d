//! `install.sh`: what it puts where, what it leaves alone, and its demo.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{CAPABILITY, Finished, Join, Lan, Node, Run, TempDir, VIPROUTE, tool};

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
        "usr/local/share/man/man5/viprouted.toml.5",
        "usr/local/share/man/man8/viproute.8",
        "usr/local/share/man/man8/viproutectl-announce.8",
        "usr/local/share/man/man8/viproutectl-bundle.8",
        "usr/local/share/man/man8/viproutectl-completions.8",
        "usr/local/share/man/man8/viproutectl-doctor.8",
        "usr/local/share/man/man8/viproutectl-drain.8",
        "usr/local/share/man/man8/viproutectl-events.8",
        "usr/local/share/man/man8/viproutectl-identity.8",
        "usr/local/share/man/man8/viproutectl-import.8",
        "usr/local/share/man/man8/viproutectl-join.8",
        "usr/local/share/man/man8/viproutectl-key.8",
        "usr/local/share/man/man8/viproutectl-leave.8",
        "usr/local/share/man/man8/viproutectl-node.8",
        "usr/local/share/man/man8/viproutectl-nodes.8",
        "usr/local/share/man/man8/viproutectl-probe.8",
        "usr/local/share/man/man8/viproutectl-status.8",
        "usr/local/share/man/man8/viproutectl-undrain.8",
        "usr/local/share/man/man8/viproutectl-where.8",
        "usr/local/share/man/man8/viproutectl.8",
        "usr/local/share/man/man8/viprouted.8",
        "usr/local/share/viproute/installed-by",
        "usr/local/share/zsh/site-functions/_viproutectl",
    ];
    assert_eq!(installed(&root), files);
    install_sh(&root, &["uninstall"]).ok();
    assert_eq!(installed(&root), Vec::<String>::new());
    install_sh(&root, &["uninstall"]).ok();
}

/// As kubeadm's users have it: odd spacing, unknown keys, and no newline at the end.
pub(crate) const THEIRS: &str = r#"{"cniVersion": "1.0.0",   "name":"cluster", "disableCheck": true,
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
    assert!(said.contains("has viproute."), "{said}");
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
        ("10-n.conflist", list("0.2.0"), "its cniVersion is 0.2.0"),
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

/// A machine of its own: this one's files, with every change to them kept in memory and lost with the script.
pub(crate) const MACHINE: &str = r#"
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
    let demo = Path::new(VIPROUTE).with_file_name("examples").join("demo");
    assert!(demo.exists(), "{} is missing: plain `cargo test` builds it, or cargo build --examples", demo.display());
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

/// The paths a runtime looks for plugins in, by its own configuration.
#[test]
fn the_plugin_is_linked_where_each_runtime_looks() {
    let root = TempDir::new();
    let containerd = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\n";
    write(&root, "etc/containerd/config.toml", containerd);
    write(&root, "etc/crio/crio.conf", "[crio.network]\nplugin_dirs = [\"/opt/cni/bin\", \"/srv/crio\"]\n");
    write(&root, "usr/bin/podman", "");
    write(&root, "etc/containers/containers.conf", "[network]\ncni_plugin_dirs = [\"/srv/podman\"]\n");
    std::fs::create_dir_all(root.path().join("srv/crio")).unwrap();
    let before = installed(&root);
    let said = install_sh(&root, &["install"]).ok();
    for dir in ["usr/lib/cni", "srv/crio", "srv/podman"] {
        let link = root.path().join(dir).join("viproute");
        assert_eq!(std::fs::read_link(&link).expect(dir), Path::new("/opt/cni/bin/viproute"), "{said}");
    }
    install_sh(&root, &["uninstall"]).ok();
    assert_eq!(installed(&root), before);
}

#[test]
fn a_second_run_does_nothing_and_says_so() {
    let root = TempDir::new();
    write(&root, CHAIN, THEIRS);
    let first = install_sh(&root, &["install"]).ok();
    assert!(first.contains("This installs:\n") && first.contains("as the last plugin of"), "{first}");
    let times = || {
        let mut find = Command::new("find");
        find.arg(root.path()).args(["-printf", "%P %T@ %i\n"]).finish("").ok()
    };
    let before = times();
    let second = install_sh(&root, &["install"]).ok();
    let chain = root.path().join(CHAIN);
    let expected =
        format!("Nothing was done: all of viproute is installed already. {} has viproute.\n", chain.display());
    assert_eq!((second, times()), (expected, before));
    // What is missing again, or another, is all that is done.
    std::fs::remove_file(root.path().join("usr/local/bin/viprouted")).unwrap();
    write(&root, "usr/local/share/man/man8/viprouted.8", "");
    let third = install_sh(&root, &["install"]).ok();
    let done: Vec<_> = third.lines().filter(|line| line.starts_with("  ")).collect();
    assert_eq!(done.len(), 2, "{third}");
}

/// A network may hold a token.
#[test]
fn copies_of_a_network_keep_its_mode() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let root = TempDir::new();
    write(&root, CHAIN, THEIRS);
    let chain = root.path().join(CHAIN);
    std::fs::set_permissions(&chain, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&chain, Some(7), Some(7)).unwrap();
    install_sh(&root, &["install"]).ok();
    let is = |path: &Path| std::fs::metadata(path).map(|m| (m.mode() & 0o7777, m.uid())).expect("a file");
    let copies = ["orig", "joined"].map(|ending| root.path().join(format!("etc/viproute/10-theirs.conflist.{ending}")));
    assert_eq!([is(&chain), is(&copies[0]), is(&copies[1])], [(0o600, 7); 3]);
    install_sh(&root, &["uninstall"]).ok();
    assert_eq!((is(&chain), read(&root, CHAIN)), ((0o600, 7), THEIRS.to_owned()));
}

/// `MicroK8s` and k3s link the directory to one of their own.
#[test]
fn a_linked_directory_is_followed() {
    let root = TempDir::new();
    write(&root, "var/snap/args/cni-network/10-theirs.conflist", THEIRS);
    std::fs::create_dir_all(root.path().join("etc/cni")).unwrap();
    std::os::unix::fs::symlink("../../var/snap/args/cni-network", root.path().join("etc/cni/net.d")).unwrap();
    let before = installed(&root);
    install_sh(&root, &["install"]).ok();
    let joined = read(&root, "var/snap/args/cni-network/10-theirs.conflist");
    assert!(joined.contains("\"viproute\""), "{joined}");
    let names = std::fs::read_dir(root.path().join("etc/cni/net.d")).unwrap().count();
    assert_eq!(names, 1, "no network of install.sh's own");
    install_sh(&root, &["uninstall"]).ok();
    assert_eq!((installed(&root), read(&root, CHAIN)), (before, THEIRS.to_owned()));
}

/// Runtimes take files whose names begin with a dot, and take them first.
#[test]
fn a_hidden_first_file_is_joined_and_left_again() {
    let root = TempDir::new();
    let hidden = "etc/cni/net.d/.05-hidden.conflist";
    write(&root, hidden, THEIRS);
    write(&root, CHAIN, THEIRS);
    let before = installed(&root);
    install_sh(&root, &["install"]).ok();
    assert!(read(&root, hidden).contains("\"viproute\"") && read(&root, CHAIN) == THEIRS);
    install_sh(&root, &["uninstall"]).ok();
    assert_eq!((installed(&root), read(&root, hidden)), (before, THEIRS.to_owned()));
}

/// kubeadm and CRI-O bring one.
#[test]
fn loopback_alone_is_no_network() {
    let root = TempDir::new();
    let loopback = r#"{"cniVersion":"0.3.1","name":"lo","type":"loopback"}"#;
    write(&root, "etc/cni/net.d/99-loopback.conf", loopback);
    install_sh(&root, &["install"]).ok();
    assert!(read(&root, "etc/cni/net.d/10-viproute.conflist").contains("ptp"));
    install_sh(&root, &["uninstall"]).ok();
    write(&root, "etc/cni/net.d/00-loopback.conflist", r#"{"name":"lo","plugins":[{"type":"loopback"}]}"#);
    write(&root, CHAIN, THEIRS);
    let said = install_sh(&root, &["install"]).ok();
    assert!(read(&root, CHAIN).contains("\"viproute\""));
    assert!(said.contains("00-loopback.conflist comes first and gives pods nothing but a loopback"), "{said}");
}

/// podman's containers join by a network's name, and its package's own file stays the package's.
#[test]
fn on_a_machine_with_podman_alone_its_network_is_offered() {
    let root = TempDir::new();
    write(&root, "usr/bin/podman", "");
    write(&root, "etc/cni/net.d/87-podman-bridge.conflist", THEIRS);
    let said = install_sh(&root, &["install"]).ok();
    assert_eq!(read(&root, "etc/cni/net.d/87-podman-bridge.conflist"), THEIRS);
    assert!(said.contains("podman is the only runtime here") && said.contains("conf/podman-web.conflist"), "{said}");
    assert!(!root.path().join("etc/cni/net.d/10-viproute.conflist").exists());
    // With containerd beside it the first network is containerd's too.
    write(&root, "etc/containerd/config.toml", "");
    install_sh(&root, &["install"]).ok();
    assert!(read(&root, "etc/cni/net.d/87-podman-bridge.conflist").contains("\"viproute\""));
}

#[test]
fn a_chain_of_any_version_that_is_spoken_is_joined() {
    for versions in [
        r#""cniVersion":"0.3.0","#,
        r#""cniVersion":"0.3.1","#,
        r#""cniVersions":["0.4.0","1.1.0"],"#,
        r#""cniVersion":"0.2.0","cniVersions":["1.0.0"],"#,
    ] {
        let root = TempDir::new();
        write(&root, CHAIN, &format!(r#"{{{versions}"name":"n","plugins":[{{"type":"bridge"}}]}}"#));
        install_sh(&root, &["install"]).ok();
        assert!(read(&root, CHAIN).contains("\"viproute\""), "{versions}");
    }
}

/// A record of a removed pod, of another boot say, doesn't prevent uninstalling.
#[test]
fn attachments_of_dead_pods_are_none() {
    let root = TempDir::new();
    install_sh(&root, &["install"]).ok();
    let namespace = |path: &str, inode: u64| {
        format!(
            r#"{{"schema":1,"network":"n","vips":[],"netns":{{"path":"{path}","device":4,"inode":{inode}}},"former":{{}}}}"#
        )
    };
    let record = "var/lib/cni/viproute/attachments/c1@eth0.json";
    write(&root, record, &namespace("/run/netns/gone-since", 7));
    write(&root, "var/lib/cni/viproute/attachments/c2@eth0.json", &namespace("/proc/self/ns/net", 1));
    install_sh(&root, &["uninstall"]).ok();
    assert!(!root.path().join("opt/cni/bin/viproute").exists());
}

/// The original, then what became of it, then the network itself: whenever it is killed, the network is one of the two, and the next
/// call does it all.
#[test]
fn a_join_that_is_killed_leaves_the_network_old_or_new() {
    let root = TempDir::new();
    write(&root, CHAIN, THEIRS);
    let node = |action: &str| {
        let mut command = Command::new(crate::harness::VIPROUTECTL);
        command.args(["node", action, "--root", root.path().to_str().unwrap()]);
        command
    };
    let begin = std::time::Instant::now();
    node("join").finish("").ok();
    let whole = begin.elapsed();
    let new = read(&root, CHAIN);
    node("leave").finish("").ok();
    assert!(new.contains("\"viproute\"") && read(&root, CHAIN) == THEIRS);
    let mut seen = [0, 0];
    for round in 0..200 {
        let mut child = node("join").stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * round / 150);
        child.kill().unwrap();
        child.wait().unwrap();
        let text = read(&root, CHAIN);
        let place = [THEIRS, &new].iter().position(|known| *known == text);
        seen[place.unwrap_or_else(|| panic!("round {round}: {text:?}"))] += 1;
        // The other way alike.
        let mut child = node("leave").stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * (199 - round) / 150);
        child.kill().unwrap();
        child.wait().unwrap();
        let text = read(&root, CHAIN);
        assert!(text == THEIRS || text == new, "round {round}: {text:?}");
        node("join").finish("").ok();
        assert_eq!(read(&root, CHAIN), new);
        node("leave").finish("").ok();
        assert_eq!((read(&root, CHAIN).as_str(), installed(&root)), (THEIRS, vec![CHAIN.to_owned()]), "round {round}");
    }
    assert!(seen.iter().all(|times| *times > 0), "killed before and after: {seen:?}");
}

/// With `--detach` each pod is taken out of its VIPs and lives on.
#[test]
fn detach_takes_pods_out_of_their_vips() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let root = TempDir::new();
    install_sh(&root, &["install", "--no-chain"]).ok();
    let registry = root.path().join("var/lib/cni/viproute");
    let web = Join::annotated("web").key("dataDir", json!(registry));
    let pods = [node.pod(), node.pod()];
    let before = node.snapshot(&[&pods[0], &pods[1]]);
    for pod in &pods {
        node.add(pod, &web).ok();
    }
    let uninstall = |arguments: &[&str]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("install.sh");
        let mut command = node.ns.cmd(script.to_str().unwrap());
        let programs = Path::new(VIPROUTE).parent().unwrap();
        command.arg("uninstall").args(arguments).env("DESTDIR", root.path()).env("BINARIES", programs).finish("")
    };
    let refused = uninstall(&[]);
    assert!(refused.stderr.contains("2 pods are attached") && refused.stderr.contains("--detach"), "{refused:?}");
    let said = uninstall(&["--detach"]).ok();
    assert_eq!(said.matches("Detached: ").count(), 2, "{said}");
    let changes = before.changes(&node.snapshot(&[&pods[0], &pods[1]]));
    // The node's settings stay, and the flow owner where its bpfDir isn't the default.
    let left: Vec<_> =
        changes.iter().filter(|line| !line.contains("net/ipv4/") && !line.contains("flow owner")).collect();
    assert_eq!(left, Vec::<&String>::new());
    assert!(!root.path().join("opt/cni/bin/viproute").exists());
}

/// Policies of a package manager are put aside for a moment, whatever becomes of it.
#[test]
fn policy_rc_d_goes_however_apt_ends() {
    let (temporary, source) = (TempDir::new(), env!("CARGO_MANIFEST_DIR"));
    let script = r#"
        rm -f /usr/sbin/policy-rc.d
        printf '#!/bin/sh\n[ -x /usr/sbin/policy-rc.d ] && touch /tmp/was-there\nkill -TERM "$PPID"; sleep 1; exit 1\n' >/usr/local/bin/apt-get
        printf '#!/bin/sh\nexit 1\n' >/usr/local/bin/dpkg-query
        printf '#!/bin/sh\nexit 1\n' >/usr/local/bin/cargo
        chmod 755 /usr/local/bin/apt-get /usr/local/bin/dpkg-query /usr/local/bin/cargo
        # What builds needs packages.
        if PATH=/usr/local/bin:$PATH BINARIES= "$SOURCE/install.sh" install; then exit 1; fi
        [ -e /tmp/was-there ] && [ ! -e /usr/sbin/policy-rc.d ]
        # Without cargo nothing is installed at all.
        rm /tmp/was-there /usr/local/bin/cargo
        if PATH=/usr/local/bin:/usr/bin:/bin BINARIES= "$SOURCE/install.sh" install 2>/tmp/said; then exit 1; fi
        grep -q "cargo is missing" /tmp/said && [ ! -e /tmp/was-there ]
        echo as it was
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", MACHINE, script]);
    command.env_remove("DESTDIR").env("TMPDIR", temporary.path()).env("SOURCE", source);
    command.env("BINARIES", Path::new(VIPROUTE).parent().unwrap()).env("THEIRS", THEIRS);
    let said = command.finish("").ok();
    assert!(said.ends_with("as it was\n"), "{said}");
}

/// Static programs are what cargo is told to build; they are installed from where packaging/build.sh puts them.
#[test]
fn what_is_installed_is_built_static() {
    use std::os::unix::fs::PermissionsExt;
    let (root, sources) = (TempDir::new(), TempDir::new());
    let arch = std::env::consts::ARCH;
    // Sources of its own: the built programs are put among them.
    for part in ["install.sh", "packaging", "conf"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(part);
        Command::new("cp").arg("-r").arg(from).arg(sources.path()).finish("").ok();
    }
    let target = sources.path().join(format!("elsewhere/{arch}-unknown-linux-gnu/release"));
    std::fs::create_dir_all(&target).unwrap();
    for name in ["viproute", "viprouted", "viproutectl"] {
        std::os::unix::fs::symlink(Path::new(VIPROUTE).with_file_name(name), target.join(name)).unwrap();
    }
    let cargo = format!(
        "#!/bin/sh\n[ \"$*\" = 'build --release --locked --target {arch}-unknown-linux-gnu --bins' ] || exit 1\n\
         case $CARGO_ENCODED_RUSTFLAGS in -Ctarget-feature=+crt-static*) ;; *) exit 1 ;; esac\n"
    );
    write(&sources, "bin/cargo", &cargo);
    std::fs::set_permissions(sources.path().join("bin/cargo"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", sources.path().join("bin").display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(sources.path().join("install.sh"));
    command.args(["install", "--no-chain"]).env_remove("BINARIES").env("PATH", path).env("DESTDIR", root.path());
    command.env("CARGO_TARGET_DIR", sources.path().join("elsewhere")).finish("").ok();
    assert!(root.path().join("opt/cni/bin/viproute").exists());
    assert!(sources.path().join(format!("dist/bin-{arch}/viprouted")).exists());
}

/// As systemd makes them, doctor would complain of the registry's directory.
#[test]
fn the_unit_keeps_its_directories_to_root() {
    let unit = include_str!("../../conf/viprouted.service");
    assert!(unit.lines().any(|line| line == "StateDirectoryMode=0700"), "{unit}");
}

/// The unit's own line, with what it would run named instead of run.
#[test]
fn only_a_machine_that_shuts_down_leaves_the_other_nodes() {
    let unit = include_str!("../../conf/viprouted.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStop=-/bin/sh -c '")).expect("a line for the end");
    let script = line.strip_suffix('\'').expect("a quote").replace("$$", "$").replace("/usr/local/bin/", "echo ");
    for (state, said) in [("stopping", "viproutectl nodes leave\n"), ("running", ""), ("degraded", "")] {
        let script = format!("systemctl() {{ [ \"$1\" = is-system-running ] && echo {state}; }}; {script}");
        assert_eq!(Command::new(tool("sh")).args(["-c", &script]).finish("").ok(), said, "{state}");
    }
}
