//! Who takes what comes for an address, as the kernel's own lookup says it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket, sockopt,
};
use viproute::net::sockets::Sockets;

use crate::harness::Netns;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 118, 0, 7);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 2);
const TO: SocketAddrV4 = SocketAddrV4::new(VIP, 80);

struct Scene(Netns, Sockets);

impl Scene {
    fn new() -> Self {
        let ns = Netns::new();
        ns.ip(&format!("addr add {VIP}/32 dev lo"));
        ns.ip(&format!("addr add {OTHER}/32 dev lo"));
        let sockets = Sockets::open(&viproute::net::Netns::open(Path::new(&ns.path())).unwrap()).unwrap();
        Self(ns, sockets)
    }

    /// Whether connections and datagrams to the VIP are taken while `what` is there.
    fn with<T: Send>(&self, what: impl FnOnce() -> T + Send) -> (bool, bool) {
        let _there = self.0.run(what);
        (self.1.takes_connections(TO).unwrap(), self.1.takes_datagrams(TO).unwrap())
    }
}

/// A listener of both families, or of IPv6 alone.
fn dual(only_v6: bool) -> std::os::fd::OwnedFd {
    let fd = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, sockopt::Ipv6V6Only, &only_v6).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 80, 0, 0))).unwrap();
    listen(&fd, Backlog::new(8).unwrap()).unwrap();
    fd
}

#[test]
fn those_bound_to_the_vip_or_to_any_address_count() {
    let scene = Scene::new();
    let any = Ipv4Addr::UNSPECIFIED;
    let tcp = |address: Ipv4Addr, port| move || TcpListener::bind((address, port)).unwrap();
    let udp = |address: Ipv4Addr, port| move || UdpSocket::bind((address, port)).unwrap();
    assert_eq!(scene.with(|| ()), (false, false));
    assert_eq!(scene.with(tcp(any, 80)), (true, false));
    assert_eq!(scene.with(tcp(VIP, 80)), (true, false));
    assert_eq!(scene.with(tcp(OTHER, 80)), (false, false));
    assert_eq!(scene.with(tcp(any, 81)), (false, false));
    assert_eq!(scene.with(udp(any, 80)), (false, true));
    assert_eq!(scene.with(udp(VIP, 80)), (false, true));
    assert_eq!(scene.with(udp(OTHER, 80)), (false, false));
    assert_eq!(scene.with(udp(any, 81)), (false, false));
    assert_eq!(scene.with(|| dual(false)), (true, false));
    assert_eq!(scene.with(|| dual(true)), (false, false));
    assert_eq!(scene.with(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap()), (false, true));
}

/// Nobody who calls for the first time reaches these.
#[test]
fn connections_and_connected_sockets_do_not_count() {
    let scene = Scene::new();
    let connected = scene.with(|| {
        let listener = TcpListener::bind((VIP, 80)).unwrap();
        let client = TcpStream::connect(SocketAddr::V4(TO)).unwrap();
        (listener.accept().unwrap(), client)
    });
    assert_eq!(connected, (false, false), "a connection whose listener is closed");
    let connected = scene.with(|| {
        let socket = UdpSocket::bind((VIP, 80)).unwrap();
        socket.connect((OTHER, 5000)).unwrap();
        socket
    });
    assert_eq!(connected, (false, false));
}
