//! The express path's programs on the node's uplinks: where they are put, kept, replaced and taken off, and what switches the
//! express path off. By tcx, and as on a kernel without it by clsact.

mod ipv6;
mod left;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::tcx::{self, Tcx};
use crate::harness::{
    Flows, Join, Lan, Netns, Node, PATIENCE, PORT, Page, Pod, PodServer, REPAIRED, Run, SOON, Sidecar, connect, scaled,
    serve_all, until,
};

const POOL: &str = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";
const OFF: &str = "express = \"off\"\nbackend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";
const TRACKED: &str = "notrack = false\nbackend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";
const VIPROUTED: &str = env!("CARGO_BIN_EXE_viprouted");

/// eth0 becomes a bridge's port.
const TO_A_BRIDGE: &str = "link add br0 type bridge forward_delay 0\nlink set br0 up\naddr del 192.0.2.1/24 dev eth0\n\
                           link set eth0 master br0\naddr add 192.0.2.1/24 dev br0\nroute add default via 192.0.2.254\n";

/// A node with replicas and viprouted, and a client. Fields are dropped in this order.
struct Scene {
    _servers: Vec<PodServer>,
    sidecar: Option<Sidecar>,
    pods: Vec<Pod>,
    client: Netns,
    node: Node,
    _lan: Lan,
}

/// Whether the kernel under viprouted has tcx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Tcx,
    Clsact,
}

impl Kernel {
    /// As this kernel is, and as older ones are.
    fn all() -> &'static [Self] {
        if tcx::is_known() { &[Self::Tcx, Self::Clsact] } else { &[Self::Clsact] }
    }
}

fn web() -> Join {
    Join::annotated("web")
}

impl Scene {
    fn new() -> Self {
        Self::with(Kernel::Tcx, POOL)
    }

    fn with(kernel: Kernel, settings: &str) -> Self {
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let sidecar = Some(start(&node, kernel, settings));
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let pods = vec![node.joined(&web()), node.joined(&web())];
        Self { _servers: serve_all(&pods), sidecar, pods, client, node, _lan: lan }
    }

    fn vip(&self) -> Ipv4Addr {
        self.pods[0].vip()
    }

    fn sidecar(&self) -> &Sidecar {
        self.sidecar.as_ref().expect("viprouted runs")
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.sidecar().daemon.signal(Signal::SIGKILL);
        self.sidecar = None; // waits for its end
    }

    fn restart(&mut self, settings: &str) {
        self.sidecar.take().expect("viprouted runs").stop();
        self.sidecar = Some(start(&self.node, Kernel::Tcx, settings));
    }

    fn status(&self, output: &str) -> String {
        self.node.ctl().args(["status", "--output", output]).finish("").ok()
    }

    /// As `viproutectl status` shows it.
    fn express(&self) -> Value {
        let report: Value = serde_json::from_str(&self.status("json")).expect("status --output json is JSON");
        report["express"].clone()
    }

    /// The table's line about a device.
    fn line(&self, device: &str) -> String {
        let text = self.status("table");
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let line = text.lines().map(words).find(|line| line.split(' ').next() == Some(device));
        line.unwrap_or_else(|| panic!("{device} is not in {text}"))
    }

    fn generation(&self) -> u64 {
        self.express()["generation"].as_u64().unwrap_or_default()
    }

    /// The uplinks on which it is on.
    fn on(&self) -> Vec<String> {
        let express = self.express();
        let uplinks = express["uplinks"].as_array().cloned().unwrap_or_default();
        let on = uplinks.iter().filter(|uplink| uplink["off"].is_null());
        on.filter_map(|uplink| uplink["device"].as_str().map(str::to_owned)).collect()
    }

