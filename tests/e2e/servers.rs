//! The DHCP servers people run, on a bad day: dnsmasq, Kea and ISC dhcpd, each through the same events. The servers' tests run
//! side by side, because most of their time is waiting.

use std::fs;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{
    DhcpServer, Join, LONG, Lan, Netns, Node, PATIENCE, Page, Pod, PodServer, RELAYED, SOON, Sidecar, Software,
    connect, until,
};

/// Seconds. Long enough that a slow machine's renewal comes in time, short enough to wait for its end.
const LEASE: u32 = 10;

fn web() -> Join {
    Join::annotated("web").namespace("shop")
}

/// `scenario` for each of the servers, and what it says in case of a failure for all of them.
fn each(forms: &[(Software, Form)], scenario: impl Fn(Software, Form) + Sync) {
    thread::scope(|scope| {
        let scenario = &scenario;
        let run = |&(software, form)| (software, form, scope.spawn(move || scenario(software, form)));
        let running: Vec<_> = forms.iter().map(run).collect();
        let mut failed = Vec::new();
        for (software, form, thread) in running {
            if thread.join().is_err() {
                failed.push(format!("{software:?} {form:?}"));
            }
        }
        assert!(failed.is_empty(), "{}", failed.join(", "));
    });
}

/// How the sidecar asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// By broadcast, for addresses of the LAN.
    Link,
    /// As a relay, for addresses of a subnet that is routed to the node.
    Relay,
}

const ON_THE_LINK: [(Software, Form); 3] =
    [(Software::Dnsmasq, Form::Link), (Software::Kea, Form::Link), (Software::Dhcpd, Form::Link)];

/// A server, a node with a served replica, and a client.
struct Scene {
    server: DhcpServer,
    sidecar: Option<Sidecar>,
    client: Netns,
    pod: Pod,
    _served: PodServer,
    node: Node,
    lan: Lan,
    settings: String,
}

impl Scene {
    fn new(software: Software, form: Form, lease: u32) -> Self {
        let lan = Lan::new();
        let server = DhcpServer::quick(software, &lan, lease);
        let node = Node::without_allocator(&lan, 1);
        let (settings, routes): (_, &[&str]) = match form {
            // One name throughout: the state directory goes in between.
            Form::Link => ("backend = \"dhcp\"\ncluster = \"one\"\nallow = [\"192.0.2.0/24\"]".into(), &[]),
            Form::Relay => (relaying(), &["10.99.0.0/24 via 192.0.2.1"]),
        };
        let sidecar = Some(Sidecar::start(&node, &settings));
        let client = lan.client(50, routes);
        let pod = node.joined(&web());
        let server_in_pod = PodServer::start(&pod);
        let scene = Self { server, sidecar, client, pod, _served: server_in_pod, node, lan, settings };
        let network = if form == Form::Link { [192, 0, 2] } else { [10, 99, 0] };
        let vip = scene.address();
        assert!(vip.octets()[..3] == network && (100..=150).contains(&vip.octets()[3]), "{vip}");
        scene.reached();
        scene
    }

    fn sidecar(&self) -> &Sidecar {
        self.sidecar.as_ref().expect("the sidecar runs")
    }

    fn status(&self) -> Value {
        self.sidecar().status("shop/web").expect("the sidecar knows the VIP")
    }

    fn address(&self) -> Ipv4Addr {
        record(&self.node)["addresses"][0].as_str().and_then(|text| text.parse().ok()).expect("an address in vip.json")
    }

    fn is_withdrawn(&self) -> bool {
        record(&self.node)["withdrawn"] == true
    }

    /// The client gets through to the pod, by the address recorded. A while may pass before the node answers ARP.
    fn reached(&self) -> Ipv4Addr {
        let vip = until("the VIP is served", PATIENCE, || {
            let vip = self.address();
            let announced = self.node.ns.ip(&format!("route show {vip} proto 118")).lines().count() == 2;
            let on_link = vip.octets()[0] != 192 || self.node.ns.ip("neigh show proxy").contains(&format!("{vip} "));
            (!self.is_withdrawn() && announced && on_link && self.pod.vips() == [vip]).then_some(vip)
        });
        connect(&self.client, vip, 3);
        self.node.check(&self.pod, &web()).ok();
        vip
    }

