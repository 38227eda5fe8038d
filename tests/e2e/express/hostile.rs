//! What pods and machines on the LAN may try.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use viproute::internals::ebpf::{ExpressCounts, Maps};

use super::{Flow, SILENCE, Switch, Talk, goes_straight_to, joining, nft, service, service6, since};
use crate::harness::segment::{self, ACK, SYN, datagram};
use crate::harness::{Echo, Join, Netns, PORT, Pod, Run, SOON, Service, scaled, unspecified, until};

/// A rule for one client alone doesn't stop another one's flows, nor does it let the first one's through.
#[test]
fn a_rule_on_an_uplink_is_not_passed_by_what_another_device_brought() {
    let service = service(1, 0);
    let _server = Echo::start(&service.pods[0], service.vip);
    let switch = Switch::on(&service.node);
    nft(
        &service.node,
        "table ip shut { chain forward { type filter hook forward priority 0;
             iifname eth0 ip saddr 192.0.2.50 ip daddr 10.118.0.0/16 drop; }
         }",
    );
    // A pod that may take the client's address: its datagrams come by its own device, and are let through there.
    let pod = &service.bystander.ns;
    service.node.ns.set_sysctl("net/ipv4/conf/all/rp_filter", "0");
    let device = service.node.ns.ip_json(&format!("route get {}", service.bystander.address()))[0]["dev"].clone();
    let device = device.as_str().expect("a device");
    service.node.ns.set_sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0");
    // The worst case: express takes packets from there, too.
    switch.attach(device);
    pod.ip("addr add 192.0.2.50/32 dev eth0");
    let flow = Flow::with(&service.client, service.vip);
    let port = flow.0.local_addr().expect("an address").port();
    let spoofed = pod.run(|| UdpSocket::bind((Ipv4Addr::new(192, 0, 2, 50), port))).expect("a socket");
    let mut heard = Vec::new();
    for _ in 0..5 {
        // The pod's own go straight, the client's right behind them don't.
        for said in ["spoofed", "spoofed"] {
            spoofed.send_to(said.as_bytes(), (service.vip, PORT)).expect("send");
        }
        flow.0.send(b"asked").expect("send");
    }
    let mut buffer = [0; 64];
    while let Ok(length) = flow.0.recv(&mut buffer) {
        heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    // Answers reach the client, whatever it has asked for.
    assert_eq!(heard, vec![format!("{} spoofed", service.pods[0].name); 10], "the rule holds");
    assert!(since(switch.counts(), ExpressCounts::default()).0 >= 5, "the pod's own went straight");
}

/// The client's view, and the counters: what isn't an answer, or has another source, doesn't come out beside a flow that does.
#[test]
fn the_guard_holds_beside_a_flow_that_goes_straight() {
    const ALIEN: Ipv4Addr = Ipv4Addr::new(10, 118, 0, 99);
    let service = Service::with(&joining("8080/tcp,8080/udp", &[]), 1, 0);
    let _server = Echo::start(&service.pods[0], service.vip);
    let switch = Switch::on(&service.node);
    // Not connected: it would take what comes from anywhere.
    let client = service.client.run(|| UdpSocket::bind(("192.0.2.50", 0))).expect("a socket");
    client.set_read_timeout(Some(SILENCE)).expect("a time limit");
    let mut buffer = [0; 64];
    let mut ask = || {
        client.send_to(b"x", (service.vip, PORT)).expect("send");
        let (_, from) = client.recv_from(&mut buffer).expect("an answer");
        assert_eq!(from, (service.vip, PORT).into());
    };
    (0..10).for_each(|_| ask());
    assert!(since(switch.counts(), ExpressCounts::default()).1 >= 8, "answers go straight");
    let pod = &service.pods[0].ns;
    pod.ip(&format!("addr add {ALIEN}/32 dev vip0"));
    pod.ip(&format!("rule add from {ALIEN} lookup 118"));
    let to = client.local_addr().expect("an address");
    let (spoofed, denied, before) = (service.counter("spoofed"), service.counter("egress_denied"), switch.counts());
    // To the flow's own client and port: from another address, and from a port of the VIP's that isn't served.
    for source in [(ALIEN, PORT), (service.vip, 9090)] {
        let socket = pod.run(|| UdpSocket::bind(source)).expect("a socket");
        for _ in 0..3 {
            socket.send_to(b"spoofed", to).expect("send");
        }
    }
    client.recv_from(&mut [0; 64]).expect_err("nothing that wasn't asked for");
    assert_eq!(service.counter("spoofed") - spoofed, 3, "it is counted");
    assert_eq!(service.counter("egress_denied") - denied, 3, "it is counted");
    assert_eq!(since(switch.counts(), before), (0, 0), "none of it went straight");
}

