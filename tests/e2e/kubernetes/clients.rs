//! What Services ask of their clients: where they come from (`loadBalancerSourceRanges`), and that they stay with a pod
//! (`sessionAffinity: ClientIP`).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{RANGE, Scene, service, slice};
use crate::harness::{Connection, Echo, Join, Netns, PORT, Page, PodServer, Run, SOON, Sidecar, scaled, until};

/// A connection that isn't let in isn't answered at all.
const UNANSWERED: Duration = Duration::from_millis(700);

fn listing(ranges: &[&str]) -> Value {
    let mut service = service("s1");
    service["spec"]["loadBalancerSourceRanges"] = json!(ranges);
    service
}

/// What the Service's status says stays.
fn set_spec(scene: &Scene, key: &str, value: Value) {
    let mut object = scene.api.get(&service("s1"));
    object["spec"][key] = value;
    scene.api.set(&object);
}

fn open(from: &Netns, to: (Ipv4Addr, u16)) -> Option<Connection> {
    let stream = from.run(|| TcpStream::connect_timeout(&SocketAddr::from(to), UNANSWERED)).ok()?;
    Connection::over(stream).ok()
}

fn name(from: &Netns, to: (Ipv4Addr, u16)) -> Option<String> {
    let mut connection = open(from, to)?;
    Some(connection.ask().ok()?.name)
}

fn gets_in(from: &Netns, to: (Ipv4Addr, u16)) {
    until(&format!("a connection to {to:?} is answered"), SOON, || name(from, to));
}

fn stays_out(from: &Netns, to: (Ipv4Addr, u16)) {
    until(&format!("a connection to {to:?} is not answered"), SOON, || open(from, to).is_none().then_some(()));
    assert!(open(from, to).is_none(), "{to:?}");
}

fn client(scene: &Scene, host: u8) -> Netns {
    scene.lan.client(host, &[&format!("{RANGE} via {}", scene.node.address())])
}

fn asked(from: &Netns, to: (Ipv4Addr, u16)) -> Option<String> {
    let socket = from.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).ok()?;
    socket.set_read_timeout(Some(UNANSWERED)).ok()?;
    socket.connect(SocketAddr::from(to)).ok()?;
    socket.send(b"who").ok()?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).ok()?;
    String::from_utf8_lossy(&buffer[..length]).split_whitespace().next().map(str::to_owned)
}

#[test]
fn only_clients_of_the_ranges_get_in() {
    let scene = Scene::new(3);
    let (fifty, sixty) = (client(&scene, 50), client(&scene, 60));
    scene.api.set(&listing(&[" 192.0.2.51/31 "])); // .50 and .51
    scene.serve(&[(0, true), (1, true)]);
    let vip = (scene.address().parse::<Ipv4Addr>().unwrap(), 80);
    scene.waits_for(&[(0, "ready"), (1, "ready")]);
    gets_in(&fifty, vip);
    stays_out(&sixty, vip);
    // A pod of the cluster, and the node itself, are clients as any.
    stays_out(&scene.pod(2).ns, vip);
    stays_out(&scene.node.ns, vip);
    until("it is counted", SOON, || {
        let labels = [("namespace", "default"), ("outcome", "source_denied"), ("vip", "web")];
        Page::of(&scene.node).find("viproute_flow_owner_packets_total", &labels).filter(|packets| *packets > 0)
    });
    let found = scene.sidecar.ask(&json!({ "kubernetes": {} }));
    assert_eq!(found["services"][0]["clients"], json!(["192.0.2.50/31"]), "{found}");
    // Others are let in, within two seconds. Who is let in no longer keeps what it has.
    let mut live = open(&fifty, vip).expect("a connection");
    live.ask().unwrap();
    let begun = Instant::now();
    let pods = format!("{}/32", scene.pod(2).address());
    set_spec(&scene, "loadBalancerSourceRanges", json!(["192.0.2.60/32", pods]));
    gets_in(&sixty, vip);
    assert!(begun.elapsed() < scaled(Duration::from_secs(2)), "{:?}", begun.elapsed());
    gets_in(&scene.pod(2).ns, vip);
    stays_out(&fifty, vip);
    live.ask().expect("it was let in");
    // Of the other family alone: nobody. What is no range: nobody's.
    set_spec(&scene, "loadBalancerSourceRanges", json!(["fd00::/8"]));
    stays_out(&sixty, vip);
    set_spec(&scene, "loadBalancerSourceRanges", json!(["192.0.2.60"]));
    scene.is_told("SourceRangesRefused", "192.0.2.60");
    stays_out(&sixty, vip);
    set_spec(&scene, "loadBalancerSourceRanges", Value::Null);
    gets_in(&fifty, vip);
    // By the annotation, which the field goes before.
    let mut object = scene.api.get(&service("s1"));
    object["metadata"]["annotations"] =
        json!({ "service.beta.kubernetes.io/load-balancer-source-ranges": "192.0.2.60/32, 10.0.0.0/30" });
    scene.api.set(&object);
    stays_out(&fifty, vip);
    gets_in(&sixty, vip);
    live.ask().expect("it was let in");
    scene.ends();
}

