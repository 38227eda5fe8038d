//! Datagrams: of no known flow, and of flows that stay.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use super::{Scene, listed};
use crate::harness::{Echo, Join, Netns, SOON, scaled};

/// Longer than any answer takes; so long silence is awaited.
const SILENCE: Duration = Duration::from_secs(1);

fn socket(ns: &Netns, to: (Ipv4Addr, u16), limit: Duration) -> UdpSocket {
    let socket = ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket");
    socket.connect(to).expect("connect to the VIP");
    socket.set_read_timeout(Some(limit)).expect("a time limit");
    socket
}

/// Who answers.
fn ask(socket: &UdpSocket) -> Option<String> {
    let mut buffer = [0; 64];
    socket.send(b"x").expect("send");
    let length = socket.recv(&mut buffer).ok()?;
    String::from_utf8_lossy(&buffer[..length]).split(' ').next().map(str::to_owned)
}

/// Servers of both ports in every pod, and who answers each of so many flows.
impl Scene {
    fn echoes(&self) -> Vec<Echo> {
        self.pods.iter().flat_map(|pod| [8080, 9090].map(|port| Echo::on(pod, self.vip, port))).collect()
    }

    fn answers(&self, ns: &Netns, port: u16, count: usize) -> BTreeMap<String, usize> {
        let mut names = BTreeMap::new();
        for _ in 0..count {
            let name = ask(&socket(ns, (self.vip, port), scaled(SOON))).expect("an answer");
            *names.entry(name).or_default() += 1;
        }
        names
    }

    fn sticky(lists: &[&str]) -> Self {
        let join = |ports: &&str| listed(ports).annotation("viproute.io/udp-sticky", "true");
        Self::of(lists.iter().map(join).collect::<Vec<Join>>())
    }
}

fn each_port_has_its_own(scene: &Scene) {
    let _servers = scene.echoes();
    for (from, ns) in scene.callers() {
        for (port, pods) in [(8080, [0, 2]), (9090, [1, 3])] {
            let answers = scene.answers(ns, port, 400);
            let expected: Vec<&String> = pods.iter().map(|pod| &scene.pods[*pod].name).collect();
            assert_eq!(answers.keys().collect::<Vec<_>>(), expected, "to {port} from {from}");
            // Half of 400, and five times what chance makes of it.
            assert!(answers.values().all(|count| (150..=250).contains(count)), "to {port} from {from}: {answers:?}");
        }
        let closed = socket(ns, (scene.vip, 7070), SILENCE);
        assert_eq!(ask(&closed), None, "from {from}");
    }
}

#[test]
fn datagrams_of_each_port_come_to_its_pods() {
    each_port_has_its_own(&Scene::new(&["8080/udp", "9090/udp", "8080/udp", "9090/udp"]));
}

#[test]
fn flows_that_stay_begin_there_too() {
    each_port_has_its_own(&Scene::sticky(&["8080/udp", "9090/udp", "8080/udp", "9090/udp"]));
}

#[test]
fn flows_stay_while_pods_of_other_ports_come_and_go() {
    let scene = Scene::sticky(&["8080/udp", "8080/udp", "9090/udp"]);
    let _servers = scene.echoes();
    for (from, ns) in scene.callers() {
        let flows: Vec<_> = (0..60).map(|_| socket(ns, (scene.vip, 8080), scaled(SOON))).collect();
        let first: Vec<_> = flows.iter().map(|flow| ask(flow).expect("an answer")).collect();
        let pod = scene.node.pod();
        let _server = Echo::on(&pod, scene.vip, 8080);
        let join = listed("8080/udp").annotation("viproute.io/udp-sticky", "true");
        scene.node.add(&pod, &join).ok();
        let again = |when: &str| {
            let now: Vec<_> = flows.iter().map(|flow| ask(flow).expect("an answer")).collect();
            assert_eq!(now, first, "{when}, from {from}");
        };
        again("one more serves the port");
        scene.node.remove(&pod, &join);
        again("it has left");
    }
}

/// One that has no socket for its port, as a server that is restarted.
#[test]
fn among_those_that_serve_a_port_the_ones_with_a_socket_have_equal_shares() {
    let scene = Scene::new(&["9090/udp", "8080/udp", "8080/udp", "8080/udp"]);
    let _servers = [2, 3].map(|pod: usize| Echo::on(&scene.pods[pod], scene.vip, 8080));
    for (from, ns) in scene.callers() {
        let answers = scene.answers(ns, 8080, 400);
        assert_eq!(answers.len(), 2, "from {from}: {answers:?}");
        assert!(answers.values().all(|count| (150..=250).contains(count)), "from {from}: {answers:?}");
    }
}
