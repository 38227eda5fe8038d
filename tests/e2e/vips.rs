//! Every VIP of its own: which pods serve it, and who may name it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::thread;

use serde_json::json;

use crate::harness::{Join, Lan, Node, Pod, connect, serve_all};

/// The VIPs by the addresses the harness's allocator gave them.
fn address_of(node: &Node, key: &str) -> Ipv4Addr {
    node.stub(|stub| stub.address(key))
}

#[test]
fn two_vips_over_the_same_pod() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pods = [
        node.joined(&Join::annotated("web, api")),
        node.joined(&Join::annotated("web")),
        node.joined(&Join::annotated("api")),
    ];
    let _servers = serve_all(&pods);
    let (web, api) = (address_of(&node, "default/web"), address_of(&node, "default/api"));
    assert_eq!(pods[0].vips(), [web.min(api), web.max(api)]);
    assert_eq!(connect(&client, web, 100).names.keys().collect::<Vec<_>>(), ["p1", "p2"]);
    assert_eq!(connect(&client, api, 100).names.keys().collect::<Vec<_>>(), ["p1", "p3"]);
    // Leaving takes it out of both.
    node.remove(&pods[0], &Join::annotated("web, api"));
    assert_eq!(connect(&client, web, 40).names.keys().collect::<Vec<_>>(), ["p2"]);
    assert_eq!(connect(&client, api, 40).names.keys().collect::<Vec<_>>(), ["p3"]);
}

#[test]
fn eight_vips_on_one_pod() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pods = [node.joined(&Join::annotated("v1,v2,v3,v4,v5,v6,v7,v8"))];
    let _servers = serve_all(&pods);
    let vips = pods[0].vips();
    assert_eq!(vips.len(), 8);
    for vip in vips {
        connect(&client, vip, 5);
    }
    let pairs =
        node.ns.ip_json("link").iter().filter(|link| link["ifname"].as_str().unwrap().starts_with("vip")).count();
    assert_eq!(pairs, 1, "one veth pair however many VIPs");
    node.check(&pods[0], &Join::annotated("v1,v2,v3,v4,v5,v6,v7,v8")).ok();
}

#[test]
fn more_than_eight_are_refused() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.pod();
    let before = node.snapshot(&[&pod]);
    let by_annotation = Join::annotated("v1,v2,v3,v4,v5,v6,v7,v8,v9");
    let together = Join::annotated("v1,v2,v3,v4,v5,v6,v7").key("vips", json!(["default/v8", "default/v9"]));
    for join in [by_annotation, together] {
        let error = node.add(&pod, &join).error();
        assert_eq!(error.code, 7, "{error:?}");
        assert!(error.text().contains('8'), "the limit is named: {error:?}");
    }
    before.assert_same(&node.snapshot(&[&pod]), "a refused ADD");
}

#[test]
fn fifty_vips_of_four_pods_each() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let join_four =
        |vip: usize| -> Vec<Pod> { (0..4).map(|_| node.joined(&Join::annotated(&format!("vip-{vip}")))).collect() };
    let groups: Vec<Vec<Pod>> = thread::scope(|scope| {
        let halves: Vec<_> = (0..2)
            .map(|half| scope.spawn(move || (half * 25..half * 25 + 25).map(join_four).collect::<Vec<_>>()))
            .collect();
        halves.into_iter().flat_map(|half| half.join().expect("fifty VIPs' pods")).collect()
    });
    let mut seen = BTreeMap::new();
    for pods in &groups {
        let vip = pods[0].vip();
        assert!(seen.insert(vip, pods[0].name.clone()).is_none(), "{vip} is two VIPs' address");
        let servers = serve_all(pods);
        let mut names: Vec<_> = pods.iter().map(|pod| pod.name.clone()).collect();
        names.sort();
        // With 100 flows over four, one that gets none is a matter of one in 10^11.
        assert_eq!(connect(&client, vip, 100).names.into_keys().collect::<Vec<_>>(), names, "who answers for {vip}");
        drop(servers);
    }
}

#[test]
fn a_name_means_another_vip_in_another_namespace() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let shop = node.joined(&Join::annotated("web").namespace("shop"));
    let blog = node.joined(&Join::annotated("web").namespace("blog"));
    assert_ne!(shop.vip(), blog.vip());
    assert_eq!([shop.vip(), blog.vip()], [address_of(&node, "shop/web"), address_of(&node, "blog/web")]);
}

#[test]
fn an_annotation_cannot_name_another_namespace() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let _shop = node.joined(&Join::annotated("web").namespace("shop"));
    let intruder = node.pod();
    let before = node.snapshot(&[&intruder]);
    let error = node.add(&intruder, &Join::annotated("shop/web").namespace("blog")).error();
    assert_eq!(error.code, 7, "{error:?}");
    assert!(error.text().contains("shop/web"), "{error:?}");
    before.assert_same(&node.snapshot(&[&intruder]), "a refused ADD");
}

#[test]
fn the_conflist_may_name_any_namespace() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let shop = node.joined(&Join::annotated("web").namespace("shop"));
    let listed = node.joined(&Join::listed(&["shop/web"]));
    let bare = node.joined(&Join::listed(&["web"]));
    assert_eq!(listed.vip(), shop.vip());
    assert_eq!(bare.vip(), address_of(&node, "default/web"), "without a namespace it is `default`");
}
