//! A replica of another node, as records may have it: its node is a member of the VIP's group, behind a device that this node has
//! made for it. What reads such records has to leave them, and whose they are, alone.

use std::fs;
use std::net::Ipv4Addr;

use serde_json::Value;

use crate::harness::{
    FAR_NEXTHOPS, FarReplicas, Finished, Join, Lan, Node, Pod, Run, SOON, Sidecar, connect, far_endpoint, nothing_left,
    serve_all, until, vip_dir, write_endpoint,
};

/// Of the peer of number 2.
const NEXTHOP: u32 = FAR_NEXTHOPS | 2;
const TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

fn web() -> Join {
    Join::annotated("web")
}

/// A node with viprouted and one replica of its own.
struct Scene {
    pod: Pod,
    sidecar: Sidecar,
    node: Node,
    lan: Lan,
}

impl Scene {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let sidecar = Sidecar::pool(&node, "10.118.0.0/24");
        let pod = node.joined(&web());
        node.ns.ip("link add tunnel type veth peer name far");
        node.ns.ip("link set far up");
        node.ns.ip("addr add 10.77.0.1/24 dev tunnel");
        node.ns.ip("link set tunnel up");
        Self { pod, sidecar, node, lan }
    }

    /// Another node's replicas, recorded beside the pod's.
    fn record(&self, ready: usize) {
        let ifindex = self.node.ns.ip_json("link show tunnel")[0]["ifindex"].as_u64().expect("its index");
        let node = Ipv4Addr::new(192, 0, 2, 2);
        FarReplicas {
            number: 2,
            node,
            via: TUNNEL,
            device: "tunnel",
            ifindex,
            ready,
            sticky: false,
            served: None,
            via6: None,
        }
        .write(&self.node);
    }

    fn path(&self) -> String {
        format!("{}/endpoints/{}", vip_dir(&self.node), far_endpoint(2))
    }

    /// The group's members and their weights, as the kernel has them.
    fn members(&self) -> Vec<(u64, u64)> {
        let groups = self.node.ns.ip_json("nexthop show proto 118 groups");
        let members = groups.iter().flat_map(|group| group["group"].as_array().expect("members").clone());
        let number = |member: &Value, key: &str, none| member[key].as_u64().unwrap_or(none);
        members.map(|member| (number(&member, "id", 0), number(&member, "weight", 1))).collect()
    }

    fn own(&self) -> u64 {
        let device = self.node.ns.ip_json("link");
        let veth = device.iter().find(|link| link["ifname"].as_str().is_some_and(|name| name.starts_with("vip")));
        0x7600_0000 | veth.expect("a host veth")["ifindex"].as_u64().expect("its index")
    }

    fn has(&self, when: &str, members: &[(u64, u64)]) {
        until(&format!("the group is right {when}"), SOON, || (self.members() == members).then_some(()));
    }

    fn doctor(&self) -> Finished {
        let mut command = self.node.ctl();
        command.args(["doctor", "--conf-dir", "/nonexistent", "--config", &self.node.dir.file("viprouted.toml")]);
        command.finish("")
    }
}

#[test]
fn a_replica_of_another_node_is_a_member_and_stays_one() {
    let scene = Scene::new();
    let (peer, own) = ((u64::from(NEXTHOP), 3), (scene.own(), 1));
    scene.record(3);
    scene.has("with the other node's replica", &[own, peer]);
    let hop = scene.node.ns.ip(&format!("nexthop show id {NEXTHOP}"));
    assert!(hop.contains("via 10.77.0.2 dev tunnel"), "{hop}");
    // Routers are told of this node's replicas alone: the other node tells of its own.
    let routes = scene.node.ns.ip(&format!("route show {} proto 118", scene.pod.vip()));
    assert!(routes.contains("metric 1 "), "{routes}");
    scene.node.check(&scene.pod, &web()).ok();
    // No attachment explains it, and none has to.
    scene.node.gc(&[&scene.pod], &web()).ok();
    assert_eq!(scene.members(), [own, peer], "after GC");
    assert!(fs::exists(scene.path()).unwrap(), "after GC");
    // It is repaired as any other, and it is not this node's to check.
    scene.node.ns.ip(&format!("nexthop del id {NEXTHOP}"));
    scene.has("after a repair", &[own, peer]);
    let found = scene.doctor();
    assert!(!found.stdout.contains("node-2@peer"), "{found:?}");

    scene.record(0);
    scene.has("while the other drains", &[own]);
    scene.record(3);
    scene.has("again", &[own, peer]);
    // The node's own last replica leaves: what has none here is for the other node to serve.
    scene.node.del(&scene.pod, &web()).ok();
    scene.has("without a replica here", &[peer]);
    write_endpoint(&scene.node, &far_endpoint(2), None);
    until("nothing is left", SOON, || scene.node.ns.ip("nexthop show proto 118").is_empty().then_some(()));
    scene.node.gc(&[], &web()).ok();
    nothing_left(&scene.node);
    assert!(!scene.sidecar.daemon.log().contains("panicked"));
}

/// The device that leads there is down: this node's replica serves alone.
#[test]
fn a_tunnel_that_is_down_takes_no_local_replica_along() {
    let scene = Scene::new();
    let (peer, own) = ((u64::from(NEXTHOP), 3), (scene.own(), 1));
    scene.record(3);
    scene.has("at first", &[own, peer]);
    scene.node.ns.ip("link set tunnel down");
    let client = scene.lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pods = [scene.pod];
    let _servers = serve_all(&pods);
    until("all connections are answered", SOON, || {
        (crate::harness::attempt(&client, pods[0].vip(), 40).failed == 0).then_some(())
    });
    connect(&client, pods[0].vip(), 40);
}