    /// On these uplinks and no others, and its programs are there and nowhere else.
    fn is_on(&self, devices: &[&str]) {
        until(&format!("express on {devices:?}"), SOON, || {
            let express = self.express();
            (self.on() == devices && express["off"].is_null() && express["generation"] != 0).then_some(())
        });
        for device in self.devices() {
            let wanted: &[&str] =
                if devices.contains(&device.as_str()) { &["express_in", "express_seen"] } else { &[] };
            assert_eq!(self.ours(&device), wanted, "on {device}");
        }
    }

    /// On no uplink, and its programs are nowhere.
    fn is_off(&self, why: &Value) {
        until(&format!("express off: {why}"), SOON, || {
            let express = self.express();
            (express["off"] == *why && express["generation"] == 0).then_some(())
        });
        until("no programs are left", SOON, || self.devices().iter().all(|d| self.ours(d).is_empty()).then_some(()));
    }

    fn devices(&self) -> Vec<String> {
        let names = self.node.ns.ip_json("link").into_iter();
        names.filter_map(|link| link["ifname"].as_str().map(str::to_owned)).collect()
    }

    /// The names of the express path's programs on a device, by tcx and by clsact.
    fn ours(&self, device: &str) -> Vec<String> {
        ours(&self.node.ns, device)
    }
}

