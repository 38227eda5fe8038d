//! What the verbs promise beyond a first ADD.

use serde_json::{Value, json};

use crate::harness::{Join, Lan, Node, Stub, connect, serve_all};

fn web() -> Join {
    Join::annotated("web")
}

#[test]
fn version_lists_what_is_spoken() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let versions = node.raw(&node.verb("VERSION"), r#"{"cniVersion":"1.0.0"}"#).ok();
    assert_eq!(versions["cniVersion"], "1.0.0");
    let supported = versions["supportedVersions"].as_array().unwrap();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        assert!(supported.contains(&json!(version)), "{versions}");
    }
}

/// ADD, CHECK, DEL, DEL in a format of its own.
fn life_in_version(version: &'static str, base: &str) {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let join = web().version(version);
    // The first pod of a node brings the registry and the node's settings, which stay.
    node.remove(&node.joined(&join), &join);
    let pod = node.pod_of_version(base);
    let before = node.snapshot(&[&pod]);
    let result = node.add(&pod, &join).ok();
    assert_eq!(result["cniVersion"], version);
    let added: Vec<_> =
        result["interfaces"].as_array().unwrap().iter().skip(2).map(|entry| entry["name"].clone()).collect();
    assert_eq!(added.last(), Some(&json!("vip0")), "{result}");
    node.check(&pod, &join).ok();
    node.del(&pod, &join).ok();
    before.assert_same(&node.snapshot(&[&pod]), "ADD and DEL");
    node.del(&pod, &join).ok();
    before.assert_same(&node.snapshot(&[&pod]), "a second DEL");
}

#[test]
fn life_in_0_4_0() {
    life_in_version("0.4.0", "0.4.0");
}

#[test]
fn life_in_1_0_0() {
    life_in_version("1.0.0", "1.0.0");
}

/// Debian's base plugins don't speak 1.1.0: libcni hands their result on as the newer version, and so does the harness.
#[test]
fn life_in_1_1_0() {
    life_in_version("1.1.0", "1.0.0");
}

#[test]
fn the_result_is_prev_result_and_two_interfaces() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.pod();
    let mut stdin = node.stdin("ADD", &pod, &web());
    stdin["prevResult"]["x-unknown"] = json!({ "kept": [1, 2.5, null] });
    let mut result = node.raw(&node.environment("ADD", &pod, &web()), &stdin.to_string()).ok();
    let interfaces = result["interfaces"].as_array_mut().unwrap();
    let added = interfaces.split_off(interfaces.len() - 2);
    assert_eq!(result, stdin["prevResult"], "all the rest is as it came");
    assert!(
        added[0]["name"].as_str().unwrap().starts_with("vip") && added[0].get("sandbox").is_none_or(|s| s == ""),
        "{added:?}"
    );
    assert_eq!((&added[1]["name"], &added[1]["sandbox"]), (&json!("vip0"), &json!(pod.ns.path())));
    let mac = pod.ns.ip_json("link show dev vip0")[0]["address"].clone();
    assert_eq!(added[1]["mac"], mac, "podman insists on it");
}

#[test]
fn report_ips_adds_the_vip() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.pod();
    let result = node.add(&pod, &web().key("reportIPs", json!(true))).ok();
    let addresses: Vec<_> = result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].clone()).collect();
    assert!(addresses.contains(&json!(format!("{}/32", pod.vip()))), "{result}");
    assert_eq!(addresses[0], format!("{}/24", pod.address()), "the pod's own stays first");
}

#[test]
fn a_second_add_fails_and_harms_nothing() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pods = [node.joined(&web())];
    let before = node.snapshot(&[&pods[0]]);
    let error = node.add(&pods[0], &web()).error();
    assert_eq!(error.code, 100, "{error:?}");
    before.assert_same(&node.snapshot(&[&pods[0]]), "a second ADD");
    node.check(&pods[0], &web()).ok();
    let _servers = serve_all(&pods);
    connect(&client, pods[0].vip(), 10);
}

#[test]
fn a_second_attachment_in_the_pod_fails_and_harms_nothing() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.joined(&web());
    pod.ns.ip("link add name net1 type veth peer name other");
    pod.ns.ip("addr add 10.1.7.2/24 dev net1");
    let before = node.snapshot(&[&pod]);
    let mut environment = node.environment("ADD", &pod, &web());
    environment.ifname = Some("net1".into());
    let mut stdin = node.stdin("ADD", &pod, &web());
    stdin["prevResult"]["interfaces"] = json!([{ "name": "net1", "sandbox": pod.ns.path() }]);
    stdin["prevResult"]["ips"] = json!([{ "interface": 0, "address": "10.1.7.2/24" }]);
    let error = node.raw(&environment, &stdin.to_string()).error();
    assert_eq!(error.code, 101, "{error:?}");
    before.assert_same(&node.snapshot(&[&pod]), "another attachment's ADD");
    node.check(&pod, &web()).ok();
}

