//! Nodes tell each other which IPv6 address a VIP has, and serve it together by that.

use std::net::Ipv6Addr;

use super::{Member, Scene, WEB, web};
use crate::harness::{Crowd, Flows, Join, Netns, PORT, Pod, SOON, attempt, connect, share, until};

const CIDR6: &str = "fd00:118::/96";

/// The one that ends in the VIP's own.
fn six() -> Ipv6Addr {
    format!("fd00:118::{WEB}").parse().expect("an address")
}

impl Member {
    /// It begins anew with VIPs of both families.
    fn gets_ipv6(&mut self) {
        let both = |text: &str, old: &str, new: &str| {
            assert!(text.contains(old), "{text}");
            text.replace(old, new)
        };
        let pin = "[[pin]]\nvip = \"default/web\"";
        let settings = both(&self.settings, pin, &format!("cidr6 = {CIDR6:?}\n{pin}"));
        self.settings = both(&settings, "\"10.118.0.0/16\"", &format!("\"10.118.0.0/16\", {CIDR6:?}"));
        self.stop();
        self.start();
    }

    fn routes6(&self) -> String {
        self.node.ns.ip(&format!("-6 route show {} proto 118", six()))
    }
}

fn dual(nodes: u8) -> (Scene, Netns) {
    let mut scene = Scene::new(nodes);
    for (number, member) in (1..).zip(&mut scene.members) {
        scene.lan.add_ipv6(&member.node.ns, number);
        member.gets_ipv6();
    }
    let client = scene.lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    scene.lan.add_ipv6(&client, 50);
    client.ip(&format!("route add {CIDR6} via 2001:db8::1"));
    (scene, client)
}

/// CNI specification 1.1.0, section 5.
const TRY_AGAIN: i64 = 11;

fn served(member: &Member, name: &str) -> (Pod, Crowd) {
    served_as(member, name, &web())
}

fn served_as(member: &Member, name: &str, join: &Join) -> (Pod, Crowd) {
    let mut pod = member.node.pod();
    name.clone_into(&mut pod.name);
    let server = Crowd::of_both(&pod, PORT);
    // Where what others say of the VIP comes at the same moment, the runtime is to try again later, and does.
    until(&format!("{name} joins"), SOON, || {
        let reply = member.node.add(&pod, join);
        (reply.succeeded() || reply.error().code != TRY_AGAIN).then_some(reply)
    })
    .ok();
    (pod, server)
}

/// Until these pods, and no others, answer at the VIP's IPv6 address.
fn answered(client: &Netns, expected: &[&str]) {
    until(&format!("{expected:?} answer"), SOON, || {
        let tally = attempt(client, six(), 90);
        (tally.failed == 0 && tally.names.keys().eq(expected)).then_some(())
    });
}

#[test]
fn replicas_of_all_nodes_are_reached_at_both_addresses() {
    let (mut scene, client) = dual(3);
    // Node 1, which the client's packets come to, has none.
    let two = served(&scene.members[1], "two");
    answered(&client, &["two"]);
    assert!(scene.members[0].routes6().contains("metric 4294967295"), "routers are told of nothing that isn't here");
    let three = served(&scene.members[2], "three");
    answered(&client, &["three", "two"]);
    let mut flows =
        [Flows::open("the client", &client, six(), 60), Flows::open("the client", &client, two.0.vip(), 60)];
    // Its nexthop has an address of IPv6, for packets of both families.
    let vip = two.0.vip().to_string();
    let told = scene.members[0].ctl(&["where", "192.0.2.50:40000", &format!("{vip}:{PORT}"), "--output", "json"]).ok();
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert!(["n2", "n3"].contains(&told["replica"]["node"].as_str().unwrap_or_default()), "{told}");
    let one = served(&scene.members[0], "one");
    answered(&client, &["one", "three", "two"]);
    scene.members[1].ctl(&["drain", &two.0.id]).ok();
    answered(&client, &["one", "three"]);
    // viprouted of the node that all come to is away, and comes back.
    scene.members[0].stop();
    assert_eq!(connect(&client, six(), 60).names.len(), 2);
    scene.members[0].start();
    answered(&client, &["one", "three"]);
    for flows in &mut flows {
        flows.ask();
        flows.hear();
        assert_eq!(flows.complaint(&[]), None);
    }
    drop((one, two, three));
}

/// One node's replicas ask for IPv6 alone, the other's don't: both serve both, as long as the other's are there.
#[test]
fn nodes_agree_about_the_families_that_replicas_ask_for() {
    let (scene, client) = dual(2);
    let alone = web().annotation("viproute.io/families", "ipv6");
    let two = served_as(&scene.members[1], "two", &alone);
    let four = std::net::IpAddr::V4(two.0.vip());
    answered(&client, &["two"]);
    until("nothing answers by IPv4", SOON, || (attempt(&client, four, 1).failed == 1).then_some(()));
    let routes = scene.members[0].node.ns.ip("route show proto 118");
    assert!(!routes.contains(&format!("{WEB} nhid")), "on no node: {routes}");
    let one = served(&scene.members[0], "one");
    until("both answer by IPv4", SOON, || {
        let tally = attempt(&client, four, 60);
        (tally.failed == 0 && tally.names.len() == 2).then_some(())
    });
    answered(&client, &["one", "two"]);
    scene.members[0].node.del(&one.0, &web()).ok();
    until("nothing answers by IPv4 again", SOON, || (attempt(&client, four, 1).failed == 1).then_some(()));
    answered(&client, &["two"]);
    drop((one, two));
}

/// By IPv6 the tunnel's program chooses among a node's replicas, by IPv4 their group.
#[test]
fn what_comes_by_the_tunnel_heeds_weights() {
    let (scene, client) = dual(2);
    let light = served(&scene.members[1], "light");
    let heavy = served_as(&scene.members[1], "heavy", &web().annotation("viproute.io/weight", "3"));
    answered(&client, &["heavy", "light"]);
    let tally = connect(&client, six(), 500);
    let share = share(&tally, "heavy");
    assert!((66.0..=84.0).contains(&share), "heavy has {share:.1} %: {tally:?}");
    drop((light, heavy));
}

/// Configurations change node by node: IPv4 goes on, by IPv6 each node's own replicas serve until the other has the address too.
#[test]
fn a_node_without_the_address_is_named_and_left_out() {
    let (mut scene, client) = dual(2);
    let both = scene.members[1].settings.clone();
    scene.members[1].settings = both.replace(&format!("cidr6 = {CIDR6:?}\n"), "");
    scene.members[1].stop();
    scene.members[1].start();
    let one = served(&scene.members[0], "one");
    let two = served(&scene.members[1], "two");
    scene.members[0].finds("has no address of IPv6 on node n2");
    scene.members[1].finds("has no address of IPv6 here");
    answered(&client, &["one"]);
    until("both answer by IPv4", SOON, || (attempt(&client, one.0.vip(), 60).names.len() == 2).then_some(()));
    scene.members[1].settings = both;
    scene.members[1].stop();
    scene.members[1].start();
    answered(&client, &["one", "two"]);
    until("nothing is found any more", SOON, || {
        (!scene.members[0].nodes()["findings"].to_string().contains("IPv6")).then_some(())
    });
    drop((one, two));
}
