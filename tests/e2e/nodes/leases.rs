//! Nodes that share the leases of their VIPs: one renews, the others learn.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::new_key;
use crate::harness::{
    Crowd, DhcpServer, Finished, Flows, Join, KEA_POOL6, LONG, Lan, Node, PATIENCE, PORT, Page, Pod, Run, SOON,
    Sidecar, Software, TempDir, VIPROUTECTL, attempt, scaled, until,
};

/// A lease that is renewed each five or six seconds; who waits in vain for another node asks after eight.
const QUICK: u32 = 12;

struct Scene {
    members: Vec<Member>,
    server: DhcpServer,
    lan: Lan,
    _dir: TempDir,
}

pub(super) struct Member {
    pub(super) sidecar: Option<Sidecar>,
    pub(super) node: Node,
    settings: String,
}

impl Member {
    pub(super) fn new(lan: &Lan, number: u8, settings: String) -> Self {
        let mut member = Self { sidecar: None, node: Node::without_allocator(lan, number), settings };
        if member.settings.contains("[dhcp6]") {
            lan.add_ipv6(&member.node.ns, number);
        }
        member.start();
        member
    }

    pub(super) fn start(&mut self) {
        self.sidecar = Some(Sidecar::start(&self.node, &self.settings));
    }

    /// From its next start on.
    pub(super) fn reconfigure(&mut self, from: &str, to: &str) {
        assert!(self.settings.contains(from), "{}", self.settings);
        self.settings = self.settings.replace(from, to);
    }

    pub(super) fn sidecar(&self) -> &Sidecar {
        self.sidecar.as_ref().expect("viprouted runs")
    }

    pub(super) fn ctl(&self, arguments: &[&str]) -> Finished {
        let mut command = self.node.ns.cmd(VIPROUTECTL);
        command.args(["--data-dir", &self.node.data(), "--allocator", &self.node.socket()]).args(arguments);
        command.finish("")
    }

    /// The others that it takes for alive.
    pub(super) fn live(&self) -> usize {
        let nodes: Value = serde_json::from_str(&self.ctl(&["nodes", "--output", "json"]).ok()).expect("JSON");
        nodes["nodes"].as_array().expect("nodes").iter().filter(|node| node["state"] == "live").count()
    }

    fn renewer(&self, vip: &str) -> Option<String> {
        Some(self.sidecar().status(vip)?["renewer"].as_str()?.to_owned())
    }

    /// The second in which the VIP's lease ends.
    fn expires(&self, vip: &str) -> u64 {
        self.sidecar().status(vip).and_then(|status| status["expires"].as_u64()).unwrap_or(0)
    }

    pub(super) fn is_bound(&self, vip: &str) -> bool {
        self.sidecar().status(vip).is_some_and(|status| status["state"] == "bound")
    }

    /// DHCP messages that it has sent.
    fn sent(&self) -> i64 {
        let page = Page::of(&self.node);
        let of = |kind| page.value("viproute_dhcp_messages_total", &[("direction", "sent"), ("type", kind)]);
        ["discover", "request", "reboot", "rebind"].into_iter().map(of).sum()
    }

    /// What it has leased for the VIP's IPv6 address.
    fn lease6(&self, vip: &str) -> Option<Value> {
        let leases = self.sidecar().ask(&json!({ "leases": {} }))["leases"].as_array().cloned()?;
        let is_it = |lease: &Value| lease["vip"] == vip && lease["address"].as_str().is_some_and(|of| of.contains(':'));
        leases.into_iter().find(is_it)
    }

    /// The second in which that ends.
    fn expires6(&self, vip: &str) -> u64 {
        self.lease6(vip).and_then(|lease| lease["expires"].as_u64()).unwrap_or(0)
    }

    pub(super) fn log(&self) -> String {
        self.sidecar().daemon.log()
    }
}

impl Scene {
    fn new(nodes: u8, server: impl FnOnce(&Lan) -> DhcpServer) -> Self {
        Self::with(nodes, "backend = \"dhcp\"\nallow = [\"192.0.2.0/24\"]", server)
    }

    /// With VIPs whose IPv6 addresses are leased; the others are of a pool.
    fn ipv6(nodes: u8, server: impl FnOnce(&Lan) -> DhcpServer) -> Self {
        Self::with(nodes, "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n[dhcp6]", server)
    }

