//! Who writes what into a Service's status.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::with_web;
use crate::harness::{PATIENCE, until};

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
