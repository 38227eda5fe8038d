//! viprouted is ended by a shutdown of the machine too: that is a leave. The unit's part in it: `install`.

use serde_json::{Value, json};

use super::{Scene, web};
use crate::harness::{KubeApi, SOON};

/// In a pod there is no systemd to be asked. The kubelet says in its Node that it ends the pods, before it ends viprouted's; a shutdown that is
/// called off is taken back.
#[test]
fn a_kubelet_that_shuts_its_node_down_makes_it_leave() {
    let mut scene = Scene::new(2);
    let api = KubeApi::start(&scene.members[1].node);
    let settings = api.settings(&scene.members[1].node).replace("\"n1\"", "\"n2\"");
    let before = &scene.members[1].settings;
    scene.members[1].settings = format!("{before}\n{settings}");
    let node = |status: &str, message: &str| -> Value {
        let ready = json!({ "type": "Ready", "status": status, "reason": "x", "message": message });
        json!({ "kind": "Node", "metadata": { "name": "n2" }, "status": { "conditions": [ready] } })
    };
    api.set(&node("True", "kubelet is posting ready status"));
    scene.members[1].stop();
    scene.members[1].start();
    let pod = scene.members[1].node.joined(&web());
    let [first, _] = &scene.members[..] else { unreachable!() };
    first.has("n2's", &[("192.0.2.2", "ready", 1)]);
    // Not ready alone is no leave.
    api.set(&node("False", "container runtime is down"));
    api.set(&node("False", "node is shutting down"));
    first.sees("n2 leaves", SOON, &[("n2", "left")]);
    first.has("n2 gets nothing new", &[("192.0.2.2", "draining", 1)]);
    api.set(&node("True", "kubelet is posting ready status"));
    first.sees("n2 stays after all", SOON, &[("n2", "live")]);
    first.has("n2's again", &[("192.0.2.2", "ready", 1)]);
    // Ended while that is so, it doesn't say that it comes back.
    api.set(&node("False", "[container runtime is down, node is shutting down]"));
    first.sees("n2 leaves again", SOON, &[("n2", "left")]);
    scene.members[1].stop();
    scene.members[0].sees("n2 has left", SOON, &[("n2", "left")]);
    drop(pod);
}
