//! `viproute.io/udp-reply`: a UDP server that binds no address answers from the VIP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use serde_json::{Value, json};

use crate::harness::{Families, Join, Lan, Netns, Node, PATIENCE, Pod, SOON, Sidecar, scaled, unspecified, until};

const PORT: u16 = 5300;
const OTHER_PORT: u16 = 5301;
const COUNT: usize = 300;
/// In one packet, and in seven.
const SIZES: [usize; 2] = [64, 9000];

/// A server that sends back what it gets, until it is dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How a server sees to the source of its answers.
#[derive(Clone, Copy)]
enum Manner {
    /// Not at all.
    Plain,
    /// It asks for which address a datagram was, and answers from that (`IP_PKTINFO`).
    PacketInfo,
}

impl Echo {
    fn start(pod: &Pod, address: impl Into<IpAddr>, port: u16, manner: Manner) -> Self {
        let address = address.into();
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let thread = pod.ns.run(|| {
            // A program that another test is starting has the former server's socket until it runs.
            let socket = until("the port is free", SOON, || UdpSocket::bind((address, port)).ok());
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            if matches!(manner, Manner::PacketInfo) {
                setsockopt(&socket, sockopt::Ipv4PacketInfo, &true).unwrap();
            }
            thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    let _ = match manner {
                        Manner::Plain => echo(&socket),
                        Manner::PacketInfo => echo_by_packet_info(&socket),
                    };
                }
            })
        });
        Self { stop, thread: Some(thread) }
    }

    /// The server this is about: bound to no address, of either family.
    fn unbound(pod: &Pod) -> Self {
        Self::start(pod, Ipv6Addr::UNSPECIFIED, PORT, Manner::Plain)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn echo(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; 65536];
    let (length, client) = socket.recv_from(&mut buffer)?;
    socket.send_to(&buffer[..length], client).map(drop)
}

fn echo_by_packet_info(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; 65536];
    let mut space = nix::cmsg_space!(libc::in_pktinfo);
    let mut slices = [io::IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty())?;
    let (length, client) = (message.bytes, message.address);
    let asked = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(info.ipi_addr),
        _ => None,
    });
    let from = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: asked.unwrap(), ipi_addr: libc::in_addr { s_addr: 0 } };
    let controls = [ControlMessage::Ipv4PacketInfo(&from)];
    let answer = [io::IoSlice::new(&buffer[..length])];
    sendmsg(socket.as_raw_fd(), &answer, &controls, MsgFlags::empty(), client.as_ref())?;
    Ok(())
}

/// How many of `count` datagrams are answered from the address they were sent to: a connected socket takes no others.
fn answered(ns: &Netns, to: (IpAddr, u16), size: usize, count: usize) -> usize {
    ns.run(|| {
        let socket = UdpSocket::bind((unspecified(to.0), 0)).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(scaled(SOON))).unwrap();
        let mut buffer = vec![0; 65536];
        let mut is_answered = |number: usize| {
            let question = vec![u8::try_from(number % 251).unwrap(); size];
            socket.send(&question).unwrap();
            socket.recv(&mut buffer).is_ok_and(|length| buffer[..length] == question)
        };
        // The first that isn't answered tells enough.
        (0..count).take_while(|number| is_answered(*number)).count()
    })
}

#[track_caller]
fn assert_all_answered(ns: &Netns, to: (impl Into<IpAddr>, u16)) {
    let to = (to.0.into(), to.1);
    answerer(ns, to); // a new veth pair drops what comes before the kernel has noticed that both ends are up
    for size in SIZES {
        assert_eq!(answered(ns, to, size, COUNT), COUNT, "datagrams of {size} bytes to {to:?} answered");
    }
}

