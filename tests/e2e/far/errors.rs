//! An ICMP error about a datagram is hashed by its own header: wherever that leads, it must reach whose socket has sent the datagram.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};

use viproute::internals::model::Family;

use crate::harness::{Echo, Netns, PORT, Pod, SOON, until};

use super::scene::Cluster;

const TIMES: u64 = 5;

/// A port of the client's.
fn client(family: Family) -> SocketAddr {
    let address: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 50).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x32).into(),
    };
    SocketAddr::new(address, 40000)
}

/// The sum of 16-bit words (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(!sum & 0xffff).expect("16 bits").to_be_bytes()
}

/// "Fragmentation needed" about a datagram from the VIP's port to a client's (RFC 1191), or "packet too big" (RFC 4443, 3.2).
fn error(vip: SocketAddr, client: SocketAddr) -> Vec<u8> {
    let (mut bytes, mut ip) = match (vip.ip(), client.ip()) {
        (IpAddr::V4(vip), IpAddr::V4(client)) => {
            let mut ip = vec![0x45, 0, 5, 220, 0, 1, 0x40, 0, 63, 17, 0, 0];
            ip.extend([vip.octets(), client.octets()].concat());
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum);
            (vec![3, 4, 0, 0, 0, 0, 5, 120], ip)
        }
        (IpAddr::V6(vip), IpAddr::V6(client)) => {
            let mut ip = vec![0x60, 0, 0, 0, 5, 200, 17, 63];
            ip.extend([vip.octets(), client.octets()].concat());
            (vec![2, 0, 0, 0, 0, 0, 5, 120], ip)
        }
        other => panic!("{other:?}"),
    };
    ip.extend([vip.port().to_be_bytes(), client.port().to_be_bytes()].concat());
    ip.extend([5, 200, 0, 0]);
    bytes.extend(ip);
    // Of IPv6 the kernel writes it.
    if vip.is_ipv4() {
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum);
    }
    bytes
}

/// Sends errors from a client about its own datagrams.
fn send(from: &Netns, vip: SocketAddr) {
    let family = Family::of(vip.ip());
    let (domain, protocol) = match family {
        Family::V4 => (libc::AF_INET, libc::IPPROTO_ICMP),
        Family::V6 => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
    };
    from.run(|| {
        // SAFETY: a system call; what it returns is this function's own.
        let socket = unsafe {
            let fd = libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
            assert!(fd >= 0, "a raw socket: {}", std::io::Error::last_os_error());
            UdpSocket::from(OwnedFd::from_raw_fd(fd))
        };
        for _ in 0..TIMES {
            socket.send_to(&error(vip, client(family)), (vip.ip(), 0)).expect("send an error");
        }
    });
}

/// `Icmp InDestUnreachs` of a pod, or `Icmp6InPktTooBigs`.
fn received(pod: &Pod, family: Family) -> u64 {
    if family == Family::V4 {
        return pod.ns.counter("Icmp", "InDestUnreachs");
    }
    let text = pod.ns.run(|| fs::read_to_string("/proc/thread-self/net/snmp6")).expect("the pod's counters");
    let line = text.lines().find_map(|line| line.strip_prefix("Icmp6InPktTooBigs")).expect("the counter");
    line.trim().parse().expect("a number")
}

fn all(cluster: &Cluster) -> [u64; 3] {
    [1, 2, 3].map(|number| received(&cluster.node(number).pods[0], cluster.family()))
}

/// Sends errors that come to node `at` until `pods` have had as many as one sending has: on a busy machine, a node that is taken for dead
/// for a moment is passed by. No pod of another node may have had one. On node `at` the group may have chosen a replica for the error's own
/// addresses, by a hash that each boot of a kernel seeds anew: that one has a copy of what goes to other nodes, and no use for it.
fn reach(cluster: &Cluster, at: usize, pods: &[usize], vip: SocketAddr) {
    let before = all(cluster);
    until(&format!("errors that come to node {at} reach pods {pods:?}"), SOON, || {
        send(&cluster.client, vip);
        let now = all(cluster);
        pods.iter().all(|&pod| now[pod] >= before[pod] + TIMES).then_some(())
    });
    let now = all(cluster);
    for pod in (0..3).filter(|pod| !pods.contains(pod) && pod + 1 != at) {
        assert_eq!(now[pod], before[pod], "pod {pod} gets none of what comes to node {at} for pods {pods:?}");
    }
}

fn one_for_a_connected_socket_reaches_that_alone(family: Family) {
    let cluster = Cluster::by(family, 1);
    for number in [1, 2, 3] {
        let vip = SocketAddr::new(cluster.to, 9000 + u16::from(number));
        let socket = cluster.node(number).pods[0].ns.run(|| UdpSocket::bind(vip).expect("a socket of the pod's"));
        socket.connect(client(family)).expect("connect to the client");
        reach(&cluster, 1, &[usize::from(number) - 1], vip);
    }
}

#[test]
fn one_for_a_connected_socket_reaches_that_alone_by_ipv4() {
    one_for_a_connected_socket_reaches_that_alone(Family::V4);
}

#[test]
fn one_for_a_connected_socket_reaches_that_alone_by_ipv6() {
    one_for_a_connected_socket_reaches_that_alone(Family::V6);
}

fn one_for_a_port_reaches_all_pods_that_have_a_socket_of_it(family: Family) {
    let cluster = Cluster::by(family, 2);
    let servers = [1, 2].map(|number| Echo::on(&cluster.node(number).pods[0], cluster.to, PORT + 1));
    for at in [1, 2, 3] {
        cluster.leads_to(at);
        reach(&cluster, at.into(), &[0, 1], SocketAddr::new(cluster.to, PORT + 1));
    }
    drop(servers);
}

#[test]
fn one_for_a_port_reaches_all_pods_that_have_a_socket_of_it_by_ipv4() {
    one_for_a_port_reaches_all_pods_that_have_a_socket_of_it(Family::V4);
}

#[test]
fn one_for_a_port_reaches_all_pods_that_have_a_socket_of_it_by_ipv6() {
    one_for_a_port_reaches_all_pods_that_have_a_socket_of_it(Family::V6);
}
