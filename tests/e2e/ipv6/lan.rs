//! `announce = "arp"`: neighbours on the LAN reach a VIP's IPv6 address without any route, by neighbour discovery.

use std::net::Ipv6Addr;

use serde_json::{Value, json};

use crate::harness::{
    Crowd, DhcpServer, LONG, Lan, Netns, Node, PORT, Page, Pod, RANGE, Run, SOON, Sidecar, attempt, bare_pod, connect,
    until,
};

use super::{claims, web};

/// `default/web` is pinned: whichever node has it, it has these addresses.
const LAN: &str = "backend = \"pool\"\nannounce = \"arp\"\n[pool]\ncidr = \"10.118.0.0/24\"\ncidr6 = \"fd00:118::/96\"";
const PINNED: &str = "backend = \"pool\"\nannounce = \"arp\"\n[[pin]]\nvip = \"default/web\"\naddress = \"10.118.0.1\"\n\
                      address6 = \"fd00:118::a76:1\"";
const FIRST: &str = "fd00:118::a76:1";

fn vip6() -> Ipv6Addr {
    FIRST.parse().expect("an address")
}

/// A node with a VIP that neighbours find by themselves, and one of these. Fields are dropped in this order.
struct Scene {
    _servers: Vec<Crowd>,
    pods: Vec<Pod>,
    sidecar: Sidecar,
    client: Netns,
    node: Node,
    lan: Lan,
}

impl Scene {
    fn new(replicas: usize) -> Self {
        let lan = Lan::new();
        let node = node(&lan, 1);
        let sidecar = Sidecar::start(&node, LAN);
        let client = neighbour(&lan, 50);
        let pods: Vec<_> = (0..replicas).map(|_| node.pod()).collect();
        let servers = pods.iter().map(|pod| Crowd::of_both(pod, PORT)).collect();
        for pod in &pods {
            node.add(pod, &web()).ok();
        }
        let scene = Self { _servers: servers, pods, sidecar, client, node, lan };
        until("the node answers for the VIP", SOON, || scene.is_answered().then_some(()));
        scene
    }

    fn is_answered(&self) -> bool {
        answers(&self.node)
    }

    fn page(&self, name: &str) -> i64 {
        Page::of(&self.node).value(name, &[("namespace", "default"), ("vip", "web")])
    }
}

fn node(lan: &Lan, number: u8) -> Node {
    let node = Node::without_allocator(lan, number);
    lan.add_ipv6(&node.ns, number);
    node
}

/// A host for which VIPs are on the link.
fn neighbour(lan: &Lan, host: u8) -> Netns {
    let ns = lan.client(host, &["10.118.0.0/16 dev eth0"]);
    lan.add_ipv6(&ns, host);
    ns.ip("route add fd00:118::/96 dev eth0");
    ns
}

fn answers(node: &Node) -> bool {
    node.ns.ip("-6 neigh show proxy dev eth0").contains(FIRST)
}

/// Whom `ns` takes for the VIP's owner.
fn owner(ns: &Netns) -> Option<String> {
    ns.neighbour(FIRST).map(|(mac, _)| mac)
}

#[test]
fn neighbours_reach_a_vip_while_it_has_a_ready_replica() {
    let scene = Scene::new(3);
    let tally = connect(&scene.client, vip6(), 300);
    assert_eq!(tally.names.len(), 3, "{tally:?}");
    assert_eq!(owner(&scene.client), Some(scene.node.ns.mac("eth0")));
    for pod in &scene.pods {
        scene.node.remove(pod, &web());
    }
    until("the node answers no more", SOON, || (!scene.is_answered()).then_some(()));
    // Without an entry nobody is there: no answer at all, where the kernel would have given one for a VIP without a route.
    scene.client.ip("-6 neigh flush all");
    assert_eq!(attempt(&scene.client, vip6(), 1).failed, 1);
    assert_eq!(owner(&scene.client), None);
}

