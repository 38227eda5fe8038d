//! Nodes tell each other what their pods serve.

use std::net::Ipv4Addr;

use super::{Scene, WEB, web};
use crate::harness::{Crowd, Join, Load, PORT, Pod, SOON, Tally, until};

const OTHER: u16 = 9090;

fn listed(ports: &str) -> Join {
    web().annotation("viproute.io/ports", ports)
}

/// Its servers have both ports, whatever it serves.
fn joined(scene: &Scene, member: usize, name: &str, join: &Join) -> (Pod, [Crowd; 2]) {
    let mut pod = scene.members[member].node.pod();
    name.clone_into(&mut pod.name);
    let servers = [PORT, OTHER].map(|port| Crowd::on(&pod, port));
    scene.members[member].node.add(&pod, join).ok();
    (pod, servers)
}

/// From each of the nodes a port is answered by these pods alone.
fn answered(scene: &Scene, port: u16, expected: &[&str]) {
    for member in &scene.members {
        let load = Load {
            to: (WEB.parse::<Ipv4Addr>().expect("an address"), port).into(),
            count: 60,
            rate: None,
            concurrency: 4,
        };
        let mut last = Tally::default();
        let fine = || {
            last = member.node.ns.run(|| load.run());
            (last.failed == 0 && last.names.keys().eq(expected)).then_some(())
        };
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| until("they answer", SOON, fine)));
        assert!(waited.is_ok(), "{port} from {}: want {expected:?}, found {last:?}", member.name());
    }
}

#[test]
fn a_port_is_served_by_the_node_whose_pods_have_it() {
    let scene = Scene::new(2);
    let _first = joined(&scene, 0, "one", &listed("8080/tcp"));
    let (second, _servers) = joined(&scene, 1, "two", &listed("9090/tcp"));
    answered(&scene, PORT, &["one"]);
    answered(&scene, OTHER, &["two"]);
    // One more of it, which serves both.
    let _third = joined(&scene, 1, "three", &listed("8080/tcp,9090/tcp"));
    answered(&scene, PORT, &["one", "three"]);
    answered(&scene, OTHER, &["three", "two"]);
    // What is told is written down: the node's own word is away for a while at each start.
    scene.members[1].node.remove(&second, &listed("9090/tcp"));
    answered(&scene, OTHER, &["three"]);
}
