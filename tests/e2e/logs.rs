//! What viprouted logs, and how.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use crate::harness::{Daemon, Join, Lan, Node, SOON, Sidecar, until};

const POOL: &str = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";

#[test]
fn json_is_an_object_a_line() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::start(&node, &format!("log = \"json\"\nlog_level = \"trace\"\n{POOL}"));
    let _pod = node.joined(&Join::annotated("web"));
    // One more on the same state gives up, and says so in the same form.
    let mut second = node.ns.cmd(env!("CARGO_BIN_EXE_viprouted"));
    let mut second = Daemon::start("second", second.arg("--config").arg(node.dir.file("viprouted.toml")), &node.dir);
    until("the second one has ended", SOON, || second.ended().then_some(()));
    let (log, last) = (sidecar.daemon.log(), second.log());
    let mut granted = false;
    for line in log.lines().chain(last.lines()) {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry["timestamp"].is_string() && entry["level"].is_string(), "{line}");
        granted |= entry["fields"]["message"] == "granted" && entry["fields"]["vip"] == "default/web";
    }
    assert!(granted, "{log}");
    assert!(last.contains("\"ERROR\""), "{last}");
}

#[test]
fn text_has_times_and_what_the_level_lets_through() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::start(&node, POOL);
    let log = sidecar.daemon.log();
    assert!(log.contains(" INFO serving ") && log.starts_with("20") && !log.contains('\x1b'), "{log}");
    sidecar.stop();
    let before = fs::read_to_string(node.dir.file("viprouted.log")).unwrap().len();
    let sidecar = Sidecar::start(&node, &format!("log_level = \"error\"\n{POOL}"));
    assert_eq!(&sidecar.daemon.log()[before..], "");
}

/// The journal has times of its own, and takes each line's priority from its beginning.
#[test]
fn the_journal_gets_priorities() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::start(&node, POOL);
    // Stderr is this file, and systemd is said to have made it so.
    let journal = File::create(node.dir.file("journal.log")).unwrap().metadata().unwrap();
    let stream = format!("{}:{}", journal.dev(), journal.ino());
    let mut command = node.ns.cmd(env!("CARGO_BIN_EXE_viprouted"));
    command.arg("--config").arg(node.dir.file("viprouted.toml")).env("JOURNAL_STREAM", stream);
    let mut second = Daemon::start("journal", &mut command, &node.dir);
    until("the second one has ended", SOON, || second.ended().then_some(()));
    let log = second.log();
    assert!(!log.is_empty() && log.lines().all(|line| line.starts_with("<3>viprouted: ")), "{log}");
    // Where it leads elsewhere it is a log like any other.
    command.env("JOURNAL_STREAM", "1:1");
    let mut third = Daemon::start("elsewhere", &mut command, &node.dir);
    until("the third one has ended", SOON, || third.ended().then_some(()));
    assert!(third.log().starts_with("20"), "{}", third.log());
    drop(sidecar);
}

/// Its disk is full: what was to be logged is lost, and nothing else.
#[test]
fn a_log_that_cant_be_written_ends_nothing() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::run_by("sh", &["-c", "exec \"$0\" \"$@\" 2>/dev/full"], &node, POOL);
    let pod = node.joined(&Join::annotated("web"));
    node.del(&pod, &Join::annotated("web")).ok();
    sidecar.stop();
}