/// A host whose entry is old asks the owner by unicast whether it is still there. Nobody's answer is lost for want of a setting, and what
/// takes it away is found.
#[test]
fn it_is_reachable_by_unicast_and_heals() {
    let scene = Scene::new(1);
    connect(&scene.client, vip6(), 1);
    let is_reachable = || {
        scene.client.ip(&format!("-6 neigh replace {FIRST} dev eth0 lladdr {} nud probe", scene.node.ns.mac("eth0")));
        let decided = || scene.client.neighbour(FIRST).filter(|(_, state)| state != "PROBE").map(|(_, state)| state);
        until("the probe is decided", SOON, || {
            decided().or_else(|| scene.client.neighbour(FIRST).is_none().then(String::new))
        }) == "REACHABLE"
    };
    assert!(is_reachable());
    let ns = &scene.node.ns;
    for (what, setting) in [
        ("proxy_ndp of all", "net/ipv6/conf/all/proxy_ndp"),
        ("the link's forwarding", "net/ipv6/conf/eth0/forwarding"),
    ] {
        ns.set_sysctl(setting, "0");
        until(&format!("{what} is back"), SOON, || (ns.sysctl(setting) == "1").then_some(()));
        assert!(is_reachable(), "{what}");
    }
    ns.set_sysctl("net/ipv6/neigh/eth0/proxy_delay", "80");
    until("answers come at once", SOON, || (ns.sysctl("net/ipv6/neigh/eth0/proxy_delay") == "0").then_some(()));
    ns.ip(&format!("-6 neigh del proxy {FIRST} dev eth0"));
    until("the entry is back", SOON, || scene.is_answered().then_some(()));
    // The link's going down takes all entries along.
    ns.ip("link set eth0 down");
    ns.ip("link set eth0 up");
    until("the entry is back", SOON, || scene.is_answered().then_some(()));
}

/// Hosts that know the VIP at one node hear that it is at another, long before they would ask again.
#[test]
fn a_vip_that_moves_is_known_at_its_new_place_at_once() {
    let lan = Lan::new();
    let nodes = [node(&lan, 1), node(&lan, 2)];
    let _sidecars = nodes.each_ref().map(|node| Sidecar::start(node, PINNED));
    let client = neighbour(&lan, 50);
    let pods = nodes.each_ref().map(Node::pod);
    let _servers = pods.each_ref().map(|pod| Crowd::of_both(pod, PORT));
    nodes[0].add(&pods[0], &web()).ok();
    until("the first node answers", SOON, || answers(&nodes[0]).then_some(()));
    connect(&client, vip6(), 1);
    assert_eq!(owner(&client), Some(nodes[0].ns.mac("eth0")));
    nodes[0].remove(&pods[0], &web());
    until("the first node answers no more", SOON, || (!answers(&nodes[0])).then_some(()));
    nodes[1].add(&pods[1], &web()).ok();
    until("the client has heard of it", SOON, || (owner(&client) == Some(nodes[1].ns.mac("eth0"))).then_some(()));
    assert_eq!(connect(&client, vip6(), 10).names.len(), 1);
}

#[test]
fn an_address_that_a_host_has_is_passed_over() {
    let lan = Lan::new();
    let node = node(&lan, 1);
    let host = lan.client(60, &[]);
    host.ip(&format!("addr add {FIRST}/128 dev eth0 nodad"));
    let sidecar = Sidecar::start(&node, LAN);
    let pod = node.joined(&web());
    assert_eq!(pod.vips6(), ["fd00:118::a76:2".parse::<Ipv6Addr>().unwrap()]);
    let said = format!("{} answers neighbour discovery for it", host.mac("eth0"));
    assert!(sidecar.daemon.log().contains(&said), "{}", sidecar.daemon.log());
}