#[test]
fn a_foreign_vip0_is_in_the_way() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    node.remove(&node.joined(&web()), &web());
    let pod = node.pod();
    pod.ns.ip("link add name vip0 type veth peer name other");
    let before = node.snapshot(&[&pod]);
    assert_eq!(node.add(&pod, &web()).error().code, 101);
    before.assert_same(&node.snapshot(&[&pod]), "an ADD with a vip0 in the way");
}

#[test]
fn del_without_the_namespace() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    node.remove(&node.joined(&web()), &web());
    let before = node.snapshot(&[]);
    for netns in [Some(String::new()), None, Some("/run/netns/gone-since".into())] {
        let pod = node.joined(&web());
        let mut environment = node.environment("DEL", &pod, &web());
        environment.netns = netns;
        // As containerd's second DEL: no prevResult either.
        node.raw(&environment, &node.conf(&web()).to_string()).ok();
        let links = node.ns.ip_json("link");
        assert!(!links.iter().any(|link| link["ifname"].as_str().unwrap().starts_with("vip")), "{links:?}");
        drop(pod);
    }
    let after = node.snapshot(&[]);
    // The base plugin's veths of the three pods go with their namespaces, whenever the kernel comes to it.
    let ours: Vec<_> = before.changes(&after).into_iter().filter(|line| !line.contains("veth")).collect();
    assert_eq!(ours, Vec::<String>::new());
}

#[test]
fn del_of_what_never_was() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.pod();
    let before = node.snapshot(&[&pod]);
    node.del(&pod, &web()).ok();
    before.assert_same(&node.snapshot(&[&pod]), "DEL of a pod never added");
}

/// DEL works from the registry alone: neither the allocator nor the annotations need be there.
#[test]
fn del_with_the_registry_alone() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    node.remove(&node.joined(&web()), &web());
    let pod = node.pod();
    let before = node.snapshot(&[&pod]);
    node.add(&pod, &web()).ok();
    node.stop_allocator();
    let mut conf = node.conf(&Join::nothing());
    conf.as_object_mut().unwrap().remove("runtimeConfig");
    node.raw(&node.environment("DEL", &pod, &web()), &conf.to_string()).ok();
    before.assert_same(&node.snapshot(&[&pod]), "ADD and DEL");
}

#[test]
fn del_of_the_last_replica_tells_the_allocator() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let (first, second) = (node.joined(&web()), node.joined(&web()));
    let releases =
        || node.stub(|stub| stub.requests().iter().filter(|request| request.get("release").is_some()).count());
    node.del(&first, &web()).ok();
    assert_eq!(releases(), 0, "one replica is left");
    node.del(&second, &web()).ok();
    assert_eq!(releases(), 1);
    let last = node.stub(|stub| stub.requests().last().cloned());
    assert_eq!(last.unwrap()["release"]["vip"], "default/web");
}

/// The allocator is asked once for a VIP that has replicas here; the base information goes with the question.
#[test]
fn the_allocator_is_asked_once_and_told_the_base_information() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let (first, _second) = (node.joined(&web()), node.joined(&web()));
    let requests = node.stub(Stub::requests);
    let expected = json!({ "acquire": {
        "vip": "default/web", "pod": first.address().to_string(), "node": "192.0.2.1", "gateway": "192.0.2.254"
    } });
    assert_eq!(requests, [expected]);
}

#[test]
fn without_an_address_add_fails_and_leaves_nothing() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    node.remove(&node.joined(&web()), &web());
    let pod = node.pod();
    let before = node.snapshot(&[&pod]);
    let replies = [
        (r#"{"error":{"code":11,"msg":"every address is taken"}}"#, 11, "every address is taken"),
        (r#"{"address":"10.118.0.9","#, 11, ""),
        ("", 11, ""),
    ];
    for (reply, code, named) in replies {
        node.stub(|stub| stub.say(reply));
        let error = node.add(&pod, &web()).error();
        assert_eq!(error.code, code, "after {reply:?}: {error:?}");
        assert!(error.text().contains(named), "after {reply:?}: {error:?}");
        before.assert_same(&node.snapshot(&[&pod]), "an ADD without an address");
    }
    node.stop_allocator();
    assert_eq!(node.add(&pod, &web()).error().code, 11, "with no allocator at all");
    before.assert_same(&node.snapshot(&[&pod]), "an ADD without an allocator");
}

#[test]
fn status_says_whether_an_add_could_work() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    node.status(&web().strict()).ok();
    node.stop_allocator();
    let error = node.status(&web().strict()).error();
    assert_eq!(error.code, 50, "{error:?}");
    assert!(error.text().contains(&node.socket()), "the reason: {error:?}");
    assert!(error.text().contains("systemctl start viprouted"), "the cure: {error:?}");
}

