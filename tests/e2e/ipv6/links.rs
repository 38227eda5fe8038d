//! IPv6 addresses on a link of their own (`dhcp6.interface`): the node answers for a VIP on two LANs, on each for the address of one family.

use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Crowd, DhcpServer, Finished, Join, KEA_POOL6, LONG, Lan, Netns, Node, PATIENCE, PORT, Page, Pod, RANGE, Run, SOON,
    Sidecar, TempDir, attempt, connect, until,
};
use crate::nodes::new_key;

use super::{claims, web};

/// Both families are leased, each by its own link. With DHCP on the link itself VIPs are answered for.
const TWO: &str = "[dhcp6]\ninterface = \"eth1\"";
/// Nobody has it.
const OTHER_MAC: &str = "02:00:00:00:00:99";

/// A node with two LANs, each with its DHCP server, and a client on each. Fields are dropped in this order.
struct Scene {
    sidecar: Sidecar,
    clients: [Netns; 2],
    node: Node,
    servers: [DhcpServer; 2],
    lans: [Lan; 2],
}

/// The second link of node `number`.
fn plug(node: &Node, lan: &Lan, number: u8) {
    lan.ns.ip(&format!("link add name second{number} type veth peer name eth1 netns {}", node.ns.path()));
    lan.ns.ip(&format!("link set second{number} master br0 up"));
    node.ns.ip("link set eth1 up");
    node.ns.ip(&format!("addr add 2001:db8::{number}/64 dev eth1 nodad"));
}

/// A host of the LAN, with addresses of both families.
fn host(lan: &Lan, number: u8) -> Netns {
    let ns = lan.client(number, &[]);
    lan.add_ipv6(&ns, number);
    ns
}

/// The addresses that a node answers for, each with its link.
fn answered(node: &Node) -> Vec<(String, String)> {
    let shown = ["-4", "-6"].map(|family| node.ns.ip(&format!("{family} neigh show proxy")));
    let read = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [address, "dev", link, ..] = words[..] else { panic!("{line}") };
        (link.to_owned(), address.to_owned())
    };
    shown.iter().flat_map(|text| text.lines()).map(read).collect()
}

/// Whom a host takes for the owner of an address.
fn owner(host: &Netns, address: IpAddr) -> Option<String> {
    host.neighbour(address).map(|(mac, _)| mac)
}

/// A pod's addresses, IPv4's first.
fn addresses(pod: &Pod) -> [IpAddr; 2] {
    let [six] = pod.vips6()[..] else { panic!("{:?}", pod.vips6()) };
    [pod.vip().into(), six.into()]
}

impl Scene {
    fn new() -> Self {
        let lans = [Lan::new(), Lan::new()];
        let servers = [DhcpServer::dnsmasq(&lans[0], RANGE, "10m", ""), DhcpServer::kea6(&lans[1], 600, KEA_POOL6)];
        let node = Node::without_allocator(&lans[0], 1);
        plug(&node, &lans[1], 1);
        let clients = lans.each_ref().map(|lan| host(lan, 50));
        Self { sidecar: Sidecar::start(&node, TWO), clients, node, servers, lans }
    }

    /// A replica that serves both families, once its VIP is reached by either: its pod, its server, the VIP's addresses.
    fn begun(&self) -> (Pod, Crowd, [IpAddr; 2]) {
        let pod = self.node.joined(&web());
        let server = Crowd::of_both(&pod, PORT);
        let both = addresses(&pod);
        self.answers_on_both("it begins", both);
        self.is_reached("it begins", both);
        (pod, server, both)
    }

    fn answers(&self, what: &str, expected: &[(&str, IpAddr)]) {
        let expected: Vec<_> = expected.iter().map(|(link, of)| ((*link).to_owned(), of.to_string())).collect();
        until(&format!("{what}: {expected:?} are answered for"), PATIENCE, || {
            (answered(&self.node) == expected).then_some(())
        });
    }

    /// For an address of each family on its own link.
    fn answers_on_both(&self, what: &str, [four, six]: [IpAddr; 2]) {
        self.answers(what, &[("eth0", four), ("eth1", six)]);
    }

    /// Each client reaches its family's address, at the Ethernet address of the node's link there.
    fn is_reached(&self, what: &str, addresses: [IpAddr; 2]) {
        for ((client, address), link) in self.clients.iter().zip(addresses).zip(["eth0", "eth1"]) {
            until(&format!("{what}: {address} is reached"), SOON, || {
                (attempt(client, address, 1).failed == 0).then_some(())
            });
            connect(client, address, 20);
            assert_eq!(owner(client, address), Some(self.node.ns.mac(link)), "{what}: {address}");
        }
    }

