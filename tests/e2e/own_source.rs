//! What comes for a pod from one of its own addresses is dropped before it gets there, so that the pod needn't look each packet's source
//! up.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use serde_json::json;

use crate::corpus::Wire;
use crate::harness::{Join, Lan, Netns, Node, PATIENCE, Pod, SOON, Service, Sidecar, connect, scaled, until};

const ECHO: u16 = 5353;

/// A datagram of one port, both ways.
fn datagram(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 33, 0, 1, 0x40, 0, 64, 17, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = packet.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum::<u32>();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("a sum of 20 octets");
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(ECHO.to_be_bytes().repeat(2));
    packet.extend([0, 13, 0, 0]);
    packet.extend(b"hello");
    packet
}

/// As any machine on the LAN can.
fn spoof(ns: &Netns, from: Ipv4Addr, to: Ipv4Addr) {
    let fd: OwnedFd = ns.run(|| {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        raw.expect("a raw socket")
    });
    UdpSocket::from(fd).send_to(&datagram(from, to), SocketAddrV4::new(to, 0)).expect("send");
}

/// Answers everything it gets, and counts it.
fn echo(pod: &Pod) -> Arc<AtomicUsize> {
    let socket = pod.ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ECHO))).expect("a socket");
    let heard = Arc::new(AtomicUsize::new(0));
    let count = heard.clone();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // A loop is seen as such, and must not outlive the test.
            if count.fetch_add(1, Ordering::Relaxed) > 1000 {
                return;
            }
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    heard
}

fn settings(pod: &Pod) -> [String; 2] {
    ["rp_filter", "accept_local"].map(|key| pod.ns.sysctl(&format!("net/ipv4/conf/vip0/{key}")))
}

#[test]
fn a_pod_does_not_talk_to_itself() {
    let service = Service::with(&Join::annotated("web,api"), 1, 0);
    let pod = &service.pods[0];
    assert_eq!(settings(pod), ["0", "1"], "the pod itself checks nothing");
    let heard = echo(pod);
    let sources = [pod.vips()[0], pod.vips()[1], pod.address()];
    for from in sources {
        let before = service.counter("own_source");
        spoof(&service.client, from, service.vip);
        until(&format!("a datagram from {from} is counted"), PATIENCE, || {
            (service.counter("own_source") > before || heard.load(Ordering::Relaxed) > 0).then_some(())
        });
        thread::sleep(Duration::from_millis(200));
        assert_eq!(heard.load(Ordering::Relaxed), 0, "from {from}");
    }
    // By its own interface the pod checks as ever.
    let way = service.node.ns.ip_json(&format!("route get {}", pod.address()));
    let device = service.node.ns.ip_json(&format!("link show dev {}", way[0]["dev"].as_str().expect("a device")));
    let interface = pod.ns.ip_json("link show dev eth0");
    let mac = |link: &serde_json::Value| -> Vec<u8> {
        let text = link["address"].as_str().expect("an Ethernet address");
        text.split(':').map(|hex| u8::from_str_radix(hex, 16).expect("an octet")).collect()
    };
    let index = device[0]["ifindex"].as_u64().and_then(|index| u32::try_from(index).ok()).expect("an index");
    let wire = Wire::to(&service.node.ns, index);
    for from in sources {
        wire.send(&[mac(&interface[0]), mac(&device[0]), vec![8, 0], datagram(from, service.vip)].concat());
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(heard.load(Ordering::Relaxed), 0, "by the pod's own interface");
    // Anybody else is heard.
    let socket = service.client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket");
    socket.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
    socket.send_to(b"hello", (pod.vips()[0], ECHO)).expect("send");
    socket.recv(&mut [0; 64]).expect("an answer");
    assert_eq!(heard.load(Ordering::Relaxed), 1);
}

#[test]
fn without_the_flow_owner_the_pod_checks_itself() {
    let service = Service::with(&Join::annotated("web").key("flowOwner", json!("off")), 1, 0);
    let pod = &service.pods[0];
    assert_eq!(settings(pod)[1], "0");
    let heard = echo(pod);
    spoof(&service.client, service.vip, service.vip);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(heard.load(Ordering::Relaxed), 0);
}

/// viprouted sees to it: also for an address that the pod has from another network, which no program knows.
#[test]
fn an_address_that_nobody_checks_is_checked_by_the_pod() {
    const POOL: &str = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n";
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let mut sidecar = Some(Sidecar::start(&node, POOL));
    let pod = node.joined(&Join::annotated("web"));
    assert_eq!(settings(&pod), ["0", "1"]);
    // It looks at all pods when it starts, and each half minute.
    let mut becomes = |wanted: [&str; 2]| {
        drop(sidecar.take());
        sidecar = Some(Sidecar::start(&node, POOL));
        until(&format!("vip0 has rp_filter, accept_local {wanted:?}"), PATIENCE, || {
            (settings(&pod) == wanted).then_some(())
        });
        node.check(&pod, &Join::annotated("web")).ok();
    };
    pod.ns.set_sysctl("net/ipv4/conf/vip0/accept_local", "0");
    becomes(["0", "1"]);
    pod.ns.ip("addr add 10.9.9.9/32 dev lo");
    becomes(["2", "0"]);
    pod.ns.ip("addr del 10.9.9.9/32 dev lo");
    becomes(["0", "1"]);
}

/// The kernel takes the greater of `all` and the device's. Where a node's sysctl.conf sets both (as Ubuntu's does), only `vip0` changes.
#[test]
fn a_pods_setting_for_all_devices_is_lowered_where_the_others_keep_theirs() {
    let service = Service::new(1, 2);
    let get = |pod: &Pod, device: &str| pod.ns.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"));
    let set = |pod: &Pod, device: &str| pod.ns.set_sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "2");
    let (strict, mixed) = (&service.pods[1], &service.pods[2]);
    for device in ["all", "default", "eth0"] {
        set(strict, device);
    }
    for device in ["all", "default"] {
        set(mixed, device);
    }
    mixed.ns.set_sysctl("net/ipv4/conf/eth0/rp_filter", "0");
    for pod in [strict, mixed] {
        service.add(pod);
    }
    assert_eq!(["all", "default", "eth0", "vip0"].map(|device| get(strict, device)), ["0", "2", "2", "0"]);
    assert_eq!(["all", "default", "eth0"].map(|device| get(mixed, device)), ["2", "2", "0"], "eth0 counts on it");
    assert_eq!(connect(&service.client, service.vip, 60).names.len(), 3);
    for pod in [strict, mixed] {
        service.node.del(pod, &service.join).ok();
    }
    assert_eq!(["all", "default", "eth0"].map(|device| get(strict, device)), ["2", "2", "2"]);
    assert_eq!(get(mixed, "all"), "2");
}
