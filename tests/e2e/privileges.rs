//! Who may read what, where a symbolic link leads, and what the sidecar runs with.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{Mode, umask};
use serde_json::json;

use crate::harness::{
    DhcpServer, Join, LONG, Lan, Machine, Node, PATIENCE, Pod, RELAYED, Run, SOON, Sidecar, Software, TempDir,
    VIPROUTE, connect, nothing_left, serve_all, tool, until,
};

fn web() -> Join {
    Join::annotated("web")
}

fn project(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Everything below `directory`, itself included.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut paths = vec![directory.to_owned()];
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            paths.extend(tree(&entry.path()));
        } else {
            paths.push(entry.path());
        }
    }
    paths
}

/// Whatever umask a runtime passes on.
#[test]
fn nobody_else_can_read_registry_leases_and_socket() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    // Of this process, for a moment; other tests make files for root alone to read, so it costs them nothing.
    let former = umask(Mode::empty());
    let _sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let pod = node.joined(&web());
    umask(former);
    node.check(&pod, &web()).ok();
    let mut paths = tree(Path::new(&node.data()));
    paths.extend(tree(&node.dir.path().join("state")));
    paths.extend([node.socket().into(), node.metrics().into()]);
    assert!(paths.len() > 12, "{paths:?}");
    for path in paths {
        let found = fs::symlink_metadata(&path).unwrap();
        let expected = if found.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(found.permissions().mode() & 0o7777, expected, "{}", path.display());
        assert_eq!(found.uid(), 0);
    }
}

/// A node with two replicas, whose registry has been tampered with.
struct Scene {
    pods: [Pod; 2],
    late: Pod,
    node: Node,
    elsewhere: TempDir,
    _lan: Lan,
}

impl Scene {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        let pods = [node.joined(&web()), node.joined(&web())];
        let late = node.pod();
        Self { pods, late, node, elsewhere: TempDir::new(), _lan: lan }
    }

    fn path(&self, place: &str) -> PathBuf {
        let name = format!("{}@eth0", self.pods[0].id);
        Path::new(&self.node.data()).join(place.replace("POD", &name))
    }

    /// Moves `place` away and leaves a link to it.
    fn divert(&self, place: &str) -> PathBuf {
        let (path, target) = (self.path(place), self.elsewhere.path().join("target"));
        let moved = Command::new("mv").arg(&path).arg(&target).finish("");
        assert!(moved.status.success() || !path.exists(), "{moved:?}");
        if !target.exists() {
            fs::write(&target, "bait").unwrap();
        }
        symlink(&target, &path).unwrap();
        target
    }

    /// What is elsewhere, byte for byte.
    fn bait(&self) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        tree(self.elsewhere.path()).into_iter().map(|path| (path.clone(), fs::read(path).ok())).collect()
    }
}

/// Whatever is a link in the registry: no call writes, empties or removes what it leads to.
#[test]
fn links_in_the_registry_are_not_followed() {
    let places = [
        "boot-id",
        "boot-id.tmp",
        "lock",
        "vips",
        "attachments",
        "attachments/POD.json",
        "vips/default_web",
        "vips/default_web/lock",
        "vips/default_web/vip.json",
        "vips/default_web/.vip.json.tmp",
        "vips/default_web/index.json",
        "vips/default_web/endpoints",
        "vips/default_web/endpoints/POD.json",
    ];
    for place in places {
        let scene = Scene::new();
        let _servers = serve_all(&scene.pods);
        let vip = scene.pods[0].vip();
        scene.divert(place);
        let before = scene.bait();
        let Scene { pods, late, node, .. } = &scene;
        let (joins, mut refused) = (Join::annotated("web,fresh"), 0);
        let replies = [
            node.check(&pods[0], &web()),
            node.gc(&[&pods[0], &pods[1]], &web()),
            node.add(late, &joins),
            node.del(late, &joins),
            node.del(&pods[1], &web()),
        ];
        for reply in replies {
            if !reply.succeeded() {
                let error = reply.error();
                assert!([5, 106].contains(&error.code), "{place}: {error:?}");
                refused += 1;
            }
            assert_eq!(scene.bait(), before, "{place}: {reply:?}");
        }
        // An index that can't be used is done without.
        assert!(refused > 0 || place.contains(".tmp") || place.contains("index"), "{place}: nobody minds");
        connect(&node.ns, vip, 2);
        node.del(&pods[0], &web());
        node.gc(&[], &web());
        assert_eq!(scene.bait(), before, "{place}, at the end");
    }
}

/// The directory that the configuration names may be a link: that is the administrator's word.
#[test]
fn the_data_directory_itself_may_be_a_link() {
    let lan = Lan::new();
    let (node, elsewhere) = (Node::new(&lan, 1), TempDir::new());
    symlink(elsewhere.path(), node.data()).unwrap();
    let pod = node.joined(&web());
    node.check(&pod, &web()).ok();
    assert!(elsewhere.path().join("vips/default_web/vip.json").exists());
    node.remove(&pod, &web());
    assert_eq!(node.ns.ip("nexthop show proto 118"), "");
}