    fn with(nodes: u8, settings: &str, server: impl FnOnce(&Lan) -> DhcpServer) -> Self {
        let (lan, dir) = (Lan::new(), TempDir::new());
        let key = new_key(&dir, "membership.key");
        let server = server(&lan);
        let members = (1..=nodes).map(|number| {
            let settings = format!(
                "{settings}\n[membership]\nkey_file = {key:?}\nname = \"n{number}\"\n\
                 seeds = [\"192.0.2.1\", \"192.0.2.2\", \"192.0.2.3\"]"
            );
            Member::new(&lan, number, settings)
        });
        let scene = Self { members: members.collect(), server, lan, _dir: dir };
        scene.all_see(usize::from(nodes) - 1);
        scene
    }

    fn all_see(&self, others: usize) {
        for member in self.members.iter().filter(|member| member.sidecar.is_some()) {
            until("the nodes see each other", SOON, || (member.live() == others).then_some(()));
        }
    }

    /// An address for a VIP, asked for on all nodes at once; how long the slowest took.
    fn acquire(&self, vip: &str) -> (Ipv4Addr, Duration) {
        let began = Instant::now();
        let addresses: Vec<Ipv4Addr> = thread::scope(|scope| {
            let ask = |member: &Member| member.sidecar().acquire(vip).expect("an address");
            let asking: Vec<_> = self.members.iter().map(|member| scope.spawn(move || ask(member))).collect();
            asking.into_iter().map(|one| one.join().expect("a caller")).collect()
        });
        let took = began.elapsed();
        assert!(addresses.iter().all(|address| *address == addresses[0]), "{vip}: {addresses:?}");
        (addresses[0], took)
    }

    fn pods(&self) -> Vec<Pod> {
        self.members.iter().map(|member| member.node.joined(&Join::annotated("web"))).collect()
    }

    /// The node that all of these agree on for a while, one of `among`.
    fn renewer(&self, of: &[usize], among: &[usize]) -> usize {
        let (mut last, mut since) = (None, Instant::now());
        until("these nodes agree on who renews", PATIENCE, || {
            let names: Vec<_> = of.iter().map(|at| self.members[*at].renewer("default/web")).collect();
            if names.iter().any(|name| *name != last) {
                (last, since) = (names[0].clone(), Instant::now());
                return None;
            }
            let found = last.as_deref()?.strip_prefix('n')?.parse::<usize>().ok()? - 1;
            (among.contains(&found) && since.elapsed() > Duration::from_secs(1)).then_some(found)
        })
    }

    fn count(&self, message: &str) -> usize {
        self.server.log().matches(&format!("{message}(")).count()
    }

    fn link(&self, member: usize, state: &str) {
        self.lan.ns.ip(&format!("link set port{member} {state}"));
    }

    /// All of these still serve it at that address, and their leases are in force.
    fn serve(&self, pods: &[Pod], of: &[usize], vip: Ipv4Addr) {
        for at in of {
            let member = &self.members[*at];
            assert!(member.is_bound("default/web"), "n{}\n{}", at + 1, member.log());
            assert_eq!(pods[*at].vips(), [vip], "n{}\n{}", at + 1, member.log());
        }
    }
}

#[test]
fn three_nodes_that_ask_at_once_get_one_address_from_any_server() {
    for software in [Software::Dnsmasq, Software::Kea, Software::Dhcpd] {
        let scene = Scene::new(3, |lan| DhcpServer::quick(software, lan, 600));
        for number in 0..4 {
            let vip = format!("shop/web{number}");
            let (address, took) = scene.acquire(&vip);
            assert!(took < scaled(Duration::from_secs(5)), "{software:?}: {took:?}");
            assert!((100..=150).contains(&address.octets()[3]), "{address}");
        }
        // No node was given another address than the others in between.
        for member in &scene.members {
            let log = member.log();
            assert!(!log.contains("lost:"), "{software:?}\n{log}");
        }
        let asked = scene.members.iter().filter(|member| member.sent() > 0).count();
        let sent: i64 = scene.members.iter().map(Member::sent).sum();
        assert!(asked >= 1 && sent <= 3 * 4 + 2, "DISCOVER, REQUEST and a confirmation for each VIP: {sent}");
    }
}