/// The source of the answer, whichever address was asked.
fn answerer(ns: &Netns, to: (impl Into<IpAddr>, u16)) -> SocketAddr {
    let to = (to.0.into(), to.1);
    ns.run(|| {
        let socket = UdpSocket::bind((unspecified(to.0), 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        until(&format!("an answer of {to:?}"), SOON, || {
            socket.send_to(b"who", to).unwrap();
            Some(socket.recv_from(&mut [0; 8]).ok()?.1)
        })
    })
}

fn dns() -> Join {
    Join::annotated("dns").annotation("viproute.io/ports", "80/tcp,5300/udp").annotation("viproute.io/udp-reply", "vip")
}

/// A node, a client that routes to it, and a pod that has joined.
struct Scene {
    pod: Pod,
    client: Netns,
    node: Node,
    _lan: Lan,
}

impl Scene {
    fn new(join: &Join) -> Self {
        let lan = Lan::new();
        let node = Node::dual(&lan, 1, Families::Both);
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1", "10.1.1.0/24 via 192.0.2.1"]);
        lan.add_ipv6(&client, 50);
        for network in ["fd00:118::/96", "fd00:1:1::/64"] {
            client.ip(&format!("route add {network} via 2001:db8::1"));
        }
        Self { pod: node.joined(join), client, node, _lan: lan }
    }

    fn vip(&self) -> Ipv4Addr {
        self.pod.vip()
    }

    fn vip6(&self) -> Ipv6Addr {
        self.pod.vips6()[0]
    }
}

#[test]
fn an_unbound_server_answers_from_the_vip() {
    let scene = Scene::new(&dns());
    let _server = Echo::unbound(&scene.pod);
    let bystander = scene.node.pod();
    for ns in [&scene.client, &bystander.ns, &scene.node.ns] {
        assert_all_answered(ns, (scene.vip(), PORT));
        assert_all_answered(ns, (scene.vip6(), PORT));
    }
    scene.node.check(&scene.pod, &dns()).ok();
}

/// What the tests above are worth: without the annotation the same client gets no answer.
#[test]
fn without_the_annotation_it_answers_from_the_pods_address() {
    let scene = Scene::new(&Join::annotated("dns"));
    let _server = Echo::unbound(&scene.pod);
    assert_eq!(answerer(&scene.client, (scene.vip(), PORT)).ip(), scene.pod.address());
}

#[test]
fn servers_that_choose_their_source_need_no_annotation() {
    for join in [Join::annotated("dns"), dns()] {
        let scene = Scene::new(&join);
        let (vip, pod) = (scene.vip(), scene.pod.address());
        let info = Echo::start(&scene.pod, Ipv4Addr::UNSPECIFIED, PORT, Manner::PacketInfo);
        for address in [vip, pod] {
            assert_all_answered(&scene.client, (address, PORT));
        }
        drop(info);
        for address in [vip, pod] {
            let _bound = Echo::start(&scene.pod, address, PORT, Manner::Plain);
            assert_all_answered(&scene.client, (address, PORT));
        }
    }
}

/// Only the ports declared are spoken of.
#[test]
fn another_port_is_left_alone() {
    // With the flow owner such a port isn't reached at all.
    let scene = Scene::new(&dns().key("flowOwner", json!("off")));
    let _server = Echo::start(&scene.pod, Ipv4Addr::UNSPECIFIED, OTHER_PORT, Manner::Plain);
    assert_eq!(answerer(&scene.client, (scene.vip(), OTHER_PORT)).ip(), scene.pod.address());
    assert_all_answered(&scene.client, (scene.pod.address(), OTHER_PORT));
}

#[test]
fn the_nodes_probe_of_the_pod_is_answered_from_the_pods_address() {
    let scene = Scene::new(&dns());
    let _server = Echo::start(&scene.pod, Ipv4Addr::UNSPECIFIED, PORT, Manner::Plain);
    assert_all_answered(&scene.node.ns, (scene.pod.address(), PORT));
    // What it costs: to everybody else that socket answers from the VIP, whichever address was asked.
    assert_eq!(answerer(&scene.client, (scene.pod.address(), PORT)).ip(), scene.vip());
}

/// Where the node asks its pods from its own address (as with Calico), that is the one.
#[test]
fn the_node_may_ask_its_pods_from_its_own_address() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pod = node.pod();
    let address = pod.address();
    let way = &node.ns.ip_json(&format!("route get {address}"))[0];
    let device = way["dev"].as_str().expect("a device");
    node.ns.ip(&format!("route replace {address} dev {device} src {}", node.address()));
    node.add(&pod, &dns()).ok();
    let _server = Echo::unbound(&pod);
    assert_all_answered(&node.ns, (address, PORT));
    assert_all_answered(&client, (pod.vip(), PORT));
}

#[test]
fn broadcast_and_multicast_go_out_by_the_pods_own_interface() {
    let scene = Scene::new(&dns());
    let group = Ipv4Addr::new(239, 1, 1, 1);
    let gateway = Ipv4Addr::new(10, 1, 1, 1);
    let heard = scene.node.ns.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        socket.set_read_timeout(Some(scaled(SOON))).unwrap();
        // By the address of the other end of the pod's eth0: on that device alone.
        socket.join_multicast_v4(&group, &gateway).unwrap();
        socket
    });
    let sender = scene.pod.ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap());
    sender.set_broadcast(true).unwrap();
    for to in [Ipv4Addr::BROADCAST, group] {
        sender.send_to(b"here", (to, PORT)).unwrap();
        let (_, from) = heard.recv_from(&mut [0; 8]).unwrap_or_else(|error| panic!("to {to}: {error}"));
        assert_eq!(from, (scene.pod.address(), PORT).into(), "to {to}");
    }
}

