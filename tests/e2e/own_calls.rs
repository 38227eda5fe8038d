//! A replica that calls its own VIP: its calls go to the node as anybody's, and to all replicas, itself among them.

mod far;
mod forms;
mod hostile;

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};

use crate::express::Switch;
use crate::harness::{
    Crowd, Echo, Families, Flows, Join, Lan, Netns, Node, PATIENCE, PORT, Pod, PodServer, SOON, Service, Sidecar,
    connect, scaled, unspecified, until,
};

/// So many calls reach each of three replicas but with a chance of 10^-8.
const CALLS: usize = 50;

/// A question and its answer, from a socket that is connected and from one that isn't: who answered. `None`: nobody did.
fn ask(ns: &Netns, to: (IpAddr, u16), connected: bool) -> Option<String> {
    let socket = ns.run(|| UdpSocket::bind((unspecified(to.0), 0))).expect("a socket");
    socket.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
    if connected {
        socket.connect(to).expect("connect");
        socket.send(b"who").expect("send");
    } else {
        socket.send_to(b"who", to).expect("send");
    }
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(from, to.into(), "the VIP answers");
    String::from_utf8_lossy(&buffer[..length]).split(' ').next().map(str::to_owned)
}

/// How many of them each replica answered.
fn asked(ns: &Netns, to: (IpAddr, u16)) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for number in 0..CALLS {
        let name = ask(ns, to, number % 2 == 0).unwrap_or_else(|| panic!("no answer to question {number}"));
        *tally.entry(name).or_default() += 1;
    }
    tally
}

fn plain(replicas: usize, spare: usize) -> Service {
    Service::dual(&Join::annotated("web"), replicas, spare, Families::Both)
}

fn translated(replicas: usize, spare: usize) -> Service {
    Service::dual_translated(&Join::annotated("web"), replicas, spare)
}

fn are_shared(service: &Service) {
    for vip in service.addresses() {
        for pod in &service.pods {
            let tally = connect(&pod.ns, vip, CALLS);
            assert_eq!(tally.names.len(), service.pods.len(), "from {} to {vip}: {tally:?}", pod.name);
        }
        for (from, ns) in service.sharers_of(vip) {
            assert_eq!(connect(ns, vip, CALLS).names.len(), service.pods.len(), "from {from} to {vip}");
        }
    }
}

#[test]
fn each_replicas_calls_reach_all_replicas() {
    are_shared(&plain(3, 0));
}

#[test]
fn translated_ports_are_reached_by_all_too() {
    are_shared(&translated(3, 0));
}

#[test]
fn with_express_it_is_the_same() {
    let service = translated(2, 0);
    let _switch = Switch::on(&service.node);
    are_shared(&service);
    are_shared(&service);
}

#[test]
fn a_sole_replica_reaches_itself() {
    for service in [plain(1, 0), translated(1, 0)] {
        for vip in service.addresses() {
            assert_eq!(connect(&service.pods[0].ns, vip, CALLS).names.len(), 1, "{vip}");
        }
    }
}

/// Half open, open, or closed by either side: connections with itself live on while replicas come and go.
#[test]
fn connections_with_itself_live_on() {
    for service in [plain(1, 2), translated(1, 2)] {
        let pods = &service.pods;
        let open = |vip| Flows::open("the replica", &pods[0].ns, vip, 60);
        let mut live: Vec<Flows> = service.addresses().into_iter().map(open).collect();
        let mut is_whole = |when: &str| {
            for live in &mut live {
                for _ in 0..2 {
                    live.ask();
                    live.hear();
                }
                assert_eq!(live.complaint(&[]), None, "{when}");
            }
        };
        is_whole("alone");
        service.add(&pods[1]);
        is_whole("a second replica joins");
        service.add(&pods[2]);
        is_whole("a third one joins");
        service.drain(&pods[0]);
        is_whole("it drains itself");
        service.undrain(&pods[0]);
        service.remove(&pods[1]);
        is_whole("another one leaves");
    }
}

#[test]
fn a_draining_replica_does_not_serve_itself() {
    let service = plain(2, 0);
    let (draining, other) = (&service.pods[0], &service.pods[1]);
    service.drain(draining);
    for vip in service.addresses() {
        let tally = connect(&draining.ns, vip, CALLS);
        let names: Vec<_> = tally.names.keys().map(String::as_str).collect();
        assert_eq!(names, [other.name.as_str()], "{vip}");
    }
}

/// Two VIPs of Services share an address so: a pod serves some of its ports.
#[test]
fn another_port_of_the_vip_is_reached() {
    let lan = Lan::new();
    let node = Node::dual(&lan, 1, Families::Both);
    let pods = [node.pod(), node.pod()];
    let ports = [PORT, 9090];
    let _servers: Vec<Crowd> = pods.iter().zip(ports).map(|(pod, port)| Crowd::of_both(pod, port)).collect();
    for (pod, port) in pods.iter().zip(ports) {
        node.add(pod, &Join::annotated("web").annotation("viproute.io/ports", &format!("{port}/tcp"))).ok();
    }
    for vip in addresses(&pods[0]) {
        for (from, (to, port)) in pods.iter().zip(pods.iter().zip(ports).rev()) {
            let mut flows = Flows::on("the other's pod", &from.ns, (vip, port), CALLS);
            flows.ask();
            flows.hear();
            assert_eq!(flows.live(), BTreeMap::from([(to.name.as_str(), CALLS)]), "{vip}");
        }
    }
}