/// Also when viprouted isn't there, and when what the programs know is taken away.
#[test]
fn ranges_outlive_viprouted_and_are_put_back() {
    let mut scene = Scene::new(2);
    let (fifty, sixty) = (client(&scene, 50), client(&scene, 60));
    scene.api.set(&listing(&["192.0.2.50/32"]));
    scene.serve(&[(0, true)]);
    let vip = (scene.address().parse::<Ipv4Addr>().unwrap(), 80);
    scene.waits_for(&[(0, "ready")]);
    stays_out(&sixty, vip);
    scene.sidecar.stop();
    stays_out(&sixty, vip);
    gets_in(&fifty, vip);
    scene.sidecar = Sidecar::start(&scene.node, &scene.settings);
    // Another one joins, the only one goes: the VIP is new here, and its ranges come with it.
    scene.serve(&[(0, true), (1, true)]);
    scene.waits_for(&[(0, "ready"), (1, "ready")]);
    stays_out(&sixty, vip);
    gets_in(&fifty, vip);
    scene.ends();
}

#[test]
fn each_service_of_a_shared_address_and_udp_too_has_its_own_clients() {
    let scene = Scene::new(2);
    let _echoes: Vec<Echo> = (0..2).map(|number| Echo::on(scene.pod(number), Ipv4Addr::UNSPECIFIED, 5353)).collect();
    let (fifty, sixty) = (client(&scene, 50), client(&scene, 60));
    scene.api.set(&listing(&["192.0.2.50/32"]));
    scene.serve(&[(0, true)]);
    let address: Ipv4Addr = scene.address().parse().unwrap();
    let mut dns = service("s2");
    dns["metadata"]["name"] = json!("dns");
    dns["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:05Z");
    dns["metadata"]["annotations"] = json!({ "viproute.io/vip": "web" });
    dns["spec"]["ports"] = json!([{ "name": "dns", "port": 53, "protocol": "UDP" }]);
    dns["spec"]["loadBalancerSourceRanges"] = json!(["192.0.2.60/32"]);
    let mut of_dns = slice(&[(scene.pod(0), true), (scene.pod(1), true)]);
    of_dns["metadata"]["name"] = json!("dns-1");
    of_dns["metadata"]["labels"]["kubernetes.io/service-name"] = json!("dns");
    of_dns["ports"] = json!([{ "name": "dns", "port": 5353, "protocol": "UDP" }]);
    scene.api.set(&dns);
    scene.api.set(&of_dns);
    // What came before would have been sent elsewhere, by a redirect that the client remembers.
    scene.waits_for(&[(0, "ready"), (1, "ready")]);
    until("who may asks", SOON, || asked(&sixty, (address, 53)));
    assert_eq!(asked(&fifty, (address, 53)), None);
    gets_in(&fifty, (address, 80));
    stays_out(&sixty, (address, 80));
    // A datagram that follows is asked about as the first one is.
    dns["spec"]["loadBalancerSourceRanges"] = json!(["192.0.2.50/32"]);
    dns["status"] = scene.api.get(&dns)["status"].clone();
    scene.api.set(&dns);
    until("who may asks now", SOON, || asked(&fifty, (address, 53)));
    until("who may not is not answered", SOON, || asked(&sixty, (address, 53)).is_none().then_some(()));
    scene.api.delete(&dns);
    scene.ends();
}

/// A pod that joins by its annotation makes the VIP's record: it says from the first moment on who may come.
#[test]
fn who_joins_by_an_annotation_is_for_clients_of_the_ranges_alone() {
    let scene = Scene::new(1);
    let (fifty, sixty) = (client(&scene, 50), client(&scene, 60));
    scene.api.set(&listing(&["192.0.2.50/32"]));
    let vip = (scene.address().parse::<Ipv4Addr>().unwrap(), 80);
    let join = Join::annotated("web").annotation("viproute.io/ports", &format!("80:{PORT}/tcp"));
    let pod = scene.node.pod();
    scene.node.add(&pod, &join).ok();
    let record = std::fs::read_to_string(format!("{}/vips/default_web/vip.json", scene.node.data())).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["policy"]["ports"], json!([{ "port": "80/tcp", "sources": ["192.0.2.50/32"] }]), "{record}");
    assert!(open(&sixty, vip).is_none());
    let server = PodServer::start(&pod);
    gets_in(&fifty, vip);
    stays_out(&sixty, vip);
    scene.node.remove(&pod, &join);
    drop(server);
    scene.ends();
}

fn sticking(seconds: u32) -> Value {
    let mut service = service("s1");
    service["spec"]["sessionAffinity"] = json!("ClientIP");
    service["spec"]["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": seconds } });
    service
}

/// Who answers so many connections.
fn names(from: &Netns, to: (Ipv4Addr, u16), count: usize) -> BTreeSet<String> {
    (0..count).map(|_| name(from, to).expect("an answer")).collect()
}

