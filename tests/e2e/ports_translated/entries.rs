//! What the programs read of ports: written with the replica, checked, healed, removed.

use std::path::Path;

use aya::maps::{HashMap, Map, MapData};
use viproute::internals::ebpf::Maps;

use super::service;
use crate::harness::{Join, PATIENCE, PORT, Service, Sidecar, connect, until};

fn maps(service: &Service) -> Maps {
    Maps::open(service.node.bpf_dir().as_ref()).expect("the maps").expect("they are there")
}

/// The host veths, and their pods' addresses of VIPs, that translations are of.
fn translated(service: &Service) -> usize {
    maps(service).all_translated().expect("the entries").len()
}

/// As somebody might who empties the map.
fn forget(service: &Service) {
    let pin = Path::new(&service.node.bpf_dir()).join("translations_v1");
    let map = Map::HashMap(MapData::from_pin(pin).expect("the map"));
    let mut map: HashMap<_, [u32; 4], u32> = map.try_into().expect("keys of 16 bytes");
    let keys: Vec<_> = map.keys().map(|key| key.expect("a key")).collect();
    assert_eq!(keys.len(), translated(service) * 8, "four for each port of each address");
    for key in keys {
        map.remove(&key).expect("delete");
    }
    assert_eq!(translated(service), 0);
}

#[test]
fn they_come_and_go_with_the_replica() {
    let service = service(2, 1);
    assert_eq!(translated(&service), 2 * 2);
    service.add(&service.pods[2]);
    assert_eq!(translated(&service), 3 * 2);
    for pod in &service.pods {
        service.node.check(pod, &service.join).ok();
        service.remove(pod);
    }
    assert!(
        Maps::open(service.node.bpf_dir().as_ref())
            .unwrap()
            .is_none_or(|maps| maps.all_translated().unwrap().is_empty())
    );
}

#[test]
fn a_missing_one_is_found_and_written_again() {
    let service = service(2, 0);
    forget(&service);
    let error = service.node.check(&service.pods[0], &service.join).error();
    assert!(error.text().contains("flow owner's entry"), "{error:?}");
    service.sync();
    assert_eq!(translated(&service), 2 * 2);
    for vip in service.addresses() {
        connect(&service.client, vip, 20);
    }
    service.node.check(&service.pods[0], &service.join).ok();
}

#[test]
fn viprouted_writes_a_missing_one_again() {
    let service = service(2, 0);
    service.node.stop_allocator();
    let _sidecar = Sidecar::start(
        &service.node,
        "backend = \"pool\"\nannounce = \"none\"\n[pool]\ncidr = \"10.118.0.0/24\"\ncidr6 = \"fd00:118::/96\"\n",
    );
    forget(&service);
    until("they are there again", PATIENCE, || (translated(&service) == 2 * 2).then_some(()));
    for vip in service.addresses() {
        connect(&service.client, vip, 20);
    }
}

/// Two ports for one server are noted, and what is noted goes with the replica.
#[test]
fn two_ports_of_one_target_are_told_apart() {
    let service = service(1, 0);
    let sharing = || maps(&service).all_sharing().expect("the entries").len();
    for ports in ["80:8080/tcp,443:8080/tcp", "80:8080/tcp,8080/tcp"] {
        let (pod, join) = (service.node.pod(), Join::annotated("web").annotation("viproute.io/ports", ports));
        service.node.add(&pod, &join).ok();
        assert_eq!(sharing(), 2, "of each address: {ports}");
        service.node.check(&pod, &join).ok();
        service.node.remove(&pod, &join);
        assert_eq!(sharing(), 0, "{ports}");
    }
}

#[test]
fn bad_ports_are_refused() {
    let service = service(1, 0);
    let pod = service.node.pod();
    for ports in ["80:/tcp", "80:0/tcp", "80:http/tcp", "80:8080:9090/tcp"] {
        let error = service.node.add(&pod, &Join::annotated("web").annotation("viproute.io/ports", ports)).error();
        assert_eq!(error.code, 7, "{error:?}");
        assert!(error.msg.contains(ports), "{error:?}");
    }
    // By another protocol, or the other way round, it is another port.
    let ports = format!("{PORT}:9001/tcp,{PORT}:9001/udp,9001:8080/tcp");
    service.node.add(&pod, &Join::annotated("web").annotation("viproute.io/ports", &ports)).ok();
}