#[test]
fn each_vip_has_its_own_ports() {
    let join = Join::annotated("dns,log")
        .annotation("viproute.io/ports", "dns=5300/udp,log=5301/udp,80/tcp")
        .annotation("viproute.io/udp-reply", "vip");
    let scene = Scene::new(&join);
    let vip = |key: &str| scene.node.stub(|stub| stub.address(key));
    let (dns, log) = (vip("default/dns"), vip("default/log"));
    let _servers = [PORT, OTHER_PORT].map(|port| Echo::start(&scene.pod, Ipv4Addr::UNSPECIFIED, port, Manner::Plain));
    assert_all_answered(&scene.client, (dns, PORT));
    assert_all_answered(&scene.client, (log, OTHER_PORT));
    scene.node.check(&scene.pod, &join).ok();
    let ports = |key: &str| endpoint(&scene.node, key)["ports"].clone();
    assert_eq!(ports("default_dns"), json!(["5300/udp", "80/tcp"]));
    assert_eq!(ports("default_log"), json!(["5301/udp", "80/tcp"]));
}

/// The one endpoint of a VIP, as it is recorded.
fn endpoint(node: &Node, key: &str) -> Value {
    let records = node.records();
    let record = records.iter().find(|record| record.contains(&format!("/{key}/endpoints/"))).expect("an endpoint");
    serde_json::from_str(record.split_once(".json: ").unwrap().1).expect("JSON")
}

#[test]
fn what_is_asked_for_is_recorded() {
    let scene = Scene::new(&dns().annotation("viproute.io/udp-sticky", "true"));
    let record = endpoint(&scene.node, "default_dns");
    assert_eq!((&record["udp_reply"], &record["udp_sticky"]), (&json!(true), &json!(true)));
    let scene = Scene::new(&Join::annotated("dns").annotation("viproute.io/udp-sticky", "false"));
    let record = endpoint(&scene.node, "default_dns");
    assert_eq!((&record["udp_reply"], &record["udp_sticky"]), (&json!(false), &json!(false)));
}

/// A VIP without UDP ports beside one that has some: nothing is made for it.
#[test]
fn a_vip_without_udp_ports_needs_nothing() {
    let join = Join::annotated("web,dns")
        .annotation("viproute.io/ports", "web=80/tcp,dns=5300/udp")
        .annotation("viproute.io/udp-reply", "vip");
    let scene = Scene::new(&join);
    let _server = Echo::unbound(&scene.pod);
    assert_all_answered(&scene.client, (scene.node.stub(|stub| stub.address("default/dns")), PORT));
    let tables: Vec<_> = (1180..1188).filter(|table| !routes(&scene.pod, *table).is_empty()).collect();
    assert_eq!(tables, [1181], "the second VIP's alone");
    scene.node.check(&scene.pod, &join).ok();
}

fn routes(pod: &Pod, table: u32) -> Vec<Value> {
    pod.ns.ip_json(&format!("-4 route show table {table}"))
}