fn start(node: &Node, kernel: Kernel, settings: &str) -> Sidecar {
    let mut command = node.ns.cmd(VIPROUTED);
    if kernel == Kernel::Clsact {
        tcx::without_tcx(&mut command);
    }
    Sidecar::try_run(node.dir.path(), settings, command).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The ids of the programs at both hooks of eth0.
fn ids(scene: &Scene) -> Vec<u64> {
    let ns = &scene.node.ns;
    let by_tcx = [Tcx::Ingress, Tcx::Egress].into_iter().flat_map(|side| tcx::programs(ns, "eth0", side));
    let mut ids: Vec<u64> = by_tcx.map(|(id, _)| id.into()).collect();
    for side in ["ingress", "egress"] {
        let shown = ns.cmd("tc").args(["-json", "filter", "show", "dev", "eth0", side]).finish("").stdout;
        let filters: Value = serde_json::from_str(shown.trim()).unwrap_or_default();
        ids.extend(filters.as_array().into_iter().flatten().filter_map(|it| it["options"]["prog"]["id"].as_u64()));
    }
    ids
}

fn ours(ns: &Netns, device: &str) -> Vec<String> {
    let by_tcx = [Tcx::Ingress, Tcx::Egress].into_iter().flat_map(|side| tcx::programs(ns, device, side));
    let mut names: Vec<String> = by_tcx.map(|(_, name)| name).filter(|name| name.starts_with("express")).collect();
    for (side, name) in [("ingress", "express_in"), ("egress", "express_seen")] {
        let filters = ns.cmd("tc").args(["filter", "show", "dev", device, side]).finish("").stdout;
        // Programs may have no names in a kernel without BTF. What host veths have are others.
        let is_nameless = filters.contains(" viproute direct-action") && filters.contains(" name  tag ");
        if filters.contains(name) || (is_nameless && !device.starts_with("vip")) {
            names.push(name.to_owned());
        }
    }
    names
}

#[test]
fn programs_follow_the_routes_to_clients() {
    let scene = Scene::new();
    scene.is_on(&["eth0"]);
    // A second uplink, by which a default route leads.
    let other = Netns::new();
    scene.node.ns.ip(&format!("link add eth1 type veth peer name eth0 netns {}", other.path()));
    other.ip("link set eth0 up");
    scene.node.ns.ip("link set eth1 up");
    scene.node.ns.ip("addr add 198.51.100.1/24 dev eth1");
    scene.is_on(&["eth0", "eth1"]);
    scene.node.ns.ip("route add default via 198.51.100.2 metric 200");
    scene.node.ns.ip("addr del 198.51.100.1/24 dev eth1");
    scene.is_on(&["eth0"]);
    assert_eq!(scene.line("eth0"), "eth0 on");
    let page = Page::of(&scene.node);
    assert_eq!(page.value("viproute_express_uplink", &[("device", "eth0")]), 1);
    assert!(page.value("viproute_express_generation", &[]) > 0);
    connect(&scene.client, scene.vip(), 10);
}

/// The device that the route names has them, and its port doesn't.
#[test]
fn a_bridge_has_them_and_its_port_has_not() {
    let scene = Scene::new();
    scene.is_on(&["eth0"]);
    scene.node.ns.ip_lines(TO_A_BRIDGE).expect("a bridge");
    scene.is_on(&["br0"]);
    connect(&scene.client, scene.vip(), 10);
    straight(&scene);
}

/// Devices on top of another one, as far as the kernel has them: they are what their routes name.
#[test]
fn devices_on_top_of_others() {
    let scene = Scene::new();
    scene.is_on(&["eth0"]);
    let kinds = [
        ("vlan", "link add link eth0 name top type vlan id 7"),
        ("macvlan", "link add link eth0 name top type macvlan mode bridge"),
        ("vxlan", "link add top type vxlan id 7 dev eth0 remote 192.0.2.50 dstport 4789"),
        ("bond", "link add top type bond mode active-backup"),
    ];
    let mut tried = 0;
    for (kind, add) in kinds {
        let added = scene.node.ns.cmd("ip").args(add.split_whitespace()).finish("");
        if added.stderr.contains("Unknown device type") || added.stderr.contains("not supported") {
            eprintln!("this kernel has no {kind}");
            continue;
        }
        assert!(added.status.success(), "{kind}: {added:?}");
        if kind == "bond" {
            let far = Netns::new();
            scene.node.ns.ip(&format!("link add port0 type veth peer name port0 netns {}", far.path()));
            far.ip("link set port0 up");
            scene.node.ns.ip("link set port0 master top");
        }
        scene.node.ns.ip("link set top up");
        scene.node.ns.ip("addr add 198.51.100.1/24 dev top");
        scene.is_on(&["eth0", "top"]);
        scene.node.ns.ip("link del top");
        scene.is_on(&["eth0"]);
        tried += 1;
    }
    assert!(tried > 0, "a kernel without any of them");
}

#[test]
fn programs_that_are_taken_off_are_back() {
    for &kernel in Kernel::all() {
        let scene = Scene::with(kernel, POOL);
        scene.is_on(&["eth0"]);
        for (side, name) in [(Tcx::Ingress, "express_in"), (Tcx::Egress, "express_seen")] {
            match kernel {
                Kernel::Tcx => {
                    let (id, _) = tcx::programs(&scene.node.ns, "eth0", side)[0];
                    tcx::detach_id(&scene.node.ns, "eth0", side, id);
                }
                Kernel::Clsact => {
                    assert!(tcx::programs(&scene.node.ns, "eth0", side).is_empty(), "by tcx on a kernel without it");
                    let side = if side == Tcx::Ingress { "ingress" } else { "egress" };
                    let deleted = ["filter", "del", "dev", "eth0", side, "pref", "118"];
                    scene.node.ns.cmd("tc").args(deleted).finish("").ok();
                }
            }
            until(&format!("{name} is back ({kernel:?})"), REPAIRED, || {
                (scene.ours("eth0") == ["express_in", "express_seen"]).then_some(())
            });
        }
        scene.is_on(&["eth0"]);
        until("the log says so", SOON, || {
            scene.sidecar().daemon.log().contains("the express path on eth0").then_some(())
        });
        connect(&scene.client, scene.vip(), 10);
    }
}

/// What a viprouted that was killed has left is found; another build's programs are replaced.
#[test]
fn programs_are_found_again_and_replaced() {
    let mut scene = Scene::new();
    scene.is_on(&["eth0"]);
    let before = ids(&scene);
    assert_eq!(before.len(), 2, "{before:?}");
    let generation = scene.generation();
    scene.kill();
    assert_eq!(ids(&scene), before, "they outlive viprouted");
    connect(&scene.client, scene.vip(), 10);
    scene.sidecar = Some(start(&scene.node, Kernel::Tcx, POOL));
    scene.is_on(&["eth0"]);
    assert_eq!(ids(&scene), before, "found again");
    assert_ne!(scene.generation(), generation, "what changed meanwhile was not noticed");
    // Another build's.
    scene.kill();
    scene.node.make_programs_another_builds();
    scene.sidecar = Some(start(&scene.node, Kernel::Tcx, POOL));
    until("all are replaced", SOON, || {
        let now = ids(&scene);
        (now.len() == 2 && now.iter().all(|id| !before.contains(id))).then_some(())
    });
    scene.is_on(&["eth0"]);
}

#[test]
fn filters_of_a_kernel_without_tcx_give_way_to_it() {
    let mut scene = Scene::with(Kernel::Clsact, POOL);
    scene.is_on(&["eth0"]);
    scene.kill();
    scene.sidecar = Some(start(&scene.node, Kernel::Tcx, POOL));
    scene.is_on(&["eth0"]);
    let by_tcx = [Tcx::Ingress, Tcx::Egress].map(|side| tcx::programs(&scene.node.ns, "eth0", side).len());
    assert_eq!(by_tcx, if tcx::is_known() { [1, 1] } else { [0, 0] });
}

/// Live connections while it is on, off, on again; viprouted's end takes the programs along.
#[test]
fn switching_breaks_no_connection() {
    let mut scene = Scene::new();
    scene.is_on(&["eth0"]);
    let mut flows = Flows::open("a client", &scene.client, scene.vip(), 200);
    let ask = |flows: &mut Flows| {
        for _ in 0..3 {
            flows.ask();
            flows.hear();
        }
        assert_eq!(flows.complaint(&[]), None);
    };
    ask(&mut flows);
    for (settings, why) in
        [(OFF, Some(json!("configured"))), (POOL, None), (OFF, Some(json!("configured"))), (POOL, None)]
    {
        scene.sidecar.take().expect("viprouted runs").stop();
        assert_eq!(scene.ours("eth0"), Vec::<String>::new(), "viprouted's end leaves nothing");
        ask(&mut flows);
        scene.sidecar = Some(start(&scene.node, Kernel::Tcx, settings));
        match why {
            Some(why) => {
                scene.is_off(&why);
                assert_eq!(scene.line("eth0"), "eth0 off: express = \"off\"");
            }
            None => scene.is_on(&["eth0"]),
        }
        ask(&mut flows);
        thread::sleep(Duration::from_millis(1200));
        ask(&mut flows);
    }
    straight(&scene);
}

#[test]
fn the_last_vip_takes_the_programs_along() {
    let scene = Scene::new();
    scene.is_on(&["eth0"]);
    for pod in &scene.pods {
        scene.node.remove(pod, &web());
    }
    scene.is_off(&json!("no_vips"));
}

#[test]
fn without_the_flow_owner_it_is_off() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Some(start(&node, Kernel::Tcx, POOL));
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pods = vec![node.joined(&web().key("flowOwner", json!("off")))];
    let scene = Scene { _servers: serve_all(&pods), sidecar, pods, client, node, _lan: lan };
    scene.is_off(&json!("no_flow_owner"));
    connect(&scene.client, scene.vip(), 10);
}

