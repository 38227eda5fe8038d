//! IPv6 addresses that a `DHCPv6` server leases: `[dhcp6]`.

use std::net::Ipv6Addr;

use serde_json::{Value, json};

use crate::harness::{
    Crowd, DhcpServer, Flows, KEA_POOL6, LONG, Lan, Netns, Node, PATIENCE, PORT, Page, Pod, RANGE6, RELAYED6, Run,
    SOON, Sidecar, connect, until,
};

use super::web;

/// IPv4 from a pool, so that there is one server to look at.
const POOL: &str = "backend = \"pool\"\nannounce = \"arp\"\n[pool]\ncidr = \"10.118.0.0/24\"\n[dhcp6]";

pub(super) struct Scene {
    pub(super) sidecar: Sidecar,
    pub(super) node: Node,
    pub(super) lan: Lan,
}

impl Scene {
    fn new(settings: &str, serve: impl FnOnce(&Lan) -> DhcpServer) -> (Self, DhcpServer) {
        let lan = Lan::new();
        let server = serve(&lan);
        (Self::on(lan, settings), server)
    }

    /// The node's link-local address is a tentative one yet, as after a boot.
    pub(super) fn on(lan: Lan, settings: &str) -> Self {
        let node = Node::without_allocator(&lan, 1);
        lan.add_ipv6(&node.ns, 1);
        let sidecar = Sidecar::start(&node, settings);
        Self { sidecar, node, lan }
    }

    fn joined(&self) -> (Pod, Ipv6Addr) {
        let pod = self.node.joined(&web());
        let [address] = pod.vips6()[..] else { panic!("{:?}\n{}", pod.vips6(), self.sidecar.daemon.log()) };
        (pod, address)
    }

    /// The lease of an address.
    fn lease(&self, of: Ipv6Addr) -> Option<Value> {
        let leases = self.sidecar.ask(&json!({ "leases": {} }))["leases"].as_array().cloned()?;
        leases.into_iter().find(|lease| lease["address"] == json!(of))
    }

    fn expires(&self, of: Ipv6Addr) -> Option<u64> {
        self.lease(of)?["expires"].as_u64()
    }

    pub(super) fn restarted(self, settings: &str) -> Self {
        let Self { sidecar, node, lan } = self;
        sidecar.stop();
        let sidecar = Sidecar::start(&node, settings);
        Self { sidecar, node, lan }
    }
}

fn in_range(address: Ipv6Addr) -> bool {
    (0x100..=0x150).contains(&(address.to_bits() & 0xffff)) && address.segments()[..7] == [0x2001, 0xdb8, 0, 0, 0, 0, 0]
}

