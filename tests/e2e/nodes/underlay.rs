//! The network under the tunnel. Nodes whose uplinks have addresses of IPv6 alone: gossip, echoes and the tunnel are of that. And which
//! address the tunnel's packets have as their source.

use std::net::IpAddr;

use aya::maps::{Array, Map, MapData};
use viproute::internals::model::{Family, NodeId};

use super::ipv6::served;
use super::live::Live;
use super::{CIDR6, Member, Scene, at, new_key, six, web};
use crate::harness::{Lan, Netns, Node, PATIENCE, SOON, Sidecar, TempDir, attempt, until};
use crate::program::loaded;

#[test]
fn nodes_that_have_ipv6_alone_break_nothing() {
    let mut live = Live::over(Family::V6, 50);
    let recorded = live.scene.members[0].recorded();
    assert_eq!(
        (&recorded["own"]["tunnel"], &recorded["own"]["heard6"]),
        (&"2001:db8::1".into(), &"2001:db8::1".into())
    );
    assert_eq!(recorded["own"]["id"], NodeId::of(at(1, Family::V6)).to_string());
    let first = &live.replicas[0][0].pod;
    live.scene.members[0].ctl(&["drain", &first.id]).ok();
    live.scene.members[1].has("a replica of node 1 drains", &[("192.0.2.1", "ready", 1), ("192.0.2.3", "ready", 2)]);
    live.unbroken("a replica of node 1 drains");
    live.scene.members[0].ctl(&["undrain", &live.replicas[0][0].pod.id]).ok();

    live.scene.members[2].ctl(&["nodes", "leave"]).ok();
    let left: [(&str, &str, u64); 2] = [("192.0.2.2", "ready", 2), ("192.0.2.3", "draining", 1)];
    live.scene.members[0].has("node 3 leaves", &left);
    live.unbroken("node 3 has left");
    live.scene.members[2].stop();
    live.unbroken("its viprouted is away");
    live.scene.members[2].start();
    live.scene.has_all("node 3 is back", 2);
    live.unbroken("node 3 is back");
    assert_eq!(live.scene.members[0].doctor_of_nodes(), [""; 0]);

    // A second prefix, with a lower address: node 2, which looks at its addresses each second, stays the node that it is.
    let id = live.scene.members[1].recorded()["own"]["id"].clone();
    live.scene.members[1].node.ns.ip("addr add 2001:db7::2/64 dev eth0 nodad");
    for _ in 0..3 {
        live.unbroken("node 2 has a lower address too");
    }
    assert_eq!(live.scene.members[1].recorded()["own"]["id"], id);
    let log = live.scene.members[1].daemon().log();
    assert!(!log.contains("begins anew"), "{log}");

    // It dies: its own connections end, and no others.
    live.forget("node 3 itself");
    live.scene.link(2, "down");
    live.ask();
    live.scene.members[0].leads_to("once node 3 is suspected", 1);
    live.new_ones("after node 3's death", 50);
    // Whose first packet had gone there waits for an answer in vain.
    let waited = |error: &String| error.contains("timed out");
    assert!(live.refused().iter().all(waited), "new connections: {:?}", live.refused());
    live.scene.members[0].sees("node 3 is forgotten", PATIENCE, &[("n2", "live")]);
    live.gone = live.replicas[2].iter().map(|served| served.pod.name.clone()).collect();
    live.unbroken_since("node 3 is dead");
}

impl Member {
    /// What doctor finds about nodes, their way and the tunnel.
    fn doctor_of_nodes(&self) -> Vec<String> {
        let about = ["tunnel", "gossip", "node n", "seed", "viptun0"];
        let is_it = |line: &&str| about.iter().any(|word| line.contains(word));
        self.doctor().lines().filter(is_it).map(str::to_owned).collect()
    }
}

/// By IPv4 too a VIP leads to the other node, for who can ask: the node itself and its pods.
#[test]
fn what_keeps_nodes_apart_by_ipv6_is_named() {
    let scene = Scene::over(Family::V6, 2);
    let [n1, n2] = &scene.members[..] else { unreachable!() };
    let first = n1.node.joined(&web());
    n2.has("n1's replica", &[("192.0.2.1", "ready", 1)]);
    for chain in ["udp dport 8118 ip6 saddr 2001:db8::1 drop", "udp dport 8119 drop"] {
        let rules = format!("table inet fw {{\nchain input {{\ntype filter hook input priority 0; {chain}\n}}\n}}\n");
        n2.nft(&rules);
        let what = if chain.contains("8118") { "drops UDP 8118 (the tunnel)" } else { "drops UDP 8119 (the gossip)" };
        until(what, SOON, || n2.doctor().contains(what).then_some(()));
        n2.nft("delete table inet fw");
    }
    // IPv6 needs 1,280 bytes in the tunnel.
    n2.node.ns.ip("link set eth0 mtu 1349");
    n2.finds("the network of 2001:db8::2 has MTU 1349, and they need 1350");
    drop(first);
}