    fn problems(&self) -> Vec<String> {
        let status = self.sidecar.ask(&json!({ "status": {} }));
        let problems = status["problems"].as_array().expect("problems");
        problems.iter().map(|problem| problem.as_str().expect("a sentence").to_owned()).collect()
    }

    /// What doctor finds, but for the networks of a runtime that isn't there.
    fn doctor(&self) -> Vec<String> {
        let config = self.node.dir.file("viprouted.toml");
        let mut command = self.node.ctl();
        command.args(["doctor", "--conf-dir", "/nonexistent", "--config", &config, "--output", "json"]);
        let Finished { stdout, .. } = command.finish("");
        let report: Value = serde_json::from_str(&stdout).expect("JSON");
        let findings = report["findings"].as_array().expect("findings").iter();
        let findings = findings.filter(|finding| finding["group"] != "network" && finding["group"] != "plugin");
        findings.map(ToString::to_string).collect()
    }

    fn is_well(&self) {
        until("doctor finds nothing", SOON, || {
            let found = self.doctor();
            if found.is_empty() {
                Some(())
            } else {
                eprintln!("{found:#?}");
                None
            }
        });
        assert_eq!(self.problems(), Vec::<String>::new());
    }
}

#[test]
fn each_address_is_answered_for_on_the_link_of_its_family() {
    let scene = Scene::new();
    let pods = [scene.node.joined(&web()), scene.node.joined(&web())];
    let _servers = pods.each_ref().map(|pod| Crowd::of_both(pod, PORT));
    let both = addresses(&pods[0]);
    scene.answers_on_both("it begins", both);
    scene.is_reached("it serves", both);
    for (client, address) in scene.clients.iter().zip(both) {
        assert_eq!(connect(client, address, 100).names.len(), 2, "{address}");
    }
    // The other family's address has no owner there.
    let crossed = [(&scene.clients[0], both[1]), (&scene.clients[1], both[0])];
    for (client, address) in crossed {
        assert_eq!(attempt(client, address, 1).failed, 1, "{address}");
        assert_eq!(owner(client, address), None, "{address}");
    }
    for pod in &pods {
        scene.node.check(pod, &web()).ok();
    }
    for setting in ["net/ipv6/conf/eth1/proxy_ndp", "net/ipv6/conf/eth1/forwarding"] {
        assert_eq!(scene.node.ns.sysctl(setting), "1", "{setting}");
    }
    for setting in
        ["net/ipv6/neigh/eth1/proxy_delay", "net/ipv4/conf/eth1/send_redirects", "net/ipv6/conf/eth0/proxy_ndp"]
    {
        assert_eq!(scene.node.ns.sysctl(setting), "0", "{setting}");
    }
    let status = scene.node.ctl().args(["status", "--output", "json"]).finish("").ok();
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let express = status["express"]["uplinks"].as_array().expect("uplinks").iter();
    assert_eq!(express.map(|uplink| uplink["device"].clone()).collect::<Vec<_>>(), ["eth0", "eth1"]);
    scene.is_well();
    scene.node.remove(&pods[0], &web());
    scene.answers_on_both("a replica is left", both);
    scene.node.remove(&pods[1], &web());
    scene.answers("nothing is left", &[]);
    for (client, address) in scene.clients.iter().zip(both) {
        client.ip("neigh flush all");
        assert_eq!(attempt(client, address, 1).failed, 1, "{address}");
    }
    assert_eq!(scene.problems(), Vec::<String>::new());
}

/// On each link who knew another owner of the address hears of it, within a second of its beginning.
#[test]
fn neighbours_of_both_links_are_told_when_it_begins() {
    let scene = Scene::new();
    let pod = scene.node.joined(&web());
    let both = addresses(&pod);
    scene.node.remove(&pod, &web());
    scene.answers("it has ended", &[]);
    for (client, address) in scene.clients.iter().zip(both) {
        client.ip(&format!("neigh replace {address} lladdr {OTHER_MAC} dev eth0 nud stale"));
    }
    // An entry of IPv4 isn't replaced within a second (`locktime`).
    sleep(Duration::from_millis(1200));
    let pod = scene.node.joined(&web());
    assert_eq!(addresses(&pod), both);
    for ((client, address), link) in scene.clients.iter().zip(both).zip(["eth0", "eth1"]) {
        let mac = Some(scene.node.ns.mac(link));
        until(&format!("{address} is known at the node"), SOON, || (owner(client, address) == mac).then_some(()));
    }
}

