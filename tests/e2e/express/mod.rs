//! Express: flows go straight between an uplink and a pod. Whatever holds without it holds with it.

mod change;
mod closed;
mod hostile;
mod rules;
mod served;
mod straight;
mod translated;

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;
use viproute::internals::ebpf::{Express, ExpressCounts, express_counts};

use crate::harness::{Families, Join, Netns, Node, PORT, Run, SOON, Service, deadline, hear, scaled, unspecified};

/// The node's device that leads to the clients.
const UPLINK: &str = "eth0";

/// Longer than an answer takes; so long silence is awaited.
const SILENCE: Duration = Duration::from_millis(1500);

/// How long a lease of UDP's and one of TCP's lasts.
const UDP_LEASE: Duration = Duration::from_secs(1);
const TCP_LEASE: Duration = Duration::from_secs(4);

/// Express on a node, switched as viprouted does.
pub struct Switch<'a> {
    node: &'a Node,
    generation: Cell<u64>,
}

impl<'a> Switch<'a> {
    /// With the programs on the uplink, and on.
    pub fn on(node: &'a Node) -> Self {
        let switch = Self { node, generation: Cell::new(7) };
        switch.attach(UPLINK);
        switch.bump();
        switch
    }

    fn attach(&self, uplink: &str) {
        let tc = |arguments: String| {
            self.node.ns.cmd("tc").args(arguments.split(' ')).finish("").ok();
        };
        tc(format!("qdisc replace dev {uplink} clsact"));
        for (side, name) in [("ingress", "express_in"), ("egress", "express_seen")] {
            let of_ipv4 = self.pin(&format!("{name}_")).unwrap_or_else(|| panic!("{name}_… isn't pinned"));
            let of_ipv6 = self.pin(&format!("{name}6_")).map(|pin| ("protocol ipv6 pref 2", pin)); // not without BTF
            for (place, pin) in std::iter::once(("protocol all pref 1", of_ipv4)).chain(of_ipv6) {
                let program = format!("handle 1 bpf direct-action object-pinned {pin}");
                tc(format!("filter replace dev {uplink} {side} {place} {program}"));
            }
        }
    }

    fn pin(&self, name: &str) -> Option<String> {
        let pins = std::fs::read_dir(self.node.bpf_dir()).expect("the pins' directory");
        let mut pins = pins.map(|entry| entry.expect("a pin").path());
        let is_it = |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
        pins.find(is_it).map(|pin| pin.display().to_string())
    }

    fn set(&self, generation: u64) {
        let mut express = Express::open(self.node.bpf_dir().as_ref()).expect("the map").expect("programs are loaded");
        express.set_generation(generation).expect("write the generation");
    }

    /// Something of the node has changed: no lease is valid any more.
    fn bump(&self) {
        self.generation.set(self.generation.get() + 1);
        self.set(self.generation.get());
    }

    fn off(&self) {
        self.set(0);
    }

    pub fn counts(&self) -> ExpressCounts {
        counts(self.node)
    }
}

/// What went straight, of all pods.
fn counts(node: &Node) -> ExpressCounts {
    // More devices than a test's node has, those of pods that have gone included.
    let devices = (1..=256).collect();
    let pods = express_counts(node.bpf_dir().as_ref(), &devices).expect("the counters");
    pods.into_iter().fold(ExpressCounts::default(), |sum, (_, pod)| ExpressCounts {
        in_packets: sum.in_packets + pod.in_packets,
        in_bytes: sum.in_bytes + pod.in_bytes,
        out_packets: sum.out_packets + pod.out_packets,
        out_bytes: sum.out_bytes + pod.out_bytes,
    })
}

/// How often a connection of [`goes_straight`] asks.
const ASKED: u64 = 40;

/// A new connection's questions and answers go straight. Its server's name.
fn goes_straight(service: &Service, switch: &Switch<'_>) -> String {
    goes_straight_to(&service.client, service.vip.into(), switch)
}

fn goes_straight_to(client: &Netns, vip: IpAddr, switch: &Switch<'_>) -> String {
    let before = switch.counts();
    let mut talk = Talk::with(client, vip);
    let name = talk.ask();
    for _ in 1..ASKED {
        assert_eq!(talk.ask(), name);
    }
    let (requests, answers) = since(switch.counts(), before);
    assert!(requests >= ASKED - 2, "of {ASKED} requests {requests} went straight");
    assert!(answers >= ASKED - 2, "of {ASKED} answers {answers} went straight");
    name
}

