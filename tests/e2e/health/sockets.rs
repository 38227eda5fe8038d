//! Who takes what comes for an address, as the kernel's own lookup says it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, listen, setsockopt, socket, sockopt,
};
use viproute::internals::ebpf::{Listening, Question};
use viproute::internals::net::NodeNet;
use viproute::internals::net::sockets::Sockets;

use crate::harness::{Netns, SOON, until};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 118, 0, 7);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 2);
const TO: SocketAddrV4 = SocketAddrV4::new(VIP, 80);

/// A pod's namespace, and the node's, which a veth pair connects.
struct Scene {
    pod: Netns,
    sockets: Sockets,
    node: Netns,
    /// The pod's id on the node.
    id: u32,
    program: Listening,
}

impl Scene {
    fn new() -> Self {
        let (node, pod) = (Netns::new(), Netns::new());
        node.ip(&format!("link add v0 type veth peer name v1 netns {}", pod.path()));
        pod.ip(&format!("addr add {VIP}/32 dev lo"));
        pod.ip(&format!("addr add {OTHER}/32 dev lo"));
        let opened = viproute::internals::net::Netns::open(Path::new(&pod.path())).expect("a namespace");
        let sockets = Sockets::open(&opened).expect("its sockets");
        let id =
            node.run(|| opened.id(&NodeNet::open().expect("a netlink socket"))).expect("an answer").expect("an id");
        let program = Listening::load().expect("the program that asks who listens");
        Self { pod, sockets, node, id, program }
    }

    /// Whether connections and datagrams to the VIP are taken while `what` is there: one answer, whichever kernel is asked.
    fn with<T: Send>(&self, what: impl FnOnce() -> T + Send) -> (bool, bool) {
        let to = SocketAddr::V4(TO);
        let takes = || (self.sockets.takes_connections(to).unwrap(), self.sockets.takes_datagrams(to).unwrap());
        until("none of before is open, in a program that another test starts either", SOON, || {
            (takes() == (false, false)).then_some(())
        });
        let _there = self.pod.run(what);
        let found = takes();
        let questions = [libc::IPPROTO_TCP, libc::IPPROTO_UDP].map(|protocol| self.question(protocol));
        let program = &self.program;
        let answers = self.node.run(|| program.ask(&questions)).expect("answers");
        assert_eq!(answers, [found.0, found.1], "by the program");
        found
    }

    fn question(&self, protocol: libc::c_int) -> Question {
        Question { netns: self.id, to: TO, protocol: protocol.try_into().expect("eight bits") }
    }
}

/// Binds as soon as the port is free: a program that another test is starting may hold a socket that was closed here, until
/// it has become that program.
fn free<T>(bind: impl Fn() -> io::Result<T>) -> T {
    until("the port is free", SOON, || match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        other => Some(other.expect("a socket")),
    })
}

/// A listener of both families, or of IPv6 alone.
fn dual(only_v6: bool) -> std::os::fd::OwnedFd {
    let fd = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, sockopt::Ipv6V6Only, &only_v6).unwrap();
    let any = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 80, 0, 0));
    free(|| Ok(bind(fd.as_raw_fd(), &any)?));
    listen(&fd, Backlog::new(8).unwrap()).unwrap();
    fd
}

#[test]
fn those_bound_to_the_vip_or_to_any_address_count() {
    let scene = Scene::new();
    let any = Ipv4Addr::UNSPECIFIED;
    let tcp = |address: Ipv4Addr, port| move || free(|| TcpListener::bind((address, port)));
    let udp = |address: Ipv4Addr, port| move || free(|| UdpSocket::bind((address, port)));
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
    assert_eq!(scene.with(|| free(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 80)))), (false, true));
}

/// No new client reaches these.
#[test]
fn connections_and_connected_sockets_do_not_count() {
    let scene = Scene::new();
    let connected = scene.with(|| {
        let listener = free(|| TcpListener::bind((VIP, 80)));
        let client = TcpStream::connect(SocketAddr::V4(TO)).unwrap();
        (listener.accept().unwrap(), client)
    });
    assert_eq!(connected, (false, false), "a connection whose listener is closed");
    let connected = scene.with(|| {
        let socket = free(|| UdpSocket::bind((VIP, 80)));
        socket.connect((OTHER, 5000)).unwrap();
        socket
    });
    assert_eq!(connected, (false, false));
}

/// What comes for the VIP comes by vip0, and one that is tied to another device doesn't get it.
#[test]
fn a_socket_that_is_tied_to_a_device_does_not_count() {
    let scene = Scene::new();
    let tied = |device: &'static str| {
        move || {
            let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            setsockopt(&fd, sockopt::BindToDevice, &device.into()).unwrap();
            free(|| Ok(bind(fd.as_raw_fd(), &SockaddrIn::from(TO))?));
            listen(&fd, Backlog::new(8).unwrap()).unwrap();
            fd
        }
    };
    // The one that the question itself comes by, in its own namespace, has the same index.
    assert_eq!(scene.with(tied("lo")), (false, false));
    assert_eq!(scene.with(tied("v1")), (false, false));
}

/// More than go into one run, in order; and in a missing namespace none listens.
#[test]
fn many_questions_have_their_own_answers() {
    const QUESTIONS: u16 = 1000;
    let scene = Scene::new();
    let is_open = |port: u16| port.is_multiple_of(7);
    let _servers: Vec<_> = scene.pod.run(|| {
        let open = (1..=QUESTIONS).filter(|port| is_open(*port));
        open.map(|port| TcpListener::bind((VIP, port)).unwrap()).collect()
    });
    let question = |port| Question { to: SocketAddrV4::new(VIP, port), ..scene.question(libc::IPPROTO_TCP) };
    let mut questions: Vec<_> = (1..=QUESTIONS).map(question).collect();
    let program = &scene.program;
    let answers = scene.node.run(|| program.ask(&questions)).expect("answers");
    let wanted: Vec<_> = (1..=QUESTIONS).map(is_open).collect();
    assert_eq!(answers, wanted);
    for question in &mut questions {
        question.netns = 4711;
    }
    let answers = scene.node.run(|| program.ask(&questions)).expect("answers");
    assert_eq!(answers, [false; QUESTIONS as usize]);
    assert_eq!(program.ask(&[]).expect("no answers"), [false; 0]);
}