/// What one link's entries are repaired by leaves the other's where they are.
#[test]
fn an_entry_that_is_deleted_comes_back_and_the_other_links_stays() {
    let scene = Scene::new();
    let pod = scene.node.joined(&web());
    let both = addresses(&pod);
    scene.answers_on_both("it begins", both);
    let entries = answered(&scene.node);
    for (deleted, other) in [(0, 1), (1, 0)] {
        let (link, address) = &entries[deleted];
        scene.node.ns.ip(&format!("neigh del proxy {address} dev {link}"));
        until(&format!("{address} on {link} is back"), SOON, || {
            let now = answered(&scene.node);
            assert!(now.contains(&entries[other]), "{:?} is gone: {now:?}", entries[other]);
            (now == entries).then_some(())
        });
    }
}

/// What is amiss with the second link is said of it, and the first one's clients notice nothing.
#[test]
fn a_second_link_that_goes_down_or_is_made_anew_heals() {
    let scene = Scene::new();
    let (_pod, _server, both) = scene.begun();
    let ns = &scene.node.ns;

    ns.ip("link set eth1 down");
    until("that is said", SOON, || scene.problems().contains(&"eth1 is down".to_owned()).then_some(()));
    assert!(scene.doctor().iter().any(|found| found.contains("eth1 is down")), "{:?}", scene.doctor());
    connect(&scene.clients[0], both[0], 20);
    ns.ip("link set eth1 up");
    // The kernel takes addresses of IPv6 along.
    ns.ip("addr add 2001:db8::1/64 dev eth1 nodad");
    scene.answers_on_both("eth1 is up again", both);
    scene.is_reached("eth1 is up again", both);
    scene.is_well();

    let before = ns.mac("eth1");
    ns.ip("link del eth1");
    let gone = "eth1 is gone: dhcp6.interface = \"eth1\": there is no such interface";
    until("that is said", SOON, || scene.problems().contains(&gone.to_owned()).then_some(()));
    connect(&scene.clients[0], both[0], 20);
    scene.answers("eth1 is gone", &[("eth0", both[0])]);
    plug(&scene.node, &scene.lans[1], 1);
    assert_ne!(ns.mac("eth1"), before);
    // The client has the address before in its table.
    until("the client hears of the new one", SOON, || {
        (owner(&scene.clients[1], both[1]) == Some(ns.mac("eth1"))).then_some(())
    });
    scene.answers_on_both("eth1 is another one", both);
    scene.is_reached("eth1 is another one", both);
    scene.is_well();
    asks_the_new_link(&scene);
}

/// Leases are asked for there, and so are hosts: one that has the address that comes next is found, and one that claims an address heard.
fn asks_the_new_link(scene: &Scene) {
    let host = host(&scene.lans[1], 60);
    host.ip("addr add 2001:db8::101/128 dev eth0 nodad");
    let pod = scene.node.joined(&Join::annotated("shop"));
    let [_, six] = addresses(&pod);
    assert_ne!(six.to_string(), "2001:db8::101");
    assert!(scene.servers[1].log().contains("DECLINE"), "{}", scene.servers[1].log());
    is_defended(scene, &host, "shop", six);
}

/// A host of the second link says that the address is its own: that is counted, and answered.
fn is_defended(scene: &Scene, host: &Netns, vip: &str, address: IpAddr) {
    let labels = [("namespace", "default"), ("vip", vip)];
    claims(host, address);
    until("the claim is counted", SOON, || {
        (Page::of(&scene.node).value("viproute_address_claims_total", &labels) > 0).then_some(())
    });
    let client = &scene.clients[1];
    until("the client has heard the node again", SOON, || {
        (owner(client, address) == Some(scene.node.ns.mac("eth1"))).then_some(())
    });
    host.ip(&format!("addr del {address}/128 dev eth0"));
}

#[test]
fn a_host_of_the_second_link_that_takes_an_address_is_named_and_answered() {
    let scene = Scene::new();
    let (_pod, _server, both) = scene.begun();
    let host = host(&scene.lans[1], 60);
    is_defended(&scene, &host, "web", both[1]);
    let says = format!("{} says that {} is its own", host.mac("eth0"), both[1]);
    let events = scene.node.ctl().args(["events", "--vip", "default/web"]).finish("").ok();
    assert!(events.contains(&says), "{events}");
    scene.is_reached("it goes on", both);
}

