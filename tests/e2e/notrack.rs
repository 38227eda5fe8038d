//! VIP traffic is kept out of the node's connection tracking, on a node where other people's rules need that.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::harness::{Crowd, Join, Lan, Netns, Node, PORT, Pod, Run, Sidecar, allow_many_files, connect, until};

const POOL: &str = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n";
const OFF: &str = "notrack = false\nbackend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n";
const CONNECTIONS: usize = 100_000;
const SOON: Duration = Duration::from_secs(30);

fn web() -> Join {
    Join::annotated("web")
}

/// A node whose firewall asks connection tracking about every packet, with two replicas.
struct Scene {
    _servers: Vec<Crowd>,
    pods: [Pod; 2],
    client: Netns,
    sidecar: Option<Sidecar>,
    node: Node,
    _lan: Lan,
    vip: Ipv4Addr,
}

impl Scene {
    fn new(settings: &str) -> Self {
        Self::with(settings, &[])
    }

    fn with(settings: &str, environment: &[(&str, &str)]) -> Self {
        // Connections that were reset wait for their server, which may be slower than all who connect.
        allow_many_files();
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        nft(
            &node,
            "table ip firewall {
                chain forward { type filter hook forward priority 0; ct state new counter; }
                chain output { type filter hook output priority 0; ct state new counter; }
            }",
        );
        let sidecar = Some(Sidecar::start_with(&node, settings, environment));
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let pods = [node.joined(&web()), node.joined(&web())];
        let servers = pods.iter().map(Crowd::start).collect();
        let vip = pods[0].vip();
        Self { _servers: servers, pods, client, sidecar, node, _lan: lan, vip }
    }

    fn log(&self) -> String {
        self.sidecar.as_ref().expect("a sidecar").daemon.log()
    }

    fn restart(&mut self, settings: &str) {
        drop(self.sidecar.take());
        self.sidecar = Some(Sidecar::start(&self.node, settings));
    }

    /// The table as nft shows it, with the kernel's numbers; empty if there is none.
    fn table(&self) -> String {
        let listed = self.node.ns.cmd("nft").args(["-a", "list", "table", "ip", "viproute"]).finish("");
        if listed.status.success() { listed.stdout } else { String::new() }
    }

    /// Until the set has exactly these.
    fn set_has(&self, vips: &[Ipv4Addr]) {
        let texts: Vec<String> = vips.iter().map(ToString::to_string).collect();
        until(&format!("the set has {texts:?}"), SOON, || {
            let table = self.table();
            let elements = table.split_once("elements = {")?.1.split_once('}')?.0;
            let mut found: Vec<&str> = elements.split(',').map(str::trim).collect();
            found.sort_unstable();
            (found == texts).then_some(())
        });
    }

    /// Entries of connection tracking that have to do with `address`.
    fn entries(&self, address: Ipv4Addr) -> usize {
        let all = self.node.ns.cmd("conntrack").arg("-L").finish("").ok();
        all.lines().filter(|line| line.contains(&format!("={address} "))).count()
    }
}

fn nft(node: &Node, commands: &str) {
    node.ns.cmd("nft").args(["-f", "-"]).finish(commands).ok();
}

/// Opens and resets `count` connections, some threads at once; each must be answered.
fn flood(ns: &Netns, vip: Ipv4Addr, count: usize) {
    const THREADS: usize = 8;
    // One that is reset has its port free at once; so many ports are needed as are in use.
    ns.set_sysctl("net/ipv4/ip_local_port_range", "1024 65535");
    let (to, next) = (SocketAddr::from((vip, PORT)), AtomicUsize::new(0));
    let work = || {
        while next.fetch_add(1, Ordering::Relaxed) < count {
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(30)).expect("a connection to the VIP");
            let now = libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream, sockopt::Linger, &now).expect("close by reset");
        }
    };
    ns.run(|| {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                thread.join().expect("connections");
            }
        });
    });
}

