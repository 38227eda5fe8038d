//! A replica that flaps: each change replaces the VIP's group and is seen by routing daemons.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{HTTP, Scene, web};
use crate::harness::{HttpServer, Run, VIPROUTECTL};

/// So long the replica flaps, ten times a second.
const TIME: Duration = Duration::from_secs(8);

/// Numbers of the group's changes so far: the kernel has a new one for each replacement, seen as another state of the replica.
fn changes(scene: &Scene) -> usize {
    let mut events = scene.node.ns.cmd(VIPROUTECTL);
    let text = events.args(["--allocator", &scene.node.socket(), "events", "--output", "json"]).finish("").ok();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON object a line"));
    events.filter(|event| event["text"].as_str().is_some_and(|text| text.contains("its check"))).count()
}

#[test]
fn a_replica_that_flaps_changes_its_state_ever_more_rarely() {
    let scene = Scene::new();
    let join = web(&format!("http:{HTTP}/ interval=100ms fall=1"));
    let pod = scene.node.joined(&join);
    let server = HttpServer::start(&pod, HTTP, 200);
    scene.becomes(&pod, "ready");
    let (start, mut answers, mut states) = (Instant::now(), [503, 200].into_iter().cycle(), BTreeSet::new());
    while start.elapsed() < TIME {
        server.answer(answers.next().expect("a cycle"));
        let turn = Instant::now();
        // Until its check has seen the answer, or holds it down: what is waited for is not to come then.
        while turn.elapsed() < Duration::from_millis(250) {
            states.insert(scene.state(&pod));
        }
    }
    let changes = changes(&scene);
    // Down and up at once, and then after 1, 2 and 4 seconds: at most 5 times each in 8 seconds, and the first time up.
    assert!((3..=11).contains(&changes), "{changes} changes in {TIME:?}");
    assert_eq!(states.into_iter().collect::<Vec<_>>(), ["draining", "ready"]);
    // It is not held down for ever.
    server.answer(200);
    scene.becomes(&pod, "ready");
}