#[test]
fn one_node_renews_for_all() {
    let scene = Scene::new(3, |lan| DhcpServer::quick(Software::Dnsmasq, lan, QUICK));
    let pods = scene.pods();
    let vip = pods[0].vip();
    let renewer = scene.renewer(&[0, 1, 2], &[0, 1, 2]);
    let requests = || scene.count("DHCPREQUEST");
    let shown = scene.members[0].ctl(&["status"]).ok();
    assert!(shown.contains(&format!("s, n{} renews", renewer + 1)), "{shown}");
    // What the first lease took is over.
    let first = scene.members.iter().map(|member| member.expires("default/web")).max().expect("three");
    until("it is renewed everywhere", LONG, || {
        scene.members.iter().all(|member| member.expires("default/web") > first + 2).then_some(())
    });
    let (before, sent) = (requests(), scene.members.iter().map(Member::sent).collect::<Vec<_>>());
    let began = Instant::now();
    until("four renewals", LONG, || {
        scene.serve(&pods, &[0, 1, 2], vip);
        (requests() >= before + 4).then_some(())
    });
    // Each node for itself would have taken a third of the time.
    assert!(began.elapsed() > Duration::from_secs(14), "{:?}", began.elapsed());
    let by_others: i64 = (0..3).filter(|at| *at != renewer).map(|at| scene.members[at].sent() - sent[at]).sum();
    assert!(by_others <= 1, "{by_others} of {}\n{}", requests() - before, scene.server.log());
    assert_eq!(scene.count("DHCPDISCOVER"), 1, "{}", scene.server.log());
    for (member, pod) in scene.members.iter().zip(&pods) {
        let left = member.expires("default/web").abs_diff(scene.members[renewer].expires("default/web"));
        assert!(left <= u64::from(QUICK), "{left}");
        member.node.check(pod, &Join::annotated("web")).ok();
    }
}

#[test]
fn the_others_go_on_when_the_one_that_renews_dies_restarts_or_leaves() {
    let mut scene = Scene::new(3, |lan| DhcpServer::quick(Software::Dnsmasq, lan, QUICK));
    let pods = scene.pods();
    let vip = pods[0].vip();
    let first = scene.renewer(&[0, 1, 2], &[0, 1, 2]);
    let others: Vec<usize> = (0..3).filter(|at| *at != first).collect();
    // Its viprouted restarts, with the lease that is on its disk.
    scene.members[first].sidecar.take().expect("viprouted runs").stop();
    let renewer = scene.renewer(&others, &others);
    scene.members[first].start();
    scene.all_see(2);
    scene.renewer(&[0, 1, 2], &[first]);
    assert_eq!(scene.members[first].sidecar().acquire("default/web").expect("an address"), vip);
    assert_eq!(scene.count("DHCPDISCOVER"), 1, "{}", scene.server.log());
    // It says that it leaves.
    scene.members[first].ctl(&["nodes", "leave"]).ok();
    scene.renewer(&others, &[renewer]);
    // It dies.
    scene.members[first].sidecar().daemon.signal(Signal::SIGKILL);
    scene.link(first, "down");
    let ends = scene.members[others[0]].expires("default/web");
    until("its last lease is over", LONG, || {
        scene.serve(&pods, &others, vip);
        others.iter().all(|at| scene.members[*at].expires("default/web") > ends + u64::from(QUICK)).then_some(())
    });
    scene.renewer(&others, &others);
}

#[test]
fn a_partition_takes_no_lease_away() {
    let scene = Scene::new(3, |lan| DhcpServer::quick(Software::Dnsmasq, lan, QUICK));
    let pods = scene.pods();
    let vip = pods[0].vip();
    let first = scene.renewer(&[0, 1, 2], &[0, 1, 2]);
    let others: Vec<usize> = (0..3).filter(|at| *at != first).collect();
    // The one that renews hears no other node, and all hear the server.
    let nft = |rules: &str| scene.members[first].node.ns.cmd("nft").args(["-f", "-"]).finish(rules).ok();
    let chain = |hook: &str| {
        format!("chain {hook} {{ type filter hook {hook} priority -300; udp dport 8119 drop; ip protocol icmp drop; }}")
    };
    nft(&format!("table ip cut {{\n{}\n{}\n}}\n", chain("input"), chain("output")));
    scene.renewer(&others, &others);
    let ends = scene.members[others[0]].expires("default/web");
    until("all renew, on either side", LONG, || {
        scene.serve(&pods, &[0, 1, 2], vip);
        let beyond = |member: &Member| member.expires("default/web") > ends + u64::from(QUICK);
        scene.members.iter().all(beyond).then_some(())
    });
    nft("delete table ip cut");
    scene.renewer(&[0, 1, 2], &[first]);
    scene.serve(&pods, &[0, 1, 2], vip);
    for member in &scene.members {
        assert!(!member.log().contains("lost:"), "{}", member.log());
    }
}

#[test]
fn a_server_that_takes_the_lease_away_moves_all_nodes() {
    let mut scene = Scene::new(3, |lan| DhcpServer::quick(Software::Dnsmasq, lan, QUICK));
    let pods = scene.pods();
    let old = pods[0].vip();
    scene.server.stop();
    scene.server.give_away();
    scene.server.start_again(&scene.lan);
    let vip = until("the VIP has moved", LONG, || {
        let vip = *pods[0].vips().first()?;
        (vip != old && pods.iter().all(|pod| pod.vips() == [vip])).then_some(vip)
    });
    until("all leases are in force", LONG, || {
        scene.members.iter().all(|member| member.is_bound("default/web")).then_some(())
    });
    let ends = scene.members.iter().map(|member| member.expires("default/web")).max().expect("three");
    until("and are renewed", LONG, || {
        scene.members.iter().all(|member| member.expires("default/web") > ends).then_some(())
    });
    scene.serve(&pods, &[0, 1, 2], vip);
}