impl Member {
    fn nft(&self, rules: &str) {
        use crate::harness::Run;
        self.node.ns.cmd("nft").args(["-f", "-"]).finish(rules).ok();
    }
}

#[test]
fn the_tunnels_programs_are_loaded_once_there_are_other_nodes() {
    let scene = Scene::new(2);
    let n1 = &scene.members[0];
    let replica = n1.node.joined(&web());
    let of_tunnel = ["inward", "inward6", "outward", "outward6"];
    until("they are loaded", SOON, || {
        let loaded = loaded(&n1.node);
        of_tunnel.iter().all(|name| loaded.contains(*name)).then(|| assert!(!loaded.contains("owner6"), "{loaded:?}"))
    });
    drop(replica);
}

/// Those of a VIP whose replicas are all here too: what is too long for the tunnel must not get to the programs once others have some.
#[test]
fn routes_follow_what_the_tunnel_takes() {
    let scene = Scene::over(Family::V6, 2);
    let n1 = &scene.members[0];
    let replica = served(n1, "one");
    let route = || n1.node.ns.ip_json(&format!("-6 route show {} proto 118", six())).first().cloned();
    for mtu in [1500, 1400, 1500, 1450, 1500] {
        n1.node.ns.ip(&format!("link set eth0 mtu {mtu}"));
        // The outer headers of IPv6, UDP and VXLAN, and the inner one of Ethernet.
        let wanted = mtu - 70;
        until(&format!("the route's MTU is {wanted}"), SOON, || {
            (route()?["metrics"][0]["mtu"] == wanted).then_some(())
        });
    }
    drop(replica);
}

/// What the kernel would send from is another address than the one by which others know the node: once that is deprecated, and another one
/// isn't.
#[test]
fn a_node_whose_address_is_deprecated_serves_far_replicas() {
    let scene = Scene::over(Family::V6, 2);
    let client = scene.lan.client(50, &[]);
    scene.lan.add_ipv6(&client, 50);
    client.ip(&format!("route add {CIDR6} via 2001:db8::1"));
    sends_from_its_own(&scene, (&client, six().into()), |n1| {
        n1.node.ns.ip("addr add 2001:db8::11/64 dev eth0 nodad");
        n1.node.ns.ip("addr change 2001:db8::1/64 dev eth0 preferred_lft 0");
        "2001:db8::11"
    });
}

#[test]
fn so_does_one_of_ipv4_where_a_route_has_another_source() {
    let scene = Scene::new(2);
    let client = scene.lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    sends_from_its_own(&scene, (&client, super::WEB.parse().expect("an address")), |n1| {
        n1.node.ns.ip("addr add 192.0.2.11/24 dev eth0");
        n1.node.ns.ip("route add 192.0.2.2/32 dev eth0 src 192.0.2.11");
        "192.0.2.11"
    });
}

/// Node 2 alone has replicas, which the client reaches by node 1. `prefer` has node 1's kernel choose another source.
fn sends_from_its_own(scene: &Scene, (client, vip): (&Netns, IpAddr), prefer: impl FnOnce(&Member) -> &'static str) {
    let [n1, n2] = &scene.members[..] else { unreachable!() };
    let replica = served(n2, "two");
    let serves = |what: &str| until(what, SOON, || (attempt(client, vip, 30).failed == 0).then_some(()));
    serves("node 2 serves");
    let other = prefer(n1);
    let (to, from) = (at(2, n1.underlay), format!("src {other}"));
    let family = if to.is_ipv6() { "-6" } else { "-4" };
    let way = || n1.node.ns.ip(&format!("{family} route get {to}"));
    until("the kernel prefers another source", SOON, || way().contains(&from).then_some(()));
    assert_eq!(attempt(client, vip, 30).failed, 0, "new connections");
    let finding = format!("has {other} as its source");
    assert!(!n1.nodes()["findings"].to_string().contains(&finding) && !n1.doctor().contains(&finding));
    // A kernel before 6.0 refuses a key with a source; then that is found.
    n1.kernel_refuses_sources(true);
    n1.finds(&finding);
    let found = n1.doctor();
    assert!(found.contains(&format!("to node n2 ({to}) {finding}")), "{found}");
    assert_eq!(attempt(client, vip, 1).failed, 1, "node 2 drops it");
    n1.kernel_refuses_sources(false);
    serves("it serves again");
    until("nothing is found", SOON, || (!n1.nodes()["findings"].to_string().contains(&finding)).then_some(()));
    drop(replica);
}

