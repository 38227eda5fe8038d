//! What others put into the tunnel, and what goes round in it: dropped and counted, and no connection is the worse for it.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use crate::flood::sender::{Misplaced, raw_socket};
use crate::harness::{PATIENCE, PORT, Page, SOON, until};

use super::scene::Cluster;

const CHOSEN: u8 = 0;
const WALK: u8 = 2;
const FOUND: u8 = 3;
pub const BACK: u8 = 4;
/// So many of each.
const TIMES: u64 = 20;

/// A packet of the tunnel, as anybody can make it.
#[derive(Clone, Copy)]
pub struct Forged {
    pub kind: u8,
    pub hop: u8,
    pub receiver: Ipv4Addr,
    pub origin: Ipv4Addr,
    pub ethertype: u16,
    pub to: Ipv4Addr,
}

impl Forged {
    /// VXLAN, Ethernet, IPv4 and TCP headers: a SYN.
    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![8, 0, 0, 0, 0x76, self.kind, self.hop, 0];
        bytes.extend([0x02, 0x76]);
        bytes.extend(self.receiver.octets());
        bytes.extend([if self.kind == CHOSEN { 0x02 } else { 0x06 }, 0x76]);
        bytes.extend(self.origin.octets());
        bytes.extend(self.ethertype.to_be_bytes());
        bytes.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 198, 51, 100, 7]);
        bytes.extend(self.to.octets());
        bytes.extend([0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 4, 0, 0, 0, 0, 0]);
        bytes
    }
}

#[test]
fn what_forgers_send_is_dropped_and_counted() {
    let cluster = Cluster::new(1);
    let mut live = cluster.flows(30);
    let node = |last| Ipv4Addr::new(192, 0, 2, last);
    let to_vip =
        Forged { kind: CHOSEN, hop: 0, receiver: node(2), origin: node(1), ethertype: 0x0800, to: cluster.vip };
    let pod = cluster.node(2).pods[0].address();
    // Sends from a node's address. Nobody learns where that is.
    let links = cluster.node(2).ns().ip_json("link show eth0");
    let mac = links[0]["address"].as_str().expect("an Ethernet address");
    let stranger = cluster.lan.client(60, &[]);
    stranger.ip("addr add 192.0.2.1/32 dev lo");
    stranger.ip(&format!("neigh replace 192.0.2.2 lladdr {mac} dev eth0"));
    let cases = [
        ("for another node", "stranger", node(1), Forged { receiver: node(3), ..to_vip }),
        ("for a pod", "not_ours", node(1), Forged { to: pod, ..to_vip }),
        ("no IPv4", "not_ours", node(1), Forged { ethertype: 0x86dd, ..to_vip }),
        ("chosen by another than it comes from", "stranger", node(1), Forged { origin: node(3), ..to_vip }),
        ("found by another than it comes from", "stranger", node(1), Forged { kind: FOUND, origin: node(3), ..to_vip }),
        ("back to another", "stranger", node(1), Forged { kind: BACK, origin: node(1), ..to_vip }),
        ("a walk from no node", "stranger", node(1), Forged { kind: WALK, origin: node(99), ..to_vip }),
        ("a walk without end", "too_far", node(1), Forged { kind: WALK, hop: 100, origin: node(3), ..to_vip }),
        ("of no kind", "stranger", node(1), Forged { kind: 77, ..to_vip }),
    ];
    for (what, outcome, from, forged) in cases {
        let before = cluster.counts(2);
        stranger.run(|| {
            let socket = UdpSocket::bind((from, 0)).expect("a socket");
            for _ in 0..TIMES {
                socket.send_to(&forged.bytes(), (node(2), 8118)).expect("send");
            }
        });
        until(&format!("{what} is counted as {outcome}"), SOON, || {
            let now = cluster.counts(2);
            let added = |name: &str| now[name] - before[name];
            let others: u64 = ["stranger", "not_ours", "too_far"].map(added).iter().sum();
            (added(outcome) == TIMES && others == TIMES).then_some(())
        });
    }
    Cluster::unbroken(&mut live, "forged packets");
}

/// Each node has none ready, and believes that the others have.
#[test]
fn a_packet_that_nobody_takes_comes_to_an_end() {
    let mut cluster = Cluster::new(1);
    let live = cluster.flows(10);
    for number in [1, 2, 3] {
        cluster.drains_unheard(number);
    }
    let sent = |cluster: &Cluster| -> u64 {
        let of = |number| ["chosen", "aimed", "walking", "back", "found"].map(|name| cluster.counts(number)[name]);
        [1, 2, 3].iter().flat_map(|number| of(*number)).sum()
    };
    let before = sent(&cluster);
    let to = SocketAddr::from((cluster.vip, PORT));
    cluster.client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(700)).expect_err("nobody is ready"));
    let packets = sent(&cluster) - before;
    // Chosen, back, a walk of three; a SYN or two.
    assert!((1..=15).contains(&packets), "{packets} packets in the tunnel for one connection");
    let mut live = live;
    Cluster::unbroken(&mut live, "nobody ready anywhere");
}

/// Packets that were dropped because no more may be searched for there.
fn throttled(cluster: &Cluster, number: u8) -> i64 {
    let labels = [("namespace", "default"), ("outcome", "search_throttled"), ("vip", "web")];
    Page::of(&cluster.node(number).host).find("viproute_flow_owner_packets_total", &labels).unwrap_or(0)
}

/// Packets of no connection, as many as a thread can send: only so many go on to another node and back, and good connections go on.
#[test]
fn good_connections_go_on_in_a_flood() {
    let cluster = Cluster::new(1);
    let mut live = cluster.flows(30);
    let socket = cluster.client.run(|| raw_socket().expect("a raw socket"));
    let flood = Misplaced::start(socket, SocketAddrV4::new(cluster.vip, PORT));
    for number in 1..=3 {
        until(&format!("node {number} drops what is too much"), PATIENCE, || {
            Cluster::unbroken(&mut live, "a flood");
            (throttled(&cluster, number) > 0).then_some(())
        });
    }
    drop(flood);
    Cluster::unbroken(&mut live, "the flood is over");
}
