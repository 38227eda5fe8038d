//! `viproutectl status`: what a person sees, once or again and again; completions and manual pages.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::FromRawFd;
use std::process::{Command, Stdio};
use std::ptr::{null, null_mut};

use serde_json::{Value, json};

use crate::harness::{Join, Lan, Node, Run, Sidecar, TempDir, VIPROUTE, VIPROUTECTL, connect, serve_all, tool};

fn status(node: &Node, output: &str) -> String {
    node.ctl().args(["status", "--output", output]).finish("").ok()
}

fn report(node: &Node) -> Value {
    serde_json::from_str(&status(node, "json")).expect("status --output json is JSON")
}

fn sum(replicas: &Value, key: &str) -> f64 {
    replicas.as_array().unwrap().iter().map(|replica| replica[key].as_f64().expect(key)).sum()
}

#[test]
fn status_shows_replicas_shares_and_packets() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let web = Join::annotated("web").namespace("shop");
    let pods = [node.joined(&web), node.joined(&web), node.joined(&web)];
    let _servers = serve_all(&pods);
    let before = report(&node);
    assert_eq!(before["problems"], json!([]));
    let vip = &before["vips"][0];
    assert_eq!((&vip["vip"], &vip["state"], &vip["ready"]), (&json!("shop/web"), &json!("serving"), &json!(3)));
    assert_eq!(vip["address"], json!(pods[0].vip().to_string()));
    for (replica, pod) in vip["replicas"].as_array().unwrap().iter().zip(&pods) {
        assert_eq!(replica["pod"], json!(format!("shop/{}", pod.name)));
        assert_eq!(replica["address"], json!(pod.address().to_string()));
        assert_eq!(replica["state"], "ready");
        let share = replica["buckets"].as_f64().unwrap();
        assert!((0.33..0.34).contains(&share), "a third of the buckets: {replica}");
    }
    assert!((sum(&vip["replicas"], "buckets") - 1.0).abs() < 1e-9, "the shares are the whole: {vip}");
    connect(&client, pods[0].vip(), 100);
    let after = report(&node);
    for direction in ["packets_in", "packets_out"] {
        let (old, new) = (&vip["replicas"], &after["vips"][0]["replicas"]);
        // A connection has at least a SYN, a request and a FIN one way, and their answers the other.
        assert!(sum(new, direction) - sum(old, direction) >= 300.0, "{direction} of 100 connections: {old} {new}");
        for (old, new) in old.as_array().unwrap().iter().zip(new.as_array().unwrap()) {
            assert!(new[direction].as_u64() > old[direction].as_u64(), "{direction}: {old} {new}");
        }
    }
    let table = status(&node, "table");
    let mut lines = table.lines();
    assert!(lines.next().unwrap().trim_start().starts_with("VIP"), "{table}");
    for pod in &pods {
        let line = lines.next().unwrap_or_else(|| panic!("a line for each replica:\n{table}"));
        for cell in [format!("shop/{}", pod.name), pod.address().to_string(), "ready".into(), "33.".into()] {
            assert!(line.contains(&cell), "{cell} in {line:?}");
        }
    }
    assert!(table.contains("shop/web") && table.contains(&pods[0].vip().to_string()), "{table}");
}

#[test]
fn status_tells_what_is_wrong() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.joined(&Join::annotated("web"));
    node.ns.ip(&format!("route del {} proto 118 metric 0", pod.vip()));
    node.stop_allocator();
    let report = report(&node);
    assert_eq!(report["vips"][0]["state"], "degraded");
    let problems = report["problems"].to_string();
    assert!(problems.contains(&node.socket()), "the allocator that can't be asked: {problems}");
}

/// Its routes are as they are to be, and nobody gets there.
#[test]
fn status_names_what_goes_before_a_vips_route() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pods = ["web", "api", "dns", "ldap"].map(|name| node.joined(&Join::annotated(name)));
    node.ns.ip("route add default via 192.0.2.254 table 4711");
    node.ns.ip("rule add to 10.118.0.0/16 lookup 4711 priority 100");
    let found = report(&node);
    let states: Vec<_> = found["vips"].as_array().unwrap().iter().map(|vip| vip["state"].clone()).collect();
    assert_eq!(states, ["diverted"; 4]);
    let problems: Vec<_> = found["problems"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let [problem] = problems[..] else { panic!("one cause: {problems:?}") };
    assert!(problem.contains("and 1 more VIPs: rule 100 takes their packets to table 4711"), "{problem}");
    assert!(pods.iter().any(|pod| problem.contains(&pod.vip().to_string())), "{problem}");
    node.ns.ip("rule del priority 100");
    let found = report(&node);
    assert_eq!((&found["vips"][0]["state"], &found["problems"]), (&json!("serving"), &json!([])));
}

