//! What comes by the tunnel has a TOS of the node's own on its way to the replicas there. Neither they nor clients see anything of it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSliceMut};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, socket,
};
use viproute::internals::model::Family;

use crate::harness::{Netns, Run, SOON, Storm, until};

use super::scene::Cluster;

const PORT: u16 = 5353;
/// The node's own is among them, and that with bits of ECN's; so are those of voice and of video.
const KINDS: [u8; 7] = [0, 0x1c, 0x1e, 0x3d, 0xb8, 0x8a, 0xff];
/// Of each kind.
const DATAGRAMS: u16 = 40;

fn set(socket: &impl AsRawFd, (level, option): (libc::c_int, libc::c_int), value: u8) {
    let value = libc::c_int::from(value);
    // SAFETY: the value is an int, as long as it says.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), 4) };
    assert_eq!(set, 0, "option {option}");
}

fn set_tos(socket: &impl AsRawFd, family: Family, tos: u8) {
    let option = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_TOS),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    };
    set(socket, option, tos);
}

/// Sees all of a protocol that a pod receives.
struct Ear {
    socket: OwnedFd,
    family: Family,
}

/// A packet that was heard: its TOS, and what it carries from the header of UDP or TCP on.
struct Heard {
    tos: u8,
    bytes: Vec<u8>,
}

impl Ear {
    fn on(ns: &Netns, family: Family, protocol: SockProtocol) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let domain = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let socket = ns.run(|| socket(domain, SockType::Raw, flags, protocol)).expect("a raw socket");
        let option = match family {
            Family::V4 => (libc::IPPROTO_IP, libc::IP_RECVTOS),
            Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
        };
        set(&socket, option, 1);
        Self { socket, family }
    }

    fn heard(&self) -> Vec<Heard> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn next(&self) -> Option<Heard> {
        let (mut buffer, mut space) = ([0; 4096], nix::cmsg_space!(libc::c_int));
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let received = recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty());
        let received = match received {
            Err(Errno::EAGAIN) => return None,
            received => received.expect("a packet"),
        };
        let tos = received.cmsgs().expect("control messages").find_map(|said| match said {
            ControlMessageOwned::Ipv4Tos(tos) => Some(tos),
            ControlMessageOwned::Ipv6TClass(class) => u8::try_from(class).ok(),
            _ => None,
        });
        let (tos, length) = (tos.expect("the packet's TOS"), received.bytes);
        // Raw sockets of IPv4 show the IP header.
        let header = if self.family == Family::V4 { 20 } else { 0 };
        Some(Heard { tos, bytes: buffer[header..length].to_vec() })
    }
}

/// Each datagram says which TOS it was sent with; some go in fragments.
fn send(vip: IpAddr, tos: u8) {
    let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    for number in 0..DATAGRAMS {
        let socket = UdpSocket::bind(any).expect("a socket");
        set_tos(&socket, Family::of(vip), tos);
        let size = if number % 4 == 0 { 2000 } else { 32 };
        socket.send_to(&vec![tos; size], (vip, PORT)).expect("send");
    }
}

#[test]
fn replicas_see_what_clients_have_set_by_ipv4() {
    replicas_see_what_clients_have_set(Family::V4);
}

#[test]
fn replicas_see_what_clients_have_set_by_ipv6() {
    replicas_see_what_clients_have_set(Family::V6);
}

fn replicas_see_what_clients_have_set(family: Family) {
    let cluster = Cluster::by(family, 1);
    let vip = cluster.to;
    let pods: Vec<_> = [1, 2, 3].map(|number| &cluster.node(number).pods[0]).into();
    let _servers: Vec<_> =
        pods.iter().map(|pod| pod.ns.run(|| UdpSocket::bind((vip, PORT))).expect("a server")).collect();
    let ears: Vec<_> = pods.iter().map(|pod| Ear::on(&pod.ns, family, SockProtocol::Udp)).collect();
    let mut by_pod = [0_u16; 3];
    for (tos, from) in KINDS.into_iter().flat_map(|tos| [(tos, "the client"), (tos, "node 1")]) {
        cluster.ns(from).run(|| send(vip, tos));
        let mut seen = BTreeMap::<(u8, u8), u16>::new();
        until(&format!("all datagrams with TOS {tos:#04x} from {from} are there"), SOON, || {
            for (ear, count) in ears.iter().zip(&mut by_pod) {
                for packet in ear.heard() {
                    *count += 1;
                    *seen.entry((packet.bytes[8], packet.tos)).or_default() += 1;
                }
            }
            (seen.values().sum::<u16>() >= DATAGRAMS).then_some(())
        });
        assert_eq!(seen, BTreeMap::from([((tos, tos), DATAGRAMS)]), "(sent, seen): how many, from {from}");
    }
    assert!(by_pod.iter().all(|count| *count > DATAGRAMS), "each pod has some of all: {by_pod:?}");
    // Of connections too, whose first packet alone goes by the group.
    let ears: Vec<_> = pods.iter().map(|pod| Ear::on(&pod.ns, family, SockProtocol::Tcp)).collect();
    dscp(&cluster.client, vip, "46");
    let storm = Storm::start(&cluster.client, vip, 200);
    assert_eq!(storm.next(100).failed, [""; 0]);
    drop(storm);
    for ear in &ears {
        let seen = ear.heard();
        // What ends a connection in TIME_WAIT has none (`tcp_timewait_state_process`).
        let other = seen.iter().find(|packet| packet.tos & 0xfc != 0xb8 && packet.bytes[13] & 0x04 == 0);
        let other = other.map(|packet| packet.tos);
        assert!(!seen.is_empty() && other.is_none(), "{} segments, one with another TOS: {other:?}", seen.len());
    }
}

/// All that leaves for the VIP there has this code point; `0` too. (What a node sends itself has its route already.)
fn dscp(ns: &Netns, vip: IpAddr, value: &str) {
    let of = if vip.is_ipv4() { "ip" } else { "ip6" };
    let table = format!(
        "table {of} tos {{ }}\ndelete table {of} tos\ntable {of} tos {{ chain output {{\n\
         type filter hook output priority mangle; {of} daddr {vip} {of} dscp set {value}\n}}\n}}\n"
    );
    ns.cmd("nft").args(["-f", "-"]).finish(&table).ok();
}

/// Its new connections are for the replicas of the node that it reaches; all else is as it ever was.
#[test]
fn a_client_that_sets_it_itself_is_served() {
    let mut cluster = Cluster::new(2);
    let vip = cluster.to;
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
fn a_connection_that_nobody_takes_fails_at_once(family: Family) {
    let mut cluster = Cluster::by(family, 1);
    cluster.drains(1);
    let vip = cluster.to;
    for from in ["the client", "a pod on 2"] {
        let connect = || TcpStream::connect_timeout(&(vip, 9).into(), Duration::from_secs(3));
        let error = cluster.ns(from).run(connect).expect_err("nobody listens").kind();
        assert!(matches!(error, ErrorKind::HostUnreachable | ErrorKind::ConnectionRefused), "from {from}: {error:?}");
    }
}

#[test]
fn a_connection_that_nobody_takes_fails_at_once_by_ipv4() {
    a_connection_that_nobody_takes_fails_at_once(Family::V4);
}

#[test]
fn a_connection_that_nobody_takes_fails_at_once_by_ipv6() {
    a_connection_that_nobody_takes_fails_at_once(Family::V6);
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
