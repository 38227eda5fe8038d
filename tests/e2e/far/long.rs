//! What is long: downloads and uploads of 10 MB, and the largest datagrams, by a replica of another node, over links of several sizes.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};

use viproute::internals::model::Family;

use super::scene::Cluster;
use crate::harness::{PATIENCE, PORT, Pod, SOON, Server, deadline, hear, scaled, until};

const LONG: usize = 10 << 20;
/// Where a replica sends as much as it can.
const DOWNLOADS: u16 = 8081;

/// Sends [`LONG`] bytes to the first who connects.
fn sends(pod: &Pod) -> JoinHandle<()> {
    let listener = pod.ns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, DOWNLOADS))).expect("a server in a pod");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(&vec![b'd'; LONG]).expect("send 10 MB");
        stream.shutdown(Shutdown::Write).expect("an end");
        // Not to be reset before all of it was received.
        let _ = stream.read(&mut [0]);
    })
}

fn upload(vip: IpAddr) {
    let mut stream = TcpStream::connect_timeout(&(vip, PORT).into(), scaled(PATIENCE)).expect("a connection");
    stream.write_all(&vec![b'x'; LONG]).expect("send 10 MB");
    stream.write_all(b"\n").expect("send");
    assert_eq!(hear(&mut stream, deadline(PATIENCE)).expect("an answer"), "n2-p1");
}

fn download(vip: IpAddr) {
    let mut stream = TcpStream::connect_timeout(&(vip, DOWNLOADS).into(), scaled(PATIENCE)).expect("a connection");
    stream.set_read_timeout(Some(scaled(PATIENCE))).expect("a time limit");
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("10 MB");
    assert!(received.len() == LONG && received.iter().all(|byte| *byte == b'd'), "{} bytes", received.len());
}

/// A socket whose datagrams nobody may cut.
fn uncut(vip: IpAddr) -> UdpSocket {
    let (any, level, option) = match vip {
        IpAddr::V4(_) => ("0.0.0.0:0", libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        IpAddr::V6(_) => ("[::]:0", libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    };
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.set_read_timeout(Some(scaled(PATIENCE))).expect("a timeout");
    let never = libc::IP_PMTUDISC_DO;
    // SAFETY: the value is an int, as long as it says.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const never).cast(), 4) };
    assert_eq!(set, 0, "not to be fragmented");
    socket.connect((vip, PORT)).expect("connect");
    socket
}

/// Datagrams that mustn't be fragmented on their way to the VIP are answered, up to what a link of that MTU takes. One that is longer than
/// the tunnel's is refused, and the client is told.
fn datagrams(vip: IpAddr, mtu: usize) {
    let headers = if vip.is_ipv4() { 28 } else { 48 };
    let socket = uncut(vip);
    let mut answer = [0; 64];
    for size in [64, 1372, mtu - headers, mtu - headers] {
        socket.send(&vec![b'x'; size]).expect("send");
        let length = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{size} bytes: {error}"));
        assert!(answer[..length].starts_with(b"two "), "{size} bytes");
    }
    if mtu < 1500 {
        until("the client is told that its datagram was too long", SOON, || {
            let error = socket.send(&vec![b'x'; 1500 - headers]).err()?;
            (error.raw_os_error() == Some(libc::EMSGSIZE)).then_some(())
        });
    }
}

/// From a client on the LAN and one behind the router.
fn from_both(cluster: &Cluster, work: impl Fn(IpAddr) + Sync) {
    for from in ["the client", "the routed client"] {
        cluster.ns(from).run(|| work(cluster.to));
    }
}

fn streams(cluster: &Cluster) {
    let pod = &cluster.node(2).pods[0];
    from_both(cluster, |vip| {
        let sender = sends(pod);
        download(vip);
        sender.join().expect("all was sent");
        upload(vip);
    });
}

fn all_datagrams(cluster: &Cluster, mtu: usize) {
    let pod = &cluster.node(2).pods[0];
    let echo = || Server::start("two", SocketAddr::from((cluster.to, PORT)), true, |_| {});
    let _echo = pod.ns.run(echo).expect("a server of datagrams");
    from_both(cluster, |vip| datagrams(vip, mtu));
}

/// Only node 2 has a ready replica.
fn only_second(mut cluster: Cluster) -> Cluster {
    cluster.drains(1);
    cluster.drains(3);
    cluster
}

fn they_reach_the_other_node_whole(cluster: &Cluster, mtu: usize) {
    streams(cluster);
    let fragments = cluster.node(1).ns().counter("Ip", "FragCreates");
    assert_eq!(fragments, 0, "segments leave room for the tunnel's headers");
    all_datagrams(cluster, mtu);
}

#[test]
fn they_reach_the_other_node_whole_by_ipv4() {
    they_reach_the_other_node_whole(&only_second(Cluster::new(1)), 1500);
}

#[test]
fn they_reach_the_other_node_whole_by_ipv6() {
    they_reach_the_other_node_whole(&only_second(Cluster::by(Family::V6, 1)), 1500);
}

/// The tunnel's own packets of IPv6 are never cut: nothing longer may get there.
#[test]
fn they_reach_the_other_node_whole_over_ipv6_alone() {
    they_reach_the_other_node_whole(&only_second(Cluster::over_ipv6(1)), 1430);
}

/// Between node 1 and node 2 lies a router with links of 1,400 bytes. Neither nodes nor clients know of it.
#[test]
fn they_pass_a_shorter_link_between_nodes() {
    let cluster = only_second(Cluster::new(1));
    cluster.shorter_link(1400);
    streams(&cluster);
    all_datagrams(&cluster, 1500);
}
