//! UDP servers that bind no address: what asks a VIP is answered from there, and the same socket answers who asks its pod's address, or a
//! Service's that is translated to it, from that one. No annotation says so but the VIP's ports.

mod filters;
mod wild;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::express::Switch;
use crate::far::Cluster;
use crate::harness::{Families, Join, Lan, Netns, Node, Pod, Run, SOON, scaled, unspecified, until};
pub use wild::Wild;

/// The port of the VIP.
const PORT: u16 = 5300;
/// In one packet, in one of many clients' length, and in seven.
const SIZES: [usize; 3] = [16, 1400, 9000];
/// As a Service's of a cluster.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// A node, a client that routes to it, and a pod with a server.
struct Scene {
    _server: Wild,
    pod: Pod,
    bystander: Pod,
    client: Netns,
    node: Node,
    _lan: Lan,
    join: Join,
}

impl Scene {
    /// The pod's server has that number.
    fn new(ports: &str, number: u16) -> Self {
        Self::of(ports, number, false)
    }

    /// The same by IPv6 too, by one socket for both.
    fn dual(ports: &str, number: u16) -> Self {
        Self::of(ports, number, true)
    }

    fn of(ports: &str, number: u16, is_dual: bool) -> Self {
        let lan = Lan::new();
        let node = if is_dual { Node::dual(&lan, 1, Families::Both) } else { Node::new(&lan, 1) };
        let to = ["10.118.0.0/16 via 192.0.2.1", "10.1.1.0/24 via 192.0.2.1", "10.96.0.0/16 via 192.0.2.1"];
        let client = lan.client(50, &to);
        if is_dual {
            lan.add_ipv6(&client, 50);
            client.ip("route add default via 2001:db8::1");
        }
        let join = Join::annotated("dns").annotation("viproute.io/ports", ports);
        let pod = node.joined(&join);
        let server = if is_dual { Wild::of_both_families(&pod.ns, number) } else { Wild::start(&pod.ns, number) };
        let bystander = node.pod();
        let scene = Self { _server: server, pod, bystander, client, node, _lan: lan, join };
        scene.translate_service(number);
        scene
    }

    /// What kube-proxy does for a Service's address.
    fn translate_service(&self, served: u16) {
        let to = format!("{}:{served}", self.pod.address());
        let rule = format!("ip daddr {SERVICE} udp dport {PORT} dnat to {to}");
        let chain = format!("type nat hook prerouting priority dstnat\n{rule}\n");
        let rules = format!("table ip services {{\nchain prerouting {{\n{chain}}}\n}}\n");
        self.node.ns.cmd("nft").args(["-f", "-"]).finish(&rules).ok();
    }

    fn vip(&self) -> SocketAddr {
        (self.pod.vip(), PORT).into()
    }

    fn vip6(&self) -> SocketAddr {
        (self.pod.vips6()[0], PORT).into()
    }

    /// What its server is asked at, each by itself.
    fn addresses(&self, served: u16) -> [SocketAddr; 3] {
        [self.vip(), (self.pod.address(), served).into(), (SERVICE, PORT).into()]
    }

    fn addresses6(&self, served: u16) -> [SocketAddr; 2] {
        [self.vip6(), (self.pod.address6(), served).into()]
    }

    fn callers(&self) -> [(&'static str, &Netns); 2] {
        [("the client", &self.client), ("a pod", &self.bystander.ns)]
    }
}

/// A client's socket, connected to nobody: it hears who answers.
struct Asker(UdpSocket);

impl Asker {
    fn new(ns: &Netns) -> Self {
        Self::of(Ipv4Addr::UNSPECIFIED.into(), ns)
    }

    /// Of that address' family.
    fn of(address: IpAddr, ns: &Netns) -> Self {
        let socket = ns.run(|| UdpSocket::bind((unspecified(address), 0))).expect("a socket");
        socket.set_read_timeout(Some(scaled(Duration::from_millis(500)))).expect("a time limit");
        Self(socket)
    }

    /// Who answers, and whether it says what was said; `None`: nobody.
    fn ask(&self, to: impl Into<SocketAddr>, size: usize) -> Option<(SocketAddr, bool)> {
        let question: Vec<u8> = (0..size).map(|place| u8::try_from(place % 251).expect("a byte")).collect();
        self.0.send_to(&question, to.into()).expect("send");
        let mut answer = vec![0; 1 << 16];
        let (length, from) = self.0.recv_from(&mut answer).ok()?;
        Some((from, answer[..length] == question))
    }

