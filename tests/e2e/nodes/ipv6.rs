//! Nodes tell each other which IPv6 address a VIP has, and serve it together by that.

use std::fs;
use std::os::unix::fs::MetadataExt;

use viproute::internals::registry::{Registry, State, VipRecord};

use super::{CIDR6, Member, Scene, WEB, six, web};
use crate::harness::{Crowd, Flows, Join, Netns, PORT, Pod, SOON, attempt, connect, share, until};

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

pub(super) fn served(member: &Member, name: &str) -> (Pod, Crowd) {
    served_as(member, name, &web())
}

fn served_as(member: &Member, name: &str, join: &Join) -> (Pod, Crowd) {
    let mut pod = member.node.pod();
    name.clone_into(&mut pod.name);
    let server = Crowd::of_both(&pod, PORT);
    member.node.add(&pod, join).ok();
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
    hears_of_another_while_a_pod_joins(&scene.members);
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

/// What an ADD has recorded between its steps stays, though other nodes say that the VIP has an address of IPv6 too.
fn hears_of_another_while_a_pod_joins(members: &[Member]) {
    let [hears, joins] = [&members[1], &members[0]];
    let key = "default/web".parse().expect("a VIP");
    hears.has("node 1's replica", &[("192.0.2.1", "ready", 1)]);
    let registry = Registry::new(hears.node.data());
    let mut vip = registry.vip(&key).expect("the VIP's lock");
    let lock = format!("{}/vips/default_web/lock", hears.node.data());
    let record = vip.record.clone().expect("a record");
    assert!(record.addresses.ipv6().is_some(), "{record:?}");
    // The ADD's own address alone; its pod is recorded in the next moment.
    vip.write_record(VipRecord { addresses: record.address().into(), ..record }).expect("write the record");
    let second = served(joins, "second");
    until("viprouted waits for the lock, to record the second replica", SOON, || {
        let has_heard = hears.nodes()["nodes"][0]["ready"] == 3;
        (has_heard && waits_for(hears.daemon().pid(), &lock)).then_some(())
    });
    let own = format!("{}@eth0", hears.pod.id);
    let mut pending = registry.endpoint(&"default/own2".parse().unwrap(), &own).unwrap().expect("a replica");
    (pending.state, pending.ifindex, pending.nexthop) = (State::Pending, None, None);
    vip.insert_pending(&own, &pending).expect("record the pod");
    drop(vip);
    until("node 1's second replica", SOON, || {
        let record = registry.vip_record(&key).expect("a record").expect("a record");
        assert_eq!(record.addresses.ipv6(), None, "a pod that was given other addresses is about to serve");
        (hears.legs() == [("192.0.2.1".to_owned(), "ready".to_owned(), 2)]).then_some(())
    });
    let mut vip = registry.vip(&key).expect("the VIP's lock");
    vip.remove_endpoint(&own).expect("remove the pod");
    drop(vip);
    joins.node.remove(&second.0, &web());
}

/// Whether that process waits for the lock of that file.
fn waits_for(pid: u32, path: &str) -> bool {
    let inode = fs::metadata(path).expect("a lock file").ino();
    let locks = fs::read_to_string("/proc/locks").expect("/proc/locks");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let is_it = |words: Vec<String>| {
        words[1] == "->" && words[5] == pid.to_string() && words[6].ends_with(&format!(":{inode}"))
    };
    locks.lines().map(words).any(is_it)
}