#[test]
fn status_of_a_node_without_vips() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    assert_eq!(report(&node), json!({ "vips": [], "problems": [] }));
    assert_eq!(status(&node, "table").lines().count(), 1, "the head alone");
}

#[test]
fn status_shows_leases() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let web = Join::annotated("web");
    let pod = node.joined(&web);
    let lease =
        |report: &Value| ["state", "expires", "error", "claimed_by"].map(|key| report["vips"][0]["lease"][key].clone());
    let bound = [json!("bound"), Value::Null, Value::Null, Value::Null];
    assert_eq!(lease(&report(&node)), bound);
    node.remove(&pod, &web);
    let held = report(&node);
    assert_eq!((&held["vips"][0]["state"], lease(&held)), (&json!("idle"), bound));
    assert!(held["vips"][0]["lease"]["held_until"].is_u64(), "for nobody: {held}");
    // Of the ten that `hold` is by default.
    let table = status(&node, "table");
    assert!(table.contains("held 9 min") || table.contains("held 10 min"), "{table}");
}

fn watching(node: &Node, output: &str) -> Command {
    let mut command = node.ctl();
    command.args(["status", "--watch", "--output", output]);
    command.dies_with_us();
    command
}

/// For programs: an object a line. It ends when its reader does.
#[test]
fn status_again_and_again() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let mut child = watching(&node, "json").stdout(Stdio::piped()).spawn().expect("start viproutectl");
    let mut lines = BufReader::new(child.stdout.take().expect("its stdout")).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("JSON") };
    assert_eq!(next()["vips"], json!([]));
    let _pod = node.joined(&Join::annotated("web"));
    while next()["vips"][0]["vip"] != "default/web" {}
    drop(lines);
    assert!(child.wait().expect("its end").success());
}

