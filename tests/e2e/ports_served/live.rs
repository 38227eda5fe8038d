//! Flows that live, while ports come to differ and to be the same again.

use super::{Scene, listed};
use crate::harness::{Crowd, Flows};

fn unbroken(live: &mut [Flows], when: &str) {
    for _ in 0..2 {
        live.iter_mut().for_each(Flows::ask);
        live.iter_mut().for_each(Flows::hear);
    }
    let complaints: Vec<_> = live.iter().filter_map(|flows| flows.complaint(&[])).collect();
    assert!(complaints.is_empty(), "{when}\n{}", complaints.join("\n"));
}

#[test]
fn connections_stay_while_pods_of_other_ports_come_and_go() {
    let scene = Scene::new(&["8080/tcp,9090/tcp", "8080/tcp,9090/tcp"]);
    let open = |port| scene.callers().map(|(from, ns)| Flows::on(from, ns, (scene.vip, port), 60));
    let mut live: Vec<Flows> = open(8080).into_iter().chain(open(9090)).collect();
    for ports in ["8080/tcp", "9090/tcp", "8080/tcp,9090/tcp,7070/tcp"] {
        let pod = scene.node.pod();
        let _servers = [8080, 9090].map(|port| Crowd::on(&pod, port));
        scene.node.add(&pod, &listed(ports)).ok();
        unbroken(&mut live, &format!("a pod of {ports} joins"));
        scene.node.remove(&pod, &listed(ports));
        unbroken(&mut live, &format!("a pod of {ports} leaves"));
    }
    scene.shares(8080, &[(0, 50), (1, 50)]);
}

/// What a pod serves is changed under it: the connections that it has are its own still, and new ones go to others.
#[test]
fn connections_stay_where_a_pod_no_longer_serves_their_port() {
    let scene = Scene::new(&["8080/tcp,9090/tcp", "8080/tcp,9090/tcp"]);
    let mut live = scene.callers().map(|(from, ns)| Flows::on(from, ns, (scene.vip, 9090), 60));
    scene.ctl(&["join", &format!("default/{}", scene.pods[0].name), "default/web", "--ports", "8080/tcp"]);
    unbroken(&mut live, "the first pod serves 8080 alone");
    scene.shares(9090, &[(1, 100)]);
    scene.shares(8080, &[(0, 50), (1, 50)]);
}