/// One that a VIP in service is to get beside what it has is searched for, too.
#[test]
fn a_vip_in_service_gets_no_address_that_a_host_has() {
    let lan = Lan::new();
    let node = node(&lan, 1);
    let host = lan.client(60, &[]);
    host.ip(&format!("addr add {FIRST}/128 dev eth0 nodad"));
    let v4 = LAN.replace("cidr6 = \"fd00:118::/96\"", "");
    let sidecar = Sidecar::start(&node, &v4);
    let pod = node.joined(&web());
    sidecar.stop();
    let _sidecar = Sidecar::start(&node, LAN);
    let events = || node.ctl().args(["events", "--vip", "default/web"]).finish("").ok();
    let said = format!("it isn't served at {FIRST}: {} answers neighbour discovery for it", host.mac("eth0"));
    until("that is said", SOON, || events().contains(&said).then_some(()));
    assert_eq!(pod.vips6(), Vec::<Ipv6Addr>::new());
    assert!(!answers(&node));
}

#[test]
fn a_host_that_takes_a_vips_address_is_named_and_answered() {
    let scene = Scene::new(1);
    connect(&scene.client, vip6(), 1);
    let claimant = scene.lan.client(60, &[]);
    scene.lan.add_ipv6(&claimant, 60);
    claims(&claimant, vip6().into());
    until("the claim is counted", SOON, || (scene.page("viproute_address_claims_total") > 0).then_some(()));
    let stranger = claimant.mac("eth0");
    let says = format!("{stranger} says that {FIRST} is its own");
    let events = scene.node.ctl().args(["events", "--vip", "default/web"]).finish("").ok();
    assert!(events.contains(&says), "{events}");
    assert_eq!(scene.sidecar.status("default/web").expect("the VIP")["claimed_by"], json!(stranger));
    until("the client has heard the node again", SOON, || {
        (owner(&scene.client) == Some(scene.node.ns.mac("eth0"))).then_some(())
    });
    assert!(scene.is_answered(), "it goes on");
}

/// A node of another installation wants the address: it asks the link first, and learns that it is taken.
#[test]
fn who_probes_for_a_served_vip_hears_that_it_is_taken() {
    let scene = Scene::new(1);
    let other = node(&scene.lan, 2);
    // Its IPv4 address is free.
    let pinned = PINNED.replace("10.118.0.1", "10.118.7.7");
    let sidecar = Sidecar::start(&other, &pinned);
    let error = sidecar.acquire("default/web").unwrap_err();
    let said = format!("{} answers neighbour discovery for it", scene.node.ns.mac("eth0"));
    assert!(error.code == 11 && error.msg.contains(&said), "{error:?}");
}

/// A LAN whose gateway sends router advertisements, which bring a default route of 20 seconds.
fn advertised() -> (Lan, DhcpServer) {
    let lan = Lan::new();
    lan.ns.ip("addr add 2001:db8::fe/64 dev br0 nodad");
    lan.ns.set_sysctl("net/ipv6/conf/br0/forwarding", "1");
    let extra = "enable-ra\ndhcp-range=2001:db8::,ra-only,64,10m\nra-param=br0,4,20";
    let server = DhcpServer::dnsmasq(&lan, RANGE, "10m", extra);
    (lan, server)
}

/// How many seconds the default route by router advertisement has left.
fn left(ns: &Netns) -> Option<u64> {
    let routes = ns.ip_json("-6 route show default");
    let by_advertisement = |route: &&Value| route["protocol"] == json!("ra");
    routes.iter().find(by_advertisement)?["expires"].as_u64()
}

/// From the first start to a hundred pods the node keeps the default route that its router gave it, and goes on hearing the router.
#[test]
fn a_node_of_router_advertisements_keeps_its_way_out() {
    let (lan, _server) = advertised();
    let node = Node::without_allocator(&lan, 1);
    until("the router is heard", LONG, || left(&node.ns));
    let _sidecar = Sidecar::start(&node, LAN);
    assert!(left(&node.ns).is_some(), "after the start");
    let first = node.joined(&web());
    assert!(left(&node.ns).is_some(), "after the first ADD");
    until("the node answers for the VIP", SOON, || answers(&node).then_some(()));
    let pods: Vec<_> = (100..200).map(bare_pod).collect();
    for pod in &pods {
        node.add(pod, &web()).ok();
        assert!(left(&node.ns).is_some(), "after ADD of {}", pod.name);
    }
    assert_eq!(node.ns.sysctl("net/ipv6/conf/eth0/accept_ra"), "2");
    let before = until("the route has aged", SOON, || left(&node.ns).filter(|left| *left < 19));
    until("the router is heard again", LONG, || left(&node.ns).filter(|left| *left > before));
    node.check(&first, &web()).ok();
    for pod in &pods {
        node.remove(pod, &web());
    }
}

