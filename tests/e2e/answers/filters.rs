//! The programs in the pod: there where UDP ports are named, checked, healed, gone without a trace.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use viproute::internals::ebpf::Maps;

use super::{Asker, PORT, Scene};
use crate::harness::{Join, Lan, Node, PATIENCE, Pod, Run, Sidecar, until};

/// What hangs on a pod's devices, without what differs from build to build.
fn hooks(pod: &Pod) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for device in ["eth0", "vip0"] {
        if !pod.ns.has_device(device) {
            continue;
        }
        let qdiscs = pod.ns.cmd("tc").args(["qdisc", "show", "dev", device]).finish("").ok();
        found.extend(qdiscs.lines().filter(|line| line.contains("clsact")).map(|_| format!("{device} clsact")));
        for side in ["ingress", "egress"] {
            let filters = pod.ns.cmd("tc").args(["filter", "show", "dev", device, side]).finish("").ok();
            found.extend(
                filters
                    .split(" name ")
                    .skip(1)
                    .filter_map(|rest| Some(format!("{device} {side} {}", rest.split_whitespace().next()?))),
            );
        }
    }
    found
}

fn ours() -> BTreeSet<String> {
    let all = [
        "eth0 clsact",
        "eth0 egress udp_answer",
        "eth0 ingress udp_asked_own",
        "vip0 clsact",
        "vip0 ingress udp_asked",
    ];
    all.map(str::to_owned).into()
}

/// Those of a pod that serves a VIP of IPv6.
fn ours6() -> BTreeSet<String> {
    let more = ["eth0 egress udp_answer6", "eth0 ingress udp_asked_own6", "vip0 ingress udp_asked6"];
    ours().into_iter().chain(more.map(str::to_owned)).collect()
}

fn answering(node: &Node) -> usize {
    let maps = Maps::open(node.bpf_dir().as_ref()).expect("the maps");
    maps.map_or(0, |maps| maps.all_answering().expect("the entries").len())
}

fn dns() -> Join {
    Join::annotated("dns").annotation("viproute.io/ports", &format!("80/tcp,{PORT}/udp"))
}

#[test]
fn only_pods_whose_udp_ports_are_named_have_them() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let join = Join::annotated("web");
    for join in [join.clone(), join.annotation("viproute.io/ports", "80/tcp")] {
        assert_eq!((hooks(&node.joined(&join)), answering(&node)), (BTreeSet::new(), 0));
    }
    let pod = node.joined(&dns());
    assert_eq!((hooks(&pod), answering(&node)), (ours(), 1));
    node.remove(&pod, &dns());
    assert_eq!(answering(&node), 0);
}

#[test]
fn those_of_ipv6_are_where_vips_have_it() {
    let scene = Scene::dual(&format!("{PORT}/udp"), PORT);
    assert_eq!((hooks(&scene.pod), answering(&scene.node)), (ours6(), 2));
    scene.pod.ns.cmd("tc").args(["filter", "del", "dev", "eth0", "egress", "pref", "117"]).finish("").ok();
    let error = scene.node.check(&scene.pod, &scene.join).error();
    assert!(error.text().contains("tc egress of IPv6: want udp_answer6"), "{error:?}");
    scene.node.del(&scene.pod, &scene.join).ok();
    assert_eq!((hooks(&scene.pod), answering(&scene.node)), (BTreeSet::new(), 0));
}

/// podman disconnects a container from a network and leaves it running. What others have there stays.
#[test]
fn del_of_a_pod_that_lives_on_leaves_nothing() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let tc = |pod: &Pod, arguments: &str| drop(pod.ns.cmd("tc").args(arguments.split(' ')).finish("").ok());
    for has_others in [false, true] {
        let pod = node.pod();
        if has_others {
            let pins = node.pins();
            let pin = pins.iter().find(|pin| pin.starts_with("express_seen_")).expect("a program");
            tc(&pod, "qdisc add dev eth0 clsact");
            let program = format!("{}/{pin}", node.bpf_dir());
            tc(&pod, &format!("filter add dev eth0 egress pref 200 bpf direct-action object-pinned {program}"));
        }
        let before = hooks(&pod);
        assert_eq!(before.len(), if has_others { 2 } else { 0 });
        node.add(&pod, &dns()).ok();
        assert_eq!(hooks(&pod), before.union(&ours()).cloned().collect());
        node.del(&pod, &dns()).ok();
        assert_eq!(hooks(&pod), before, "with others: {has_others}");
        node.add(&pod, &dns()).ok();
        node.check(&pod, &dns()).ok();
    }
}

#[test]
fn check_names_a_missing_one_and_viprouted_puts_it_back() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let settings = "backend = \"pool\"\nannounce = \"none\"\n[pool]\ncidr = \"10.118.0.0/24\"\n";
    let sidecar = Sidecar::start(&node, settings);
    let pod = node.joined(&dns());
    sidecar.stop();
    for (device, side, name) in [("vip0", "ingress", "udp_asked"), ("eth0", "egress", "udp_answer")] {
        pod.ns.cmd("tc").args(["filter", "del", "dev", device, side, "pref", "118"]).finish("").ok();
        let error = node.check(&pod, &dns()).error();
        assert!(error.text().contains(&format!("tc {side}: want {name}")), "{error:?}");
    }
    let _sidecar = Sidecar::start(&node, settings);
    until("they are there again", PATIENCE, || (hooks(&pod) == ours()).then_some(()));
    node.check(&pod, &dns()).ok();
    pod.ns.cmd("tc").args(["qdisc", "del", "dev", "eth0", "clsact"]).finish("").ok();
    until("they are there again", PATIENCE, || (hooks(&pod) == ours()).then_some(()));
}

/// A pod that takes them off answers from its own address, as without them.
#[test]
fn a_pod_that_takes_them_off_harms_its_own_answers() {
    let scene = Scene::new(&format!("{PORT}/udp"), PORT);
    let asker = Asker::new(&scene.client);
    let vip: (Ipv4Addr, u16) = (scene.pod.vip(), PORT);
    assert_eq!(asker.first(vip), vip.into());
    scene.pod.ns.cmd("tc").args(["qdisc", "del", "dev", "eth0", "clsact"]).finish("").ok();
    assert_eq!(asker.first(vip), (scene.pod.address(), PORT).into());
}

/// They are replaced as those on host veths are.
#[test]
fn another_builds_programs_are_replaced() {
    let scene = Scene::new(&format!("{PORT}/udp"), PORT);
    let ids = || scene.pod.ns.cmd("tc").args(["filter", "show", "dev", "eth0", "egress"]).finish("").ok();
    let before = ids();
    scene.node.make_programs_another_builds();
    let _pod = scene.node.joined(&Join::annotated("web"));
    assert_ne!(ids(), before);
    assert_eq!(hooks(&scene.pod), ours());
    scene.node.check(&scene.pod, &scene.join).ok();
    let vip: (Ipv4Addr, u16) = (scene.pod.vip(), PORT);
    assert_eq!(Asker::new(&scene.client).first(vip), vip.into());
}
