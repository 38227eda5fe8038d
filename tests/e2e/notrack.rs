//! VIP traffic is kept out of the node's connection tracking, on a node where other people's rules need that.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

use crate::harness::{
    Crowd, Join, Lan, Netns, Node, PATIENCE, PORT, Page, Pod, Run, Sidecar, allow_many_files, connect, scaled, until,
};

const POOL: &str = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n";
const OFF: &str = "notrack = false\nbackend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n";
const CONNECTIONS: usize = 100_000;
/// Longer than a datagram takes; so long silence is awaited.
const SILENCE: Duration = Duration::from_secs(2);

fn web() -> Join {
    Join::annotated("web")
}

/// It asks connection tracking about every packet.
const FIREWALL: &str = "table ip firewall {
    chain forward { type filter hook forward priority 0; ct state new counter; }
    chain output { type filter hook output priority 0; ct state new counter; }
}";

/// A node with a firewall and two replicas.
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
        Self::behind(FIREWALL, settings, environment)
    }

    fn behind(firewall: &str, settings: &str, environment: &[(&str, &str)]) -> Self {
        // Connections that were reset wait for their server, which may be slower than all who connect.
        allow_many_files();
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        nft(&node, firewall);
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

    /// How often it was made anew, as events say it: the log counts what is repeated.
    fn told(&self) -> usize {
        let events = self.sidecar.as_ref().expect("a sidecar").ask(&json!({ "events": { "after": 0 } }));
        events.to_string().matches(": made anew").count()
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
        until(&format!("the set has {texts:?}"), PATIENCE, || {
            let table = self.table();
            let elements = table.split_once("elements = {")?.1.split_once('}')?.0;
            let mut found: Vec<&str> = elements.split(',').map(str::trim).collect();
            found.sort_unstable();
            (found == texts).then_some(())
        });
    }

    /// How many packets were dropped for their source.
    fn denied(&self) -> u64 {
        let counter =
            self.node.ns.cmd("nft").args(["list", "counter", "ip", "viproute", "source_denied"]).finish("").ok();
        let (_, packets) = counter.split_once("packets ").expect("a count");
        packets.split_whitespace().next().and_then(|count| count.parse().ok()).expect("a number")
    }

    /// The device that leads to the pod's own address, once the table knows it.
    fn own_device(&self, pod: &Pod) -> String {
        let way = self.node.ns.ip_json(&format!("route get {}", pod.address()));
        let device = way[0]["dev"].as_str().expect("a device").to_owned();
        let known = || self.table().contains(&format!("\"{device}\"")).then_some(());
        until(&format!("{device} is in the set"), PATIENCE, known);
        device
    }

    /// A pod behind a bridge that joins the VIP.
    fn bridged(&self) -> Pod {
        let (node, pod) = (&self.node.ns, Pod::new(77));
        node.ip("link add cni0 type bridge");
        node.ip("addr add 10.2.0.1/24 dev cni0");
        node.ip("link set cni0 up");
        node.ip(&format!("link add veth77 master cni0 type veth peer name eth0 netns {}", pod.ns.path()));
        node.ip("link set veth77 up");
        pod.ns.ip("addr add 10.2.0.77/24 dev eth0");
        pod.ns.ip("link set eth0 up");
        pod.ns.ip("route add default via 10.2.0.1");
        *pod.base.lock().expect("a result") = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "sandbox": pod.ns.path() }],
            "ips": [{ "interface": 0, "address": "10.2.0.77/24", "gateway": "10.2.0.1" }],
        });
        self.node.add(&pod, &web()).ok();
        pod
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
            let stream = TcpStream::connect_timeout(&to, scaled(PATIENCE)).expect("a connection to the VIP");
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
    connect(&other.ns, scene.vip, 20);
    assert_eq!(scene.entries(scene.vip), 0, "of {CONNECTIONS} connections and a few of a pod's");
    connect(&scene.node.ns, scene.vip, 20);
    let own = scene.entries(scene.vip);
    assert!(own > 0 && own <= 20, "{own} entries of 20 connections of the node's own");
    // The firewall does ask for them: without the table they are there.
    scene.restart(OFF);
    until("the table goes", PATIENCE, || scene.table().is_empty().then_some(()));
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
        "add rule ip viproute replies accept",
        "delete element ip viproute nodes { 192.0.2.1 }",
        "flush set ip viproute pods",
        "insert rule ip viproute replies accept",
        "add chain ip viproute input { type filter hook input priority 0; policy drop; }",
    ];
    for pod in &scene.pods {
        scene.own_device(pod);
    }
    let as_made = scene.table().lines().map(without_handle).collect::<Vec<_>>();
    for (done, fault) in faults.iter().enumerate() {
        nft(&scene.node, fault);
        until(&format!("{fault:?} is undone"), PATIENCE, || {
            (scene.table().lines().map(without_handle).collect::<Vec<_>>() == as_made).then_some(())
        });
        until("it is told", PATIENCE, || (scene.told() == done + 1).then_some(()));
    }
    connect(&scene.client, scene.vip, 20);
    assert_eq!(scene.entries(scene.vip), 0);
    // Other people's tables are their own affair.
    nft(&scene.node, "add table ip firewall\nadd chain ip firewall forward { type filter hook forward priority 0; }");
    let before = scene.table();
    until("other tables were looked past", PATIENCE, || {
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

/// What ufw and firewalld come with: in comes what belongs to a connection that is known, and nothing else.
#[test]
fn the_node_reaches_its_vips_behind_a_stock_firewall() {
    let scene = Scene::new(POOL);
    scene.set_has(&[scene.vip]);
    let chain = |head: &str, last: &str| {
        let rules = "ct state established,related accept\niifname \"lo\" accept\nct state invalid drop";
        format!("table ip stock {{\nchain input {{\n{head}\n{rules}\n{last}\n}}\n}}\n")
    };
    let ufw = chain("type filter hook input priority 0; policy drop;", "counter");
    let firewalld =
        chain("type filter hook input priority 10; policy accept;", "reject with icmp type admin-prohibited");
    for rules in [ufw, firewalld] {
        nft(&scene.node, &rules);
        connect(&scene.node.ns, scene.vip, 20);
        connect(&scene.client, scene.vip, 20);
        nft(&scene.node, "delete table ip stock");
    }
}

/// A node that tracks nothing has no rules against it, but for the check of sources. They come with the first rule that has packets
/// tracked, whoever makes it: iptables' own kind tells nobody. They stay when it goes.
#[test]
fn the_rules_against_tracking_come_with_it() {
    let legacy = |scene: &Scene, verb| {
        let rule = ["POSTROUTING", "-s", "10.9.9.0/24", "-j", "MASQUERADE"];
        scene.node.ns.cmd("iptables-legacy").args(["-t", "nat", verb]).args(rule).finish("").ok();
    };
    let come: [&dyn Fn(&Scene); 2] = [&|scene| nft(&scene.node, FIREWALL), &|scene| legacy(scene, "-A")];
    let go: [&dyn Fn(&Scene); 2] =
        [&|scene| nft(&scene.node, "delete table ip firewall"), &|scene| legacy(scene, "-D")];
    for (come, go) in come.into_iter().zip(go) {
        let mut scene = Scene::behind("", POOL, &[]);
        scene.set_has(&[scene.vip]);
        scene.own_device(&scene.pods[0]);
        flood(&scene.client, scene.vip, 50);
        send_by(&scene.pods[0].ns, "eth0", scene.vip, Ipv4Addr::new(192, 0, 2, 50));
        until("its source is counted", PATIENCE, || (scene.denied() == 1).then_some(()));
        // It has been looked at again and again.
        thread::sleep(Duration::from_secs(3));
        assert!(!scene.table().contains("notrack"), "{}", scene.table());
        come(&scene);
        until("the rules come", PATIENCE, || scene.table().contains("notrack").then_some(()));
        let before = scene.entries(scene.vip);
        flood(&scene.client, scene.vip, 200);
        assert_eq!(scene.entries(scene.vip), before, "none of 200 connections is tracked");
        assert_eq!(scene.denied(), 1, "the counter goes on");
        go(&scene);
        scene.restart(POOL);
        let api = scene.node.joined(&Join::annotated("api"));
        scene.set_has(&[scene.vip, api.vip()]);
        assert!(scene.table().contains("notrack"), "{}", scene.table());
    }
}

/// Traffic goes on without viprouted; one that starts finds the table right and leaves it alone; it goes with the last VIP.
#[test]
fn the_table_lasts_as_long_as_there_are_vips() {
    let mut scene = Scene::new(POOL);
    scene.set_has(&[scene.vip]);
    for pod in &scene.pods {
        scene.own_device(pod);
    }
    let before = scene.table();
    scene.sidecar.take().expect("a sidecar").stop();
    flood(&scene.client, scene.vip, 200);
    assert_eq!((scene.table(), scene.entries(scene.vip)), (before.clone(), 0), "without viprouted");
    scene.restart(POOL);
    // It has read the registry, and so the table, once it follows it.
    let api = scene.node.joined(&Join::annotated("api"));
    scene.set_has(&[scene.vip, api.vip()]);
    scene.node.remove(&api, &Join::annotated("api"));
    scene.set_has(&[scene.vip]);
    assert_eq!(scene.table(), before, "after a restart");
    for pod in &scene.pods {
        scene.node.remove(pod, &web());
    }
    until("nothing is left", PATIENCE, || scene.table().is_empty().then_some(()));
    assert!(scene.node.ns.cmd("nft").args(["list", "tables"]).finish("").ok().contains("firewall"));
}

#[test]
fn without_nft_it_is_said_once_and_all_else_works() {
    let scene = Scene::with(POOL, &[("PATH", "/nonexistent")]);
    let api = scene.node.joined(&Join::annotated("api"));
    connect(&scene.client, scene.vip, 20);
    scene.node.check(&scene.pods[0], &web()).ok();
    scene.node.remove(&api, &Join::annotated("api"));
    until("it is said", PATIENCE, || scene.log().contains("nft is not to be found").then_some(()));
    // Every change of the registry was a try.
    let late = scene.node.joined(&Join::annotated("late"));
    scene.node.remove(&late, &Join::annotated("late"));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.log().matches("nft is not to be found").count(), 1, "{}", scene.log());
    assert_eq!(scene.table(), "");
    assert!(scene.entries(scene.vip) > 0, "tracked as ever");
}

/// A socket that receives datagrams at port 7000.
fn listener(ns: &Netns) -> UdpSocket {
    let socket = ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7000))).expect("a socket");
    socket.set_read_timeout(Some(SILENCE)).expect("a time limit");
    socket
}

