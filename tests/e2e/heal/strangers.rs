//! Foreign objects, and orphans.

use std::thread;
use std::time::{Duration, Instant};

use super::{REPAIRED, Scene, restart};
use crate::harness::{Run, SOON, until};

/// Objects of others' near ours: in the pods and on the node, by our names, numbers and priorities, but not our protocol.
#[test]
fn what_is_anothers_stays() {
    let scene = Scene::new();
    let (node, pod) = (&scene.node.ns, &scene.pods[0].ns);
    node.ip("link add other type veth peer name other1");
    node.ip("link set other up");
    node.ip("link set other1 up");
    for (ns, arguments) in [
        (node, "route add 10.118.0.99/32 dev other proto static"),
        (node, "route add unreachable 10.118.0.98/32 metric 7 proto static"),
        (node, "nexthop add id 1996488999 dev other proto static"),
        (node, "nexthop add id 7 dev other proto static"),
        (node, "rule add pref 118 from 10.9.9.9 lookup 118"),
        (node, "route add 10.9.9.0/24 dev other table 118 proto static"),
        (node, "addr add 10.9.8.1/24 dev other"),
        (node, "neigh add 10.9.8.2 lladdr 02:00:00:00:00:01 dev other nud permanent"),
        (pod, "rule add pref 118 from 10.9.9.9 lookup 118"),
        (pod, "route add 10.9.9.0/24 dev vip0 table 118 proto static"),
        (pod, "neigh add 10.9.9.2 lladdr 02:00:00:00:00:01 dev vip0 nud permanent"),
    ] {
        ns.ip(arguments);
    }
    let before = scene.snapshot();
    let repairs = scene.repairs();
    // A full resync: twice by an event, once by a restart.
    node.ip(&format!("route del {} proto 118 metric 0", scene.vip));
    pod.ip(&format!("rule del from {} lookup 118", scene.vip));
    until("both are repaired", REPAIRED, || (scene.repairs() >= repairs + 2).then_some(()));
    let restarted = restart(scene);
    restarted.settles();
    before.assert_same(&restarted.snapshot(), "a look at everything");
}

/// A foreign object is where ours has to be: it stays, that is logged once, and no loop is kept busy. When it goes, ours
/// comes.
#[test]
fn what_is_in_the_way_is_told_once() {
    let scene = Scene::new();
    let (node, pod) = (&scene.node.ns, &scene.pods[0].ns);
    node.ip(&format!("route replace {} via 192.0.2.254 proto static", scene.vip));
    pod.ip("route replace default via 10.1.1.1 dev eth0 table 118 proto static");
    let told = |what: &str| {
        let log = scene.sidecar().daemon.log();
        log.lines().filter(|line| line.contains("repair failed") && line.contains(what)).count()
    };
    until("both are told", REPAIRED, || (told("add route 10.118") > 0 && told("table 118") > 0).then_some(()));
    thread::sleep(Duration::from_secs(4));
    assert_eq!((told("add route 10.118"), told("table 118")), (1, 1), "{}", scene.sidecar().daemon.log());
    assert!(!node.ip(&format!("route show {} proto static", scene.vip)).is_empty());
    node.ip(&format!("route del {} proto static", scene.vip));
    pod.ip("route del default table 118 proto static");
    // Tried every five seconds at the longest.
    scene.becomes_content("both are repaired");
}

/// The route is deleted as often as it is repaired.
#[test]
fn who_undoes_each_repair_is_not_fought() {
    let scene = Scene::new();
    let deadline = Instant::now() + Duration::from_secs(12);
    let (vip, group, mut deleted) = (scene.vip.to_string(), scene.group(), 0);
    while Instant::now() < deadline {
        let gone = scene.node.ns.cmd("ip").args(["route", "del", &vip, "nhid", &group]).finish("");
        deleted += usize::from(gone.status.success());
        thread::sleep(Duration::from_millis(20));
    }
    assert!((3..12).contains(&deleted), "repaired {deleted} times in 12 s");
    let log = scene.sidecar().daemon.log();
    assert_eq!(log.matches("undone each time: ").count(), 1, "{log}");
    scene.becomes_content("it is repaired");
}

/// Orphans: of protocol 118, or with our names, and in no record.
#[test]
fn what_belongs_to_nobody_goes() {
    let scene = Scene::new();
    let node = &scene.node.ns;
    let host_veth = scene.host_veth();
    for arguments in [
        "link add vip00000000000 type veth peer name stray1".to_owned(),
        "route add unreachable 10.118.0.77 metric 3 proto 118".to_owned(),
        format!("nexthop add id 1996500000 via 10.9.9.9 dev {host_veth} onlink proto 118"),
    ] {
        node.ip(&arguments);
    }
    until("strays are gone", SOON, || {
        let views = ["link show", "route show 10.118.0.77", "nexthop show proto 118"];
        let shown: String = views.iter().map(|view| node.ip(view)).collect();
        let strays = ["vip00000000000", "10.118.0.77", "1996500000"];
        (!strays.iter().any(|stray| shown.contains(stray))).then_some(())
    });
    scene.settles();
    scene.healthy.assert_same(&scene.snapshot(), "strays");
}
