//! What others put into the tunnel, and what goes round in it: dropped and counted, and no connection is the worse for it.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use viproute::internals::model::NodeId;

use crate::flood::sender::{Misplaced, raw_socket};
use crate::flood::unhindered;
use crate::harness::{Netns, PATIENCE, PORT, Page, SOON, until};

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
    pub receiver: NodeId,
    pub origin: NodeId,
    pub ethertype: u16,
    pub to: IpAddr,
}

impl Forged {
    /// VXLAN, Ethernet, IP and TCP headers: a SYN.
    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![8, 0, 0, 0, 0x76, self.kind, self.hop, 0];
        bytes.extend([0x02, 0x76]);
        bytes.extend(self.receiver.0.octets());
        bytes.extend([if self.kind == CHOSEN { 0x02 } else { 0x06 }, 0x76]);
        bytes.extend(self.origin.0.octets());
        bytes.extend(self.ethertype.to_be_bytes());
        match self.to {
            IpAddr::V4(to) => {
                bytes.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 198, 51, 100, 7]);
                bytes.extend(to.octets());
            }
            IpAddr::V6(to) => {
                bytes.extend([0x60, 0, 0, 0, 0, 20, 6, 64, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
                bytes.extend(to.octets());
            }
        }
        bytes.extend([0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 4, 0, 0, 0, 0, 0]);
        bytes
    }
}

/// A machine that sends to node 2 from node 1's address. Nobody learns where that is.
pub fn has_address_of_first(cluster: &Cluster) -> Netns {
    let mac = cluster.node(2).ns().mac("eth0");
    let stranger = cluster.lan.client(60, &[]);
    let (first, second) = (cluster.at(1), cluster.at(2));
    if first.is_ipv6() {
        cluster.lan.add_ipv6(&stranger, 60);
        // No neighbour solicitations are answered for an address of this device.
        stranger.ip(&format!("addr add {first}/128 dev lo nodad"));
    } else {
        stranger.set_sysctl("net/ipv4/conf/all/arp_ignore", "8");
        stranger.ip(&format!("addr add {first}/32 dev lo"));
    }
    stranger.ip(&format!("neigh replace {second} lladdr {mac} dev eth0"));
    stranger
}

#[test]
fn what_forgers_send_is_dropped_and_counted_by_ipv4() {
    what_forgers_send_is_dropped_and_counted(&Cluster::new(1));
}

/// Of packets of IPv6, in the tunnel's own of IPv6.
#[test]
fn what_forgers_send_is_dropped_and_counted_over_ipv6_alone() {
    what_forgers_send_is_dropped_and_counted(&Cluster::over_ipv6(1));
}

fn what_forgers_send_is_dropped_and_counted(cluster: &Cluster) {
    let mut live = cluster.flows(30);
    let (node, to) = (|last| cluster.id(last), cluster.to);
    let [ethertype, other] = if to.is_ipv4() { [0x0800, 0x86dd] } else { [0x86dd, 0x0800] };
    let to_vip = Forged { kind: CHOSEN, hop: 0, receiver: node(2), origin: node(1), ethertype, to };
    let pod = if to.is_ipv4() {
        cluster.node(2).pods[0].address().into()
    } else {
        "fd00:1:2::2".parse().expect("the first pod's")
    };
    let stranger = has_address_of_first(cluster);
    let (first, second) = (cluster.at(1), cluster.at(2));
    let nobody = NodeId([192, 0, 2, 99].into());
    let cases = [
        ("for another node", "stranger", Forged { receiver: node(3), ..to_vip }),
        ("for a pod", "not_ours", Forged { to: pod, ..to_vip }),
        ("of another family than it says", "not_ours", Forged { ethertype: other, ..to_vip }),
        ("chosen by another than it comes from", "stranger", Forged { origin: node(3), ..to_vip }),
        ("found by another than it comes from", "stranger", Forged { kind: FOUND, origin: node(3), ..to_vip }),
        ("back to another", "stranger", Forged { kind: BACK, origin: node(1), ..to_vip }),
        ("a walk from no node", "stranger", Forged { kind: WALK, origin: nobody, ..to_vip }),
        ("a walk without end", "too_far", Forged { kind: WALK, hop: 100, origin: node(3), ..to_vip }),
        ("of no kind", "stranger", Forged { kind: 77, ..to_vip }),
    ];
    for (what, outcome, forged) in cases {
        let before = cluster.counts(2);
        stranger.run(|| {
            let socket = UdpSocket::bind((first, 0)).expect("a socket");
            for _ in 0..TIMES {
                socket.send_to(&forged.bytes(), (second, 8118)).expect("send");
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

/// Packets of no connection, as many as some threads can send: only so many go on to another node and back, and good connections go on.
#[test]
fn good_connections_go_on_in_a_flood() {
    // The searches are done in the sender's time, and each asks all replicas: so it is too much on a busy machine, too.
    let cluster = Cluster::new(8);
    let mut live = cluster.flows(30);
    let flood = || {
        let socket = cluster.client.run(|| raw_socket().expect("a raw socket"));
        unhindered(|| Misplaced::start(socket, SocketAddrV4::new(cluster.vip, PORT)))
    };
    let flood = [(); 4].map(|()| flood());
    for number in 1..=3 {
        until(&format!("node {number} drops what is too much"), PATIENCE, || {
            Cluster::unbroken(&mut live, "a flood");
            (throttled(&cluster, number) > 0).then_some(())
        });
    }
    drop(flood);
    Cluster::unbroken(&mut live, "the flood is over");
}
