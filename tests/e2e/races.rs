//! Calls at the same time: about one attachment, and about hundreds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{
    Daemon, Join, Lan, Node, Pod, PodServer, SOON, VIPROUTE, bare_pod, churn, connect, for_each, killed_after,
    nothing_left, until,
};

/// How long the churn lasts.
const CHURN: Duration = Duration::from_secs(10);
const ATTACHMENTS: usize = 200;
const VIPS: usize = 20;
const PROCESSES: usize = 16;

/// Two ADDs and a DEL of one attachment: whichever wins, it is attached whole or not at all.
#[test]
fn two_adds_and_a_del_of_one_attachment() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let join = Join::annotated("web");
    let survivor = node.joined(&join);
    let _server = PodServer::start(&survivor);
    let pod = node.pod();
    let before = (node.snapshot(&[&survivor, &pod]), node.brief());
    let (mut attached, mut twice) = (0, 0);
    for round in 0..60_u64 {
        let replies: Vec<_> = thread::scope(|scope| {
            let call = |verb: &'static str, delay| {
                let (node, pod, join) = (&node, &pod, &join);
                scope.spawn(move || {
                    thread::sleep(Duration::from_micros(delay));
                    node.call(verb, pod, join)
                })
            };
            let calls = [call("ADD", 0), call("ADD", 700 * (round % 5)), call("DEL", 500 * (round % 23))];
            calls.map(|one| one.join().expect("a call")).into()
        });
        replies[2].ok();
        for add in &replies[..2] {
            if add.succeeded() {
                attached += 1;
                *pod.result.lock().unwrap() = Some(add.ok());
            } else {
                let error = add.error();
                // Attached already, or about to be; or its device is in the way just before a DEL takes it.
                assert!([100, 101].contains(&error.code), "{error:?}");
                twice += 1;
            }
        }
        let links = node.ns.ip("-brief link");
        if links.matches("vip").count() == 2 {
            node.check(&pod, &join).ok();
            node.gc(&[&survivor, &pod], &join).ok();
            node.check(&pod, &join).ok();
            node.del(&pod, &join).ok();
        } else {
            node.gc(&[&survivor], &join).ok();
        }
        *pod.result.lock().unwrap() = None;
        if round % 6 == 5 || node.brief() != before.1 {
            before.0.assert_same(&node.snapshot(&[&survivor, &pod]), "two ADDs and a DEL");
        }
        connect(&node.ns, survivor.vip(), 1);
    }
    assert!(attached > 20 && twice > 20, "{attached} attached, {twice} refused: no race worth the name");
}

/// A pod of the churn. Its lock is held by who works on it.
struct Churned {
    pod: Pod,
    join: Join,
    attached: Mutex<bool>,
    _server: PodServer,
}

#[test]
fn two_hundred_attachments_over_twenty_vips() {
    let length = churn(CHURN);
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pods = for_each(1..ATTACHMENTS + 1, |number| {
        let pod = bare_pod(number);
        let server = PodServer::start(&pod);
        let join = Join::annotated(&format!("vip-{}", number % VIPS));
        Churned { pod, join, attached: Mutex::new(false), _server: server }
    });
    let (calls, kills, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let end = Instant::now() + length;
    thread::scope(|scope| {
        let working: Vec<_> = (0..PROCESSES)
            .map(|_| {
                scope.spawn(|| {
                    while Instant::now() < end {
                        let churned = &pods[rand::random_range(0..pods.len())];
                        let Ok(mut attached) = churned.attached.try_lock() else { continue };
                        calls.fetch_add(1, Ordering::Relaxed);
                        *attached = turn(&node, churned, *attached, &kills);
                    }
                })
            })
            .collect();
        // A GC now and then, to which all of them are valid: it must not touch what is being made.
        let collecting = scope.spawn(|| {
            let all: Vec<_> = pods.iter().map(|churned| &churned.pod).collect();
            while !over.load(Ordering::Relaxed) {
                node.gc(&all, &Join::nothing()).ok();
                thread::sleep(Duration::from_millis(100));
            }
        });
        // The collector ends also where a worker has failed.
        let workers: Vec<_> = working.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.expect("a worker");
        }
        collecting.join().expect("the collector");
    });
    eprintln!("{length:?}: {} calls, {} of them killed", calls.into_inner(), kills.into_inner());
    let attached: Vec<_> = pods.iter().filter(|churned| *churned.attached.lock().unwrap()).collect();
    let valid: Vec<_> = attached.iter().map(|churned| &churned.pod).collect();
    node.gc(&valid, &Join::nothing()).ok();
    assert_exact(&node, &attached);
    for_each(0..attached.len(), |at| node.del(&attached[at].pod, &attached[at].join).ok());
    nothing_left(&node);
}

