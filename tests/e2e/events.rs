//! `viproutectl events`: what happened, by whomever.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Daemon, DhcpServer, Join, KEA_POOL, Lan, Node, PATIENCE, Run, SOON, Sidecar, until};

const VIPROUTECTL: &str = env!("CARGO_BIN_EXE_viproutectl");

fn web() -> Join {
    Join::annotated("web").namespace("shop")
}

fn command(node: &Node, arguments: &[&str]) -> Command {
    let mut command = node.ns.cmd(VIPROUTECTL);
    command.args(["--allocator", &node.socket(), "events"]).args(arguments);
    command
}

/// `<kind>: <text>` of each event about the VIP, the oldest first.
fn events(node: &Node, vip: &str) -> Vec<String> {
    let text = command(node, &["--output", "json", "--vip", vip]).finish("").ok();
    let line = |line: &str| {
        let event: Value = serde_json::from_str(line).expect("a JSON object a line");
        assert_eq!(event["vip"], vip);
        assert!(event["time"].as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 24), "{event}");
        format!("{}: {}", event["kind"].as_str().unwrap(), event["text"].as_str().unwrap())
    };
    text.lines().map(line).collect()
}

fn wait_for(node: &Node, vip: &str, wanted: &str, limit: Duration) {
    until(&format!("the event {wanted:?}"), limit, || {
        events(node, vip).iter().any(|event| event == wanted).then_some(())
    });
}

/// The replica drained as another process would.
fn drain(node: &Node, id: &str) {
    let endpoint = Path::new(&node.data()).join(format!("vips/shop_web/endpoints/{id}@eth0.json"));
    let text = fs::read_to_string(&endpoint).unwrap();
    let drained = text.replace("\"state\":\"ready\"", "\"state\":\"draining\"");
    assert_ne!(drained, text);
    fs::remove_file(endpoint.parent().unwrap().with_file_name("index.json")).unwrap();
    let new = endpoint.with_file_name(".new.tmp");
    fs::write(&new, drained).unwrap();
    fs::rename(new, endpoint).unwrap();
}

#[test]
fn the_life_of_a_replica() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let mut follower = Daemon::start("events", &mut command(&node, &["--follow"]), &node.dir);
    let pod = node.joined(&web());
    let other = node.joined(&Join::annotated("api"));
    let name = format!("shop/{}", pod.name);
    wait_for(&node, "shop/web", &format!("lease: {} is granted", pod.vip()), SOON);
    wait_for(&node, "shop/web", &format!("replica: {name} has joined and is ready"), SOON);
    drain(&node, &pod.id);
    wait_for(&node, "shop/web", &format!("replica: {name} is draining now"), SOON);
    node.remove(&pod, &web());
    wait_for(&node, "shop/web", &format!("replica: {name} has left"), SOON);
    until("the calls are told", SOON, || {
        let events = events(&node, "shop/web");
        let told = |verb| events.iter().any(|event| event.starts_with(&format!("call: {verb} of {name} took ")));
        (told("ADD") && told("DEL")).then_some(())
    });
    let bad = node.add(&node.pod(), &web().annotation("viproute.io/weight", "0")).error();
    assert_eq!(bad.code, 7);
    until("a failed call is told with its code and reason", SOON, || {
        let all = command(&node, &[]).finish("").ok();
        all.lines().any(|line| line.contains("failed with code 7") && line.contains("viproute.io/weight")).then_some(())
    });
    assert!(!events(&node, "default/api").is_empty() && events(&node, "shop/nobody").is_empty());
    until("who follows sees it come", SOON, || {
        follower.log().contains(&format!("shop/web: {name} has left")).then_some(())
    });
    assert!(follower.log().contains(&format!("default/api: {} is granted", other.vip())));
    assert!(!follower.ended());
}

#[test]
fn a_lease_that_is_lost_and_another_that_is_granted() {
    let lan = Lan::new();
    let mut server = DhcpServer::kea(&lan, 600, Some(KEA_POOL));
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    let pod = node.joined(&web());
    let former = pod.vip();
    wait_for(&node, "shop/web", &format!("lease: {former} is granted"), SOON);
    // Another server knows nothing of it: its NAK comes with the confirmation after a restart.
    server.stop();
    let _server = DhcpServer::kea(&lan, 600, Some("192.0.2.120 - 192.0.2.130"));
    sidecar.stop();
    let _sidecar = Sidecar::dhcp(&node, "");
    let now = until("the VIP has moved", PATIENCE, || {
        let vips = pod.vips();
        (vips.len() == 1 && vips[0] != former).then(|| vips[0])
    });
    wait_for(&node, "shop/web", &format!("lease: its replicas here serve {now} from now on"), SOON);
    let events = events(&node, "shop/web");
    assert!(events.iter().any(|event| event.starts_with("lease: ") && event.contains("lost")), "{events:?}");
    assert!(events.iter().any(|event| event.starts_with(&format!("lease: {now} is granted"))), "{events:?}");
}

#[test]
fn without_viprouted_it_says_so() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    for arguments in [&[] as &[&str], &["--follow"]] {
        let finished = command(&node, arguments).finish("");
        assert!(!finished.status.success() && finished.stderr.contains(&node.socket()), "{finished:?}");
    }
}