/// A server, and how it is started on a LAN.
type Serving = (&'static str, fn(&Lan) -> DhcpServer);

fn servers() -> [Serving; 2] {
    [("dnsmasq", |lan| DhcpServer::dnsmasq6(lan, RANGE6)), ("kea", |lan| DhcpServer::kea6(lan, 600, KEA_POOL6))]
}

/// What the server has leased.
fn leased(server: &DhcpServer) -> usize {
    let leases = server.leases();
    let last = |address: &str| leases.iter().rfind(|line| line.contains(address)).cloned().unwrap_or_default();
    let addresses: std::collections::BTreeSet<String> = leases
        .iter()
        .flat_map(|line| line.split([' ', ',']))
        .filter(|field| field.parse::<Ipv6Addr>().is_ok_and(in_range))
        .map(str::to_owned)
        .collect();
    // Kea appends; a line with no lifetime is a released lease.
    addresses.iter().filter(|address| last(address).split(',').nth(2) != Some("0")).count()
}

#[test]
fn a_vip_has_an_address_of_the_server() {
    for (name, serve) in servers() {
        let (scene, server) = Scene::new(&format!("hold = \"1s\"\n{POOL}"), serve);
        let (pod, address) = scene.joined();
        assert!(in_range(address), "{name}: {address}");
        // Answers to a tentative address are lost: nothing was asked for from there.
        let solicits =
            Page::of(&scene.node).value("viproute_dhcp_messages_total", &[("direction", "sent"), ("type", "discover")]);
        assert_eq!(solicits, 1, "{name}");
        let _server = Crowd::of_both(&pod, PORT);
        scene.node.check(&pod, &web()).ok();
        let client = scene.lan.client(50, &[]);
        scene.lan.add_ipv6(&client, 50);
        until("the node answers for it", SOON, || {
            scene.node.ns.ip("-6 neigh show proxy").contains(&address.to_string()).then_some(())
        });
        assert_eq!(connect(&client, address, 30).names.len(), 1, "{name}");
        until("the server has it on its list", SOON, || (leased(&server) == 1).then_some(()));
        // Another pod of the VIP has the same.
        assert_eq!(scene.joined().1, address, "{name}");
        let lease = scene.lease(address).expect("a lease");
        assert!(lease["server"].as_str().is_some_and(|server| server.starts_with("fe80::")), "{name}: {lease}");
        scene.node.remove(&pod, &web());
        assert!(scene.lease(address).is_some(), "the second pod has it");
    }
}

#[test]
fn the_last_replica_takes_the_lease_along() {
    for (name, serve) in servers() {
        let (scene, server) = Scene::new(&format!("hold = \"1s\"\n{POOL}"), serve);
        let (pod, address) = scene.joined();
        until("the server has it on its list", SOON, || (leased(&server) == 1).then_some(()));
        // A lease is kept for a minute after a call for it, unless its replica has come since.
        until("it is in use", SOON, || scene.sidecar.status("default/web"));
        scene.node.remove(&pod, &web());
        until(&format!("{name} has it back"), PATIENCE, || (leased(&server) == 0).then_some(()));
        assert_eq!(scene.lease(address), None);
    }
}

#[test]
fn the_address_is_the_same_after_a_restart() {
    for (name, serve) in servers() {
        let (scene, _server) = Scene::new(POOL, serve);
        let (pod, address) = scene.joined();
        let scene = scene.restarted(POOL);
        until("it is confirmed", SOON, || {
            let lease = scene.lease(address)?;
            lease["server"].as_str().filter(|server| server.starts_with("fe80::")).map(drop)
        });
        assert_eq!(scene.joined().1, address, "{name}");
        scene.node.remove(&pod, &web());
    }
}

/// An address in service whose lease file is gone: it is asked for anew, and stays meanwhile.
#[test]
fn the_address_stays_while_its_lease_is_unknown() {
    let (scene, _server) = Scene::new(POOL, |lan| DhcpServer::dnsmasq6(lan, RANGE6));
    let (pod, address) = scene.joined();
    let Scene { sidecar, node, lan } = scene;
    sidecar.stop();
    std::fs::remove_file(node.dir.file("state/leases6/default_web.json")).expect("its lease");
    let sidecar = Sidecar::start(&node, POOL);
    let scene = Scene { sidecar, node, lan };
    until("it is leased again", SOON, || {
        scene.lease(address)?["server"].as_str().filter(|server| server.starts_with("fe80::")).map(drop)
    });
    assert_eq!(pod.vips6(), [address]);
    let log = scene.sidecar.daemon.log();
    assert!(!log.contains(" serve vip="), "an order to serve something else meanwhile: {log}");
    scene.node.remove(&pod, &web());
}

/// Renewals, and a server that has lost all it knew: what it says counts, and the address stays.
#[test]
fn it_is_renewed_and_a_wiped_server_gives_it_again() {
    let (scene, mut server) = Scene::new(POOL, |lan| DhcpServer::kea6(lan, 8, KEA_POOL6));
    let (pod, address) = scene.joined();
    for round in 1..=2 {
        let before = scene.expires(address).expect("a lease that ends");
        until(&format!("renewal {round}"), PATIENCE, || scene.expires(address).filter(|now| *now > before + 2));
    }
    server.stop();
    server.wipe();
    server.start_again(&scene.lan);
    let before = scene.expires(address).expect("a lease that ends");
    until("renewed by the server that knew nothing", PATIENCE, || {
        scene.expires(address).filter(|now| *now > before + 2)
    });
    assert_eq!(pod.vips6(), [address]);
}

/// The server's addresses are others: the VIP moves, and its IPv4 address with all connections stays.
#[test]
fn a_server_with_another_range_renumbers_the_vip() {
    let (scene, mut server) = Scene::new(POOL, |lan| DhcpServer::kea6(lan, 8, KEA_POOL6));
    let (pod, address) = scene.joined();
    let _server = Crowd::of_both(&pod, PORT);
    let client = scene.lan.client(50, &["10.118.0.0/16 dev eth0"]);
    until("the node answers for it", SOON, || scene.node.ns.ip("neigh show proxy").contains("10.118").then_some(()));
    let mut flows = Flows::open("the client", &client, pod.vip(), 50);
    server.stop();
    server.wipe();
    server.change_pool6(8, "2001:db8::200 - 2001:db8::250");
    server.start_again(&scene.lan);
    let now = until("it has an address of the new range", LONG, || {
        let moved = pod.vips6().into_iter().find(|now| now.segments()[7] >= 0x200);
        moved.filter(|_| scene.node.check(&pod, &web()).succeeded())
    });
    assert_ne!(now, address);
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None, "IPv4's connections");
    let events = scene.node.ctl().args(["events", "--vip", "default/web"]).finish("").ok();
    assert!(events.contains(&format!("{now} is granted in place of {address}")), "{events}");
}

