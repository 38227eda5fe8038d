//! Foreign objects where ADD wants to put its own: what isn't ours stays, whatever becomes of the ADD.

use crate::harness::{Join, Lan, Node, Pod};

/// A node whose registry exists, and a pod that is about to join.
struct Scene {
    pod: Pod,
    node: Node,
    _lan: Lan,
}

impl Scene {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        node.remove(&node.joined(&Join::annotated("web")), &Join::annotated("web"));
        Self { pod: node.pod(), node, _lan: lan }
    }

    /// ADD fails and changes nothing, or succeeds with nothing for CHECK to find; DEL leaves what was there before.
    fn stays(&self) {
        let before = self.node.snapshot(&[&self.pod]);
        let reply = self.node.add(&self.pod, &Join::annotated("web"));
        if reply.succeeded() {
            self.node.check(&self.pod, &Join::annotated("web")).ok();
            self.node.del(&self.pod, &Join::annotated("web")).ok();
        } else {
            reply.error();
        }
        before.assert_same(&self.node.snapshot(&[&self.pod]), &format!("{reply:?}"));
    }
}

#[test]
fn a_group_under_the_next_vips_id() {
    let scene = Scene::new();
    let lock = std::fs::read_to_string(format!("{}/lock", scene.node.data())).unwrap();
    let id = 0x7700_0000 | lock.trim().parse::<u32>().unwrap();
    scene.node.ns.ip("nexthop add id 7 via 192.0.2.254 dev eth0 proto static");
    scene.node.ns.ip(&format!("nexthop add id {id} group 7 proto static"));
    scene.stays();
}

#[test]
fn nexthops_under_the_next_devices_ids() {
    let scene = Scene::new();
    let links = scene.node.ns.ip_json("link");
    let last = links.iter().filter_map(|link| link["ifindex"].as_u64()).max().unwrap();
    for index in last + 1..last + 6 {
        let id = 0x7600_0000 | index;
        scene.node.ns.ip(&format!("nexthop add id {id} via 192.0.2.254 dev eth0 proto static"));
    }
    scene.stays();
}

#[test]
fn a_route_in_the_pods_table() {
    let scene = Scene::new();
    scene.pod.ns.ip("route add default via 10.1.1.1 dev eth0 table 118 proto static");
    scene.stays();
}
