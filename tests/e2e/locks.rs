//! Locks that are held for too long, and loops that hang: both are named, and nothing waits for ever.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Daemon, Join, Lan, Node, Pod, Run, Sidecar, connect, get, serve_all, until};

const POOL: &str = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";
/// For so long a call waits for locks.
const WAITS: Duration = Duration::from_secs(8);
const LONG: Duration = Duration::from_secs(60);

fn web() -> Join {
    Join::annotated("web")
}

/// Whether that process holds the lock of that file.
fn holds(pid: u32, path: &str) -> bool {
    let inode = fs::metadata(path).expect("a lock file").ino();
    let locks = fs::read_to_string("/proc/locks").expect("/proc/locks");
    let is_it = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words[1] == "FLOCK" && words[4] == pid.to_string() && words[5].ends_with(&format!(":{inode}"))
    };
    locks.lines().any(is_it)
}

/// Has viprouted repair the VIP again and again, until it is stopped while it holds the VIP's lock.
fn stop_with_lock(node: &Node, sidecar: &Sidecar, pod: &Pod, lock: &str) {
    let (pid, vip) = (sidecar.daemon.pid(), pod.vip());
    until("viprouted is stopped while it holds the VIP's lock", LONG, || {
        node.ns.cmd("ip").args(["route", "del", &vip.to_string(), "proto", "118"]).finish("");
        let begun = Instant::now();
        while !holds(pid, lock) {
            if begun.elapsed() > Duration::from_secs(6) {
                return None;
            }
        }
        sidecar.daemon.signal(Signal::SIGSTOP);
        // It may have let go of it before the signal.
        std::thread::sleep(Duration::from_millis(20));
        if holds(pid, lock) {
            return Some(());
        }
        sidecar.daemon.signal(Signal::SIGCONT);
        None
    });
}

#[test]
fn a_call_does_not_wait_for_a_stopped_viprouted_for_ever() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::start(&node, POOL);
    let pods = [node.joined(&web()), node.joined(&web())];
    let lock = format!("{}/vips/default_web/lock", node.data());
    stop_with_lock(&node, &sidecar, &pods[0], &lock);
    for (verb, pod) in [("CHECK", &pods[0]), ("DEL", &pods[1])] {
        let begun = Instant::now();
        let failure = node.call(verb, pod, &web()).error();
        let waited = begun.elapsed();
        assert_eq!(failure.code, 11, "{verb}: {failure:?}");
        let holder = format!("viprouted (pid {}, which is stopped", sidecar.daemon.pid());
        assert!(failure.msg.contains(&holder) && failure.msg.contains(&lock), "{verb}: {failure:?}");
        assert!(waited >= WAITS && waited < WAITS * 2, "{verb} took {waited:?}");
    }
    sidecar.daemon.signal(Signal::SIGCONT);
    until("all is well again", LONG, || node.check(&pods[0], &web()).succeeded().then_some(()));
    node.remove(&pods[1], &web());
}

/// A call that hangs holds its attachment's lock, and perhaps its VIP's: viprouted reconciles everything else.
#[test]
fn viprouted_does_not_wait_for_a_lock_for_ever() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::start(&node, POOL);
    let (held, other) = (node.joined(&web()), node.joined(&Join::annotated("api")));
    let lock = fs::File::open(format!("{}/vips/default_web/lock", node.data())).expect("a lock file");
    lock.lock().expect("the lock");
    let delete = |pod: &Pod| node.ns.ip(&format!("route del {} proto 118 metric 0", pod.vip()));
    let is_back = |pod: &Pod| node.ns.ip(&format!("route show {}", pod.vip())).contains("nhid").then_some(());
    delete(&held);
    delete(&other);
    until("the other VIP is repaired", LONG, || is_back(&other));
    until("the lock's holder is named", LONG, || {
        sidecar.daemon.log().contains(&format!("(pid {})", std::process::id())).then_some(())
    });
    assert!(is_back(&held).is_none(), "it is locked");
    assert_eq!(get(&node, "/healthz").status, 200);
    drop(lock);
    until("it is repaired afterwards", LONG, || is_back(&held));
    let pods = [held];
    let _servers = serve_all(&pods);
    connect(&lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]), pods[0].vip(), 10);
}

/// Threads that only work when they are asked to give a sign of life all the same.
#[test]
fn a_thread_that_no_longer_takes_jobs_is_named() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::start(&node, POOL);
    let _pod = node.joined(&web());
    assert_eq!(get(&node, "/healthz").status, 200);
    let _frozen = ["leases", "routes"].map(|name| {
        let tid = thread(sidecar.daemon.pid(), name).to_string();
        let freeze = ["-o", "/dev/null", "-p", &tid, "--trace=futex", "--inject=futex:delay_enter=300s"];
        let mut strace = node.ns.cmd("strace");
        Daemon::start(name, strace.args(freeze), &node.dir)
    });
    for named in ["the lease files' writer has not turned for ", "the reader of routes has not turned for "] {
        until("it is named", LONG, || get(&node, "/healthz").body.contains(named).then_some(()));
    }
}

/// A thread of that process by name.
fn thread(pid: u32, name: &str) -> u32 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process's threads").flatten();
    let found = tasks
        .map(|task| task.path())
        .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name));
    let path = found.unwrap_or_else(|| panic!("viprouted has no thread {name}"));
    path.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a thread's id")
}

#[test]
fn a_loop_that_stands_still_is_named() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::start(&node, POOL);
    let _pod = node.joined(&web());
    assert_eq!(get(&node, "/healthz").status, 200);
    // Its next wait takes a minute to begin.
    let tid = thread(sidecar.daemon.pid(), "reconcile").to_string();
    let freeze = ["-o", "/dev/null", "-p", &tid, "--trace=poll", "--inject=poll:delay_enter=60s"];
    let mut strace = node.ns.cmd("strace");
    let strace = Daemon::start("strace", strace.args(freeze), &node.dir);
    let answer = until("it is named", LONG, || {
        let answer = get(&node, "/healthz");
        (answer.status != 200).then_some(answer)
    });
    assert!(answer.status == 503 && answer.body.starts_with("reconcile has not turned for "), "{answer:?}");
    assert!(!answer.body.contains("health"), "{answer:?}");
    drop(strace);
    until("it turns again", LONG * 2, || (get(&node, "/healthz").status == 200).then_some(()));
}
