//! `viproutectl status`: what a person sees.

use serde_json::{Value, json};

use crate::harness::{Join, Lan, Node, Run, Sidecar, connect, serve_all};

const VIPROUTECTL: &str = env!("CARGO_BIN_EXE_viproutectl");

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
