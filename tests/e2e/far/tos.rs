//! What comes by the tunnel has a TOS of the node's own on its way to the replicas there. Neither they nor clients see anything of it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

use crate::harness::{Netns, Run, SOON, Storm, until};

use super::scene::Cluster;

const PORT: u16 = 5353;
/// The node's own is among them, and that with bits of ECN's; so are those of voice and of video.
const KINDS: [u8; 7] = [0, 0x1c, 0x1e, 0x3d, 0xb8, 0x8a, 0xff];
/// Of each kind.
const DATAGRAMS: u16 = 40;

fn set_tos(socket: &impl AsRawFd, tos: u8) {
    let tos = libc::c_int::from(tos);
    // SAFETY: the value is an int, as long as it says.
    let set =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_TOS, (&raw const tos).cast(), 4) };
    assert_eq!(set, 0, "IP_TOS");
}

/// Sees all of a protocol that a pod receives, with the IP header.
fn ear(ns: &Netns, protocol: SockProtocol) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    ns.run(|| socket(AddressFamily::Inet, SockType::Raw, flags, protocol)).expect("a raw socket")
}

/// The packets that an ear has heard.
fn heard(ear: &OwnedFd) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match recv(ear.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => packets.push(buffer[..length].to_vec()),
            Err(Errno::EAGAIN) => return packets,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Each datagram says which TOS it was sent with; some go in fragments.
fn send(vip: Ipv4Addr, tos: u8) {
    for number in 0..DATAGRAMS {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        set_tos(&socket, tos);
        let size = if number % 4 == 0 { 2000 } else { 32 };
        socket.send_to(&vec![tos; size], (vip, PORT)).expect("send");
    }
}

#[test]
fn replicas_see_what_clients_have_set() {
    let cluster = Cluster::new(1);
    let vip = cluster.vip;
    let pods: Vec<_> = [1, 2, 3].map(|number| &cluster.node(number).pods[0]).into();
    let _servers: Vec<_> =
        pods.iter().map(|pod| pod.ns.run(|| UdpSocket::bind((vip, PORT))).expect("a server")).collect();
    let ears: Vec<_> = pods.iter().map(|pod| ear(&pod.ns, SockProtocol::Udp)).collect();
    let mut by_pod = [0_u16; 3];
    for (tos, from) in KINDS.into_iter().flat_map(|tos| [(tos, "the client"), (tos, "node 1")]) {
        cluster.ns(from).run(|| send(vip, tos));
        let mut seen = BTreeMap::<(u8, u8), u16>::new();
        until(&format!("all datagrams with TOS {tos:#04x} from {from} are there"), SOON, || {
            for (ear, count) in ears.iter().zip(&mut by_pod) {
                for packet in heard(ear) {
                    *count += 1;
                    *seen.entry((packet[28], packet[1])).or_default() += 1;
                }
            }
            (seen.values().sum::<u16>() >= DATAGRAMS).then_some(())
        });
        assert_eq!(seen, BTreeMap::from([((tos, tos), DATAGRAMS)]), "(sent, seen): how many, from {from}");
    }
    assert!(by_pod.iter().all(|count| *count > DATAGRAMS), "each pod has some of all: {by_pod:?}");
    // Of connections too, whose first packet alone goes by the group.
    let ears: Vec<_> = pods.iter().map(|pod| ear(&pod.ns, SockProtocol::Tcp)).collect();
    dscp(&cluster.client, vip, "46");
    let storm = Storm::start(&cluster.client, vip, 200);
    assert_eq!(storm.next(100).failed, [""; 0]);
    drop(storm);
    for ear in &ears {
        let seen = heard(ear);
        // What ends a connection in TIME_WAIT has none (`tcp_timewait_state_process`).
        let other = seen.iter().find(|packet| packet[1] & 0xfc != 0xb8 && packet[33] & 0x04 == 0);
        assert!(!seen.is_empty() && other.is_none(), "{} segments, one with another TOS: {other:?}", seen.len());
    }
}

/// All that leaves for the VIP there has this code point; `0` too. (What a node sends itself has its route already.)
fn dscp(ns: &Netns, vip: Ipv4Addr, value: &str) {
    let table = format!(
        "table ip tos {{ }}\ndelete table ip tos\ntable ip tos {{ chain output {{\n\
         type filter hook output priority mangle; ip daddr {vip} ip dscp set {value}\n}}\n}}\n"
    );
    ns.cmd("nft").args(["-f", "-"]).finish(&table).ok();
}

/// Its new connections are for the replicas of the node that it reaches; all else is as it ever was.
#[test]
fn a_client_that_sets_it_itself_is_served() {
    let mut cluster = Cluster::new(2);
    let vip = cluster.vip;
    let mut live = cluster.flows(100);
    for from in ["the client", "a pod on 2", "node 1"] {
        dscp(cluster.ns(from), vip, "7");
    }
    Cluster::unbroken(&mut live, "the clients set the tunnel's TOS");
    for number in [2, 3, 1] {
        cluster.leads_to(number);
        Cluster::unbroken(&mut live, &format!("the VIP's packets come to {number}"));
    }
    let served = |cluster: &Cluster, [of_client, of_node]: [usize; 2], when: &str| {
        for (from, names) in [("the client", of_client), ("node 1", of_node)] {
            let seen = Storm::start(cluster.ns(from), vip, 500).next(200);
            assert_eq!((&seen.failed[..], seen.names.len()), (&[][..], names), "{when}, from {from}: {seen:?}");
        }
    };
    served(&cluster, [2, 6], "node 1 has two replicas");
    let mut theirs = cluster.flows(30);
    cluster.drains(1);
    Cluster::unbroken(&mut live, "one of node 1's replicas drains");
    Cluster::unbroken(&mut theirs, "one of node 1's replicas drains");
    cluster.leaves(1);
    cluster.drains(1);
    served(&cluster, [4, 4], "node 1 has none that is ready");
    for from in ["the client", "a pod on 2", "node 1"] {
        dscp(cluster.ns(from), vip, "0");
    }
    served(&cluster, [4, 4], "without the TOS");
}

/// A node that marks all that comes in leaves no packet without a replica.
#[test]
fn a_packet_filter_may_set_another() {
    let cluster = Cluster::new(2);
    let mut live = cluster.flows(50);
    for number in 1..=3 {
        let table =
            "table ip marks { chain prerouting {\ntype filter hook prerouting priority mangle; ip dscp set 0\n}\n}\n";
        cluster.node(number).ns().cmd("nft").args(["-f", "-"]).finish(table).ok();
    }
    for from in ["the client", "a pod on 2"] {
        super::evenly(&cluster, from, 6);
    }
    for number in [2, 1] {
        cluster.leads_to(number);
        Cluster::unbroken(&mut live, &format!("the VIP's packets come to {number}"));
    }
}

/// Where no node has anybody who listens, and the one where it enters has no ready replica that could say so, the client is told all
/// the same.
#[test]
fn a_connection_that_nobody_takes_fails_at_once() {
    let mut cluster = Cluster::new(1);
    cluster.drains(1);
    let vip = cluster.vip;
    for from in ["the client", "a pod on 2"] {
        let connect = || TcpStream::connect_timeout(&(vip, 9).into(), Duration::from_secs(3));
        let error = cluster.ns(from).run(connect).expect_err("nobody listens").kind();
        assert!(matches!(error, ErrorKind::HostUnreachable | ErrorKind::ConnectionRefused), "from {from}: {error:?}");
    }
}

/// A build before this one had a rule and a table in the routes' place. They go; no connection notices.
#[test]
fn an_earlier_builds_rule_and_table_go() {
    let cluster = Cluster::new(2);
    let mut live = cluster.flows(100);
    for number in 1..=3 {
        let ns = cluster.node(number).ns();
        let group = ns.ip_json(&format!("route show table local {} proto 118", cluster.vip));
        let group = group[0]["nhid"].as_u64().expect("a group");
        ns.ip("rule add pref 118 iif viptun0 lookup 119 protocol 118");
        ns.ip("route add unreachable default table 119 proto 118");
        ns.ip(&format!("route add {} nhid {group} src 192.0.2.{number} table 119 proto 118", cluster.vip));
        // Its programs are there no more: they would be attached again.
        ns.ip("link set viptun0 mtu 1400");
        until("what it had is gone", SOON, || {
            let is_gone = !ns.ip("rule show").contains("119") && ns.ip("route show table 119").is_empty();
            is_gone.then_some(())
        });
        assert!(ns.ip("route show table local").contains(&format!("nhid {group} tos 0x1c")), "ours stay");
    }
    Cluster::unbroken(&mut live, "the rules are gone");
    super::evenly(&cluster, "the client", 6);
}
