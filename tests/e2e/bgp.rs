//! `viproutectl announce`: what it writes, run by real routing daemons on two nodes, and what a router makes of that.

mod far;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::harness::{
    Bird, Crowd, Families, Finished, Frr, Join, LONG, Lan, Netns, Node, PORT, Pod, Run, SOON, Sidecar, VIPROUTECTL,
    connect, until,
};

/// The VIP's address on all nodes.
const VIP: &str = "10.118.0.7";
const SETTINGS: &str = "backend = \"pool\"\nallow = [\"10.118.0.0/16\"]\npeers = [\"192.0.2.1\", \"192.0.2.2\"]\n[pool]\ncidr = \"10.118.0.0/24\"\n\
                        [[pin]]\nvip = \"default/web\"\naddress = \"10.118.0.7\"";

/// The VIP's IPv6 address, with [`dual`] settings.
const VIP6: &str = "fd00:118::a76:7";

/// The same settings for VIPs of both families.
fn dual(settings: &str) -> String {
    let changes = [
        ("\"10.118.0.0/16\"", "\"10.118.0.0/16\", \"fd00:118::/96\""),
        ("\"192.0.2.2\"]", "\"192.0.2.2\", \"2001:db8::1\", \"2001:db8::2\"]"),
        ("[[pin]]", "cidr6 = \"fd00:118::/96\"\n[[pin]]"),
    ];
    changes.iter().fold(settings.to_owned(), |text, (from, to)| text.replacen(from, to, 1))
}

/// The addresses of the VIP.
fn vips(families: Families) -> Vec<IpAddr> {
    let all = if families == Families::Both { vec![VIP, VIP6] } else { vec![VIP] };
    all.iter().map(|vip| vip.parse().expect("an address")).collect()
}

/// The routers' addresses that announce is given, one for each family of the VIP.
fn sessions(families: Families, asn: Option<u32>) -> Vec<String> {
    let asn = asn.map(|asn| format!(":{asn}")).unwrap_or_default();
    let mut options = vec!["--router".to_owned(), format!("192.0.2.254{asn}")];
    if families == Families::Both {
        options.extend(["--router".to_owned(), format!("[2001:db8::fe]{asn}")]);
    }
    options
}

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

    /// Waits until it has received the route: of IPv6 by its second session.
    pub fn has_received(&self, prefix: &str) {
        let six = prefix.contains(':');
        let (table, router) = if six { ("router2.ipv6", "2001:db8::fe") } else { ("router1.ipv4", "192.0.2.254") };
        until(&format!("{prefix} is received"), LONG, || {
            let received = match self {
                Self::Bird(bird) => bird.ask(&format!("show route import table {table}")),
                Self::Frr(frr) => {
                    let family = if six { "ipv6" } else { "ipv4" };
                    frr.ask(&format!("show bgp {family} unicast neighbors {router} received-routes"))
                }
            };
            received.contains(prefix).then_some(())
        });
    }

    /// The VIP as the daemon has it, if at all, is the node's own, and so is what the kernel has.
    fn has_only_its_own(&self, node: &Node, families: Families) {
        for vip in vips(families) {
            let (family, session, router) = match vip {
                IpAddr::V4(_) => ("ipv4", "router1", "192.0.2.254"),
                IpAddr::V6(_) => ("ipv6", "router2", "2001:db8::fe"),
            };
            let foreign = match self {
                Self::Bird(bird) => bird.ask(&format!("show route for {vip} protocol {session}")).contains("via "),
                Self::Frr(frr) => {
                    frr.ask(&format!("show bgp {family} unicast {vip}")).contains(&format!("from {router}"))
                }
            };
            let found = routes(&node.ns, vip);
            assert!(!foreign && found.iter().all(|route| route["protocol"] == "118"), "{found:?}");
        }
    }
}

/// The routes to an address alone.
fn routes(ns: &Netns, to: IpAddr) -> Vec<serde_json::Value> {
    ns.ip_json(&format!("{} route show {to}", if to.is_ipv6() { "-6" } else { "-4" }))
}

/// `viproutectl announce` on a node whose viprouted.toml is there.
pub fn announce(node: &Node, kind: &str, options: &[&str]) -> Finished {
    let mut command = node.ns.cmd(VIPROUTECTL);
    command.args(["announce", kind, "--config", &node.dir.file("viprouted.toml")]).args(options).finish("")
}