/// A node that joins the VIP later learns its lease, and asks no server.
#[test]
fn who_comes_later_learns_what_is_granted() {
    let scene = Scene::new(3, |lan| DhcpServer::quick(Software::Kea, lan, 600));
    let vip = scene.members[0].sidecar().acquire("shop/web").expect("an address");
    let began = Instant::now();
    assert_eq!(scene.members[1].sidecar().acquire("shop/web").expect("an address"), vip);
    let took = began.elapsed();
    assert!(took < scaled(Duration::from_secs(3)), "{took:?}");
    assert_eq!(scene.members[1].sent(), 0, "{}", scene.members[1].log());
    let left = scene.members[1].expires("shop/web").abs_diff(scene.members[0].expires("shop/web"));
    assert!(left <= 2, "{left} s between them");
    // What is learned is on its own disk.
    let file = scene.members[1].node.dir.file("state/leases/shop_web.json");
    let text = std::fs::read_to_string(file).expect("a lease file");
    assert!(text.contains(&vip.to_string()) && text.contains("192.0.2.254"), "{text}");
}

/// Leases of IPv6 are told as those of IPv4 are: one node asks, the other learns, and goes on when the first is gone.
#[test]
fn a_lease_of_ipv6_is_one_nodes_and_all_nodes() {
    let mut scene = Scene::ipv6(2, |lan| DhcpServer::kea6(lan, QUICK, KEA_POOL6));
    let join = Join::annotated("web");
    let joined = |member: &Member, name: &str| {
        let mut pod = member.node.pod();
        name.clone_into(&mut pod.name);
        // The node that gives out the pool's addresses may not be heard yet.
        until("the pod joins", SOON, || member.node.add(&pod, &join).succeeded().then_some(()));
        pod
    };
    let first = joined(&scene.members[0], "one");
    let [address] = first.vips6()[..] else { panic!("{:?}\n{}", first.vips6(), scene.members[0].log()) };
    let second = joined(&scene.members[1], "two");
    assert_eq!(second.vips6(), [address], "{}", scene.members[1].log());
    assert_eq!(scene.members[1].sent(), 0, "it has learned it: {}", scene.members[1].log());
    let file = scene.members[1].node.dir.file("state/leases6/default_web.json");
    assert!(std::fs::read_to_string(file).expect("its own file").contains(&address.to_string()));
    // They serve it together.
    let (_one, _two) = (Crowd::of_both(&first, PORT), Crowd::of_both(&second, PORT));
    let client = scene.lan.client(50, &[]);
    scene.lan.add_ipv6(&client, 50);
    client.ip(&format!("route add {address}/128 via 2001:db8::1"));
    until("both are reached", SOON, || (attempt(&client, address, 60).names.len() == 2).then_some(()));
    // One of them renews for both; viprouted of that one ends for good, and the other goes on.
    let renewer = until("they agree on who renews", PATIENCE, || {
        let of = |member: &Member| Some(member.lease6("default/web")?["renewer"].as_str()?.to_owned());
        let [a, b] = [0, 1].map(|at| of(&scene.members[at]));
        if a == b { a?.strip_prefix('n')?.parse::<usize>().ok() } else { None }
    });
    let other = 2 - renewer;
    let mut flows = Flows::open("the client", &client, address, 20);
    scene.members[renewer - 1].sidecar.take().expect("viprouted runs").stop();
    let ends = scene.members[other].expires6("default/web");
    until("the other renews", LONG, || {
        (scene.members[other].expires6("default/web") > ends + u64::from(QUICK)).then_some(())
    });
    let lease = scene.members[other].lease6("default/web").expect("a lease");
    assert_eq!(lease["address"], json!(address));
    assert_eq!((first.vips6(), second.vips6()), (vec![address], vec![address]));
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None);
    // It comes back with the lease that is on its disk, and has the same.
    scene.members[renewer - 1].start();
    until("it has the same", SOON, || {
        let lease = scene.members[renewer - 1].lease6("default/web")?;
        (lease["address"] == json!(address)).then_some(())
    });
    assert_eq!(joined(&scene.members[renewer - 1], "three").vips6(), [address]);
    for member in &scene.members {
        assert!(!member.log().contains("lost:"), "{}", member.log());
    }
}
