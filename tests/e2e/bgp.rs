//! `viproutectl announce`: what it writes, run by real routing daemons on two nodes, and what a router makes of that.

mod far;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::harness::{
    Bird, Finished, Frr, Join, LONG, Lan, Node, Pod, Run, SOON, Sidecar, VIPROUTECTL, connect, serve_all, until,
};

/// The VIP's address on all nodes.
const VIP: &str = "10.118.0.7";
const SETTINGS: &str = "backend = \"pool\"\nallow = [\"10.118.0.0/16\"]\npeers = [\"192.0.2.1\", \"192.0.2.2\"]\n[pool]\ncidr = \"10.118.0.0/24\"\n\
                        [[pin]]\nvip = \"default/web\"\naddress = \"10.118.0.7\"";

/// A routing daemon of a node.
pub enum Speaker {
    Bird(Bird),
    Frr(Frr),
}

impl Speaker {
    /// With what `viproutectl announce` writes.
    pub fn start(kind: &str, node: &Node, options: &[&str]) -> Self {
        Self::with(kind, node, &announce(node, kind, options).ok())
    }

    /// With another configuration.
    pub fn with(kind: &str, node: &Node, conf: &str) -> Self {
        match kind {
            "bird" => Self::Bird(Bird::start(&node.ns, conf)),
            _ => Self::Frr(Frr::start(&node.ns, conf)),
        }
    }

    /// Where viprouted asks it.
    pub fn socket(&self) -> String {
        match self {
            Self::Bird(bird) => bird.socket(),
            Self::Frr(frr) => frr.socket(),
        }
    }

    /// Waits until it has received the route.
    pub fn has_received(&self, prefix: &str) {
        until(&format!("{prefix} is received"), LONG, || {
            let received = match self {
                Self::Bird(bird) => bird.ask("show route import table router1.ipv4"),
                Self::Frr(frr) => frr.ask("show bgp ipv4 unicast neighbors 192.0.2.254 received-routes"),
            };
            received.contains(prefix).then_some(())
        });
    }

    /// The VIP as the daemon has it, if at all, is the node's own, and so is what the kernel has.
    fn has_only_its_own(&self, node: &Node) {
        let foreign = match self {
            Self::Bird(bird) => bird.ask(&format!("show route for {VIP} protocol router1")).contains("192.0.2."),
            Self::Frr(frr) => frr.ask(&format!("show bgp ipv4 unicast {VIP}")).contains("from 192.0.2.254"),
        };
        let routes = node.ns.ip_json(&format!("route show {VIP}"));
        assert!(!foreign && routes.iter().all(|route| route["protocol"] == "118"), "{routes:?}");
    }
}

/// `viproutectl announce` on a node whose viprouted.toml is there.
pub fn announce(node: &Node, kind: &str, options: &[&str]) -> Finished {
    let mut command = node.ns.cmd(VIPROUTECTL);
    command.args(["announce", kind, "--config", &node.dir.file("viprouted.toml")]).args(options).finish("")
}

/// The LAN's gateway, as a router: AS 65000, a session with each node. Its nodes' AS numbers may differ.
pub fn router(lan: &Lan, nodes: &[(u8, u32)]) -> Frr {
    lan.ns.set_sysctl("net/ipv4/ip_forward", "1");
    lan.ns.set_sysctl("net/ipv4/fib_multipath_hash_policy", "1");
    let mut conf = "router bgp 65000\n bgp router-id 192.0.2.254\n no bgp ebgp-requires-policy\n \
                    bgp bestpath as-path multipath-relax\n"
        .to_owned();
    for (number, asn) in nodes {
        let node = format!(" neighbor 192.0.2.{number}");
        let lines = [
            format!("{node} remote-as {asn}"),
            format!("{node} bfd"),
            format!("{node} timers 3 9"),
            format!("{node} timers connect 2"),
        ];
        conf.extend(lines.map(|line| line + "\n"));
    }
    conf += " address-family ipv4 unicast\n  maximum-paths 8\n  maximum-paths ibgp 8\n exit-address-family\nexit\n";
    Frr::start(&lan.ns, &conf)
}

/// The shares of the VIP's next hops at the router, by the last octet of the node; empty: no route.
fn shares(lan: &Lan) -> BTreeMap<u8, f64> {
    let routes = lan.ns.ip_json(&format!("route show {VIP}"));
    let Some(route) = routes.first() else { return BTreeMap::new() };
    let node = |gateway: &serde_json::Value| gateway.as_str()?.parse::<Ipv4Addr>().ok().map(|a| a.octets()[3]);
    let Some(hops) = route["nexthops"].as_array() else {
        return node(&route["gateway"]).into_iter().map(|node| (node, 1.0)).collect();
    };
    let weight = |hop: &serde_json::Value| hop["weight"].as_f64().unwrap_or(1.0);
    let sum: f64 = hops.iter().map(weight).sum();
    hops.iter().filter_map(|hop| Some((node(&hop["gateway"])?, weight(hop) / sum))).collect()
}

/// Waits until the router has these shares, to the whole percents it keeps.
fn until_shares(lan: &Lan, wanted: &[(u8, f64)], limit: Duration) {
    let wanted: BTreeMap<_, _> = wanted.iter().copied().collect();
    let same = |found: &BTreeMap<u8, f64>| {
        found.keys().eq(wanted.keys()) && wanted.iter().all(|(node, share)| (found[node] - share).abs() < 0.02)
    };
    until(&format!("shares of {wanted:?} at the router"), limit, || same(&shares(lan)).then_some(()));
}