/// The LAN's gateway, as a router: AS 65000, a session with each node, by IPv6 another one. Its nodes' AS numbers may differ.
pub fn router(lan: &Lan, nodes: &[(u8, u32)], families: Families) -> Frr {
    lan.ns.set_sysctl("net/ipv4/ip_forward", "1");
    lan.ns.set_sysctl("net/ipv4/fib_multipath_hash_policy", "1");
    let mut conf = "route-map GLOBAL permit 10\n set ipv6 next-hop prefer-global\nexit\n\
                    router bgp 65000\n bgp router-id 192.0.2.254\n no bgp ebgp-requires-policy\n \
                    bgp bestpath as-path multipath-relax\n"
        .to_owned();
    let sessions = |prefix: &str| nodes.iter().map(|(node, asn)| (format!("{prefix}{node}"), *asn)).collect::<Vec<_>>();
    let six = if families == Families::Both { sessions("2001:db8::") } else { Vec::new() };
    for (node, asn) in sessions("192.0.2.").iter().chain(&six) {
        let lines = ["remote-as ASN", "bfd", "timers 3 9", "timers connect 2"];
        conf.extend(lines.map(|line| format!(" neighbor {node} {}\n", line.replace("ASN", &asn.to_string()))));
    }
    conf += " address-family ipv4 unicast\n  maximum-paths 8\n  maximum-paths ibgp 8\n";
    conf.extend(six.iter().map(|(node, _)| format!("  no neighbor {node} activate\n")));
    conf += " exit-address-family\n";
    if !six.is_empty() {
        lan.has_ipv6();
        lan.ns.set_sysctl("net/ipv6/conf/all/forwarding", "1");
        lan.ns.set_sysctl("net/ipv6/fib_multipath_hash_policy", "1");
        conf += " address-family ipv6 unicast\n  maximum-paths 8\n  maximum-paths ibgp 8\n";
        let lines = |node: &str| format!("  neighbor {node} activate\n  neighbor {node} route-map GLOBAL in\n");
        conf.extend(six.iter().map(|(node, _)| lines(node)));
        conf += " exit-address-family\n";
    }
    Frr::start(&lan.ns, &(conf + "exit\n"))
}

/// The shares of the VIP's next hops at the router, by the number of the node; empty: no route.
fn shares(lan: &Lan, vip: IpAddr) -> BTreeMap<u8, f64> {
    let routes = routes(&lan.ns, vip);
    let Some(route) = routes.first() else { return BTreeMap::new() };
    let node = |gateway: &serde_json::Value| match gateway.as_str()?.parse().ok()? {
        IpAddr::V4(gateway) => Some(gateway.octets()[3]),
        IpAddr::V6(gateway) => Some(gateway.octets()[15]),
    };
    let Some(hops) = route["nexthops"].as_array() else {
        return node(&route["gateway"]).into_iter().map(|node| (node, 1.0)).collect();
    };
    let weight = |hop: &serde_json::Value| hop["weight"].as_f64().unwrap_or(1.0);
    let sum: f64 = hops.iter().map(weight).sum();
    hops.iter().filter_map(|hop| Some((node(&hop["gateway"])?, weight(hop) / sum))).collect()
}

/// Waits until the router has these shares of each address of the VIP, to the whole percents it keeps.
fn until_shares(lan: &Lan, families: Families, wanted: &[(u8, f64)], limit: Duration) {
    let wanted: BTreeMap<_, _> = wanted.iter().copied().collect();
    let same = |found: &BTreeMap<u8, f64>| {
        found.keys().eq(wanted.keys()) && wanted.iter().all(|(node, share)| (found[node] - share).abs() < 0.02)
    };
    for vip in vips(families) {
        until(&format!("shares of {wanted:?} of {vip} at the router"), limit, || same(&shares(lan, vip)).then_some(()));
    }
}

/// A machine behind the router, with addresses of these families.
fn behind(lan: &Lan, families: Families) -> Netns {
    let client = lan.routed_client();
    if families == Families::Both {
        lan.route_ipv6(&client);
    }
    client
}

fn drain(node: &Node, pod: &Pod) {
    node.ctl().args(["drain", &format!("default/{}", pod.name)]).finish("").ok();
}

fn undrain(node: &Node, pod: &Pod) {
    node.ctl().args(["undrain", &format!("default/{}", pod.name)]).finish("").ok();
}

