//! Another build was here: its programs, its records; and another boot.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{POOL, REPAIRED, Scene, restart, web};
use crate::harness::{Crowd, Flows, Join, Sidecar, connect, until};

/// Binaries of another version were here: its programs are replaced under live connections by the agent's start, and by
/// the next ADD.
#[test]
fn another_build_takes_over_under_traffic() {
    let mut scene = Scene::new();
    let mut flows = [
        Flows::open("the client", &scene.client, scene.vip, 300),
        Flows::open("the node", &scene.node.ns, scene.vip, 300),
    ];
    let mut all_answer = |when: &str| {
        flows.iter_mut().for_each(Flows::ask);
        flows.iter_mut().for_each(Flows::hear);
        let complaints: Vec<_> = flows.iter().filter_map(|flows| flows.complaint(&[])).collect();
        assert!(complaints.is_empty(), "{when}: {}", complaints.join("\n"));
    };
    let late = scene.node.pod();
    let _server = Crowd::start(&late);
    // While it runs another version's plugin comes and goes: that one's programs are left to it.
    scene.node.make_programs_another_builds();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(owners(&scene), ["owner_000000000000"]);
    all_answer("another build's programs");
    scene = restart(scene);
    scene.becomes_content("its own programs stand");
    let own = owners(&scene);
    assert!(own.len() == 1 && own[0] != "owner_000000000000", "{own:?}");
    all_answer("the agent's start");
    connect(&scene.client, scene.vip, 50);
    scene.node.make_programs_another_builds();
    scene.node.add(&late, &web()).ok();
    all_answer("the next ADD");
    assert_eq!(owners(&scene), own);
    assert!(connect(&scene.client, scene.vip, 200).names.contains_key(&late.name));
    scene.settles();
}

fn owners(scene: &Scene) -> Vec<String> {
    scene.node.pins().into_iter().filter(|name| name.starts_with("owner_")).collect()
}

/// The next version's records, with fields of its own, survive what the agent writes.
#[test]
fn fields_of_the_next_version_survive() {
    let mut scene = Scene::new();
    drop(scene.sidecar.take());
    let records = registry_files(&scene);
    assert!(records.len() >= 7, "{records:?}");
    for path in &records {
        edit(path, |record| record["from_the_future"] = json!({ "path": path }));
    }
    scene.sidecar = Some(Sidecar::pool(&scene.node, POOL));
    // The veth pair is another one afterwards, so its endpoint's record is written.
    let host_veth = scene.host_veth();
    let former = scene.index(&host_veth);
    scene.node.ns.ip(&format!("link del {host_veth}"));
    until("another pair", REPAIRED, || {
        (scene.node.ns.has_device(&host_veth) && scene.index(&host_veth) != former).then_some(())
    });
    scene.becomes_content("CHECK is content");
    for path in &records {
        let record: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(record["from_the_future"]["path"], path.as_str());
        assert_eq!(record["schema"], 2);
    }
}

/// A port and a check that the next version knows stay recorded and are reported; what this one knows is served, and CHECK
/// finds nothing wrong with it.
#[test]
fn ports_and_checks_of_the_next_version_are_left_out_and_told_of() {
    let join =
        Join { annotations: Some(json!({ "viproute.io/vip": "web", "viproute.io/ports": "8080/tcp" })), ..web() };
    let mut scene = Scene::with(1, &join);
    drop(scene.sidecar.take());
    let endpoints: Vec<_> = registry_files(&scene).into_iter().filter(|path| path.contains("/endpoints/")).collect();
    for path in &endpoints {
        edit(path, |record| record["ports"] = json!(["90-99/sctp", "8080/tcp"]));
        edit(path, |record| record["health"] = json!("grpc:8080/ready"));
    }
    // It is made of the endpoints, and would say what they said.
    std::fs::remove_file(scene.node.data() + "/vips/default_web/index.json").expect("the index");
    scene.sidecar = Some(Sidecar::pool(&scene.node, POOL));
    for text in ["90-99/sctp", "grpc:8080/ready"] {
        until(text, REPAIRED, || {
            let log = scene.sidecar().daemon.log();
            log.lines().any(|line| line.contains("unknown to this version") && line.contains(text)).then_some(())
        });
    }
    connect(&scene.client, scene.vip, 10);
    scene.node.check(&scene.pods[0], &join).ok();
    // What is written again is written as it came.
    scene.node.ns.ip(&format!("link del {}", scene.host_veth()));
    until("a new pair", REPAIRED, || {
        thread::sleep(Duration::from_millis(200));
        scene.node.check(&scene.pods[0], &join).succeeded().then_some(())
    });
    for path in &endpoints {
        let record: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(record["ports"], json!(["90-99/sctp", "8080/tcp"]));
        assert_eq!(record["health"], "grpc:8080/ready");
    }
    connect(&scene.client, scene.vip, 10);
}

/// `vip.json`, endpoints and attachments.
fn registry_files(scene: &Scene) -> Vec<String> {
    let paths = scene.node.records().into_iter().map(|line| line.split(".json: ").next().unwrap().to_owned() + ".json");
    paths.filter(|path| !path.ends_with("index.json")).collect()
}

fn edit(path: &str, change: impl Fn(&mut Value)) {
    let mut record = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(path, record.to_string()).unwrap();
}

/// After a reboot the agent discards the other boot's state and leaves nothing of it; pods that come back get their VIPs.
#[test]
fn a_reboot_leaves_nothing_and_pods_come_back() {
    let mut scene = Scene::with(1, &web());
    drop(scene.sidecar.take());
    scene.servers.clear();
    scene.pods.clear();
    scene.node.reboot(&scene.lan);
    scene.sidecar = Some(Sidecar::pool(&scene.node, POOL));
    until("the other boot's state is gone", REPAIRED, || scene.node.records().is_empty().then_some(()));
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(scene.node.ns.ip("route show proto 118"), "");
    assert_eq!(scene.node.ns.ip("nexthop show proto 118"), "");
    let pod = scene.node.joined(&web());
    assert_eq!(pod.vip(), scene.vip, "the same address as before");
    let _server = Crowd::start(&pod);
    connect(&scene.client, scene.vip, 10);
}