impl Member {
    /// As the programs note it when they have met with such a kernel.
    fn kernel_refuses_sources(&self, refuses: bool) {
        let map = MapData::from_pin(self.node.bpf_dir() + "/tunnel_end_v1").expect("the map");
        let mut map: Array<_, [u32; 6]> = Map::Array(map).try_into().expect("its form");
        let mut end = map.get(&0, 0).expect("read");
        end[1] = refuses.into();
        map.set(0, end, 0).expect("write");
    }
}

/// Where a node that isn't told by `membership.listen` is known, with what it has now.
fn known_as(node: &Node, key: &str, seeds: &[&str]) -> String {
    let settings = format!("backend = \"pool\"\n[membership]\nname = \"n1\"\nkey_file = {key:?}\nseeds = {seeds:?}");
    let sidecar = Sidecar::start(node, &settings);
    let own = until("it is recorded", SOON, || {
        let text = std::fs::read_to_string(format!("{}/nodes.json", node.data())).ok()?;
        let recorded: serde_json::Value = serde_json::from_str(&text).ok()?;
        recorded["own"]["tunnel"].as_str().map(str::to_owned)
    });
    sidecar.stop();
    std::fs::remove_file(format!("{}/nodes.json", node.data())).expect("remove nodes.json");
    own
}

/// By IPv4 as long as there is such an address: the default route's source, or the first address of its link.
#[test]
fn a_node_with_addresses_of_both_families_is_known_by_ipv4() {
    let (lan, dir) = (Lan::new(), TempDir::new());
    let (node, key) = (Node::without_allocator(&lan, 1).with_ipv6(&lan), new_key(&dir, "membership.key"));
    node.ns.ip("addr add 192.0.2.71/24 dev eth0");
    node.ns.ip("addr add 2001:db7::1/64 dev eth0 nodad");
    assert_eq!(known_as(&node, &key, &[]), "192.0.2.1");
    node.ns.ip("-4 route replace default via 192.0.2.254 src 192.0.2.71");
    assert_eq!(known_as(&node, &key, &[]), "192.0.2.71");
    // Seeds say by which family nodes speak.
    assert_eq!(known_as(&node, &key, &["2001:db8::3"]), "2001:db8::1");
    assert_eq!(known_as(&node, &key, &["192.0.2.3"]), "192.0.2.71");
}

/// Of IPv6 it is an address that stays, though the kernel itself would call from another one.
#[test]
fn no_temporary_or_deprecated_address_is_a_nodes_own() {
    let (lan, dir) = (Lan::new(), TempDir::new());
    let (node, key) = (Node::without_allocator(&lan, 9), new_key(&dir, "membership.key"));
    lan.has_ipv6();
    node.ns.ip("-4 addr flush dev eth0");
    node.ns.set_sysctl("net/ipv6/conf/eth0/accept_dad", "0");
    node.ns.set_sysctl("net/ipv6/conf/eth0/use_tempaddr", "2");
    // The kernel makes a temporary one beside it.
    node.ns.ip("addr add 2001:db8::9/64 dev eth0 mngtmpaddr nodad");
    node.ns.ip("addr add 2001:db8::2/64 dev eth0 nodad preferred_lft 0");
    node.ns.ip("route add default via 2001:db8::fe");
    until("the kernel calls from the temporary one", SOON, || {
        let source = node.ns.ip_json("route get 2001:db8::3")[0]["prefsrc"].as_str()?.to_owned();
        node.ns.ip("-6 addr show dev eth0 temporary").contains(&source).then_some(())
    });
    for seeds in [&["2001:db8::3"][..], &[]] {
        assert_eq!(known_as(&node, &key, seeds), "2001:db8::9", "{seeds:?}");
    }
}
