//! What the programs read of who serves which port: written only where that differs, checked, healed, removed.

use std::path::Path;

use aya::maps::{HashMap, Map, MapData};
use viproute::internals::ebpf::Maps;

use super::{Scene, listed};
use crate::harness::{PATIENCE, Sidecar, until};

impl Scene {
    fn maps(&self) -> Maps {
        Maps::open(self.node.bpf_dir().as_ref()).expect("the maps").expect("they are there")
    }

    /// How many serve each port, by number.
    fn served(&self) -> Vec<(u32, usize)> {
        let by_port = self.maps().servers(self.vip).expect("the entries");
        by_port.iter().map(|(number, servers)| (number & 0xffff, servers.len())).collect()
    }

    /// As somebody might who empties the map.
    fn forget(&self) {
        let pin = Path::new(&self.node.bpf_dir()).join("servers_v1");
        let map = Map::HashMap(MapData::from_pin(pin).expect("the map"));
        let mut map: HashMap<_, [u32; 2], [u8; 4104]> = map.try_into().expect("keys of 8 bytes");
        let keys: Vec<_> = map.keys().map(|key| key.expect("a key")).collect();
        for key in keys {
            map.remove(&key).expect("delete");
        }
        assert!(self.served().is_empty());
    }
}

#[test]
fn they_are_there_while_ports_differ() {
    let scene = Scene::new(&["8080/tcp,9090/tcp", "9090/tcp,8080:9090/udp,8080/tcp"]);
    assert_eq!(scene.served(), [(8080, 2), (9090, 2), (8080, 1)], "one lists a port more");
    scene.node.remove(&scene.pods[1], &scene.joins[1]);
    assert!(scene.served().is_empty(), "all serve the same");
    assert!(!scene.maps().known(scene.vip).unwrap().expect("the VIP").ports_differ);
    let other = scene.node.pod();
    scene.node.add(&other, &listed("9090/tcp")).ok();
    assert_eq!(scene.served(), [(8080, 1), (9090, 2)]);
    scene.node.remove(&scene.pods[0], &scene.joins[0]);
    scene.node.remove(&other, &listed("9090/tcp"));
    let maps = Maps::open(scene.node.bpf_dir().as_ref()).expect("the maps");
    assert!(maps.is_none_or(|maps| maps.all_served().expect("the entries").is_empty()));
}

#[test]
fn missing_ones_are_found_and_written_again() {
    let scene = Scene::new(&["8080/tcp", "9090/tcp"]);
    scene.forget();
    let pods: Vec<_> = scene.pods.iter().collect();
    scene.node.gc(&pods, &scene.joins[0]).ok();
    assert_eq!(scene.served(), [(8080, 1), (9090, 1)]);
    scene.shares(9090, &[(1, 100)]);
}

#[test]
fn viprouted_writes_missing_ones_again() {
    let scene = Scene::new(&["8080/tcp", "9090/tcp"]);
    scene.node.stop_allocator();
    let _sidecar =
        Sidecar::start(&scene.node, "backend = \"pool\"\nannounce = \"none\"\n[pool]\ncidr = \"10.118.0.0/24\"\n");
    scene.forget();
    until("they are there again", PATIENCE, || (scene.served() == [(8080, 1), (9090, 1)]).then_some(()));
}