/// Meanwhile another VIP comes and goes: the first one is never out of the set.
#[test]
fn a_hundred_thousand_connections_leave_no_entry() {
    let mut scene = Scene::new(POOL);
    scene.set_has(&[scene.vip]);
    let other = scene.node.pod();
    thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&scene.client, scene.vip, CONNECTIONS));
        while !flood.is_finished() {
            scene.node.add(&other, &Join::annotated("api")).ok();
            scene.set_has(&[scene.vip, other.vip()]);
            scene.node.del(&other, &Join::annotated("api")).ok();
            scene.set_has(&[scene.vip]);
        }
        flood.join().expect("connections");
    });
    connect(&scene.node.ns, scene.vip, 20);
    connect(&other.ns, scene.vip, 20);
    assert_eq!(scene.entries(scene.vip), 0, "of {CONNECTIONS} connections and a few of the node's and a pod's");
    // The firewall does ask for them: without the table they are there.
    scene.restart(OFF);
    until("the table goes", SOON, || scene.table().is_empty().then_some(()));
    flood(&scene.client, scene.vip, 200);
    let entries = scene.entries(scene.vip);
    assert!(entries >= 200, "{entries} entries of 200 connections that are tracked");
    scene.restart(POOL);
    scene.set_has(&[scene.vip]);
}

#[test]
fn what_somebody_does_to_the_table_is_undone() {
    let scene = Scene::new(POOL);
    scene.set_has(&[scene.vip]);
    let faults = [
        "flush ruleset",
        "delete table ip viproute",
        "flush chain ip viproute prerouting",
        "delete element ip viproute vips { 10.118.0.1 }",
        "add element ip viproute vips { 192.0.2.77 }",
        "add rule ip viproute output accept",
        "add chain ip viproute input { type filter hook input priority 0; policy drop; }",
    ];
    let as_made = scene.table().lines().map(without_handle).collect::<Vec<_>>();
    for (done, fault) in faults.iter().enumerate() {
        nft(&scene.node, fault);
        until(&format!("{fault:?} is undone"), SOON, || {
            (scene.table().lines().map(without_handle).collect::<Vec<_>>() == as_made).then_some(())
        });
        until("it is told", SOON, || (scene.log().matches(": made anew").count() == done + 1).then_some(()));
    }
    connect(&scene.client, scene.vip, 20);
    assert_eq!(scene.entries(scene.vip), 0);
    // Other people's tables are their own affair.
    nft(&scene.node, "add table ip firewall\nadd chain ip firewall forward { type filter hook forward priority 0; }");
    let before = scene.table();
    until("other tables were looked past", SOON, || {
        nft(&scene.node, "add rule ip firewall forward counter");
        (scene.node.ns.cmd("nft").args(["list", "table", "ip", "firewall"]).finish("").ok().matches("counter").count()
            > 5)
        .then_some(())
    });
    assert_eq!(scene.table(), before);
}

fn without_handle(line: &str) -> String {
    line.split(" # handle").next().unwrap_or_default().to_owned()
}

/// Traffic goes on without viprouted; one that starts finds the table right and leaves it alone; it goes with the last VIP.
#[test]
fn the_table_lasts_as_long_as_there_are_vips() {
    let mut scene = Scene::new(POOL);
    scene.set_has(&[scene.vip]);
    let before = scene.table();
    scene.sidecar.take().expect("a sidecar").stop();
    flood(&scene.client, scene.vip, 200);
    assert_eq!((scene.table(), scene.entries(scene.vip)), (before.clone(), 0), "without viprouted");
    scene.restart(POOL);
    // It has looked at the registry, and so at the table, once it follows it.
    let api = scene.node.joined(&Join::annotated("api"));
    scene.set_has(&[scene.vip, api.vip()]);
    scene.node.remove(&api, &Join::annotated("api"));
    scene.set_has(&[scene.vip]);
    assert_eq!(scene.table(), before, "after a restart");
    for pod in &scene.pods {
        scene.node.remove(pod, &web());
    }
    until("nothing is left", SOON, || scene.table().is_empty().then_some(()));
    assert!(scene.node.ns.cmd("nft").args(["list", "tables"]).finish("").ok().contains("firewall"));
}

#[test]
fn without_nft_it_is_said_once_and_all_else_works() {
    let scene = Scene::with(POOL, &[("PATH", "/nonexistent")]);
    let api = scene.node.joined(&Join::annotated("api"));
    connect(&scene.client, scene.vip, 20);
    scene.node.check(&scene.pods[0], &web()).ok();
    scene.node.remove(&api, &Join::annotated("api"));
    until("it is said", SOON, || scene.log().contains("nft is not to be found").then_some(()));
    // Every change of the registry was a try.
    let late = scene.node.joined(&Join::annotated("late"));
    scene.node.remove(&late, &Join::annotated("late"));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.log().matches("nft is not to be found").count(), 1, "{}", scene.log());
    assert_eq!(scene.table(), "");
    assert!(scene.entries(scene.vip) > 0, "tracked as ever");
}