#[test]
fn a_link_in_place_of_the_leases_is_refused() {
    let lan = Lan::new();
    for place in ["leases", "lock"] {
        let (node, elsewhere) = (Node::without_allocator(&lan, 1), TempDir::new());
        Sidecar::pool(&node, "10.118.0.0/24").stop();
        let path = node.dir.path().join("state").join(place);
        let target = elsewhere.path().join("target");
        fs::rename(&path, &target).unwrap();
        symlink(&target, &path).unwrap();
        let mut command = node.ns.cmd(env!("CARGO_BIN_EXE_viprouted"));
        let finished = command.arg("--config").arg(node.dir.file("viprouted.toml")).finish("");
        assert!(!finished.status.success(), "{finished:?}");
        assert!(finished.stderr.contains(path.to_str().unwrap()), "{finished:?}");
        node.ns.ip("link del eth0");
    }
}

/// What `CNI_NETNS` leads to is what counts: a pod's namespace by way of a link is one; a FIFO, and the node's own
/// namespace, are not.
#[test]
fn where_the_namespaces_path_leads() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let (pod, dir) = (node.pod(), TempDir::new());
    let call = |verb: &str, path: String| {
        let mut environment = node.environment(verb, &pod, &web());
        environment.netns = Some(path);
        node.raw(&environment, &node.stdin(verb, &pod, &web()).to_string())
    };
    let before = node.snapshot(&[&pod]);
    Command::new("mkfifo").arg(dir.file("fifo")).finish("").ok();
    symlink("/proc/thread-self/ns/net", dir.file("own")).unwrap();
    symlink(pod.ns.path(), dir.file("pods")).unwrap();
    for bad in [dir.file("fifo"), dir.file("own"), node.ns.path(), "/proc/self/ns/net".into(), "/dev/zero".into()] {
        let error = call("ADD", bad.clone()).error();
        assert!(error.code == 4 && error.msg.contains(&bad), "{error:?}");
        before.assert_same(&node.snapshot(&[&pod]), &bad);
    }
    call("ADD", dir.file("pods")).ok();
    assert_eq!(pod.vips().len(), 1);
    // By the time of DEL it leads to another pod's namespace: that one is left alone.
    let other = node.joined(&web());
    let others = node.snapshot(&[&other]);
    fs::remove_file(dir.file("pods")).unwrap();
    symlink(other.ns.path(), dir.file("pods")).unwrap();
    call("DEL", dir.file("pods")).ok();
    node.check(&other, &web()).ok();
    let changes = others.changes(&node.snapshot(&[&other]));
    let in_pod = |change: &&String| change[2..].starts_with(&format!("{} ", other.name));
    assert_eq!(changes.iter().find(in_pod), None, "the other pod's namespace");
}

/// The capabilities of a line of the unit.
fn unit_capabilities() -> Vec<String> {
    let unit = project("conf/viprouted.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a bounding set");
    line.split(' ').map(|name| name.strip_prefix("CAP_").expect("CAP_").to_lowercase()).collect()
}

#[test]
fn unit_and_daemonset_name_the_same_capabilities() {
    let daemonset = project("conf/daemonset.yaml");
    assert!(!daemonset.contains("privileged: true") && !daemonset.contains("hostPID: true"), "{daemonset}");
    let line = daemonset.lines().find_map(|line| line.split_once("add: [")?.1.split_once(']')).expect("capabilities").0;
    let mut names: Vec<_> = line.split(", ").map(str::to_lowercase).collect();
    let mut of_unit = unit_capabilities();
    // A cluster's runtimes name pods by paths of their own, never by a process; in the container none could be seen.
    of_unit.retain(|name| name != "sys_ptrace");
    names.sort();
    of_unit.sort();
    assert_eq!(names, of_unit);
    assert!(daemonset.contains("mountPath: /sys/fs/bpf") && daemonset.contains("readOnlyRootFilesystem: true"));
    let unit = project("conf/viprouted.service");
    for line in ["ReadWritePaths=-/sys/fs/bpf", "SystemCallFilter=~@privileged @resources", "UMask=0077"] {
        assert!(unit.lines().any(|found| found == line), "{line} in the unit");
    }
}

/// systemd's own measure of the sandbox, from 0 (none to worry about) to 10. It counts capabilities and address families that viprouted can't do
/// without.
#[test]
fn systemd_finds_the_unit_sandboxed() {
    let mut analyze = Command::new(tool("systemd-analyze"));
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/viprouted.service");
    let judged = analyze.args(["security", "--offline=true", "--no-pager"]).arg(unit).finish("").ok();
    let line = judged.lines().find_map(|line| line.split_once("Overall exposure level")).expect("a level").1;
    let level: f32 = line.split_whitespace().nth(2).and_then(|text| text.parse().ok()).expect("a number");
    assert!(level <= 3.5, "{judged}");
}

