//! The programs for packets of IPv6, beside those of IPv4.

use std::net::IpAddr;

use super::{Kernel, Scene, start, straight_to, web};
use crate::harness::tcx::{self, Tcx};
use crate::harness::{Crowd, Lan, Node, PORT, REPAIRED, Run, SOON, until};

const BOTH: &str =
    "backend = \"pool\"\nannounce = \"none\"\n[pool]\ncidr = \"10.118.0.0/24\"\ncidr6 = \"fd00:118::/96\"";
const ALL: [&str; 4] = ["express_in", "express_in6", "express_seen", "express_seen6"];

/// The replicas' servers have one socket for both families.
fn dual(kernel: Kernel) -> (Vec<Crowd>, Scene) {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1).with_ipv6(&lan);
    let sidecar = Some(start(&node, kernel, BOTH));
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    lan.add_ipv6(&client, 50);
    client.ip("route add fd00:118::/96 via 2001:db8::1");
    let pods = vec![node.joined(&web()), node.joined(&web())];
    let servers = pods.iter().map(|pod| Crowd::of_both(pod, PORT)).collect();
    (servers, Scene { _servers: Vec::new(), sidecar, pods, client, node, _lan: lan })
}

/// The names of all programs on eth0.
fn names(scene: &Scene) -> Vec<String> {
    let ns = &scene.node.ns;
    let by_tcx = [Tcx::Ingress, Tcx::Egress].into_iter().flat_map(|side| tcx::programs(ns, "eth0", side));
    let mut names: Vec<String> = by_tcx.map(|(_, name)| name).collect();
    for side in ["ingress", "egress"] {
        let shown = ns.cmd("tc").args(["filter", "show", "dev", "eth0", side]).finish("").stdout;
        let programs = shown.split(" name ").skip(1).filter_map(|rest| rest.split_whitespace().next());
        names.extend(programs.map(str::to_owned));
    }
    names.sort();
    names
}

#[test]
fn those_of_ipv6_are_there_while_vips_have_it() {
    for &kernel in Kernel::all() {
        let (_servers, mut scene) = dual(kernel);
        until("programs of both families", SOON, || (names(&scene) == ALL).then_some(()));
        assert_eq!(scene.on(), ["eth0"], "neither is another's program to the other");
        let vip6 = scene.pods[0].vips6()[0];
        for vip in [IpAddr::V4(scene.vip()), vip6.into()] {
            straight_to(&scene, vip);
        }
        match kernel {
            Kernel::Tcx => {
                let programs = tcx::programs(&scene.node.ns, "eth0", Tcx::Egress);
                assert_eq!(programs[0].1, "express_seen", "IPv4's is the first");
                tcx::detach_id(&scene.node.ns, "eth0", Tcx::Egress, programs[1].0);
            }
            Kernel::Clsact => {
                let deleted = ["filter", "del", "dev", "eth0", "egress", "pref", "117"];
                scene.node.ns.cmd("tc").args(deleted).finish("").ok();
            }
        }
        until("it is back", REPAIRED, || (names(&scene) == ALL).then_some(()));
        scene.sidecar.take().expect("viprouted runs").stop();
        assert_eq!(names(&scene), Vec::<String>::new(), "{kernel:?}");
    }
}