/// Another's program on an uplink, whichever was there first: ours goes, and is back when it is alone.
#[test]
fn others_programs_come_and_go() {
    let scene = Scene::new();
    let program = tcx::passing("another");
    for side in [Tcx::Ingress, Tcx::Egress].into_iter().filter(|_| tcx::is_known()) {
        scene.is_on(&["eth0"]);
        tcx::attach(&scene.node.ns, "eth0", side, &program);
        scene.is_off_at_eth0("another (program ");
        connect(&scene.client, scene.vip(), 10);
        tcx::detach(&scene.node.ns, "eth0", side, &program);
    }
    for side in ["ingress", "egress"] {
        scene.is_on(&["eth0"]);
        add_filter(&scene.node.ns, side);
        scene.is_off_at_eth0("pref 7");
        connect(&scene.client, scene.vip(), 10);
        scene.node.ns.cmd("tc").args(["filter", "del", "dev", "eth0", side, "pref", "7"]).finish("").ok();
    }
    scene.is_on(&["eth0"]);
}

#[test]
fn others_programs_that_were_there_first() {
    for &kernel in Kernel::all() {
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let program = tcx::passing("another");
        if kernel == Kernel::Tcx {
            tcx::attach(&node.ns, "eth0", Tcx::Ingress, &program);
        } else {
            add_filter(&node.ns, "ingress");
        }
        let sidecar = Some(start(&node, kernel, POOL));
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let pods = vec![node.joined(&web())];
        let scene = Scene { _servers: serve_all(&pods), sidecar, pods, client, node, _lan: lan };
        scene.is_off_at_eth0(if kernel == Kernel::Tcx { "another" } else { "pref 7" });
        connect(&scene.client, scene.vip(), 10);
    }
}

