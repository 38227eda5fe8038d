//! UDP flows that know which replica answers them, and the servers that do.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, shutdown, socket, sockopt,
};

use super::netns::Netns;
use super::pod::Pod;
use super::traffic::PORT;
use super::wait::{SOON, scaled, until};

/// Room for what comes while this process doesn't get to run: a lost datagram must not be the test's own fault.
const BUFFER: usize = 4 << 20;

/// No address in particular, of that one's family.
pub fn unspecified(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// A pod's server: answers each datagram with `<name> <what it said>`. It stops when dropped.
pub struct Echo {
    socket: UdpSocket,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// On the VIP's address, so that it answers from there. The pod may not have joined yet.
    pub fn start(pod: &Pod, vip: impl Into<IpAddr>) -> Self {
        Self::on(pod, vip, PORT)
    }

    pub fn on(pod: &Pod, vip: impl Into<IpAddr>, port: u16) -> Self {
        let at = SocketAddr::from((vip.into(), port));
        let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd: OwnedFd = pod.ns.run(|| {
            let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
            // Of IPv6 sockets too (ip(7), IPV6_FREEBIND is the same).
            setsockopt(&fd, sockopt::IpFreebind, &true).expect("IP_FREEBIND");
            setsockopt(&fd, sockopt::RcvBufForce, &BUFFER).expect("SO_RCVBUFFORCE");
            // A program that another test starts has all descriptors of this one until it begins, that of the pod's last server too.
            until("the port is free", SOON, || {
                let bound = bind(fd.as_raw_fd(), &SockaddrStorage::from(at));
                (bound != Err(Errno::EADDRINUSE)).then(|| bound.expect("bind to the VIP"))
            });
            fd
        });
        let (socket, name) = (UdpSocket::from(fd), pod.name.clone());
        let answering = socket.try_clone().expect("a second descriptor");
        let thread = thread::spawn(move || answer(&answering, &name));
        Self { socket, thread: Some(thread) }
    }
}

fn answer(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; 2048];
    // After shutdown there is no datagram and no sender, which is an error.
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        let said = String::from_utf8_lossy(&buffer[..length]);
        // A client whose address is removed is no reason to stop.
        let _ = socket.send_to(format!("{name} {said}").as_bytes(), client);
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// One kind of flow.
#[derive(Clone, Copy)]
pub struct Kind<'a> {
    pub from: &'static str,
    pub ns: &'a Netns,
    /// Whether its socket is connected: then it caches its route.
    pub connected: bool,
    /// A datagram each so long.
    pub every: Duration,
}

/// What became of a flow.
pub struct Outcome {
    /// Where it comes from and how.
    pub kind: String,
    /// The replicas that answered, in that order, without repetitions: one, if it never moved.
    pub replicas: Vec<String>,
    /// Datagrams without an answer.
    pub lost: u32,
    pub sent: u32,
}

/// Flows that send until they are stopped.
pub struct Datagrams {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Flow>>>,
}

struct Flow {
    kind: String,
    socket: UdpSocket,
    to: Option<SocketAddr>,
    every: Duration,
    due: Instant,
    sent: u32,
    answered: u32,
    replicas: Vec<String>,
}

impl Datagrams {
    /// How long the last answers may take.
    const GRACE: Duration = Duration::from_secs(3);

    /// `count` flows of each kind to the VIP.
    pub fn start(vip: impl Into<IpAddr>, kinds: &[Kind], count: usize) -> Self {
        let to = SocketAddr::from((vip.into(), PORT));
        let mut flows: Vec<_> = kinds
            .iter()
            .flat_map(|kind| kind.ns.run(|| (0..count).map(|_| Flow::new(kind, to)).collect::<Vec<_>>()))
            .collect();
        // Not all at the same moment.
        let total = u32::try_from(flows.len()).expect("few flows");
        for (flow, number) in flows.iter_mut().zip(0..) {
            flow.due += flow.every * number / total;
        }
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        Self { over, thread: Some(thread::spawn(move || run(flows, &stop))) }
    }

    pub fn stop(mut self) -> Vec<Outcome> {
        self.over.store(true, Ordering::Relaxed);
        let flows = self.thread.take().expect("a running thread").join().expect("the flows");
        flows.into_iter().map(Flow::outcome).collect()
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn run(mut flows: Vec<Flow>, over: &AtomicBool) -> Vec<Flow> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
    for (flow, number) in flows.iter().zip(0..) {
        epoll.add(&flow.socket, EpollEvent::new(EpollFlags::EPOLLIN, number)).expect("watch a socket");
    }
    let mut end = None;
    let mut events = [EpollEvent::empty(); 512];
    loop {
        let now = Instant::now();
        if end.is_none() && over.load(Ordering::Relaxed) {
            end = Some(now + scaled(Datagrams::GRACE));
        }
        let waiting = flows.iter().any(|flow| flow.answered < flow.sent);
        match end {
            None => flows.iter_mut().filter(|flow| flow.due <= now).for_each(Flow::send),
            Some(end) if now > end || !waiting => return flows,
            Some(_) => {}
        }
        let ready = match epoll.wait(&mut events, 10_u8) {
            Err(nix::Error::EINTR) => 0,
            ready => ready.expect("wait for answers"),
        };
        for event in &events[..ready] {
            flows[usize::try_from(event.data()).expect("a small number")].receive();
        }
    }
}

impl Flow {
    fn new(kind: &Kind, to: SocketAddr) -> Self {
        let socket = UdpSocket::bind((unspecified(to.ip()), 0)).expect("a socket");
        socket.set_nonblocking(true).expect("a socket that doesn't block");
        if kind.connected {
            socket.connect(to).expect("connect to the VIP");
        }
        let connected = if kind.connected { "connected" } else { "unconnected" };
        Self {
            kind: format!("from {}, {connected}, each {:?}", kind.from, kind.every),
            socket,
            to: (!kind.connected).then_some(to),
            every: kind.every,
            due: Instant::now(),
            sent: 0,
            answered: 0,
            replicas: Vec::new(),
        }
    }

    fn send(&mut self) {
        self.due += self.every;
        self.sent += 1;
        let number = self.sent.to_string();
        // An earlier error (no listener) is returned here; the datagram is counted as lost.
        let _ = match self.to {
            Some(to) => self.socket.send_to(number.as_bytes(), to),
            None => self.socket.send(number.as_bytes()),
        };
    }

    fn receive(&mut self) {
        let mut buffer = [0; 256];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            let name = text.split(' ').next().unwrap_or_default();
            self.answered += 1;
            if self.replicas.last().is_none_or(|last| last != name) {
                self.replicas.push(name.into());
            }
        }
    }

    fn outcome(self) -> Outcome {
        Outcome { kind: self.kind, replicas: self.replicas, lost: self.sent - self.answered, sent: self.sent }
    }
}

/// For each kind: how many of its flows, and datagrams, the `question` is true of.
pub fn by_kind<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> BTreeMap<&'a str, usize> {
    outcomes.into_iter().fold(BTreeMap::new(), |mut counts, outcome| {
        *counts.entry(outcome.kind.as_str()).or_default() += 1;
        counts
    })
}
