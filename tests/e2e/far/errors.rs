//! An ICMP error about a datagram is hashed by its own header: wherever that leads, it must reach whose socket has sent the datagram.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};

use crate::harness::{Echo, Netns, PORT, Pod, SOON, until};

use super::scene::Cluster;

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
const TIMES: u64 = 5;

/// The sum of 16-bit words (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(!sum & 0xffff).expect("16 bits").to_be_bytes()
}

/// "Fragmentation needed" about a datagram from the VIP's port to a client's (RFC 1191).
fn error(vip: (Ipv4Addr, u16), client: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 5, 220, 0, 1, 0x40, 0, 63, 17, 0, 0];
    ip.extend(vip.0.octets());
    ip.extend(client.0.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let mut bytes = vec![3, 4, 0, 0, 0, 0, 5, 120];
    bytes.extend(ip);
    bytes.extend(vip.1.to_be_bytes());
    bytes.extend(client.1.to_be_bytes());
    bytes.extend([5, 200, 0, 0]);
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum);
    bytes
}

/// Sends errors from a client about its own datagrams.
fn send(from: &Netns, vip: (Ipv4Addr, u16), client: (Ipv4Addr, u16)) {
    from.run(|| {
        // SAFETY: a system call; what it returns is this function's own.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP);
            assert!(fd >= 0, "a raw socket: {}", std::io::Error::last_os_error());
            UdpSocket::from(OwnedFd::from_raw_fd(fd))
        };
        for _ in 0..TIMES {
            socket.send_to(&error(vip, client), (vip.0, 0)).expect("send an error");
        }
    });
}

/// `Icmp InDestUnreachs` of a pod.
fn received(pod: &Pod) -> u64 {
    let text = pod.ns.run(|| fs::read_to_string("/proc/thread-self/net/snmp")).expect("the pod's counters");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Icmp: ")).map(|line| line.split(' '));
    let (names, mut values) = (lines.next().expect("names"), lines.next().expect("values"));
    let place = names.into_iter().position(|name| name == "InDestUnreachs").expect("the counter");
    values.nth(place).expect("a value").parse().expect("a number")
}

fn all(cluster: &Cluster) -> [u64; 3] {
    [1, 2, 3].map(|number| received(&cluster.node(number).pods[0]))
}

/// Sends errors that come to node `at` until `pods` have had as many as one sending has: on a busy machine, a node that is taken for dead
/// for a moment is passed by. No pod of another node may have had one. On node `at` the group may have chosen a replica for the error's own
/// addresses, by a hash that each boot of a kernel seeds anew: that one has a copy of what goes to other nodes, and no use for it.
fn reach(cluster: &Cluster, at: usize, pods: &[usize], vip: (Ipv4Addr, u16)) {
    let before = all(cluster);
    until(&format!("errors that come to node {at} reach pods {pods:?}"), SOON, || {
        send(&cluster.client, vip, (CLIENT, 40000));
        let now = all(cluster);
        pods.iter().all(|&pod| now[pod] >= before[pod] + TIMES).then_some(())
    });
    let now = all(cluster);
    for pod in (0..3).filter(|pod| !pods.contains(pod) && pod + 1 != at) {
        assert_eq!(now[pod], before[pod], "pod {pod} gets none of what comes to node {at} for pods {pods:?}");
    }
}

#[test]
fn one_for_a_connected_socket_reaches_that_alone() {
    let cluster = Cluster::new(1);
    for number in [1, 2, 3] {
        let vip = (cluster.vip, 9000 + u16::from(number));
        let socket = cluster.node(number).pods[0].ns.run(|| UdpSocket::bind(vip).expect("a socket of the pod's"));
        socket.connect((CLIENT, 40000)).expect("connect to the client");
        reach(&cluster, 1, &[usize::from(number) - 1], vip);
    }
}

#[test]
fn one_for_a_port_reaches_all_pods_that_have_a_socket_of_it() {
    let cluster = Cluster::new(2);
    let servers = [1, 2].map(|number| Echo::on(&cluster.node(number).pods[0], cluster.vip, PORT + 1));
    for at in [1, 2, 3] {
        cluster.leads_to(at);
        reach(&cluster, at.into(), &[0, 1], (cluster.vip, PORT + 1));
    }
    drop(servers);
}