/// Where forwarding is switched on by the link's own setting alone, the router is heard on.
#[test]
fn a_link_that_is_told_to_forward_keeps_its_way_out() {
    let (lan, _server) = advertised();
    let node = Node::without_allocator(&lan, 1);
    until("the router is heard", LONG, || left(&node.ns));
    let _sidecar = Sidecar::start(&node, LAN);
    let _pod = node.joined(&web());
    until("the node answers for the VIP", SOON, || answers(&node).then_some(()));
    node.ns.set_sysctl("net/ipv6/conf/eth0/forwarding", "0");
    node.ns.set_sysctl("net/ipv6/conf/eth0/accept_ra", "1");
    until("it forwards again", SOON, || (node.ns.sysctl("net/ipv6/conf/eth0/forwarding") == "1").then_some(()));
    assert!(left(&node.ns).is_some());
    assert_eq!(node.ns.sysctl("net/ipv6/conf/eth0/accept_ra"), "2");
}

/// What keeps a node from answering is found, also where viprouted doesn't see to it.
#[test]
fn doctor_finds_what_keeps_it_from_answering() {
    let scene = Scene::new(1);
    scene.sidecar.daemon.signal(nix::sys::signal::Signal::SIGSTOP);
    scene.node.ns.set_sysctl("net/ipv6/conf/all/proxy_ndp", "0");
    let found = scene.node.ctl().args(["doctor", "--output", "json"]).finish("").stdout;
    scene.sidecar.daemon.signal(nix::sys::signal::Signal::SIGCONT);
    assert!(found.contains("net.ipv6.conf.all.proxy_ndp is 0, not 1"), "{found}");
    until("it is set again", SOON, || (scene.node.ns.sysctl("net/ipv6/conf/all/proxy_ndp") == "1").then_some(()));
}

/// The link that VIPs are answered for on is the default route's: that of IPv4, and of a node that has none that of IPv6.
#[test]
fn without_a_default_route_of_ipv4_that_of_ipv6_names_the_link() {
    let (lan, other) = (Lan::new(), Lan::new());
    let node = Node::without_allocator(&lan, 1);
    other.ns.ip("addr add 2001:db8:2::fe/64 dev br0 nodad");
    other.ns.ip(&format!("link add name second type veth peer name eth1 netns {}", node.ns.path()));
    other.ns.ip("link set second master br0 up");
    node.ns.ip("link set eth1 up");
    node.ns.ip("addr add 2001:db8:2::1/64 dev eth1 nodad");
    node.ns.ip("-4 route del default");
    node.ns.ip("-6 route add default via 2001:db8:2::fe dev eth1");
    let sidecar = Sidecar::start(&node, LAN);
    let _pod = node.joined(&web());
    let is_on = |link: &str, why: &str| {
        until(&format!("{why}: VIPs are answered for on {link}"), LONG, || {
            let shown = ["-4", "-6"].map(|family| node.ns.ip(&format!("{family} neigh show proxy")));
            let is_it = |shown: &String| shown.lines().count() == 1 && shown.contains(&format!("dev {link} "));
            shown.iter().all(is_it).then_some(())
        });
    };
    is_on("eth1", "IPv6 alone has a default route");
    node.ns.ip("-4 route add default via 192.0.2.254 dev eth0");
    is_on("eth0", "IPv4 has one, too");
    sidecar.stop();
    let _sidecar = Sidecar::start(&node, LAN);
    is_on("eth0", "after a restart");
    node.ns.ip("-4 route del default");
    is_on("eth1", "IPv4 has none any more");
}