#[test]
fn a_clients_connections_go_to_one_pod() {
    let mut scene = Scene::new(4);
    // They have one address each.
    let clients: Vec<Netns> = (50..62).map(|host| client(&scene, host)).collect();
    scene.api.set(&sticking(3600));
    scene.serve(&[(0, true), (1, true), (2, true)]);
    let vip = (scene.address().parse::<Ipv4Addr>().unwrap(), 80);
    scene.waits_for(&[(0, "ready"), (1, "ready"), (2, "ready")]);
    let all = || -> Vec<String> {
        let one = |client: &Netns| {
            let names = names(client, vip, 12);
            assert_eq!(names.len(), 1, "{names:?}");
            names.into_iter().next().unwrap()
        };
        clients.iter().map(one).collect()
    };
    let before = all();
    assert!(before.iter().collect::<BTreeSet<_>>().len() > 1, "all clients are at one pod: {before:?}");
    for (host, name) in (50..).zip(&before) {
        let flow = [format!("192.0.2.{host}:40000"), format!("{}:80", vip.0)];
        let said = scene.node.ctl().arg("where").args(&flow).args(["--output", "json"]).finish("").ok();
        let said: Value = serde_json::from_str(&said).unwrap();
        let expected = (json!("affinity"), json!(format!("default/{name}")));
        assert_eq!((said["because"].clone(), said["replica"]["pod"].clone()), expected, "{said}");
    }
    scene.sidecar.stop();
    assert_eq!(all(), before, "viprouted isn't there");
    scene.sidecar = Sidecar::start(&scene.node, &scene.settings);
    // One more, then one less.
    scene.serve(&[(0, true), (1, true), (2, true), (3, true)]);
    scene.waits_for(&[(0, "ready"), (1, "ready"), (2, "ready"), (3, "ready")]);
    assert_eq!(all(), before, "one more");
    let gone = scene.pod(0).name.clone();
    scene.api.set(&super::pod_object(scene.pod(0), &json!({ "deletionTimestamp": "2026-01-01T00:01:00Z" })));
    scene.waits_for(&[(0, "draining"), (1, "ready"), (2, "ready"), (3, "ready")]);
    let after = all();
    for (before, after) in before.iter().zip(&after) {
        assert!(if *before == gone { *after != gone } else { after == before }, "{before} before, {after} after");
    }
    // A server that doesn't listen any more.
    let silent = (1..4).find(|number| scene.pod(*number).name == after[0]).unwrap();
    scene.pods[silent].1 = None;
    let others = names(&clients[0], vip, 12);
    assert!(others.len() == 1 && !others.contains(&after[0]), "{others:?}");
    scene.ends();
}

/// After the time without a connection the next one may go anywhere; without the field all do.
#[test]
fn affinity_ends_with_its_time() {
    let scene = Scene::new(3);
    let fifty = client(&scene, 50);
    scene.api.set(&sticking(1));
    scene.serve(&[(0, true), (1, true), (2, true)]);
    let vip = (scene.address().parse::<Ipv4Addr>().unwrap(), 80);
    scene.waits_for(&[(0, "ready"), (1, "ready"), (2, "ready")]);
    let first = names(&fifty, vip, 12);
    assert_eq!(first.len(), 1);
    until("it goes elsewhere after a rest", Duration::from_secs(60), || {
        thread::sleep(Duration::from_millis(1200)); // what is waited for is that time
        (!first.contains(&name(&fifty, vip)?)).then_some(())
    });
    set_spec(&scene, "sessionAffinity", json!("None"));
    until("connections go to all", SOON, || (names(&fifty, vip, 30).len() == 3).then_some(()));
    scene.ends();
}

/// By UDP, and each port for itself.
#[test]
fn a_clients_datagrams_go_to_one_pod() {
    let scene = Scene::new(3);
    let _echoes: Vec<Echo> = (0..3).map(|number| Echo::on(scene.pod(number), Ipv4Addr::UNSPECIFIED, 5353)).collect();
    let clients: Vec<Netns> = (50..58).map(|host| client(&scene, host)).collect();
    let mut web = sticking(3600);
    web["spec"]["ports"] = json!([{ "name": "dns", "port": 53, "protocol": "UDP" }]);
    let mut of_web = slice(&[(scene.pod(0), true), (scene.pod(1), true), (scene.pod(2), true)]);
    of_web["ports"] = json!([{ "name": "dns", "port": 5353, "protocol": "UDP" }]);
    scene.api.set(&web);
    scene.api.set(&of_web);
    let vip = (scene.address().parse::<Ipv4Addr>().unwrap(), 53);
    scene.waits_for(&[(0, "ready"), (1, "ready"), (2, "ready")]);
    let mut all = BTreeSet::new();
    for client in &clients {
        let one: BTreeSet<String> = (0..12).map(|_| asked(client, vip).expect("an answer")).collect();
        assert_eq!(one.len(), 1, "{one:?}");
        all.extend(one);
    }
    assert!(all.len() > 1, "{all:?}");
    scene.ends();
}