/// With the unit's capabilities and no others it gets an address in either form, keeps it, keeps its traffic out of
/// connection tracking, and takes the routes away when it is lost.
#[test]
fn the_units_capabilities_are_enough() {
    for relay in [false, true] {
        let lan = Lan::new();
        let mut server = DhcpServer::quick(Software::Kea, &lan, 8);
        let node = Node::without_allocator(&lan, 1);
        let settings = if relay {
            format!(
                "allow = [\"{RELAYED}/24\"]\n[dhcp]\nrelay = {{ server = \"192.0.2.254\", subnet = \"{RELAYED}\" }}"
            )
        } else {
            "allow = [\"192.0.2.0/24\"]".into()
        };
        let mut bounds: Vec<_> = unit_capabilities().iter().map(|name| format!("+{name}")).collect();
        // This test's bpffs is reached by way of the test's own /proc, which takes a capability of its own: so one form
        // is tried with it and the flow owner, the other with neither.
        let join = if relay { web() } else { web().key("flowOwner", json!("off")) };
        bounds.extend(relay.then(|| "+sys_ptrace".into()));
        let bounds = format!("--bounding-set=-all,{}", bounds.join(","));
        let options = [bounds.as_str(), "--inh-caps=-all", "--no-new-privs"];
        let _sidecar = Sidecar::run_by("setpriv", &options, &node, &format!("backend = \"dhcp\"\n{settings}"));
        let pod = node.joined(&join);
        let vip = pod.vip();
        until("the nftables table is made", PATIENCE, || {
            let table = node.ns.cmd("nft").args(["list", "table", "ip", "viproute"]).finish("").stdout;
            table.contains(&vip.to_string()).then_some(())
        });
        if !relay {
            until("it answers ARP", SOON, || node.ns.ip("neigh show proxy").contains(&vip.to_string()).then_some(()));
        }
        std::thread::sleep(std::time::Duration::from_secs(9));
        assert!(!node.ns.ip(&format!("route show {vip} proto 118")).is_empty(), "kept past its time");
        server.stop();
        until("the routes are taken away", LONG, || {
            node.ns.ip(&format!("route show {vip} proto 118")).is_empty().then_some(())
        });
    }
}

/// As in a container of the chart's: its own settings are read-only, and the node's are mounted beside them.
#[test]
fn settings_are_written_by_the_nodes_mount() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let machine = Machine::new(&node);
    machine.sh("mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys");
    let join = web().version("1.1.0").strict().key("bpfDir", json!("/sys/fs/bpf/viproute"));
    let conf = node.conf(&join).to_string();
    let mut status = machine.cmd("env");
    let status = status.args(["CNI_COMMAND=STATUS", "CNI_PATH=/opt/cni/bin", VIPROUTE]);
    let refused = status.finish(&conf);
    assert!(refused.stdout.contains("net.ipv4.fib_multipath_hash_policy is 0, must be 3"), "{refused:?}");
    machine
        .sh("mkdir -p /host/proc/sys/net && mount -t proc proc /mnt && mount --bind /mnt/sys/net /host/proc/sys/net");
    // What is asked after the settings; this test has no viprouted.
    let later = status.finish(&conf);
    assert!(later.stdout.contains("viprouted can't be reached"), "{later:?}");
}

/// As in a container that was given no more: what is set already is enough.
#[test]
fn where_settings_cannot_be_written() {
    const READ_ONLY: &str = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\"";
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let join = web().version("1.1.0").strict();
    let call = |verb: &str, pod: &Pod| {
        let mut command = node.ns.cmd("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", READ_ONLY, env!("CARGO_BIN_EXE_viproute")]);
        match verb {
            "STATUS" => node.run(&mut command, &node.verb(verb), &node.conf(&join).to_string()),
            _ => node.run(&mut command, &node.environment(verb, pod, &join), &node.stdin(verb, pod, &join).to_string()),
        }
    };
    let pod = node.pod_of_version("1.0.0");
    let unavailable = call("STATUS", &pod).error();
    assert_eq!(unavailable.code, 50, "{unavailable:?}");
    assert!(unavailable.text().contains("net.ipv4.fib_multipath_hash_policy is 0, must be 3"), "{unavailable:?}");
    let refused = call("ADD", &pod).error();
    assert!(refused.text().contains("net.ipv4.fib_multipath_hash_policy = 3"), "{refused:?}");
    nothing_left(&node);

    for (name, value) in viproute::internals::dataplane::settings::SETTINGS {
        node.ns.set_sysctl(&name.replace('.', "/"), &value.to_string());
    }
    call("STATUS", &pod).ok();
    call("ADD", &pod).ok();
    assert!(!node.ns.ip("route show proto 118").is_empty());
}
