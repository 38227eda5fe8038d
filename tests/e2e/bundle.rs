//! `viproutectl bundle`: all that a bug report needs, nothing that is secret, and an end whatever hangs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Finished, Join, Lan, Node, PORT, Pod, Run, Sidecar, TempDir, VIPROUTECTL, scaled, tool};

const POOL: &str = "# token = \"planted-in-a-comment\"\nbackend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";

/// A node with one pod, and networks of which one has secrets.
struct Scene {
    dir: TempDir,
    pod: Pod,
    sidecar: Sidecar,
    node: Node,
    _lan: Lan,
}

impl Scene {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let sidecar = Sidecar::start(&node, POOL);
        let web =
            Join::annotated("web").annotation("viproute.io/health", &format!("http:{PORT}/?token=planted-in-a-path"));
        let pod = node.joined(&web);
        let dir = TempDir::new();
        let calico = json!({ "type": "calico", "kubernetes": { "k8s_auth_token": "planted-in-a-conflist" } });
        let network = json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [calico] });
        fs::create_dir(dir.file("net.d")).unwrap();
        fs::write(dir.file("net.d/10-pods.conflist"), network.to_string()).unwrap();
        // Known from the conflist, and said elsewhere without its key.
        fs::write(dir.file("net.d/20-notes.conf"), "the value is planted-in-a-conflist").unwrap();
        fs::write(dir.file("net.d/calico-token"), "planted-in-a-file").unwrap();
        Self { dir, pod, sidecar, node, _lan: lan }
    }

    fn bundle(&self, path: Option<&str>) -> Finished {
        let mut command = self.node.ctl();
        command.args(["bundle", &self.dir.file("b.tar")]);
        command.args(["--conf-dir", &self.dir.file("net.d"), "--config", &self.node.dir.file("viprouted.toml")]);
        if let Some(path) = path {
            command.env("PATH", path);
        }
        command.finish("")
    }

    /// Unpacks it; a file's text.
    fn unpacked(&self) -> impl Fn(&str) -> String {
        let to = self.dir.file("unpacked");
        fs::create_dir(&to).unwrap();
        Command::new(tool("tar")).args(["-xf", &self.dir.file("b.tar"), "-C", &to]).finish("").ok();
        move |name: &str| {
            let path = Path::new(&to).join("viproute-bundle").join(name);
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        }
    }
}

#[test]
fn it_has_what_a_bug_report_needs_and_no_secret() {
    let scene = Scene::new();
    let said = scene.bundle(None).ok();
    assert!(said.starts_with(&scene.dir.file("b.tar")) && said.contains("read it before you send it"), "{said}");
    let mode = fs::metadata(scene.dir.file("b.tar")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let read = scene.unpacked();
    let vip = scene.pod.vip().to_string();
    for (name, has) in [
        ("version.txt", viproute::VERSION),
        ("status.txt", "default/web"),
        ("status.json", "\"vip\": \"default/web\""),
        ("events.txt", "default/web"),
        ("doctor.txt", "cure: "),
        ("metrics.txt", "viproute_build_info"),
        ("healthz.txt", "ok"),
        ("ip/routes.txt", &vip),
        ("ip/rules.txt", "from all lookup"),
        ("ip/nexthops.txt", "proto 118"),
        ("ip/links.txt", "lo"),
        ("tc/qdiscs.txt", "clsact"),
        ("tc/filters.txt", "bpf"),
        ("networks/10-pods.conflist", "\"k8s_auth_token\":\"(blanked)\""),
        ("networks/20-notes.conf", "the value is (blanked)"),
        ("viprouted.toml", "# token = \"(blanked)\""),
        ("registry/vips/default_web/vip.json", "schema"),
        ("kernel/version.txt", "Linux version"),
        ("missing.txt", "networks/calico-token: left out: its name says that it is a secret"),
    ] {
        let text = read(name);
        assert!(text.contains(has), "{name} lacks {has:?}:\n{text}");
    }
    let whole = fs::read(scene.dir.file("b.tar")).unwrap();
    let planted = b"planted-in-";
    assert!(!whole.windows(planted.len()).any(|bytes| bytes == planted), "a secret is in the tar");
    let again = scene.bundle(None);
    assert!(again.stderr.contains("File exists"), "no file is overwritten: {again:?}");
}

/// viprouted is stopped, and a program and its child never end.
#[test]
fn it_ends_whatever_hangs() {
    let scene = Scene::new();
    let bin = scene.dir.file("bin");
    fs::create_dir(&bin).unwrap();
    let marker = "1000000117";
    fs::write(format!("{bin}/tc"), format!("#!/bin/sh\necho begun\nsleep {marker} &\nsleep {marker}\n")).unwrap();
    fs::set_permissions(format!("{bin}/tc"), fs::Permissions::from_mode(0o755)).unwrap();
    scene.sidecar.daemon.freeze();
    let begin = Instant::now();
    scene.bundle(Some(&format!("{bin}:{}", std::env::var("PATH").unwrap()))).ok();
    let took = begin.elapsed();
    scene.sidecar.daemon.thaw();
    assert!(took < scaled(Duration::from_secs(20)), "{took:?}");
    let read = scene.unpacked();
    let missing = read("missing.txt");
    for line in
        ["tc/qdiscs.txt: it did not end within 10 s\n", "metrics.txt: viprouted can't be reached at ", "events.txt: "]
    {
        assert!(missing.contains(line), "no {line:?} in\n{missing}");
    }
    assert!(read("tc/qdiscs.txt").contains("begun") && read("doctor.txt").contains("viprouted"));
    let sleeping = Command::new(tool("pgrep")).args(["-fx", &format!("sleep {marker}")]).finish("");
    assert_eq!(sleeping.stdout, "", "what it started is ended with it");
}

#[test]
fn it_is_made_without_viprouted() {
    let scene = Scene::new();
    let Scene { dir, pod: _pod, sidecar, node, _lan } = scene;
    let (socket, metrics) = (node.socket(), node.metrics());
    sidecar.stop();
    let begin = Instant::now();
    let mut command = node.ns.cmd(VIPROUTECTL);
    command.args(["--data-dir", &node.data(), "--allocator", &socket, "bundle", &dir.file("b.tar")]);
    command.args(["--config", &node.dir.file("viprouted.toml")]).finish("").ok();
    assert!(begin.elapsed() < scaled(Duration::from_secs(20)), "{:?}", begin.elapsed());
    let listed =
        Command::new(tool("tar")).args(["-xOf", &dir.file("b.tar"), "viproute-bundle/missing.txt"]).finish("").ok();
    for line in [
        "events.txt: it ended with exit status 1".to_owned(),
        format!("metrics.txt: viprouted can't be reached at {metrics}"),
    ] {
        assert!(listed.contains(&line), "no {line:?} in\n{listed}");
    }
    let status =
        Command::new(tool("tar")).args(["-xOf", &dir.file("b.tar"), "viproute-bundle/events.txt"]).finish("").ok();
    assert!(status.contains(&format!("viprouted can't be reached at {socket}")), "{status}");
}