    fn expires(&self) -> u64 {
        self.status()["expires"].as_u64().unwrap_or_default()
    }

    /// The lease is extended, at the same address and without a break.
    fn renewed(&self, what: &str) {
        let (vip, before) = (self.address(), self.expires());
        until(what, Duration::from_secs(u64::from(LEASE) * 3), || {
            assert!(!self.is_withdrawn() && self.address() == vip, "{what}: a break\n{}", self.sidecar().daemon.log());
            (self.expires() > before + 1).then_some(())
        });
        assert_eq!(self.reached(), vip, "{what}");
    }

    /// Until its routes are deleted and the ARP responder has stopped answering for it.
    fn withdrawn(&self) {
        let vip = self.address();
        until("the VIP is withdrawn", LONG, || {
            let routes = self.node.ns.ip(&format!("route show {vip} proto 118"));
            (self.is_withdrawn() && routes.is_empty()).then_some(())
        });
        assert_eq!(self.status()["state"], "expired");
        until("nobody answers ARP for it", SOON, || self.node.ns.ip("neigh show proxy").is_empty().then_some(()));
    }
}

fn relaying() -> String {
    format!(
        "backend = \"dhcp\"\nallow = [\"{RELAYED}/24\"]\n[dhcp]\nrelay = {{ server = \"192.0.2.254\", subnet = \"{RELAYED}\" }}"
    )
}

fn record(node: &Node) -> Value {
    let path = node.dir.path().join("data/vips/shop_web/vip.json");
    serde_json::from_str(&fs::read_to_string(path).expect("vip.json")).expect("vip.json is JSON")
}

/// Acquired, renewed, renewed by a server that was restarted, by one that has lost its leases; gone through T1, T2 and the
/// lease's end; and served again when there is a server.
#[test]
fn a_life() {
    let relayed = [(Software::Kea, Form::Relay), (Software::Dhcpd, Form::Relay)];
    each(&[&ON_THE_LINK[..], &relayed[..]].concat(), |software, form| {
        let mut scene = Scene::new(software, form, LEASE);
        scene.renewed("the first renewal");
        scene.renewed("the second renewal");
        scene.server.stop();
        scene.server.start_again(&scene.lan);
        scene.renewed("a renewal by a server that was restarted");
        lost_leases(&mut scene, software);
        gone_and_back(&mut scene);
    });
}

/// The server answers to the address that a relay names, and only the node's own leads back to it.
#[test]
fn a_relay_follows_the_nodes_address() {
    let scene = Scene::new(Software::Kea, Form::Relay, LEASE);
    scene.node.ns.ip("addr del 192.0.2.1/24 dev eth0");
    scene.node.ns.ip("addr add 192.0.2.7/24 dev eth0");
    scene.node.ns.ip("route replace default via 192.0.2.254");
    scene.client.ip("route replace 10.99.0.0/24 via 192.0.2.7");
    scene.renewed("a renewal by the other address");
    scene.renewed("and another one");
}

/// The server has forgotten everything. dnsmasq and dhcpd confirm what their client says it has; Kea refuses that (NAK), and
/// grants it when it is asked for by REBINDING: no break with any of them.
fn lost_leases(scene: &mut Scene, software: Software) {
    scene.server.stop();
    scene.server.wipe();
    scene.server.start_again(&scene.lan);
    scene.renewed("a renewal by a server that has lost its leases");
    scene.renewed("and another one");
    if software == Software::Kea {
        let labels = [("direction", "sent"), ("type", "rebind")];
        let rebinds = Page::of(&scene.node).value("viproute_dhcp_messages_total", &labels);
        assert!(rebinds > 0, "{}\n{}", scene.sidecar().daemon.log(), scene.server.log());
    }
}

/// No server answers: it is served up to the lease's end and no longer.
fn gone_and_back(scene: &mut Scene) {
    scene.server.stop();
    let (vip, end) = (scene.address(), scene.expires());
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs();
    while now() + 2 < end {
        assert!(!scene.is_withdrawn() && scene.address() == vip, "withdrawn {} s early", end - now());
        connect(&scene.client, vip, 1);
        thread::sleep(Duration::from_millis(300));
    }
    scene.withdrawn();
    assert!(now() + 1 >= end, "withdrawn before its end");
    scene.server.start_again(&scene.lan);
    scene.reached();
    scene.renewed("a renewal after all that");
}