/// Three replicas on one node and one on the other: what the router has follows them. With the nodes' daemons and AS numbers.
fn announces(daemons: [(&str, u32); 2], router_asn: Option<u32>, families: Families) {
    let lan = Lan::new();
    let at_router = router(&lan, &[(1, daemons[0].1), (2, daemons[1].1)], families);
    let join = Join::annotated("web");
    let (nodes, settings) = match families {
        Families::Both => ([1, 2].map(|number| Node::without_allocator(&lan, number).with_ipv6(&lan)), dual(SETTINGS)),
        _ => ([1, 2].map(|number| Node::without_allocator(&lan, number)), SETTINGS.to_owned()),
    };
    let _sidecars = nodes.each_ref().map(|node| Sidecar::start(node, &settings));
    let mut pods: Vec<_> = (0..3).map(|_| nodes[0].joined(&join)).collect();
    pods.push(nodes[1].joined(&join));
    assert_eq!(pods[3].vip().to_string(), VIP);
    let start = |(node, (kind, asn)): (&Node, (&str, u32))| {
        let (asn, sessions) = (asn.to_string(), sessions(families, router_asn));
        let options: Vec<&str> =
            ["--asn", asn.as_str()].into_iter().chain(sessions.iter().map(String::as_str)).collect();
        Speaker::start(kind, node, &options)
    };
    let speakers: Vec<_> = nodes.iter().zip(daemons).map(start).collect();
    until_shares(&lan, families, &[(1, 0.75), (2, 0.25)], LONG);
    until("BFD is up with both nodes, by each family", SOON, || {
        let up = at_router.ask("show bfd peers json").matches("\"status\":\"up\"").count();
        (up == 2 * vips(families).len()).then_some(())
    });
    let servers: Vec<_> = pods.iter().map(|pod| Crowd::of_both(pod, PORT)).collect();
    let client = behind(&lan, families);
    // A veth pair hands on the hash that the sending socket has, which the router takes for the flow's (`fib_multipath_hash`), and a
    // socket that waits in vain takes another: on a busy machine a connection came to the other node in its middle. A machine's hash
    // is that of the packet's addresses and ports.
    client.set_sysctl("net/core/txrehash", "0");
    for vip in vips(families) {
        connect(&client, vip, 40);
    }
    drop(servers);
    for (speaker, node) in speakers.iter().zip(&nodes) {
        speaker.has_only_its_own(node, families);
    }
    replicas_go_and_come((&lan, families), &nodes, &pods);
    for (speaker, node) in speakers.iter().zip(&nodes) {
        speaker.has_only_its_own(node, families);
    }
}

/// The router's weights follow; the last replica of a node takes the node's next hop along, the last of all the route.
fn replicas_go_and_come((lan, families): (&Lan, Families), nodes: &[Node; 2], pods: &[Pod]) {
    let join = Join::annotated("web");
    let until_shares = |wanted: &[(u8, f64)]| until_shares(lan, families, wanted, SOON);
    let [one, two] = nodes;
    drain(one, &pods[0]);
    until_shares(&[(1, 0.667), (2, 0.333)]);
    two.remove(&pods[3], &join);
    until_shares(&[(1, 1.0)]);
    let again = two.joined(&join);
    until_shares(&[(1, 0.667), (2, 0.333)]);
    drain(two, &again);
    until_shares(&[(1, 1.0)]);
    for pod in &pods[..3] {
        one.remove(pod, &join);
    }
    until_shares(&[]);
}

#[test]
fn bird_on_nodes_of_two_ases() {
    announces([("bird", 65001), ("bird", 65002)], Some(65000), Families::Ipv4);
}

#[test]
fn frr_on_nodes_of_two_ases() {
    announces([("frr", 65001), ("frr", 65002)], Some(65000), Families::Ipv4);
}

/// Routes of unlike origin or MED were no multipath.
#[test]
fn both_in_one_as() {
    announces([("bird", 65001), ("frr", 65001)], Some(65000), Families::Both);
}

#[test]
fn both_within_the_routers_as() {
    announces([("frr", 65000), ("bird", 65000)], None, Families::Both);
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
    for bad in ["gateway", "[192.0.2.254]:65000", "[2001:db8::fe", "fe80::1", "[2001:db8::fe]65000"] {
        refused(&["--router", bad], 2, "expected a router's address, ADDRESS:ASN, or [ADDRESS]:ASN");
    }
    refused(&["--router", "[2001:db8::fe]:65000"], 1, "VIPs have no IPv6 addresses");
    write("");
    refused(&["--router", "192.0.2.254"], 1, "viprouted.toml: allow is not set");
    write("allow = 7");
    refused(&["--router", "192.0.2.254"], 1, "allow = 7: expected an array of strings");
    node.ns.ip("route del default");
    write(SETTINGS);
    refused(&["--router", "203.0.113.1"], 1, "--router 203.0.113.1: this node has no route to it");
}