#[test]
fn servers_that_bind_the_vip_are_reached() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pods = [node.joined(&Join::annotated("web")), node.joined(&Join::annotated("web"))];
    let vip = pods[0].vip();
    // As any program does, which asks for nothing special.
    let servers = pods.each_ref().map(|pod| PodServer::at(pod, vip));
    for ns in [&pods[0].ns, &pods[1].ns, &client] {
        assert_eq!(connect(ns, vip, CALLS).names.len(), 2);
    }
    let seen = servers[0].clients();
    assert!(pods.iter().all(|pod| seen.contains(&pod.address().into())), "with the callers' addresses: {seen:?}");
}

/// The addresses of its one VIP.
fn addresses(pod: &Pod) -> Vec<IpAddr> {
    std::iter::once(pod.vip().into()).chain(pod.vips6().into_iter().map(IpAddr::V6)).collect()
}

/// By IPv6 a server that binds no address has to be told to answer from there.
#[test]
fn datagrams_are_answered_from_the_vip() {
    for ports in [None, Some("8080/udp"), Some("8080:9001/udp")] {
        let lan = Lan::new();
        let node = Node::dual(&lan, 1, Families::Both);
        let base = Join::annotated("web");
        let join = ports.map_or_else(|| base.clone(), |ports| base.clone().annotation("viproute.io/ports", ports));
        let replying = ports.map(|_| join.clone().annotation("viproute.io/udp-reply", "vip"));
        let at = if ports.is_some_and(|ports| ports.contains(':')) { 9001 } else { PORT };
        // A server on the wildcard answers from the VIP where its port is named.
        for (join, is_bound) in [(Some(join), true), (replying, false)] {
            let Some(join) = join else { continue };
            let pods = [node.joined(&join), node.joined(&join)];
            for vip in addresses(&pods[0]) {
                let bound_to = if is_bound { vip } else { unspecified(vip) };
                let _servers: Vec<Echo> = pods.iter().map(|pod| Echo::on(pod, bound_to, at)).collect();
                for pod in &pods {
                    let answered = asked(&pod.ns, (vip, PORT)).len();
                    assert_eq!(answered, 2, "{ports:?}, bound to {bound_to}, from {} to {vip}", pod.name);
                }
            }
            for pod in &pods {
                node.remove(pod, &join);
            }
        }
    }
}

/// An error comes home, too.
#[test]
fn a_port_without_a_socket_is_refused() {
    for ports in ["8080/udp", "8080:9001/udp"] {
        let join = Join::annotated("web").annotation("viproute.io/ports", ports);
        let service = Service::dual(&join, 1, 0, Families::Both);
        for vip in service.addresses() {
            let socket = service.pods[0].ns.run(|| UdpSocket::bind((unspecified(vip), 0))).expect("a socket");
            socket.connect((vip, PORT)).expect("connect");
            socket.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
            socket.send(b"who").expect("send");
            let error = socket.recv(&mut [0; 8]).expect_err("no server");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{ports} of {vip}: {error}");
        }
    }
}

/// A pod that has no address of IPv6 to call from calls itself by it, as any host would.
#[test]
fn a_pod_without_an_address_of_the_family_reaches_itself() {
    let service = Service::dual(&Join::annotated("web"), 2, 0, Families::Ipv4);
    let pod = &service.pods[0];
    let of_ipv6 = service.vip6.expect("the VIP's IPv6 address");
    assert_eq!(connect(&pod.ns, of_ipv6, 20).names.keys().collect::<Vec<_>>(), [&pod.name]);
    assert_eq!(connect(&pod.ns, service.vip, CALLS).names.len(), 2);
    service.node.check(pod, &service.join).ok();
}

/// `vip0` down and up puts the kernel's own route back, and takes ours.
#[test]
fn a_device_that_was_down_is_as_before() {
    let lan = Lan::new();
    let node = Node::dual(&lan, 1, Families::Both);
    node.stop_allocator();
    let _sidecar =
        Sidecar::start(&node, "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\ncidr6 = \"fd00:118::/96\"");
    let join = Join::annotated("web");
    let pods = [node.joined(&join), node.joined(&join)];
    let _servers: Vec<Crowd> = pods.iter().map(|pod| Crowd::of_both(pod, PORT)).collect();
    let vips = addresses(&pods[0]);
    assert_eq!(vips.len(), 2);
    let local = |pod: &Pod| {
        let shown = ["-4", "-6"].map(|family| pod.ns.ip(&format!("{family} route show table local dev vip0"))).concat();
        vips.iter().any(|vip| shown.contains(&format!("local {vip} ")))
    };
    assert!(!local(&pods[0]));
    for damage in [
        "link set vip0 down",
        "route flush table 118",
        "rule del iif vip0",
        "-6 route flush table 118",
        "-6 rule del iif vip0",
    ] {
        pods[0].ns.ip(damage);
        if damage.contains("down") {
            pods[0].ns.ip("link set vip0 up");
        }
        until(&format!("all is as before {damage:?}"), PATIENCE, || {
            (!local(&pods[0]) && node.check(&pods[0], &join).succeeded()).then_some(())
        });
        for vip in &vips {
            assert_eq!(connect(&pods[0].ns, *vip, CALLS).names.len(), 2, "to {vip} after {damage:?}");
            assert_eq!(connect(&pods[1].ns, *vip, CALLS).names.len(), 2, "to {vip} after {damage:?}");
        }
    }
    pods[0].ns.set_sysctl("net/ipv4/ip_nonlocal_bind", "0");
    pods[0].ns.ip("link set vip0 down");
    pods[0].ns.ip("link set vip0 up");
    until("servers may bind VIPs", PATIENCE, || (pods[0].ns.sysctl("net/ipv4/ip_nonlocal_bind") == "1").then_some(()));
}
