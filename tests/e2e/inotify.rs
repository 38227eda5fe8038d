//! How viprouted is notified of changes in the registry: by one inotify instance, and by polling where the kernel
//! has none left.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::harness::{Join, Lan, Node, Run, Sidecar, VIPROUTECTL, connect, serve_all, until};

const POOL: &str = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";
const SOON: Duration = Duration::from_secs(15);

fn web() -> Join {
    Join::annotated("web")
}

/// Descriptors of inotify instances that a process has.
fn instances(pid: u32) -> usize {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process's descriptors");
    let is_inotify = |path: &Path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("inotify"));
    fds.flatten().filter(|fd| is_inotify(&fd.path())).count()
}

#[test]
fn one_instance_does_for_all_subsystems() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::start(&node, POOL);
    let _pod = node.joined(&web());
    assert_eq!(instances(sidecar.daemon.pid()), 1);
}

/// The same as on any node, but a second later.
fn works_by_polling(call: &str, errno: &str, setting: &str) {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let (log, inject) = (node.dir.file("strace.log"), format!("--inject={call}:error={errno}"));
    let trace = format!("--trace={call}");
    // Beside viprouted, which then is the process that the test ends.
    let sidecar = Sidecar::run_by("strace", &["-D", "-f", "-o", &log, &trace, &inject], &node, POOL);
    let pods = [node.joined(&web()), node.joined(&web())];
    let (vip, _servers) = (pods[0].vip(), serve_all(&pods));
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    until("what is deleted comes back", SOON, || {
        node.ns.cmd("ip").args(["route", "del", &vip.to_string(), "proto", "118"]).finish("");
        until("the route is back", SOON, || node.ns.ip(&format!("route show {vip}")).contains("nhid").then_some(()));
        Some(())
    });
    connect(&client, vip, 20);
    until("each replica's coming is an event", SOON, || {
        let events = node.ns.cmd(VIPROUTECTL).args(["--allocator", &node.socket(), "events"]).finish("").ok();
        (events.matches("has joined").count() == 2).then_some(())
    });
    let table = || node.ns.cmd("nft").args(["list", "table", "ip", "viproute"]).finish("").stdout;
    until("its traffic isn't tracked", SOON, || table().contains(&vip.to_string()).then_some(()));
    for pod in &pods {
        node.remove(pod, &web());
    }
    until("nothing of it is left", SOON, || table().is_empty().then_some(()));
    let said = sidecar.daemon.log().lines().filter(|line| line.contains(setting)).count();
    assert_eq!(said, 1, "{}", sidecar.daemon.log());
    let status = sidecar.ask(&json!({ "status": {} }));
    let problem = status["problems"][0].as_str().unwrap_or_default().to_owned();
    assert!(problem.contains(&format!("sysctl -w {setting}=")), "{status}");
}

#[test]
fn without_an_instance_the_registry_is_polled() {
    works_by_polling("inotify_init1", "EMFILE", "fs.inotify.max_user_instances");
}

#[test]
fn without_a_watch_the_registry_is_polled() {
    works_by_polling("inotify_add_watch", "ENOSPC", "fs.inotify.max_user_watches");
}