/// A pod that may attach programs of its own signs its packets as the express programs do.
#[test]
fn a_pod_can_not_forge_the_sign() {
    let service = service(1, 0);
    let _server = Echo::start(&service.pods[0], service.vip);
    let switch = Switch::on(&service.node);
    let flow = Flow::with(&service.client, service.vip);
    let pod = &service.pods[0].ns;
    pod.cmd("tc").args("qdisc add dev vip0 clsact".split(' ')).finish("").ok();
    // A clone's sign, a straight packet's, one of the stack's: each with bits that are no flow's.
    for sign in [0x8001, 0xc001, 0x4001] {
        // A filter of one instruction, whose result is the class that the packet belongs to.
        let filter = "filter replace dev vip0 egress pref 1 handle 1 bpf bytecode";
        let instruction = format!("1,6 0 0 {}", 1 << 16 | sign);
        pod.cmd("tc").args(filter.split(' ')).arg(instruction).finish("").ok();
        switch.bump();
        let before = switch.counts();
        for _ in 0..10 {
            assert!(flow.ask().is_some(), "an answer signed {sign:#x}");
        }
        assert!(since(switch.counts(), before).1 >= 8, "answers go straight");
    }
}

/// A connection that isn't where the hash would send it, and a SYN with its ports: the replica that the SYN reaches begins a
/// handshake, and gets nothing of the connection.
#[test]
fn a_syn_draws_no_packet_of_another_replicas_connection() {
    let service = service(3, 0);
    let switch = Switch::on(&service.node);
    let mut talks: Vec<_> = (0..30).map(|_| Talk::with(&service.client, service.vip)).collect();
    let names: Vec<_> = talks.iter_mut().map(Talk::ask).collect();
    let draining = &service.pods[0];
    assert!(names.contains(&draining.name), "{names:?}");
    service.drain(draining);
    // A minute later no SYN is taken for the repetition of an earlier one any more.
    let mut maps = Maps::open(service.node.bpf_dir().as_ref()).expect("the maps").expect("they are there");
    let known = maps.known(service.vip).expect("the replicas").expect("the VIP");
    maps.set(service.vip, &known, 0).expect("write them");
    for round in 0..3 {
        for (talk, name) in talks.iter_mut().zip(&names) {
            let (client, vip) = (talk.0.local_addr().expect("an address"), (service.vip, PORT));
            let std::net::SocketAddr::V4(client) = client else { panic!("IPv6") };
            switch.bump(); // as if it had rested
            segment::send(&service.client, client.into(), vip.into(), SYN);
            thread::sleep(Duration::from_millis(5));
            assert_eq!(talk.ask(), *name, "round {round}");
        }
    }
}

/// What a replica of its own address sends, or what others send as if it had.
struct Own<'a> {
    service: &'a Service,
    switch: &'a Switch<'a>,
    pod: &'a Pod,
    address: IpAddr,
}

