//! Who writes what into a Service's status.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::with_web;
use crate::bed::Deployment;
use crate::harness::{PATIENCE, PORT, until};

/// At first at once, then seldom; and an Event names it.
#[test]
fn a_second_writer_is_answered_and_named() {
    let (cluster, _web) = with_web(2);
    let (control, vip) = (&cluster.control, cluster.external("web"));
    let theirs = r#"{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.9"}]}}}"#;
    let write = || {
        let whose = ["--subresource=status", "--field-manager=rival", "--type=merge", "--patch", theirs];
        control.run(&[&["patch", "service", "web"], &whose[..]].concat());
    };
    write();
    let start = Instant::now();
    until("the first write is answered", PATIENCE, || (cluster.ingress("web") == Some(vip)).then_some(()));
    eprintln!("a second writer was answered after {:?}", start.elapsed());
    // It insists.
    let (mut ours, start) = (0, Instant::now());
    while start.elapsed() < Duration::from_secs(15) {
        write();
        sleep(Duration::from_millis(500));
        ours += u32::from(cluster.ingress("web") == Some(vip));
    }
    eprintln!("in 15 s of its writes, each half a second, the address was right {ours} times");
    assert!(ours <= 8, "one answer in 5 s, each of which is seen once or twice: {ours}");
    until("the last write is answered", PATIENCE, || (cluster.ingress("web") == Some(vip)).then_some(()));
    let named = || cluster.events("web").into_iter().find(|(_, note)| note.contains("rival"));
    eprintln!("{:?}", until("an Event names the other", PATIENCE, named));
    cluster.answer(vip, &cluster.pods("web"));
}

/// Its rights are enough, and while nothing changes it asks nothing.
#[test]
fn rights_are_enough_and_idleness_asks_nothing() {
    let (mut cluster, web) = with_web(2);
    // viprouted may have asked before there was a manifest.
    let before = cluster.control.asked().len();
    for worker in &mut cluster.workers {
        worker.restart_viprouted();
    }
    cluster.control.apply(&Deployment { name: "other", ..web }.service("LoadBalancer", &[(PORT, PORT)]));
    cluster.external("other");
    cluster.control.run(&["delete", "service", "other"]);
    until("it is no VIP any more", PATIENCE, || cluster.vip("default/other").is_none().then_some(()));
    sleep(Duration::from_secs(10));
    let asked = cluster.control.asked();
    let refused: Vec<_> = asked[before..].iter().filter(|entry| entry["responseStatus"]["code"] == 403).collect();
    assert!(refused.is_empty() && asked.len() > before, "of {}: {refused:?}", asked.len());
    sleep(Duration::from_secs(30));
    let idle: Vec<_> =
        cluster.control.asked().split_off(asked.len()).into_iter().filter(|entry| entry["verb"] != "watch").collect();
    assert_eq!(idle, [Value::Null; 0], "in 30 s in which nothing changed");
}
