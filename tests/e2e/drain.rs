//! `viproutectl drain` and `undrain`: no new connection, no live one broken, and waiting for the last.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Finished, Flows, Join, Lan, Node, PATIENCE, Pod, Run, Service, Storm, until};

fn viproutectl(node: &Node, arguments: &[&str]) -> Command {
    let mut command = node.ctl();
    command.args(arguments);
    command
}

fn run(node: &Node, arguments: &[&str]) -> Finished {
    viproutectl(node, arguments).finish("")
}

/// `drain --wait`, under way.
struct Waiting(Child);

impl Waiting {
    fn start(node: &Node, pod: &str) -> Self {
        let mut command = viproutectl(node, &["drain", pod, "--wait"]);
        Self(command.stdout(Stdio::null()).dies_with_us().spawn().expect("start viproutectl"))
    }

    /// Its exit status, once it has ended.
    fn ended(&mut self) -> Option<i32> {
        self.0.try_wait().expect("wait for viproutectl").map(|status| status.code().expect("an exit status"))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn state(node: &Node, pod: &Pod) -> String {
    record(node, pod)["state"].as_str().expect("a state").to_owned()
}

fn record_path(node: &Node, pod: &Pod) -> std::path::PathBuf {
    Path::new(&node.data()).join(format!("vips/default_web/endpoints/{}@eth0.json", pod.id))
}

fn record(node: &Node, pod: &Pod) -> Value {
    serde_json::from_str(&fs::read_to_string(record_path(node, pod)).expect("an endpoint")).expect("JSON")
}

/// Under 300 live connections and new ones without end.
#[test]
fn a_drained_replica_gets_no_new_connection_and_breaks_none() {
    let service = Service::new(3, 0);
    let (node, pod) = (&service.node, &service.pods[0]);
    let name = format!("default/{}", pod.name);
    let mut flows = service.flows(100);
    let held = flows.iter().map(|flows| flows.live()[pod.name.as_str()]).sum::<usize>();
    assert!(held > 50, "a third of 300: {held}");
    let storm = Storm::start(&service.client, service.vip, 400);
    assert!(storm.next(200).of(&pod.name) > 0, "it takes its share before");

    let mut waiting = Waiting::start(node, &name);
    // The record comes first.
    let nexthop = record(node, pod)["nexthop"].clone();
    until("the replica is out of the group", PATIENCE, || {
        let objects = node.ns.ip_json("nexthop");
        let mut members = objects.iter().flat_map(|object| object["group"].as_array().into_iter().flatten());
        (state(node, pod) == "draining" && members.all(|member| member["id"] != nexthop)).then_some(())
    });
    storm.next(100); // those that had begun before
    let after = storm.next(800);
    assert_eq!((after.of(&pod.name), after.failed), (0, Vec::<String>::new()));
    drop(storm);
    for flows in &mut flows {
        flows.ask();
    }
    for flows in &mut flows {
        flows.hear();
        assert_eq!(flows.complaint(&[]), None);
    }

    // It waits for the last of them.
    let status = run(node, &["drain", &name, "--wait", "--timeout", "1s"]);
    assert_eq!(status.status.code(), Some(3), "{status:?}");
    assert!(status.stderr.contains(&format!("{held} connections of {name} are left after 1 s")), "{status:?}");
    let last: Flows = flows.pop().expect("flows");
    let rest = last.live()[pod.name.as_str()];
    drop(flows);
    until("the others' connections are closed", PATIENCE, || {
        let left = run(node, &["drain", &name, "--wait", "--timeout", "0s"]).stderr;
        left.contains(&format!(" {rest} connections")).then_some(())
    });
    assert_eq!(waiting.ended(), None, "{rest} connections are left");
    drop(last);
    assert_eq!(until("drain --wait returns", PATIENCE, || waiting.ended()), 0);

    run(node, &["undrain", &name]).ok();
    assert_eq!(state(node, pod), "ready");
    let storm = Storm::start(&service.client, service.vip, 400);
    until("it has its share again", PATIENCE, || (storm.next(100).of(&pod.name) > 0).then_some(()));
}

/// A container that no pod is known of, as podman's; and without the sidecar.
#[test]
fn a_container_is_named_by_its_id() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let web = Join::listed(&["default/web"]);
    let mut pods = [node.pod(), node.pod()];
    for (pod, end) in pods.iter_mut().zip(["1", "2"]) {
        pod.id = format!("0123456789abcdef{end}");
        pod.name = String::new();
        node.add(pod, &web).ok();
    }
    node.stop_allocator();
    let refused = run(&node, &["drain", "0123456789"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("0123456789 stands for 2 containers"), "{refused:?}");
    run(&node, &["drain", &pods[1].id]).ok();
    assert_eq!([state(&node, &pods[0]), state(&node, &pods[1])], ["ready", "draining"]);
    // Again is no error, and there is nothing to wait for.
    run(&node, &["drain", &pods[1].id, "--wait"]).ok();
    run(&node, &["undrain", &pods[1].id]).ok();
    assert_eq!(state(&node, &pods[1]), "ready");
}

#[test]
fn nobody_of_that_name() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let empty = run(&node, &["drain", "default/p1"]);
    assert_eq!(empty.status.code(), Some(1));
    assert!(!Path::new(&node.data()).exists(), "asking makes no registry");
    let pod = node.joined(&Join::annotated("web"));
    for name in ["default/p2", "other/p1", "p1", "ffff", "default/"] {
        let refused = run(&node, &["drain", name]);
        assert_eq!(refused.status.code(), Some(1), "{name}: {refused:?}");
        assert!(refused.stderr.contains(&format!("no replica on this node is {name}:")), "{refused:?}");
    }
    assert_eq!(run(&node, &["drain", ""]).status.code(), Some(2));
    assert_eq!(run(&node, &["drain", "default/p1", "--timeout", "5m"]).status.code(), Some(2), "without --wait");
    assert_eq!(state(&node, &pod), "ready");
}

/// What its check has found isn't forgotten for nothing; once it was out, the check decides anew.
#[test]
fn a_replica_with_a_health_check_comes_back_by_its_check() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.joined(&Join::annotated("web"));
    let mut endpoint = record(&node, &pod);
    endpoint["health"] = json!("listen");
    fs::write(record_path(&node, &pod), endpoint.to_string()).expect("write an endpoint");
    let name = format!("default/{}", pod.name);
    run(&node, &["undrain", &name]).ok();
    assert_eq!(state(&node, &pod), "ready", "it was never taken out");
    run(&node, &["drain", &name]).ok();
    let said = run(&node, &["undrain", &name]).ok();
    assert!(said.contains("once its check finds that it can answer"), "{said}");
    assert_eq!(state(&node, &pod), "pending");
}

/// Every VIP of the pod; and one that is deleted while a `--wait` runs.
#[test]
fn all_its_vips_and_a_pod_that_goes() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let both = Join::annotated("web,api");
    let pod = node.joined(&both);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let server = crate::harness::PodServer::start(&pod);
    let flows: Vec<_> = pod.vips().into_iter().map(|vip| Flows::open("the client", &client, vip, 3)).collect();
    let mut waiting = Waiting::start(&node, &format!("default/{}", pod.name));
    until("it is out of both groups", PATIENCE, || {
        let routes = node.ns.ip_json("route show proto 118");
        routes.iter().all(|route| route["type"] == "unreachable").then_some(())
    });
    assert_eq!(waiting.ended(), None, "six connections are open");
    node.remove(&pod, &both);
    assert_eq!(until("drain --wait returns", PATIENCE, || waiting.ended()), 0);
    drop((flows, server));
}