impl Own<'_> {
    /// The pod with `CAP_NET_RAW`, by its own interface, and anybody on the LAN.
    fn senders(&self) -> [(&'static str, &Netns); 2] {
        [("the pod", &self.pod.ns), ("the LAN", &self.service.client)]
    }

    /// That nothing of ten such packets goes straight, and `arrives` says so of each.
    fn by_the_stack(&self, vip: IpAddr, (protocol, payload): (u8, &[u8]), arrives: &mut dyn FnMut(&str)) {
        for (from, ns) in self.senders() {
            let before = self.switch.counts();
            for _ in 0..10 {
                segment::send_packet(ns, (self.address, vip), protocol, payload);
                arrives(from);
            }
            assert_eq!(since(self.switch.counts(), before), (0, 0), "protocol {protocol} from {from} to {vip}");
        }
    }

    /// A datagram from a port of the pod's, where a socket may have sent it, comes to the server from the one that stands in for the pod. Once
    /// that socket has gone, it is dropped.
    fn datagrams(&self, vip: IpAddr) {
        let server = self.pod.ns.run(|| UdpSocket::bind((unspecified(vip), PORT))).expect("a server's socket");
        server.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
        let address = self.address;
        let caller = self.pod.ns.run(|| UdpSocket::bind((address, 0))).expect("a caller's socket");
        let from = caller.local_addr().expect("an address");
        let payload = datagram(from, SocketAddr::new(vip, PORT), b"who");
        self.by_the_stack(vip, (17, &payload), &mut |sender| {
            let (_, source) = server.recv_from(&mut [0; 64]).unwrap_or_else(|error| panic!("of {sender}: {error}"));
            assert!(source.ip() != address && source.port() == from.port(), "of {sender}: {source}");
        });
        drop(caller);
        let (mut dropped, count) = (self.service.counter("own_source"), || self.service.counter("own_source"));
        self.by_the_stack(vip, (17, &payload), &mut |_| {
            dropped = until("it is dropped", SOON, || Some(count()).filter(|now| *now > dropped));
        });
    }

    /// Segments of a connection that the pod has with itself.
    fn segments(&self, vip: IpAddr) {
        let mut own = Talk::with(&self.pod.ns, vip);
        assert_eq!(own.ask(), self.pod.name);
        let from = own.0.local_addr().expect("an address");
        assert_eq!(from.ip(), self.address);
        let payload = segment::segment(from, SocketAddr::new(vip, PORT), ACK);
        self.by_the_stack(vip, (6, &payload), &mut |_| {});
        assert_eq!(own.ask(), self.pod.name);
    }

    /// By `vip0`, to the client of a flow that goes straight: the pod's own address is no VIP's.
    fn by_vip0(&self, client: SocketAddr) {
        let family = if client.is_ipv4() { "-4" } else { "-6" };
        let rule = format!("{family} rule add to {} lookup 118 pref 50", client.ip());
        self.pod.ns.ip(&rule);
        let payload = datagram(SocketAddr::new(self.address, PORT), client, b"x");
        let (before, spoofed) = (self.switch.counts(), self.service.counter("spoofed"));
        for _ in 0..10 {
            segment::send_packet(&self.pod.ns, (self.address, client.ip()), 17, &payload);
        }
        until("all are counted", SOON, || (self.service.counter("spoofed") - spoofed == 10).then_some(()));
        assert_eq!(since(self.switch.counts(), before), (0, 0), "none of it went straight");
        self.pod.ns.ip(&rule.replace("add", "del"));
    }
}

/// Whether the pod has sent it is asked of each packet that comes from a replica's own address, and its source is exchanged: what went straight
/// would be asked nothing. So it doesn't, even by devices where express takes packets from the pod.
#[test]
fn nothing_from_a_replicas_own_address_goes_straight() {
    let (service, vip6) = service6(&Join::annotated("web"), 1);
    let pod = &service.pods[0];
    let switch = Switch::on(&service.node);
    let device = service.node.ns.ip_json(&format!("route get {}", pod.address()))[0]["dev"].clone();
    switch.attach(device.as_str().expect("a device"));
    for (vip, address) in [(service.vip.into(), pod.address().into()), (vip6, pod.address6().into())] {
        let own = Own { service: &service, switch: &switch, pod, address };
        goes_straight_to(&service.client, vip, &switch);
        own.datagrams(vip);
        own.segments(vip);
        let client = service.client.run(|| UdpSocket::bind((unspecified(vip), 0))).expect("a socket");
        client.connect((vip, PORT)).expect("connect");
        own.by_vip0(client.local_addr().expect("an address"));
        goes_straight_to(&service.client, vip, &switch);
    }
}