/// What was on a link of another configuration is taken away.
#[test]
fn another_configuration_takes_the_entries_along() {
    let Scene { sidecar, clients, node, servers, lans } = Scene::new();
    let pod = node.joined(&web());
    let both = addresses(&pod);
    let expect = |sidecar, link: &str| {
        let expected = [("eth0", both[0]), (link, both[1])].map(|(link, of)| (link.to_owned(), of.to_string()));
        until(&format!("{link} is answered on"), PATIENCE, || (answered(&node) == expected).then_some(()));
        Sidecar::stop(sidecar);
        assert_eq!(answered(&node), expected, "it goes on without viprouted");
    };
    expect(sidecar, "eth1");
    expect(Sidecar::start(&node, "[dhcp6]"), "eth0");
    expect(Sidecar::start(&node, TWO), "eth1");
    let none = Sidecar::start(&node, &format!("announce = \"none\"\n{TWO}"));
    until("nothing is answered for", PATIENCE, || answered(&node).is_empty().then_some(()));
    drop((none, pod, clients, servers, lans));
}

/// Nodes that know each other by the first link have their VIPs on the second one, too: neither takes the other for a stranger.
#[test]
fn nodes_together_answer_on_both_links_one_at_a_time() {
    together(["192.0.2.1", "192.0.2.2"]);
}

/// By IPv6, too: on the second link nothing answers for the address by which a node is heard.
#[test]
fn nodes_that_are_heard_by_ipv6_do_so_too() {
    together(["fd00:51::1", "fd00:51::2"]);
}

fn together(seeds: [&str; 2]) {
    let (lans, dir) = ([Lan::new(), Lan::new()], TempDir::new());
    let key = new_key(&dir, "membership.key");
    let _servers = (DhcpServer::dnsmasq(&lans[0], RANGE, "10m", ""), DhcpServer::kea6(&lans[1], 600, KEA_POOL6));
    let nodes = [1, 2].map(|number| {
        let node = Node::without_allocator(&lans[0], number);
        plug(&node, &lans[1], number);
        node.ns.ip(&format!("addr add fd00:51::{number}/64 dev eth0 nodad"));
        node
    });
    let sidecars = [1, 2].map(|number: usize| {
        let membership = format!("key_file = {key:?}\nname = \"n{number}\"\nseeds = {seeds:?}");
        Sidecar::start(&nodes[number - 1], &format!("{TWO}\n[membership]\n{membership}"))
    });
    let live = |node: &Node| {
        let shown = node.ctl().args(["nodes", "--output", "json"]).finish("").ok();
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        shown["nodes"].as_array().expect("nodes").iter().any(|node| node["state"] == "live")
    };
    until("the nodes see each other", PATIENCE, || nodes.iter().all(live).then_some(()));
    let clients = lans.each_ref().map(|lan| host(lan, 50));
    let mut pods = nodes.each_ref().map(Node::pod);
    for (pod, name) in pods.iter_mut().zip(["one", "two"]) {
        name.clone_into(&mut pod.name);
    }
    for (node, pod) in nodes.iter().zip(&pods) {
        node.add(pod, &web()).ok();
    }
    let both = addresses(&pods[0]);
    assert_eq!(addresses(&pods[1]), both);
    let mut servers = pods.each_ref().map(|pod| Some(Crowd::of_both(pod, PORT)));
    let answers = |what: &str, links: &[&str]| {
        until(&format!("{what}: one node answers"), LONG, || {
            let answered: Vec<_> = nodes.iter().map(answered).collect();
            let links_of = |node: &Vec<(String, String)>| node.iter().map(|(link, _)| link.clone()).collect::<Vec<_>>();
            let mut all: Vec<_> = answered.iter().filter(|node| !node.is_empty()).map(links_of).collect();
            (all.len() == 1 && all.remove(0) == links).then(|| usize::from(answered[0].is_empty()))
        })
    };
    let first = answers("both have a replica", &["eth0", "eth1"]);
    for (client, address) in clients.iter().zip(both) {
        until("both replicas are reached", PATIENCE, || (attempt(client, address, 60).names.len() == 2).then_some(()));
    }
    let other = 1 - first;
    servers[first] = None;
    nodes[first].remove(&pods[first], &web());
    assert_eq!(answers("one is left", &["eth0", "eth1"]), other);
    for ((client, address), link) in clients.iter().zip(both).zip(["eth0", "eth1"]) {
        let mac = Some(nodes[other].ns.mac(link));
        until("the client has heard of the other node", SOON, || (owner(client, address) == mac).then_some(()));
        assert_eq!(connect(client, address, 20).names.len(), 1, "{address}");
    }
    for (node, sidecar) in nodes.iter().zip(&sidecars) {
        let labels = [("namespace", "default"), ("vip", "web")];
        let claims = Page::of(node).find("viproute_address_claims_total", &labels);
        assert_eq!(claims.unwrap_or_default(), 0, "{}", sidecar.daemon.log());
    }
}
