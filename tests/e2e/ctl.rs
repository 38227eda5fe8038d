//! `viproutectl status`: what a person sees, once or again and again; completions and manual pages.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::FromRawFd;
use std::process::{Command, Stdio};
use std::ptr::{null, null_mut};

use serde_json::{Value, json};

use crate::harness::{Join, Lan, Node, Run, Sidecar, TempDir, VIPROUTE, VIPROUTECTL, connect, serve_all, tool};

fn status(node: &Node, output: &str) -> String {
    let mut command = node.ns.cmd(VIPROUTECTL);
    command.args(["--data-dir", &node.data(), "--allocator", &node.socket(), "status", "--output", output]);
    command.finish("").ok()
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
    let lease = |state: &str| json!({ "state": state, "expires": null, "error": null });
    let served = report(&node);
    assert_eq!(served["vips"][0]["lease"], lease("held"));
    node.remove(&pod, &web);
    let held = report(&node);
    assert_eq!((&held["vips"][0]["state"], &held["vips"][0]["lease"]), (&json!("idle"), &lease("held")));
    assert!(status(&node, "table").contains("for ever"));
}

fn watching(node: &Node, output: &str) -> Command {
    let mut command = node.ns.cmd(VIPROUTECTL);
    command.args(["--data-dir", &node.data(), "--allocator", &node.socket(), "status", "--watch", "--output", output]);
    command.dies_with_us();
    command
}

/// For programs: an object a line. It ends when nobody reads any more.
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
    // SAFETY: the descriptors have just been made, and are nobody else's.
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
    assert!(version(VIPROUTE).starts_with(concat!("viproute ", env!("CARGO_PKG_VERSION"), " (flow owner ")));
    assert_eq!(version(VIPROUTECTL), of("viproutectl"));
    assert_eq!(version(env!("CARGO_BIN_EXE_viprouted")), of("viprouted"));
}

#[test]
fn a_shell_completes_verbs() {
    let script = r#"
        eval "$("$1" completions bash)"
        COMP_WORDS=(viproutectl un) COMP_CWORD=1
        _viproutectl viproutectl un viproutectl
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
    ] {
        assert!(page(name).starts_with(".ie") && page(name).contains(text), "{name}: {}", page(name));
    }
    assert!(!dir.path().join("viproutectl-man.8").exists(), "it is nobody's business");
}