/// Attaches a pod or detaches it, one time in eight with a kill before it is done; returns whether it is attached now.
fn turn(node: &Node, churned: &Churned, attached: bool, kills: &AtomicUsize) -> bool {
    let (pod, join) = (&churned.pod, &churned.join);
    let verb = if attached { "DEL" } else { "ADD" };
    if rand::random_range(0..8) == 0 {
        let mut command = node.ns.cmd(VIPROUTE);
        node.environment(verb, pod, join).apply(&mut command);
        let delay = Duration::from_micros(rand::random_range(0..40_000));
        let killed = killed_after(&mut command, &node.stdin(verb, pod, join).to_string(), delay);
        kills.fetch_add(usize::from(killed), Ordering::Relaxed);
        // As a runtime that got no answer.
        node.del(pod, join).ok();
        *pod.result.lock().unwrap() = None;
        return false;
    }
    if attached {
        node.del(pod, join).ok();
        *pod.result.lock().unwrap() = None;
    } else {
        node.add(pod, join).ok();
    }
    !attached
}

/// Exactly these are attached, whole, and each serves its VIP.
fn assert_exact(node: &Node, attached: &[&Churned]) {
    let links = node.ns.ip("-brief link").matches("vip").count();
    assert_eq!(links, attached.len(), "host veths");
    for_each(0..attached.len(), |at| node.check(&attached[at].pod, &attached[at].join).ok());
    let mut vips = BTreeMap::<Ipv4Addr, BTreeSet<&String>>::new();
    for churned in attached {
        vips.entry(churned.pod.vip()).or_default().insert(&churned.pod.name);
    }
    assert_eq!(node.ns.ip_json("nexthop show proto 118 groups").len(), vips.len(), "groups");
    assert_eq!(node.ns.ip_json("nexthop show proto 118").len(), vips.len() + attached.len(), "nexthops");
    for (vip, replicas) in vips {
        let answering = connect(&node.ns, vip, 60).names;
        let strangers: Vec<_> = answering.keys().filter(|name| !replicas.contains(name)).collect();
        assert!(strangers.is_empty(), "{strangers:?} answer for {vip} of {replicas:?}");
        assert!(replicas.len() < 2 || answering.len() > 1, "one of {replicas:?} answers alone: {answering:?}");
    }
}

/// So many leave one VIP at once.
const LEAVING: usize = 24;

/// Calls that wait for a VIP's lock are carried out together: the group is written a few times, not once for each.
#[test]
fn many_that_leave_at_once_are_one_change_of_the_group() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let join = Join::annotated("web");
    let stays = node.joined(&join);
    let _server = PodServer::start(&stays);
    let pods: Vec<_> = (0..LEAVING).map(|_| node.joined(&join)).collect();
    let directory = std::path::Path::new(&node.data()).join("vips/default_web");
    let mut monitor = node.ns.cmd("ip");
    let monitor = Daemon::start("monitor", monitor.args(["monitor", "nexthop"]), &node.dir);
    let lock = File::open(directory.join("lock")).expect("the VIP's lock file");
    lock.lock().expect("the VIP's lock");
    thread::scope(|scope| {
        let calls: Vec<_> = pods.iter().map(|pod| scope.spawn(|| node.del(pod, &join))).collect();
        until("all calls wait", SOON, || {
            let waiting = directory.join(".intents").read_dir().map_or(0, Iterator::count);
            (waiting == LEAVING).then_some(())
        });
        drop(lock);
        for call in calls {
            call.join().expect("a call").ok();
        }
    });
    let vip = stays.vip();
    connect(&node.ns, vip, 20);
    // A group is a line with its members; the last one has one member.
    let log = until("the last change is told", SOON, || {
        let log = monitor.log();
        log.lines().rev().find(|line| line.contains(" group ")).is_some_and(|line| !line.contains('/')).then_some(log)
    });
    let changes = log.lines().filter(|line| line.contains(" group ")).count();
    assert!(changes <= LEAVING / 4, "{changes} changes of the group for {LEAVING} that left:\n{log}");
    assert_eq!(directory.join(".intents").read_dir().map_or(0, Iterator::count), 0);
    node.check(&stays, &join).ok();
    node.remove(&stays, &join);
    nothing_left(&node);
}