#[test]
fn check_names_each_missing_part() {
    let scene = Scene::new(&dns());
    let pod = &scene.pod.ns;
    let (vip, rule) = (scene.vip(), "iif lo from 0.0.0.0/32 ipproto udp sport 5300 lookup 1180");
    let way_back = format!("default via 169.254.118.1 dev vip0 onlink src {vip} table 1180 proto 118");
    let parts = [
        ("rule", format!("{rule} pref 118 protocol 118"), rule.to_string()),
        ("route", way_back, format!("default via 169.254.118.1 src {vip} table 1180")),
        ("route", "throw 224.0.0.0/4 table 1180 proto 118".into(), "throw 224.0.0.0/4 table 1180".into()),
        ("route", "throw 255.255.255.255 table 1180 proto 118".into(), "throw 255.255.255.255/32 table 1180".into()),
        ("route", "throw 10.1.1.1 table 1180 proto 118".into(), "throw 10.1.1.1/32 table 1180".into()),
    ];
    let (vip6, rule6) = (scene.vip6(), "iif lo ipproto udp sport 5300 lookup 1180");
    let way_back6 = format!("default via fe80::1 dev vip0 src {vip6} table 1180 proto 118");
    let own = "from fd00:1:1::2 lookup 254";
    let parts6 = [
        ("rule", format!("{rule6} pref 118 protocol 118"), rule6.to_string()),
        ("rule", format!("{own} pref 117 protocol 118"), own.to_string()),
        ("route", way_back6, format!("default via fe80::1 src {vip6} table 1180")),
        ("route", "throw ff00::/8 table 1180 proto 118".into(), "throw ff00::/8 table 1180".into()),
    ];
    let parts = parts.map(|part| ("-4", part)).into_iter().chain(parts6.map(|part| ("-6", part)));
    for (family, (kind, part, shown)) in parts {
        let kind_of_family = format!("{family} {kind}");
        pod.ip(&format!("{kind_of_family} del {part}"));
        let error = scene.node.check(&scene.pod, &dns()).error();
        assert!(error.text().contains(&format!("{kind} {shown} is missing")), "{error:?}");
        pod.ip(&format!("{kind_of_family} add {part}"));
        scene.node.check(&scene.pod, &dns()).ok();
    }
    // And what is there too much.
    pod.ip("rule add iif lo from 0.0.0.0/32 ipproto udp sport 99 lookup 1180 pref 118 protocol 118");
    let error = scene.node.check(&scene.pod, &dns()).error();
    assert!(error.text().contains("sport 99 lookup 1180 should not be there"), "{error:?}");
}

/// podman disconnects a container from a network and leaves it running.
#[test]
fn del_of_a_pod_that_lives_on_leaves_nothing() {
    let lan = Lan::new();
    let node = Node::dual(&lan, 1, Families::Both);
    // The first pod of a node brings the registry and the node's settings, which stay.
    node.remove(&node.joined(&dns()), &dns());
    let pod = node.pod();
    // What isn't ours stays, in our tables too.
    pod.ns.ip("route add throw 10.9.9.0/24 table 1180 proto static");
    let before = node.snapshot(&[&pod]);
    node.add(&pod, &dns()).ok();
    assert_eq!(routes(&pod, 1180).len(), 6, "a way back, three around it, the VIP, and somebody else's");
    node.del(&pod, &dns()).ok();
    before.assert_same(&node.snapshot(&[&pod]), "ADD and DEL");
    node.add(&pod, &dns()).ok();
    node.check(&pod, &dns()).ok();
}

/// As above by GC, and where vip0 was deleted before.
#[test]
fn gc_leaves_nothing_either() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    node.remove(&node.joined(&dns()), &dns());
    let pod = node.pod();
    let before = node.snapshot(&[&pod]);
    node.add(&pod, &dns()).ok();
    pod.ns.ip("link del vip0");
    node.gc(&[], &Join::nothing()).ok();
    before.assert_same(&node.snapshot(&[&pod]), "ADD and GC");
}