/// The address is another client's by now: the server says so (NAK), and the VIP moves to one that it gives.
#[test]
fn refused() {
    let relayed = [(Software::Kea, Form::Relay), (Software::Dhcpd, Form::Relay)];
    each(&[&ON_THE_LINK[..], &relayed[..]].concat(), |software, form| {
        let mut scene = Scene::new(software, form, 600);
        let former = scene.address();
        // A first lease is confirmed a moment after; the server must have written that.
        thread::sleep(Duration::from_secs(4));
        scene.sidecar.take().expect("the sidecar runs").stop();
        scene.server.stop();
        scene.server.give_away();
        scene.server.start_again(&scene.lan);
        scene.sidecar = Some(Sidecar::start(&scene.node, &scene.settings));
        until("the VIP moves", LONG, || (scene.address() != former).then_some(()));
        let log = scene.sidecar().daemon.log();
        assert!(log.contains("refused by the DHCP server 192.0.2.254 (NAK"), "who refused it: {log}");
        let vip = scene.reached();
        assert_eq!(scene.node.ns.ip(&format!("route show {former}")), "", "{vip} instead of {former}");
    });
}

/// Another host on the LAN has the address that is offered: it is declined by DHCPDECLINE, and another one is taken.
#[test]
fn declined() {
    each(&ON_THE_LINK, |software, form| {
        let mut scene = Scene::new(software, form, 600);
        let taken = scene.address();
        scene.node.remove(&scene.pod, &web());
        drop(scene.sidecar.take());
        fs::remove_dir_all(scene.node.dir.file("state")).expect("forget all leases");
        scene.server.stop();
        scene.server.wipe();
        let _somebody = scene.lan.client(taken.octets()[3], &[]);
        scene.server.start_again(&scene.lan);
        // Each offers the same address again: by its client's hash, or because it is the first one free.
        let _sidecar = Sidecar::start(&scene.node, &scene.settings);
        let pod = scene.node.joined(&web());
        assert_ne!(pod.vip(), taken);
        assert!(scene.server.log().to_lowercase().contains("decline"), "{}", scene.server.log());
        scene.node.check(&pod, &web()).ok();
    });
}

/// Two nodes have the same lease of the same VIP. One's replica leaves and its sidecar stops: the other keeps it for many
/// lease times, since it was not released.
#[test]
fn one_of_two_nodes_stops() {
    each(&ON_THE_LINK, |software, _| {
        let lan = Lan::new();
        let _server = DhcpServer::quick(software, &lan, LEASE);
        let nodes = [Node::without_allocator(&lan, 1), Node::without_allocator(&lan, 2)];
        let settings = "backend = \"dhcp\"\nallow = [\"192.0.2.0/24\"]\nhold = \"1s\"\n\
                        cluster = \"one\"\npeers = [\"192.0.2.1\", \"192.0.2.2\"]";
        let first = Sidecar::start(&nodes[0], settings);
        let leaving = nodes[0].joined(&web());
        let second = Sidecar::start(&nodes[1], settings);
        let staying = nodes[1].joined(&web());
        let vip = staying.vip();
        assert_eq!(leaving.vip(), vip);
        let _served = PodServer::start(&staying);
        let client = lan.client(50, &[&format!("{vip} via 192.0.2.2")]);
        connect(&client, vip, 2);
        nodes[0].remove(&leaving, &web());
        first.stop();
        let stopped = Instant::now();
        while stopped.elapsed() < Duration::from_secs(u64::from(LEASE) * 2 + 2) {
            let record = record(&nodes[1]);
            assert!(record["withdrawn"] == false && record["addresses"][0] == vip.to_string(), "{record}");
            connect(&client, vip, 1);
            thread::sleep(Duration::from_millis(400));
        }
        assert_eq!(second.status("shop/web").expect("a status")["state"], "bound");
        nodes[1].check(&staying, &web()).ok();
    });
}
