//! Another version was here, or comes: its programs, its records; and another boot.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{POOL, SOON, Scene, restart, web};
use crate::harness::{Crowd, Flows, Sidecar, connect, until};

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
    assert_eq!(pins(&scene, "owner_"), ["owner_000000000000"]);
    all_answer("another build's programs");
    scene = restart(scene);
    until("its own programs stand", SOON, || scene.complaint().is_none().then_some(()));
    let own = pins(&scene, "owner_");
    assert!(own.len() == 1 && own[0] != "owner_000000000000", "{own:?}");
    all_answer("the agent's start");
    connect(&scene.client, scene.vip, 50);
    scene.node.make_programs_another_builds();
    scene.node.add(&late, &web()).ok();
    all_answer("the next ADD");
    assert_eq!(pins(&scene, "owner_"), own);
    assert!(connect(&scene.client, scene.vip, 200).names.contains_key(&late.name));
    scene.settles();
}

fn pins(scene: &Scene, prefix: &str) -> Vec<String> {
    let pins = std::fs::read_dir(scene.node.bpf_dir()).expect("the pins").flatten();
    let names = pins.into_iter().filter_map(|pin| pin.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// The next version's records, with fields of its own, survive what the agent writes.
#[test]
fn fields_of_the_next_version_survive() {
    let mut scene = Scene::new();
    drop(scene.sidecar.take());
    let records = registry_files(&scene);
    assert!(records.len() >= 7, "{records:?}");
    for path in &records {
        edit(path, |record| record["from_the_future"] = serde_json::json!({ "path": path }));
    }
    scene.sidecar = Some(Sidecar::pool(&scene.node, POOL));
    // The pair is another one afterwards, so its endpoint's record is written.
    let host_end = scene.host_end();
    let former = scene.index(&host_end);
    scene.node.ns.ip(&format!("link del {host_end}"));
    scene.heals("a host end");
    assert_ne!(scene.index(&host_end), former);
    for path in &records {
        let record: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(record["from_the_future"]["path"], path.as_str());
        assert_eq!(record["schema"], 1);
    }
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
    scene.node.reboot(&scene.lan);
    scene.sidecar = Some(Sidecar::pool(&scene.node, POOL));
    until("the other boot's state is gone", SOON, || scene.node.records().is_empty().then_some(()));
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(scene.node.ns.ip("route show proto 118"), "");
    assert_eq!(scene.node.ns.ip("nexthop show proto 118"), "");
    let pod = scene.node.joined(&web());
    assert_eq!(pod.vip(), scene.vip, "the same address as before");
    let _server = Crowd::start(&pod);
    connect(&scene.client, scene.vip, 10);
}