/// The VIP's address changes while the pod serves another one as well.
#[test]
fn a_renumbered_vip_is_answered_from() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let pool = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n[[pin]]\nvip = \"default/log\"\naddress = ";
    let sidecar = Sidecar::start(&node, &format!("{pool}\"10.118.0.77\""));
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let join = Join::annotated("dns,log")
        .annotation("viproute.io/ports", "dns=5300/udp,log=5301/udp")
        .annotation("viproute.io/udp-reply", "vip");
    // A busy machine may be asked for longer than a call waits whether somebody has the addresses.
    for vip in ["default/dns", "default/log"] {
        until(&format!("{vip} has an address"), SOON, || sidecar.acquire(vip).ok());
    }
    let pod = node.joined(&join);
    let dns = sidecar.acquire("default/dns").unwrap();
    sidecar.stop();
    let _sidecar = Sidecar::start(&node, &format!("{pool}\"10.118.0.99\""));
    let log = Ipv4Addr::new(10, 118, 0, 99);
    until("the VIP has its new address", PATIENCE, || pod.vips().contains(&log).then_some(()));
    until("CHECK is content", PATIENCE, || node.check(&pod, &join).succeeded().then_some(()));
    // Which clients use the previous address by UDP is unknown: the pod keeps it for a minute.
    assert_eq!(pod.vips(), [dns, Ipv4Addr::new(10, 118, 0, 77), log]);
    let _servers = [PORT, OTHER_PORT].map(|port| Echo::start(&pod, Ipv4Addr::UNSPECIFIED, port, Manner::Plain));
    assert_all_answered(&client, (dns, PORT));
    assert_all_answered(&client, (log, OTHER_PORT));
    let sources: Vec<_> =
        routes(&pod, 1181).iter().filter_map(|route| route["prefsrc"].as_str().map(str::to_owned)).collect();
    assert_eq!(sources, ["10.118.0.99"], "nothing of the former address");
    node.del(&pod, &join).ok();
    assert!(pod.ns.ip_json("-4 route show table all proto 118").is_empty());
}

/// Names, without their prefix, and values.
type Annotations<'a> = &'a [(&'a str, &'a str)];

#[test]
fn bad_values_are_refused_and_change_nothing() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.pod();
    let before = node.snapshot(&[&pod]);
    let many = (1..=65).map(|port| format!("{port}/udp")).collect::<Vec<_>>().join(",");
    let cases: [(&str, Annotations, &str); 11] = [
        ("dns", &[("ports", "53/udp"), ("udp-reply", "pod")], "viproute.io/udp-reply is \"pod\": expected \"vip\""),
        ("dns", &[("ports", "53/udp"), ("udp-reply", "")], "viproute.io/udp-reply is \"\": expected \"vip\""),
        ("dns", &[("udp-reply", "vip")], "viproute.io/udp-reply is \"vip\": expected UDP ports"),
        ("dns", &[("ports", "53/tcp"), ("udp-reply", "vip")], "viproute.io/udp-reply is \"vip\": expected UDP ports"),
        ("dns,log", &[("ports", "53/udp"), ("udp-reply", "vip")], "53/udp both"),
        ("dns", &[("udp-sticky", "yes")], "viproute.io/udp-sticky is \"yes\": expected \"true\" or \"false\""),
        ("dns,log", &[("ports", "dns=53/udp")], "viproute.io/ports names no port for VIP default/log"),
        ("dns", &[("ports", "dns=53/udp,web=80/tcp")], "viproute.io/ports names VIP \"web\""),
        ("dns", &[("ports", "53/udp,53/udp")], "viproute.io/ports names 53/udp twice"),
        ("dns", &[("ports", &many)], "viproute.io/ports names more than 64 ports"),
        ("dns", &[("ports", "dns=53")], "viproute.io/ports is \"dns=53\": expected a list"),
    ];
    for (vips, annotations, named) in cases {
        let annotated = |join: Join, (key, value): &(&str, &str)| join.annotation(&format!("viproute.io/{key}"), value);
        let join = annotations.iter().fold(Join::annotated(vips), annotated);
        let error = node.add(&pod, &join).error();
        assert_eq!(error.code, 7, "{error:?}");
        assert!(error.msg.contains(named), "{named:?} isn't named: {error:?}");
    }
    before.assert_same(&node.snapshot(&[&pod]), "refused ADDs");
}