fn drain(node: &Node, pod: &Pod) {
    node.ctl().args(["drain", &format!("default/{}", pod.name)]).finish("").ok();
}

fn undrain(node: &Node, pod: &Pod) {
    node.ctl().args(["undrain", &format!("default/{}", pod.name)]).finish("").ok();
}

/// Three replicas on one node and one on the other: what the router has follows them. With the nodes' daemons and AS numbers.
fn announces(daemons: [(&str, u32); 2], router_asn: Option<u32>) {
    let lan = Lan::new();
    let at_router = router(&lan, &[(1, daemons[0].1), (2, daemons[1].1)]);
    let join = Join::annotated("web");
    let nodes = [1, 2].map(|number| Node::without_allocator(&lan, number));
    let _sidecars = nodes.each_ref().map(|node| Sidecar::start(node, SETTINGS));
    let mut pods: Vec<_> = (0..3).map(|_| nodes[0].joined(&join)).collect();
    pods.push(nodes[1].joined(&join));
    assert_eq!(pods[3].vip().to_string(), VIP);
    let session = router_asn.map_or("192.0.2.254".to_owned(), |asn| format!("192.0.2.254:{asn}"));
    let start = |(node, (kind, asn)): (&Node, (&str, u32))| {
        Speaker::start(kind, node, &["--asn", &asn.to_string(), "--router", &session])
    };
    let speakers: Vec<_> = nodes.iter().zip(daemons).map(start).collect();
    until_shares(&lan, &[(1, 0.75), (2, 0.25)], LONG);
    until("BFD is up with both nodes", SOON, || {
        (at_router.ask("show bfd peers json").matches("\"status\":\"up\"").count() == 2).then_some(())
    });
    let servers = serve_all(&pods);
    let client = lan.routed_client();
    // A veth pair hands on the hash that the sending socket has, which the router takes for the flow's (`fib_multipath_hash`), and a
    // socket that waits in vain takes another: on a busy machine a connection came to the other node in its middle. A machine's hash
    // is that of the packet's addresses and ports.
    client.set_sysctl("net/core/txrehash", "0");
    connect(&client, pods[0].vip(), 40);
    drop(servers);
    for (speaker, node) in speakers.iter().zip(&nodes) {
        speaker.has_only_its_own(node);
    }
    replicas_go_and_come(&lan, &nodes, &pods);
    for (speaker, node) in speakers.iter().zip(&nodes) {
        speaker.has_only_its_own(node);
    }
}

/// The router's weights follow; the last replica of a node takes the node's next hop along, the last of all the route.
fn replicas_go_and_come(lan: &Lan, nodes: &[Node; 2], pods: &[Pod]) {
    let join = Join::annotated("web");
    let [one, two] = nodes;
    drain(one, &pods[0]);
    until_shares(lan, &[(1, 0.667), (2, 0.333)], SOON);
    two.remove(&pods[3], &join);
    until_shares(lan, &[(1, 1.0)], SOON);
    let again = two.joined(&join);
    until_shares(lan, &[(1, 0.667), (2, 0.333)], SOON);
    drain(two, &again);
    until_shares(lan, &[(1, 1.0)], SOON);
    for pod in &pods[..3] {
        one.remove(pod, &join);
    }
    until_shares(lan, &[], SOON);
}

#[test]
fn bird_on_nodes_of_two_ases() {
    announces([("bird", 65001), ("bird", 65002)], Some(65000));
}

#[test]
fn frr_on_nodes_of_two_ases() {
    announces([("frr", 65001), ("frr", 65002)], Some(65000));
}

/// Routes of unlike origin or MED were no multipath.
#[test]
fn both_in_one_as() {
    announces([("bird", 65001), ("frr", 65001)], Some(65000));
}

#[test]
fn both_within_the_routers_as() {
    announces([("frr", 65000), ("bird", 65000)], None);
}

/// One sentence each, on stderr, and nothing that could be taken for a configuration.
#[test]
fn contradictions_are_named() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let write = |text: &str| std::fs::write(node.dir.path().join("viprouted.toml"), text).unwrap();
    write(SETTINGS);
    let refused = |options: &[&str], status: i32, what: &str| {
        let said = announce(&node, "bird", &[&["--asn", "65001"], options].concat());
        assert_eq!((said.status.code(), said.stdout.as_str()), (Some(status), ""), "{said:?}");
        assert!(said.stderr.contains(what), "{what:?} in {said:?}");
    };
    refused(&["--router", "192.0.2.1"], 1, "--router 192.0.2.1: this is an address of this node");
    refused(&["--router", "192.0.2.254", "--router", "192.0.2.254:65000"], 1, "--router 192.0.2.254 is there twice");
    let far = "--router 203.0.113.1: it is on no network of this node (the way there is via 192.0.2.254)";
    refused(&["--router", "203.0.113.1"], 1, far);
    assert!(
        announce(&node, "bird", &["--asn", "65001", "--router", "203.0.113.1", "--multihop", "3"]).status.success()
    );
    refused(&["--router", "192.0.2.254:0"], 2, "expected an AS number from 1 to 4294967294");
    refused(&["--router", "gateway"], 2, "expected a router's IPv4 address");
    write("");
    refused(&["--router", "192.0.2.254"], 1, "viprouted.toml: allow is not set");
    write("allow = 7");
    refused(&["--router", "192.0.2.254"], 1, "allow = 7: expected an array of strings");
    node.ns.ip("route del default");
    write(SETTINGS);
    refused(&["--router", "203.0.113.1"], 1, "--router 203.0.113.1: this node has no route to it");
}