/// Clones end at the host veth and at the uplink; each datagram of a flow is answered once.
fn no_datagram_comes_twice(service: &Service, vip: IpAddr) {
    let switch = Switch::on(&service.node);
    let flow = Flow::with(&service.client, vip);
    let (before, begin, mut sent) = (switch.counts(), Instant::now(), 0);
    let name = flow.ask().expect("an answer");
    while begin.elapsed() < 4 * UDP_LEASE {
        assert_eq!(flow.ask().as_deref(), Some(name.as_str()));
        sent += 1;
        thread::sleep(Duration::from_millis(10));
    }
    flow.0.set_read_timeout(Some(Duration::from_millis(200))).expect("a time limit");
    assert!(flow.0.recv(&mut [0; 64]).is_err(), "an answer more than questions");
    let (requests, answers) = since(switch.counts(), before);
    assert!(requests > sent * 9 / 10 && answers > sent * 9 / 10, "of {sent}: {requests} in, {answers} out straight");
}

/// What went straight since.
fn since(now: ExpressCounts, before: ExpressCounts) -> (u64, u64) {
    (now.in_packets - before.in_packets, now.out_packets - before.out_packets)
}

/// One connection of the client's.
struct Talk(TcpStream);

impl Talk {
    fn with(ns: &Netns, vip: impl Into<IpAddr>) -> Self {
        let to = SocketAddr::new(vip.into(), PORT);
        let stream = ns.run(|| TcpStream::connect_timeout(&to, scaled(SOON))).expect("connect");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Self(stream)
    }

    /// The name of the pod that answers.
    fn ask(&mut self) -> String {
        self.try_ask(SOON).expect("an answer")
    }

    fn try_ask(&mut self, limit: Duration) -> std::io::Result<String> {
        self.0.write_all(b"who\n")?;
        hear(&mut self.0, deadline(limit))
    }
}

/// One UDP flow of the client's to the pods' [`crate::harness::Echo`].
struct Flow(UdpSocket);

impl Flow {
    fn with(ns: &Netns, vip: impl Into<IpAddr>) -> Self {
        let to = SocketAddr::new(vip.into(), PORT);
        let socket = ns.run(|| UdpSocket::bind((unspecified(to.ip()), 0))).expect("a socket");
        socket.connect(to).expect("connect");
        socket.set_read_timeout(Some(SILENCE)).expect("a time limit");
        Self(socket)
    }

    /// The name of the pod that answers; `None`: silence.
    fn ask(&self) -> Option<String> {
        self.ask_with(b"x")
    }

    fn ask_with(&self, said: &[u8]) -> Option<String> {
        self.0.send(said).expect("send");
        let mut buffer = vec![0; 1 << 16];
        match self.0.recv(&mut buffer) {
            Ok(length) => {
                let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let (name, echo) = answer.split_once(' ').expect("a name and what was said");
                assert_eq!(echo.len(), said.len(), "all of it");
                Some(name.to_owned())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("receive: {error}"),
        }
    }
}

fn nft(node: &Node, commands: &str) {
    node.ns.cmd("nft").args(["-f", "-"]).finish(commands).ok();
}

/// What a counter of the table `seen` has.
fn seen(node: &Node, counter: &str) -> u64 {
    let listed = node.ns.cmd("nft").args(["list", "counter", "ip", "seen", counter]).finish("").ok();
    let (_, packets) = listed.split_once("packets ").expect("a count");
    packets.split_whitespace().next().and_then(|count| count.parse().ok()).expect("a number")
}

fn joining(ports: &str, more: &[(&str, &str)]) -> Join {
    let mut join = Join::annotated("web");
    let mut annotations = json!({ "viproute.io/vip": "web", "viproute.io/ports": ports });
    for (key, value) in more {
        annotations[format!("viproute.io/{key}")] = json!(value);
    }
    join.annotations = Some(annotations);
    join
}

/// A server in a pod that sends so many bytes to whoever connects, as fast as they are read.
struct Source {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    const PORT: u16 = PORT + 1;

    fn start(ns: &Netns, size: usize) -> Self {
        let listener = ns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, Self::PORT))).expect("a server in a pod");
        let accepting = listener.try_clone().expect("a second descriptor");
        let thread = thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                // A client that gives up is no failure of the server's.
                thread::spawn(move || stream.write_all(&vec![b'x'; size]));
            }
        });
        Self { listener, thread: Some(thread) }
    }

    fn download(ns: &Netns, vip: Ipv4Addr) -> TcpStream {
        let stream = ns.run(|| TcpStream::connect_timeout(&(vip, Self::PORT).into(), scaled(SOON))).expect("connect");
        stream.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
        stream
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd;
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Reads at most so many bytes; how many came.
fn read(stream: &mut TcpStream, limit: usize) -> usize {
    let (mut buffer, mut total) = (vec![0; 1 << 16], 0);
    while total < limit {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => total += length,
            Err(error) => panic!("after {total} bytes: {error}"),
        }
    }
    total
}

fn service(replicas: usize, spare: usize) -> Service {
    Service::new(replicas, spare)
}

/// The same with a VIP of both families, and its address of IPv6.
fn service6(join: &Join, replicas: usize) -> (Service, IpAddr) {
    let service = Service::dual(join, replicas, 0, Families::Both);
    let vip6 = service.vip6.expect("the VIP's IPv6 address");
    (service, vip6.into())
}