/// Sends one datagram by that device, past the rule that sends what comes from a VIP by `vip0`.
fn send_by(ns: &Netns, device: &str, from: Ipv4Addr, to: Ipv4Addr) {
    let socket = ns.run(|| UdpSocket::bind((from, 0))).expect("a socket");
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(device)).expect("SO_BINDTODEVICE");
    socket.send_to(b"from a VIP", (to, 7000)).expect("send");
}

/// A replica gets nothing out by its own interface that has a VIP as its source, its own or another's, whatever
/// the destination.
#[test]
fn a_vip_is_no_source_on_a_pods_own_interface() {
    let mut scene = Scene::new(POOL);
    let api = scene.node.joined(&Join::annotated("api"));
    let bridged = scene.bridged();
    let _server = Crowd::start(&bridged);
    let (client, bystander) = (Ipv4Addr::new(192, 0, 2, 50), scene.node.pod());
    let ears = [listener(&scene.client), listener(&bystander.ns)];
    let mut denied = 0;
    for pod in [&scene.pods[0], &bridged] {
        let device = scene.own_device(pod);
        pod.ns.ip(&format!("addr add {}/32 dev lo", api.vip()));
        for (from, to) in
            [(scene.vip, client), (api.vip(), client), (scene.vip, api.vip()), (scene.vip, bystander.address())]
        {
            send_by(&pod.ns, "eth0", from, to);
            denied += 1;
            until(&format!("from {from} to {to} by {device} is counted"), PATIENCE, || {
                (scene.denied() == denied).then_some(())
            });
        }
        pod.ns.ip(&format!("addr del {}/32 dev lo", api.vip()));
        // Its own address it may send from, and the VIP answers as ever.
        send_by(&pod.ns, "eth0", pod.address(), client);
        let (_, from) = ears[0].recv_from(&mut [0; 32]).expect("what the pod sends from its own address");
        assert_eq!(from.ip(), pod.address(), "the first that came through");
    }
    assert_eq!(Page::of(&scene.node).value("viproute_source_denied_packets_total", &[]), denied.cast_signed());
    for (from, ns) in [("the client", &scene.client), ("a pod", &bystander.ns), ("the node", &scene.node.ns)] {
        assert_eq!(connect(ns, scene.vip, 20).failed, 0, "from {from}");
    }
    // Another node's replica answers by the uplink.
    scene.client.ip("route add 10.1.1.0/24 via 192.0.2.1");
    scene.client.ip(&format!("addr add {}/32 dev lo", scene.vip));
    send_by(&scene.client, "eth0", scene.vip, bystander.address());
    let (_, from) = ears[1].recv_from(&mut [0; 32]).expect("what comes from another node");
    assert_eq!((from.ip(), scene.denied()), (scene.vip.into(), denied));
    scene.client.ip(&format!("addr del {}/32 dev lo", scene.vip));
    // Where there is no table, such a datagram is received.
    scene.restart(OFF);
    until("the table goes", PATIENCE, || scene.table().is_empty().then_some(()));
    send_by(&scene.pods[0].ns, "eth0", scene.vip, client);
    let (_, from) = ears[0].recv_from(&mut [0; 32]).expect("what nothing drops");
    assert_eq!(from.ip(), scene.vip);
}