    /// A new pair of devices drops what comes before the kernel has noticed that both ends are up.
    fn first(&self, to: impl Into<SocketAddr>) -> SocketAddr {
        let to = to.into();
        until(&format!("an answer of {to:?}"), SOON, || Some(self.ask(to, 1)?.0))
    }
}

fn each_answers_in_turn(scene: &Scene, addresses: &[SocketAddr]) {
    for (caller, ns) in scene.callers() {
        // By another socket: an answer that is late is none of what is asked afterwards.
        Asker::of(addresses[0].ip(), ns).first(addresses[0]);
        let asker = Asker::of(addresses[0].ip(), ns);
        for size in SIZES {
            for to in addresses.iter().chain(addresses) {
                let answer = asker.ask(*to, size);
                assert_eq!(answer, Some((*to, true)), "{caller}: {size} bytes to {to}");
            }
        }
    }
}

#[test]
fn each_address_answers_from_itself_in_turn() {
    let scene = Scene::new(&format!("80/tcp,{PORT}/udp"), PORT);
    each_answers_in_turn(&scene, &scene.addresses(PORT));
    scene.node.check(&scene.pod, &scene.join).ok();
}

/// By one socket for both families.
#[test]
fn addresses_of_ipv6_do_so_too() {
    let scene = Scene::dual(&format!("80/tcp,{PORT}/udp"), PORT);
    each_answers_in_turn(&scene, &scene.addresses6(PORT));
    each_answers_in_turn(&scene, &scene.addresses(PORT));
    scene.node.check(&scene.pod, &scene.join).ok();
}

#[test]
fn a_translated_port_answers_from_the_vips_number() {
    let scene = Scene::dual(&format!("{PORT}:53/udp"), 53);
    each_answers_in_turn(&scene, &scene.addresses(53));
    each_answers_in_turn(&scene, &scene.addresses6(53));
}

#[test]
fn a_socket_of_both_families_answers_likewise() {
    let scene = Scene::new(&format!("{PORT}:5301/udp"), 9);
    let _server = Wild::of_both_families(&scene.pod.ns, 5301);
    let asker = Asker::new(&scene.client);
    asker.first((scene.pod.vip(), PORT));
    for to in [(scene.pod.vip(), PORT), (scene.pod.address(), 5301), (scene.pod.vip(), PORT)] {
        assert_eq!(asker.ask(to, 9000), Some((to.into(), true)), "{to:?}");
    }
}

#[test]
fn the_node_is_answered_from_whom_it_asks() {
    let scene = Scene::new(&format!("{PORT}/udp"), PORT);
    let asker = Asker::new(&scene.node.ns);
    asker.first((scene.pod.vip(), PORT));
    for to in [(scene.pod.vip(), PORT), (scene.pod.address(), PORT), (scene.pod.vip(), PORT)] {
        for size in SIZES {
            assert_eq!(asker.ask(to, size), Some((to.into(), true)), "{size} bytes to {to:?}");
        }
    }
}

/// Only a question makes an answer: what the pod says unasked has its own address.
#[test]
fn a_client_that_has_not_asked_hears_the_pods_own_address() {
    let scene = Scene::new(&format!("{PORT}/udp"), PORT);
    let asker = Asker::new(&scene.client);
    asker.first((scene.pod.vip(), PORT));
    let stranger = Asker::new(&scene.client);
    let port = stranger.0.local_addr().expect("its address").port();
    let sender = scene.pod.ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT + 1))).expect("a socket");
    sender.send_to(b"here", (Ipv4Addr::new(192, 0, 2, 50), port)).expect("send");
    let (_, from) = stranger.0.recv_from(&mut [0; 8]).expect("what the pod has sent");
    assert_eq!(from, (scene.pod.address(), PORT + 1).into());
}

/// The router's message quotes the VIP. The kernel must learn it for the way by which the socket sends.
#[test]
fn the_pod_learns_how_long_answers_may_be() {
    let scene = Scene::new(&format!("{PORT}:53/udp"), 53);
    scene.node.ns.set_sysctl("net/ipv4/icmp_ratelimit", "0");
    learns_how_long_answers_may_be(&scene, scene.vip(), "192.0.2.50", 1000);
}

#[test]
fn the_pod_learns_it_by_ipv6_too() {
    let scene = Scene::dual(&format!("{PORT}:53/udp"), 53);
    scene.node.ns.set_sysctl("net/ipv6/icmp/ratelimit", "0");
    learns_how_long_answers_may_be(&scene, scene.vip6(), "2001:db8::32", 1280);
}