/// A server that is silent keeps no pod from its IPv4 address, and a lease that ends takes the IPv6 address alone.
#[test]
fn ipv6_follows_and_goes_by_itself() {
    let lan = Lan::new();
    lan.has_ipv6();
    let scene = Scene::on(lan, POOL);
    let pod = scene.node.joined(&web());
    assert_eq!((pod.vips().len(), pod.vips6().len()), (1, 0));
    let mut server = DhcpServer::kea6(&scene.lan, 8, KEA_POOL6);
    let address = until("it has one since", LONG, || pod.vips6().first().copied());
    until("CHECK agrees", SOON, || scene.node.check(&pod, &web()).succeeded().then_some(()));
    server.stop();
    until("the lease is over", LONG, || {
        let shown = scene.node.ns.ip("-6 route show proto 118");
        (!shown.contains("unreachable")).then_some(())
    });
    until("neighbours are answered no more", SOON, || {
        (!scene.node.ns.ip("-6 neigh show proxy").contains(&address.to_string())).then_some(())
    });
    assert_eq!(pod.vips().len(), 1);
    let status = scene.sidecar.status("default/web").expect("the VIP");
    assert!(status["error"].as_str().is_some_and(|error| error.starts_with("IPv6: ")), "{status}");
    server.start_again(&scene.lan);
    until("it has it again", LONG, || {
        let shown = scene.node.ns.ip("-6 route show proto 118");
        (shown.contains("unreachable") && pod.vips6() == [address]).then_some(())
    });
}

#[test]
fn an_address_that_a_host_has_is_declined() {
    let lan = Lan::new();
    let server = DhcpServer::kea6(&lan, 600, KEA_POOL6);
    let host: Netns = lan.client(60, &[]);
    host.ip("addr add 2001:db8::100/128 dev eth0 nodad");
    let scene = Scene::on(lan, POOL);
    let address = scene.joined().1;
    // The next one, or one behind it where an offer was lost.
    assert!(in_range(address) && !address.to_string().ends_with("::100"), "{address}");
    assert!(server.log().contains("DECLINE"), "{}", server.log());
}

/// By a link of their own, on which hosts are asked too; routers lead to them.
#[test]
fn addresses_may_be_of_another_link_than_those_of_ipv4() {
    let (lan, other) = (Lan::new(), Lan::new());
    let server = DhcpServer::kea6(&other, 600, KEA_POOL6);
    let host = other.client(60, &[]);
    host.ip("addr add 2001:db8::100/128 dev eth0 nodad");
    let node = Node::without_allocator(&lan, 1);
    other.ns.ip(&format!("link add name second type veth peer name eth1 netns {}", node.ns.path()));
    other.ns.ip("link set second master br0 up");
    node.ns.ip("link set eth1 up");
    node.ns.ip("addr add 2001:db8::1/64 dev eth1 nodad");
    let settings = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n[dhcp6]\ninterface = \"eth1\"";
    let scene = Scene { sidecar: Sidecar::start(&node, settings), node, lan };
    let address = scene.joined().1;
    assert!(in_range(address) && !address.to_string().ends_with("::100"), "{address}");
    assert!(server.log().contains("DECLINE"), "{}", server.log());
    let text = std::fs::read_to_string(scene.node.dir.file("state/leases6/default_web.json")).expect("its lease");
    assert!(text.contains("\"eth1\""), "{text}");
}