/// Another's filter on eth0: classic BPF that matches nothing.
pub(crate) fn add_filter(ns: &Netns, side: &str) {
    ns.cmd("tc").args(["qdisc", "replace", "dev", "eth0", "clsact"]).finish("").ok();
    let add = ["filter", "add", "dev", "eth0", side, "pref", "7", "protocol", "all", "bpf", "bytecode", "1,6 0 0 0"];
    ns.cmd("tc").args(add).finish("").ok();
}

impl Scene {
    fn is_off_at_eth0(&self, other: &str) {
        until(&format!("express off on eth0 for {other}"), SOON, || {
            let off = &self.express()["uplinks"][0]["off"]["others"];
            (off.to_string().contains(other) && self.ours("eth0").is_empty()).then_some(())
        });
    }
}

/// A tunnel whose packets have no Ethernet header.
#[test]
fn a_device_without_ethernet_is_left_alone() {
    let scene = Scene::new();
    scene.is_on(&["eth0"]);
    let _tunnel = scene.node.ns.run(|| tunnel("tun0"));
    scene.node.ns.ip("link set tun0 up");
    scene.node.ns.ip("addr add 198.51.100.1/24 dev tun0");
    until("it is named, and off", SOON, || {
        let express = scene.express();
        let uplinks = express["uplinks"].as_array().cloned().unwrap_or_default();
        uplinks.contains(&json!({ "device": "tun0", "off": "no_ethernet" })).then_some(())
    });
    scene.is_on(&["eth0"]);
}

/// A TUN device, for as long as its file is open.
fn tunnel(name: &str) -> std::fs::File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const TUN_NO_PI: u16 = 0x1001;
    let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun").expect("open /dev/net/tun");
    let mut request = [0_u8; 40]; // struct ifreq
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&TUN_NO_PI.to_ne_bytes());
    // SAFETY: the request is a struct ifreq, which the kernel reads and writes.
    let result = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&file), TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file
}

/// A node that tracks its VIPs' connections.
#[test]
fn where_vips_are_tracked_it_is_off() {
    let mut scene = Scene::with(Kernel::Tcx, TRACKED);
    scene.is_on(&["eth0"]);
    let rules = "add table ip t\nadd chain ip t c { type filter hook prerouting priority 0; }\nadd rule ip t c ct state new accept\n";
    scene.node.ns.cmd("nft").args(["-f", "-"]).finish(rules).ok();
    connect(&scene.client, scene.vip(), 10);
    scene.is_off(&json!("tracked"));
    connect(&scene.client, scene.vip(), 10);
    // Kept out of the tracking, what the node tracks otherwise doesn't matter.
    scene.restart(POOL);
    scene.is_on(&["eth0"]);
    connect(&scene.client, scene.vip(), 10);
}