/// Answers pass a link of `mtu` bytes; questions don't.
fn learns_how_long_answers_may_be(scene: &Scene, vip: SocketAddr, client: &str, mtu: usize) {
    const LENGTH: usize = 1400;
    let asker = Asker::of(vip.ip(), &scene.client);
    asker.first(vip);
    assert_eq!(asker.ask(vip, LENGTH), Some((vip, true)));
    scene.node.ns.ip(&format!("route add {client} dev eth0 mtu {mtu}"));
    until("a long answer comes in fragments", SOON, || asker.ask(vip, LENGTH));
    let learnt = scene.pod.ns.ip(&format!("route get {client}"));
    assert!(learnt.contains(&format!("mtu {mtu}")), "{learnt}");
    assert_eq!(asker.ask(vip, LENGTH), Some((vip, true)));
}

/// Both directions of a flow go past the node's stack.
#[test]
fn the_express_path_carries_such_answers() {
    const ASKED: u64 = 40;
    let scene = Scene::dual(&format!("{PORT}:53/udp"), 53);
    let switch = Switch::on(&scene.node);
    let [vip, own, _] = scene.addresses(53);
    let [vip6, own6] = scene.addresses6(53);
    for (vip, own) in [(vip, own), (vip6, own6)] {
        let asker = Asker::of(vip.ip(), &scene.client);
        asker.first(vip);
        let before = switch.counts();
        for _ in 0..ASKED {
            assert_eq!(asker.ask(vip, 16), Some((vip, true)));
        }
        let counts = switch.counts();
        let (requests, answers) = (counts.in_packets - before.in_packets, counts.out_packets - before.out_packets);
        assert!(requests >= ASKED - 3 && answers >= ASKED - 3, "of {ASKED} to {vip}: {requests} in, {answers} out");
        for to in [own, vip, own, vip] {
            assert_eq!(asker.ask(to, 16), Some((to, true)), "{to}");
        }
    }
}

/// The replica's own node answers the client.
#[test]
fn replicas_on_other_nodes_answer_from_the_vip() {
    const FLOWS: usize = 30;
    let ports = format!("8080/tcp,{PORT}:53/udp");
    let cluster = Cluster::of(&Join::annotated("web").annotation("viproute.io/ports", &ports), 1);
    let servers: Vec<_> = [1, 2, 3].map(|number| Wild::start(&cluster.node(number).pods[0].ns, 53)).into();
    let vip = (cluster.vip, PORT);
    for from in ["the client", "the routed client", "a pod on 2"] {
        Asker::new(cluster.ns(from)).first(vip);
        for size in SIZES {
            for _ in 0..FLOWS {
                let answer = until("an answer", SOON, || Asker::new(cluster.ns(from)).ask(vip, size));
                assert_eq!(answer, (vip.into(), true), "{from}: {size} bytes");
            }
        }
    }
    assert!(servers.iter().all(|server| server.served() > 0), "each replica has answered");
}

/// dnsmasq asks for which address a question was (`IP_PKTINFO`), and answers from that one itself.
#[test]
fn a_name_server_that_chooses_its_source_is_left_alone() {
    let scene = Scene::new(&format!("{PORT}:5353/udp"), 9);
    let mut server = scene.pod.ns.cmd("dnsmasq");
    server.args([
        "--keep-in-foreground",
        "--pid-file=",
        "--user=root",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--port=5353",
    ]);
    let server = server.arg("--address=/web.test/192.0.2.77").dies_with_us();
    let mut server = server.spawn().expect("dnsmasq (Debian's dnsmasq-base)");
    let asker = Asker::new(&scene.client);
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    question.extend(b"\x03web\x04test\x00\x00\x01\x00\x01");
    for to in [(scene.pod.vip(), PORT), (scene.pod.address(), 5353), (scene.pod.vip(), PORT)] {
        let (from, address) = until("an answer", SOON, || {
            asker.0.send_to(&question, to).expect("send");
            let mut answer = [0; 512];
            let (length, from) = asker.0.recv_from(&mut answer).ok()?;
            Some((from, answer[length - 4..length].to_vec()))
        });
        assert_eq!((from, address), (to.into(), vec![192, 0, 2, 77]));
    }
    server.kill().and_then(|()| server.wait()).expect("end dnsmasq");
}