/// From a server beyond the link, as a relay agent asks.
#[test]
fn a_relay_has_addresses_of_another_subnet() {
    let relay = format!(
        "allow = [\"10.118.0.0/24\", \"{RELAYED6}/64\"]\n{POOL}\n[dhcp6.relay]\nserver = \"2001:db8::fe\"\nsubnet = \"{RELAYED6}1\""
    );
    let (scene, _server) = Scene::new(&relay, |lan| DhcpServer::kea6(lan, 600, KEA_POOL6));
    let (_, address) = scene.joined();
    assert!(address.to_string().starts_with("2001:db8:99::1"), "{address}");
    until("it is confirmed", SOON, || scene.lease(address).filter(|lease| lease["server"] == json!("2001:db8::fe")));
}

/// Both families of one server; neither of two clients of the machine's own is in the way.
#[test]
fn both_families_are_leased_of_one_server() {
    let lan = Lan::new();
    let server = DhcpServer::dnsmasq6(&lan, RANGE6);
    let node = Node::without_allocator(&lan, 1);
    lan.add_ipv6(&node.ns, 1);
    // A client of the machine's own has the port.
    let taken = node.ns.run(|| std::net::UdpSocket::bind("[::]:546").expect("port 546"));
    let scene = Scene { sidecar: Sidecar::start(&node, "backend = \"dhcp\"\n[dhcp6]"), node, lan };
    let (pod, address) = scene.joined();
    assert!(in_range(address) && pod.vip().octets()[..3] == [192, 0, 2], "{address} {}", pod.vip());
    until("the server has both on its list", SOON, || {
        (leased(&server) == 1 && server.leases().iter().any(|line| line.contains("192.0.2."))).then_some(())
    });
    let identity = scene.node.ctl().args(["identity", "default/web", "--output", "json"]).finish("").ok();
    let identity: Value = serde_json::from_str(&identity).expect("JSON");
    let duid = identity["client_id"].as_str().expect("a client id")[15..].to_owned();
    let known = server.leases().iter().any(|line| line.contains(&duid));
    assert!(known, "{duid} in {:?}", server.leases());
    drop(taken);
}

/// Each asks for itself, as one client of the server's: both have the address, and neither takes the other for a stranger.
#[test]
fn nodes_that_list_each_other_lease_the_same_address() {
    let settings = format!(
        "hold = \"1s\"\ncluster = \"blue\"\npeers = [\"192.0.2.1\", \"192.0.2.2\", \"2001:db8::1\", \"2001:db8::2\"]\n{POOL}\n\
         [[pin]]\nvip = \"default/web\"\naddress = \"10.118.0.7\""
    );
    for (name, serve) in servers() {
        let (scene, server) = Scene::new(&settings, serve);
        let node = Node::without_allocator(&scene.lan, 2);
        scene.lan.add_ipv6(&node.ns, 2);
        let sidecar = Sidecar::start(&node, &settings);
        let (first, address) = scene.joined();
        until("the first node answers for it", SOON, || answers(&scene.node, address));
        let second = node.joined(&web());
        assert_eq!(second.vips6(), [address], "{name}");
        until("so does the second", SOON, || answers(&node, address));
        until("the server has one on its list", SOON, || (leased(&server) == 1).then_some(()));
        let _servers = [Crowd::of_both(&first, PORT), Crowd::of_both(&second, PORT)];
        let clients = [1, 2].map(|number| {
            let client = scene.lan.client(50 + number, &[]);
            scene.lan.add_ipv6(&client, 50 + number);
            client.ip(&format!("route add {address}/128 via 2001:db8::{number}"));
            client
        });
        for (client, pod) in clients.iter().zip([&first, &second]) {
            assert!(connect(client, address, 10).names.keys().eq([&pod.name]), "{name}");
        }
        let mut flows = Flows::open("the second's client", &clients[1], address, 10);
        // The first node's last replica leaves: the address is the second's still, so that it isn't given back.
        scene.node.remove(&first, &web());
        until("the first node has no lease any more", PATIENCE, || scene.lease(address).is_none().then_some(()));
        assert_eq!(leased(&server), 1, "{name}");
        flows.ask();
        flows.hear();
        assert_eq!(flows.complaint(&[]), None, "{name}");
        node.check(&second, &web()).ok();
        let labels = [("namespace", "default"), ("vip", "web")];
        assert_eq!(Page::of(&node).value("viproute_address_claims_total", &labels), 0, "{}", sidecar.daemon.log());
    }
}

/// Whether the node answers neighbours that ask for the address.
fn answers(node: &Node, address: Ipv6Addr) -> Option<()> {
    node.ns.ip("-6 neigh show proxy").contains(&address.to_string()).then_some(())
}