/// Whoever changes what packets go by: all leases end.
#[test]
fn each_change_is_another_generation() {
    let scene = Scene::new();
    scene.is_on(&["eth0"]);
    let ip = |arguments: &str| scene.node.ns.ip(arguments);
    ip("neigh replace 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud reachable");
    let changes: [(&str, &dyn Fn()); 9] = [
        ("a table", &|| drop(scene.node.ns.cmd("nft").args(["add", "table", "ip", "t"]).finish("").ok())),
        ("a rule", &|| {
            let rule =
                "add chain ip t c { type filter hook forward priority 0; }; add rule ip t c ip daddr 203.0.113.1 drop";
            drop(scene.node.ns.cmd("nft").arg(rule).finish("").ok());
        }),
        ("a route", &|| drop(ip("route add 203.0.113.0/24 via 192.0.2.254"))),
        ("another way", &|| drop(ip("route change 203.0.113.0/24 via 192.0.2.253"))),
        ("a policy rule", &|| drop(ip("rule add from 203.0.113.7 lookup 99"))),
        ("an MTU", &|| drop(ip("link set eth0 mtu 1400"))),
        ("a neighbour's address", &|| {
            drop(ip("neigh replace 192.0.2.77 lladdr 02:00:00:00:00:78 dev eth0 nud reachable"));
        }),
        ("a setting", &|| scene.node.ns.set_sysctl("net/ipv4/conf/eth0/rp_filter", "2")),
        ("a blackhole", &|| drop(ip("route add blackhole 203.0.113.128/25"))),
    ];
    for (what, change) in changes {
        let before = crate::harness::quiet("the generation rests", || scene.generation());
        change();
        until(&format!("{what} is another generation"), REPAIRED, || (scene.generation() != before).then_some(()));
    }
}

/// A neighbour that is asked again and answers as before ends no lease.
#[test]
fn a_neighbour_that_stays_is_no_change() {
    let scene = Scene::new();
    scene.is_on(&["eth0"]);
    let ip = |arguments: &str| scene.node.ns.ip(arguments);
    ip("neigh replace 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud reachable");
    let before = crate::harness::quiet("the generation rests", || scene.generation());
    for state in ["stale", "reachable", "stale", "reachable"] {
        ip(&format!("neigh change 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud {state}"));
    }
    thread::sleep(Duration::from_millis(500));
    assert_eq!(scene.generation(), before);
}

/// Packets go straight, the ones that were counted nowhere else are counted by viproutectl and the metrics.
fn straight(scene: &Scene) {
    straight_to(scene, scene.vip().into());
}

fn straight_to(scene: &Scene, vip: IpAddr) {
    let (mut stream, mut requests) = (ask_at(scene, vip), 0);
    let carried = |what: &str| {
        let status = crate::harness::status(&scene.node, scene.vip());
        let replicas = status["replicas"].as_array().cloned().unwrap_or_default();
        replicas.iter().map(|replica| replica[what].as_u64().unwrap_or_default()).sum::<u64>()
    };
    let express = (carried("express_in"), carried("express_out"));
    let before = (carried("packets_in"), carried("packets_out"));
    until("packets go straight", PATIENCE, || {
        for _ in 0..20 {
            question(&mut stream).expect("an answer");
            requests += 1;
        }
        let is_much = |what, before| carried(what) > before + 10;
        (is_much("express_in", express.0) && is_much("express_out", express.1)).then_some(())
    });
    let (packets_in, packets_out) = (carried("packets_in") - before.0, carried("packets_out") - before.1);
    assert!(packets_in >= requests && packets_out >= requests, "{packets_in} and {packets_out} of {requests} requests");
}

fn ask(scene: &Scene) -> TcpStream {
    ask_at(scene, scene.vip().into())
}