/// A configuration that each ADD of a pod with a VIP refuses is told as that ADD tells it: waiting cures nothing.
#[test]
fn a_strict_status_names_a_bad_key_as_add_does() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let bad = |join: Join| join.key("mtu", json!("big"));
    node.status(&bad(web())).ok();
    let (status, add) = (node.status(&bad(web()).strict()).error(), node.add(&node.pod(), &bad(web())).error());
    assert_eq!((status.code, status.text()), (7, add.text()));
    assert!(status.text().contains("\"mtu\" is \"big\""), "{status:?}");
}

#[test]
fn gc_keeps_the_valid_and_removes_the_rest() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let (kept, gone, other) = (node.joined(&web()), node.joined(&web()), node.joined(&Join::annotated("api")));
    let api = other.vip();
    node.gc(&[&kept], &Join::nothing()).ok();
    node.check(&kept, &web()).ok();
    assert!(!gone.ns.has_device("vip0"), "the devices of a pod that is gone");
    assert!(node.ns.ip(&format!("route show {api}")).is_empty(), "a VIP without a replica");
    let members = members_of(&node);
    assert_eq!(members, [1], "one group, one member");
    for pod in [&gone, &other] {
        assert_ne!(node.check(pod, &web()).error().code, 0);
        node.del(pod, &web()).ok();
    }
    node.gc(&[], &Join::nothing()).ok();
    assert_eq!(node.ns.ip("route show proto 118") + &node.ns.ip("nexthop show proto 118"), "");
}

/// How many members each group of ours has.
fn members_of(node: &Node) -> Vec<usize> {
    let objects = node.ns.ip_json("nexthop show proto 118");
    objects.iter().filter_map(|object| object["group"].as_array().map(Vec::len)).collect()
}

#[test]
fn gc_removes_what_no_record_explains_and_nothing_foreign() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.joined(&web());
    let before = node.snapshot(&[&pod]);
    // 0x76000000 + 4095 and 0x77000000 + 4095, in our ranges with our protocol.
    node.ns.ip("nexthop add id 1979715583 via 192.0.2.254 dev eth0 proto 118");
    node.ns.ip("nexthop add id 1996492799 group 1979715583 proto 118");
    node.ns.ip("route add 10.118.9.9/32 nhid 1996492799 proto 118");
    node.ns.ip("route add unreachable 10.118.9.8/32 metric 7 proto 118");
    node.gc(&[&pod], &Join::nothing()).ok();
    before.assert_same(&node.snapshot(&[&pod]), "stray objects and GC");
    node.ns.ip("nexthop add id 77 via 192.0.2.254 dev eth0 proto static");
    node.ns.ip("route add 10.118.9.7/32 via 192.0.2.254 proto static");
    let foreign = node.snapshot(&[&pod]);
    node.gc(&[&pod], &Join::nothing()).ok();
    foreign.assert_same(&node.snapshot(&[&pod]), "GC beside foreign objects");
}

#[test]
fn gc_of_another_network_leaves_ours() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.joined(&web());
    let before = node.snapshot(&[&pod]);
    let mut conf = node.conf(&Join::nothing().version("1.1.0"));
    conf["name"] = json!("another");
    conf["cni.dev/valid-attachments"] = Value::Array(Vec::new());
    node.raw(&node.verb("GC"), &conf.to_string()).ok();
    before.assert_same(&node.snapshot(&[&pod]), "another network's GC");
}

/// After a reboot the registry is there and the kernel's objects are not.
#[test]
fn del_after_a_reboot() {
    let lan = Lan::new();
    let mut node = Node::new(&lan, 1);
    let pod = node.joined(&web());
    let mut environment = node.environment("DEL", &pod, &web());
    environment.netns = Some(String::new());
    drop(pod);
    node.reboot(&lan);
    node.raw(&environment, &node.conf(&web()).to_string()).ok();
    assert_eq!(node.records(), Vec::<String>::new());
}

#[test]
fn replicas_of_another_boot_are_discarded() {
    let lan = Lan::new();
    let mut node = Node::new(&lan, 1);
    drop((node.joined(&web()), node.joined(&Join::annotated("api"))));
    node.reboot(&lan);
    let pod = node.joined(&web());
    assert_eq!(members_of(&node), [1], "one VIP, and the new pod alone in it");
    node.check(&pod, &web()).ok();
    node.del(&pod, &web()).ok();
    assert_eq!(node.records(), Vec::<String>::new());
}
