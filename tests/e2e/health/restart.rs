//! Without the agent nothing changes; with a new one it goes on from what the registry has.

use serde_json::json;
use viproute::internals::membership::admission::drain;
use viproute::internals::model::VipKey;
use viproute::internals::net::NodeNet;
use viproute::internals::registry::Registry;

use super::{Scene, web};
use crate::harness::{Flows, Pod, PodServer, Run, Sidecar, connect};

impl Scene {
    fn stop_agent(&mut self) {
        self.sidecar.take().expect("a sidecar").stop();
    }

    fn start_agent(&mut self) {
        self.sidecar = Some(Sidecar::pool(&self.node, "10.118.0.0/24"));
    }
}

#[test]
fn checks_survive_a_restart_of_the_agent() {
    let mut scene = Scene::new();
    let join = web("listen interval=200ms fall=2");
    let mut pods = scene.ready(&join, 3);
    let mut flows = Flows::open("the client", &scene.client, scene.vip(), 60);
    scene.stop_agent();
    let (server, deaf) = pods.remove(0);
    drop(server);
    let late = scene.node.joined(&join);
    let _late_server = PodServer::start(&late);
    scene.stays(&deaf, "ready");
    assert_eq!(scene.state(&late), "pending");
    scene.start_agent();
    scene.becomes(&deaf, "draining");
    scene.becomes(&late, "ready");
    // No other replica's state has changed on the way.
    scene.has_transitions(1, 1);
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None);
    connect(&scene.client, scene.vip(), 50);
    // A draining one that listens between checks is ready at the next one.
    scene.stop_agent();
    let _server = PodServer::start(&deaf);
    scene.start_agent();
    scene.becomes(&deaf, "ready");
}

/// As `viproutectl drain` and `undrain` do it.
fn by_hand(scene: &Scene, pod: &Pod, drained: bool) {
    let (registry, vip) = (Registry::new(scene.node.data()), VipKey::new("default", "web").unwrap());
    let name = format!("{}@eth0", pod.id);
    scene.node.ns.run(|| drain(&NodeNet::open().unwrap(), &registry, (&vip, &name), drained)).expect("a drain");
}

/// One that was taken out by hand stays out, whatever its check says.
#[test]
fn a_replica_taken_out_by_hand_stays_out() {
    let mut scene = Scene::new();
    let pods = scene.ready(&web("listen interval=200ms"), 2);
    let out = &pods[0].1;
    by_hand(&scene, out, true);
    scene.stays(out, "draining");
    scene.stop_agent();
    scene.start_agent();
    scene.stays(out, "draining");
    by_hand(&scene, out, false);
    scene.becomes(out, "ready");
}

#[test]
fn without_an_agent_a_pod_waits_and_status_says_so() {
    let mut scene = Scene::new();
    let join = web("listen interval=200ms");
    let _first = scene.ready(&join, 1);
    scene.stop_agent();
    let late = scene.node.joined(&join);
    let _server = PodServer::start(&late);
    scene.stays(&late, "pending");
    let error = scene.node.status(&join.clone().strict()).error();
    assert_eq!(error.code, 50, "{error:?}");
    assert!(error.text().contains("viprouted can't be reached"), "{error:?}");
    assert!(error.text().contains("1 replica waits for its health check"), "{error:?}");
    assert_eq!(scene.replica(&late)["health"], json!("listen interval=200ms"));
    let mut command = scene.node.ctl();
    command.args(["status"]);
    let table = command.finish("").ok();
    assert!(table.contains("pending (listen interval=200ms)"), "{table}");
    scene.start_agent();
    scene.becomes(&late, "ready");
}