/// For people: drawn over in place, on a screen that is left as it is.
#[test]
fn status_on_a_terminal() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let _pod = node.joined(&Join::annotated("web"));
    let (mut main, mut terminal) = (0, 0);
    // SAFETY: both descriptors are on this stack; no name, settings or size is asked for.
    let opened = unsafe { libc::openpty(&raw mut main, &raw mut terminal, null_mut(), null(), null()) };
    assert_eq!(opened, 0, "openpty: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptors have just been made, and belong to nothing else.
    let (mut main, terminal) = unsafe { (File::from_raw_fd(main), File::from_raw_fd(terminal)) };
    let mut child = watching(&node, "table").stdout(terminal).spawn().expect("start viproutectl");
    let mut shown = String::new();
    while shown.matches("\x1b[H").count() < 3 {
        let mut buffer = [0; 4096];
        let length = main.read(&mut buffer).expect("what is on the terminal");
        shown.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    child.kill().expect("end it");
    child.wait().expect("its end");
    assert!(shown.contains("default/web") && shown.contains("\x1b[K\r\n"), "{shown:?}");
    let controls: std::collections::BTreeSet<_> =
        shown.split('\x1b').skip(1).filter_map(|rest| rest.chars().nth(1)).collect();
    assert_eq!(controls, "HJK".chars().collect(), "nothing that would have to be put back: {shown:?}");
}

#[test]
fn all_binaries_are_of_one_version() {
    let version = |program: &str| Command::new(program).arg("--version").finish("").ok();
    let of = |name: &str| version(VIPROUTE).replacen("viproute", name, 1);
    assert!(version(VIPROUTE).starts_with(&format!("viproute {} (flow owner ", viproute::RELEASE)));
    assert_eq!(version(VIPROUTECTL), of("viproutectl"));
    assert_eq!(version(env!("CARGO_BIN_EXE_viprouted")), of("viprouted"));
}

/// Two builds of one release are told apart by their commits.
#[test]
fn a_version_names_its_commit() {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        let safe = concat!("safe.directory=", env!("CARGO_MANIFEST_DIR"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-c", safe]).args(arguments).finish("")
    };
    let number = env!("CARGO_PKG_VERSION");
    let tagged = git(&["describe", "--exact-match", "--tags", "--match", &format!("v{number}")]).status.success();
    let id = git(&["rev-parse", "HEAD"]);
    if id.status.success() && !tagged {
        assert_eq!(viproute::RELEASE, format!("{number}+g{}", &id.stdout[..12]));
    } else {
        // Sources that were unpacked, or a release.
        assert_eq!(viproute::RELEASE.split('+').next(), Some(number));
    }
}

#[test]
fn a_shell_completes_verbs() {
    let script = r#"
        eval "$("$1" completions bash)"
        COMP_WORDS=(viproutectl und) COMP_CWORD=1
        _viproutectl viproutectl und viproutectl
        echo "${COMPREPLY[@]}"
    "#;
    let said = Command::new(tool("bash")).args(["-euc", script, "bash", VIPROUTECTL]).finish("").ok();
    assert_eq!(said, "undrain\n");
    for shell in ["zsh", "fish"] {
        let script = Command::new(VIPROUTECTL).args(["completions", shell]).finish("").ok();
        assert!(script.contains("doctor"), "{shell}: {script}");
    }
}

#[test]
fn manual_pages_say_what_the_program_does() {
    let dir = TempDir::new();
    Command::new(VIPROUTECTL).arg("man").arg(dir.path()).finish("").ok();
    let page = |name: &str| std::fs::read_to_string(dir.file(name)).expect(name);
    for (name, text) in [
        ("viprouted.8", "/etc/viproute/viprouted.toml"),
        ("viproutectl.8", "viproutectl\\-undrain(8)"),
        ("viproutectl-drain.8", "Wait until its last connection"),
        ("viproutectl-doctor.8", "3 where there are warnings, 4"),
        ("viproutectl-probe.8", "healthz"),
        ("viproutectl-status.8", "\\fBPOD ADDRESS\\fR\nThe pod's own address."),
        ("viproutectl-status.8", "\\fBdraining\\fR\nIt keeps the connections it has"),
        ("viproutectl-status.8", "\\fBselecting\\fR\nAn address is being asked for."),
        ("viprouted.8", "\\fBSIGTERM, SIGINT\\fR\n"),
        ("viprouted.8", "\\fB/var/lib/viproute\\fR\nLeases (state_dir)"),
    ] {
        assert!(page(name).starts_with(".ie") && page(name).contains(text), "{name}: {}", page(name));
    }
    assert!(!dir.path().join("viproutectl-man.8").exists(), "it is nobody's business");
    for (name, text) in [
        ("viproute.8", "\\fBviproute.io/vip, VIPROUTE_VIP\\fR\nThe VIP's name"),
        ("viprouted.toml.5", "viprouted.toml \\- the configuration of viprouted"),
    ] {
        assert!(page(name).starts_with(".TH") && page(name).contains(text), "{name}: {}", page(name));
    }
}

/// Every key of the configuration is in viprouted's manual page, and man reads the pages without a complaint.
#[test]
fn the_manual_has_the_configuration() {
    let dir = TempDir::new();
    Command::new(VIPROUTECTL).arg("man").arg(dir.path()).finish("").ok();
    let page = std::fs::read_to_string(dir.file("viprouted.8")).unwrap();
    let conf = include_str!("../../conf/viprouted.toml");
    let keys = conf.lines().filter_map(|line| line.trim_start_matches("#: ").split_once('='));
    for key in keys.map(|(key, _)| key.trim()).filter(|key| !key.is_empty() && !key.contains(' ')) {
        assert!(page.contains(key), "{key} is not in the manual page");
    }
    let written = page.lines().filter(|line| line.starts_with('.')).all(|line| {
        [".TH", ".SH", ".TP", ".PP", ".nf", ".fi", ".br", ".ie", ".el", ".RS", ".RE"]
            .iter()
            .any(|m| line.starts_with(m))
    });
    assert!(written, "a line that man would take for a request: {page}");
}

/// What conf/daemonset.yaml has the kubelet call.
#[test]
fn a_probe_asks_on_the_unix_socket() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let probe = |question: &str| {
        let mut command = node.ns.cmd(VIPROUTECTL);
        command.args(["probe", question, "--config", &node.dir.file("viprouted.toml")]).finish("")
    };
    assert_eq!(probe("healthz").ok(), "ok\n");
    assert_eq!(probe("readyz").ok(), "ok\n");
    sidecar.stop();
    let dead = probe("healthz");
    assert!(dead.status.code() == Some(1) && dead.stderr.contains(&node.metrics()), "{dead:?}");
    let yaml = include_str!("../../conf/daemonset.yaml");
    let config = "--config, /etc/viproute-config/viprouted.toml";
    assert!(yaml.contains(&format!("command: [/usr/local/bin/viprouted, {config}, --node, $(NODE_NAME)]")));
    for question in ["healthz", "readyz"] {
        let command = format!("exec: {{ command: [/usr/local/bin/viproutectl, probe, {question}, {config}] }}");
        assert!(yaml.contains(&command), "{command}");
    }
    assert!(!yaml.contains("httpGet"));
}