fn ask_at(scene: &Scene, vip: IpAddr) -> TcpStream {
    let vip = SocketAddr::from((vip, PORT));
    let stream = scene.client.run(|| TcpStream::connect_timeout(&vip, scaled(PATIENCE))).expect("a connection");
    stream.set_nodelay(true).expect("no delay");
    stream.set_read_timeout(Some(scaled(PATIENCE))).expect("a limit");
    stream
}

fn question(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"who\n")?;
    let mut answer = [0; 256];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return Err(std::io::Error::other("closed")),
            Ok(_) => return Ok(()),
            // The kernel begins no read anew that has a time limit, whatever interrupts it (`sock_intr_errno`).
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[test]
fn what_goes_straight_is_counted() {
    let scene = Scene::new();
    scene.is_on(&["eth0"]);
    straight(&scene);
    let page = Page::of(&scene.node);
    for way in ["in", "out"] {
        let labels = [("direction", way), ("namespace", "default"), ("vip", "web")];
        let express = page.value("viproute_express_packets_total", &labels);
        assert!(express > 10 && page.value("viproute_express_bytes_total", &labels) >= 40 * express);
        assert!(page.value("viproute_vip_packets_total", &labels) >= express);
    }
}

/// A rule that forbids a live flow stops it at once, in either direction: long before its lease would have ended.
#[test]
fn a_rule_stops_a_live_flow_at_once() {
    for field in ["daddr", "saddr"] {
        let scene = Scene::new();
        scene.is_on(&["eth0"]);
        let mut stream = ask(&scene);
        until("packets go straight", PATIENCE, || {
            question(&mut stream).expect("an answer");
            let status = crate::harness::status(&scene.node, scene.vip());
            status["replicas"].to_string().contains("express_in").then_some(())
        });
        crate::harness::quiet("the generation rests", || scene.generation());
        for _ in 0..20 {
            question(&mut stream).expect("an answer");
        }
        forbid(&scene, field);
        let begun = Instant::now();
        stream.set_read_timeout(Some(Duration::from_millis(1500))).expect("a limit");
        let mut last = Duration::ZERO;
        let error = loop {
            match question(&mut stream) {
                Ok(()) => last = begun.elapsed(),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
        eprintln!("the last answer {last:?} behind the rule ({field})");
        assert!(last < scaled(Duration::from_millis(100)), "an answer {last:?} behind the rule");
        scene.node.ns.cmd("nft").args(["delete", "table", "ip", "stop"]).finish("").ok();
        stream.set_read_timeout(Some(scaled(PATIENCE))).expect("a limit");
        assert!(stream.read(&mut [0; 256]).expect("the answer of the question before") > 0);
        question(&mut stream).expect("it goes on");
    }
}

/// While nobody notices the rule, the lease's end stops the flow.
#[test]
fn without_viprouted_a_rule_stops_a_live_flow_when_its_lease_ends() {
    let scene = Scene::new();
    scene.is_on(&["eth0"]);
    straight(&scene);
    let mut stream = ask(&scene);
    let rest = |stream: &mut TcpStream| (0..200).for_each(|_| question(stream).expect("an answer"));
    crate::harness::quiet("the generation rests", || scene.generation());
    rest(&mut stream);
    scene.sidecar().daemon.freeze();
    rest(&mut stream);
    forbid(&scene, "daddr");
    question(&mut stream).expect("an answer by the lease");
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a limit");
    let begun = Instant::now();
    until("the lease has ended", PATIENCE, || question(&mut stream).err());
    assert!(begun.elapsed() < scaled(Duration::from_secs(6)), "after {:?}", begun.elapsed());
    scene.sidecar().daemon.thaw();
}

fn forbid(scene: &Scene, field: &str) {
    let vip = scene.vip();
    let rule = format!(
        "add table ip stop\nadd chain ip stop c {{ type filter hook forward priority 0; }}\nadd rule ip stop c ip {field} {vip} drop\n"
    );
    scene.node.ns.cmd("nft").args(["-f", "-"]).finish(&rule).ok();
}
