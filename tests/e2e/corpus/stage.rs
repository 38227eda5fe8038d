//! A node with two VIPs' replicas and connections in every state, and the loaded programs to put packets through.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use aya::programs::{ProgramError, SchedClassifier};
use aya::{TestRun, TestRunOptions};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, bind, connect, getsockname,
    setsockopt, socket, sockopt,
};
use serde_json::json;
use viproute::internals::ebpf::{Counts, LinkDrops, Maps};
use viproute::internals::model::Family;

use super::family::{self, Form};
use super::text::{Names, Program};
use crate::harness::{Families, Join, Lan, Netns, Node, PATIENCE, PORT, Pod, Run, scaled, unspecified, until};

/// The node sends nothing there, and no ICMP error.
const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7);
/// The sequence number of a SYN from there.
const SEQUENCE: [u8; 4] = [0x11, 0x22, 0x33, 0x44];
const HALF_OPEN_PORT: u16 = 1024;
const COOKIE_PORT: u16 = 1025;
const STOLEN_PORT: u16 = 1026;
const SHADOW_PORT: u16 = 1027;
/// Only one replica listens there.
const OTHER_PORT: u16 = 9090;
/// Of a UDP socket that is connected to port 0x700 of a machine that isn't there.
const UDP_PORT: u16 = 5353;

/// States of /proc/net/tcp.
const TIME_WAIT: &str = "06";
const HALF_OPEN: &str = "03";

pub struct Replica {
    pub pod: Pod,
    pub ifindex: u32,
    pub mac: [u8; 6],
    /// The host veth's address.
    pub host_mac: [u8; 6],
    /// The host veth's name.
    host_veth: String,
    pub vips: Vec<IpAddr>,
    /// The pod's own address.
    pub own: IpAddr,
    /// What its `vip0` receives.
    pub wire: Wire,
    pub listener: TcpListener,
}

pub struct Stage {
    /// Of the VIPs' addresses that packets are for.
    pub family: Family,
    /// `a`, `b` and `c` have one VIP, `d`, `e` and `f` two, `g` one where flows may begin in the pod.
    pub replicas: BTreeMap<String, Replica>,
    pub names: Names,
    pub maps: Maps,
    /// Both ends of what stays open.
    connections: Vec<TcpStream>,
    opening: Vec<OwnedFd>,
    client: Netns,
    pub node: Node,
    _lan: Lan,
}

impl Stage {
    pub fn new(family: Family) -> Self {
        let lan = Lan::new();
        let node = if family == Family::V4 { Node::new(&lan, 1) } else { Node::dual(&lan, 1, Families::Both) };
        node.ns.ip("route add blackhole 198.51.100.0/24");
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        if family == Family::V6 {
            node.ns.ip("route add blackhole 2001:db8:ffff::/48");
            lan.add_ipv6(&client, 50);
            client.ip("route add default via 2001:db8::1");
        }
        let guarded = Join::annotated("guarded,second")
            .annotation("viproute.io/ports", "guarded=8080/tcp,guarded=53/udp,second=80/tcp")
            .annotation("viproute.io/udp-sticky", "true");
        let joins = ["a", "b", "c"].map(|name| (name, Join::annotated("open")));
        let joins = joins.into_iter().chain(["d", "e", "f"].map(|name| (name, guarded.clone())));
        let joins = joins.chain([("g", Join::annotated("free").key("vipEgress", json!("any")))]);
        let pods: Vec<_> = joins.map(|(name, join)| (name, node.joined(&join))).collect();
        let maps = Maps::open(&PathBuf::from(node.bpf_dir())).expect("open the maps").expect("the maps");
        let of = |pod| Replica::of(&node, (&maps, family), pod);
        let replicas = pods.into_iter().map(|(name, pod)| (name.to_owned(), of(pod))).collect();
        let names = Names::new();
        let (connections, opening) = (Vec::new(), Vec::new());
        let mut stage = Self { family, replicas, names, maps, connections, opening, client, node, _lan: lan };
        stage.name_addresses();
        stage.connect();
        stage
    }

    fn name_addresses(&mut self) {
        let mut names = Names::new();
        for (name, replica) in &self.replicas {
            names.insert(name.clone(), replica.mac.to_vec());
            names.insert(format!("{name}.host"), replica.host_mac.to_vec());
            names.insert(format!("{name}.address"), octets(replica.own));
        }
        for vip in ["open", "guarded", "second", "free"] {
            let address = self.node.stub(|stub| stub.address(&format!("default/{vip}")));
            names.insert(vip.into(), octets(self.of_family(address)));
        }
        let client = match self.family {
            Family::V4 => Ipv4Addr::new(192, 0, 2, 50).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 50).into(),
        };
        names.insert("client".into(), octets(client));
        names.insert("far".into(), octets(self.far()));
        names.insert("http".into(), PORT.to_be_bytes().to_vec());
        names.insert("udp.b".into(), UDP_PORT.to_be_bytes().to_vec());
        self.names = names;
    }

    fn far(&self) -> IpAddr {
        if self.family == Family::V4 { FAR.into() } else { FAR6.into() }
    }

    /// The address that goes with a VIP's of IPv4.
    fn of_family(&self, address: Ipv4Addr) -> IpAddr {
        match self.family {
            Family::V4 => address.into(),
            Family::V6 => format!("fd00:118::{address}").parse::<Ipv6Addr>().expect("an address").into(),
        }
    }

    pub fn address(&self, name: &str) -> IpAddr {
        family::address_at(self.family, &self.names[name], 0)
    }

    /// What the maps have in its place.
    pub fn key(&self, address: IpAddr) -> Ipv4Addr {
        self.maps.key(address).expect("the maps").expect("a VIP's address")
    }

    /// What packets are read with.
    pub fn about(&self) -> (Family, &Names) {
        (self.family, &self.names)
    }

    /// A connection in each state. Those in `TIME_WAIT` come last: they last a minute.
    fn connect(&mut self) {
        let (open, guarded) = (self.address("open"), self.address("guarded"));
        for (pod, vip) in [("a", open), ("b", open), ("e", guarded)] {
            let (ours, theirs) = self.connected(pod, vip);
            self.name_port(&format!("port.{pod}"), ours.local_addr().expect("its address"));
            self.connections.extend([ours, theirs]);
        }
        self.half_open("b", HALF_OPEN_PORT);
        self.name_number("half.b", HALF_OPEN_PORT);
        self.take_cookie("c", open);
        // Guards would count what it sends.
        let hold = "table inet hold { chain syn {\n type filter hook output priority 0; tcp flags & (syn | ack) == syn drop;\n}\n}\n";
        self.replicas["b"].pod.ns.cmd("nft").args(["-f", "-"]).finish(hold).ok();
        self.begin("b", (open, 0), 443);
        self.contend();
        for pod in ["a", "b"] {
            let (mut ours, theirs) = self.connected(pod, open);
            let port = ours.local_addr().expect("its address");
            drop(theirs);
            assert_eq!(ours.read(&mut [0]).expect("the end"), 0);
            drop(ours);
            self.replicas[pod].await_socket(TIME_WAIT, port.port());
            self.name_port(&format!("wait.{pod}"), port);
        }
    }

    fn name_port(&mut self, name: &str, address: SocketAddr) {
        self.name_number(name, address.port());
    }

    fn name_number(&mut self, name: &str, port: u16) {
        self.names.insert(name.to_owned(), port.to_be_bytes().to_vec());
    }

    /// Connections that replicas have, with whose ports others open one, or have answered a SYN.
    fn contend(&mut self) {
        let open = self.address("open");
        self.set_moving(false);
        let a = &self.replicas["a"].pod.ns;
        let other = a.run(|| TcpListener::bind((unspecified(open), OTHER_PORT))).expect("a listener");
        self.established("a", OTHER_PORT, STOLEN_PORT, &other);
        self.begin("b", (open, OTHER_PORT), STOLEN_PORT);
        let listener = self.replicas["b"].listener.try_clone().expect("a second descriptor");
        self.established("b", PORT, SHADOW_PORT, &listener);
        self.half_open("a", SHADOW_PORT);
        self.set_moving(true);
        self.connections.extend([listener, other].map(|listener| TcpStream::from(OwnedFd::from(listener))));
        for (name, port) in [("other", OTHER_PORT), ("stolen", STOLEN_PORT), ("shadow", SHADOW_PORT)] {
            self.name_number(name, port);
        }
    }

    /// A connection with a machine that isn't there, by packets made here: `pod` has it.
    fn established(&mut self, pod: &str, port: u16, from: u16, listener: &TcpListener) {
        let replica = &self.replicas[pod];
        let wire = Wire::to(&self.node.ns, replica.ifindex);
        let packet = |flags: &str, acknowledged: &[u8], sequence: u32| {
            let numbers = [port, from].map(|port| format!("{port:04x}"));
            let [to, from] = numbers;
            let (acknowledged, mac, host) = (hex(acknowledged), hex(&replica.mac), hex(&replica.host_mac));
            let text = format!(
                "== a segment\nby a: pass\neth {mac} {host} 0800\nip 45 00 {{length}} 0001 4000 40 06 {{sum}} {{far}} {{open}}\n\
                 tcp {from} {to} {sequence:08x} {acknowledged} 50 {flags} ffff {{sum}} 0000\n"
            );
            super::text::read("stage", &text, self.about()).remove(0).packet
        };
        let tcp = self.family.headers();
        wire.send(&packet("02", &[0; 4], 1));
        let answer = until("a SYN-ACK", PATIENCE, || {
            let is_it = |frame: &&[u8]| frame[tcp + 2..tcp + 4] == from.to_be_bytes() && frame[tcp + 13] & 0x12 == 0x12;
            wire.receive().find(|frame| frame.len() >= tcp + 20 && is_it(&frame.as_slice()))
        });
        let theirs = u32::from_be_bytes(answer[tcp + 4..tcp + 8].try_into().expect("four octets"));
        wire.send(&packet("10", &theirs.wrapping_add(1).to_be_bytes(), 2));
        listener.set_nonblocking(true).expect("a listener that doesn't wait");
        let (stream, _) = until("the connection", PATIENCE, || listener.accept().ok());
        self.connections.push(stream);
    }

    /// UDP sockets in all pods: of port 53, and one of b's that is connected. They live as long as what this returns.
    pub fn serve_udp(&self) -> Vec<UdpSocket> {
        let bind = |replica: &Replica, to| replica.pod.ns.run(|| UdpSocket::bind(to)).expect("a UDP socket");
        let mut sockets: Vec<_> =
            self.replicas.values().map(|replica| bind(replica, (unspecified(self.far()), 53))).collect();
        let connected = bind(&self.replicas["b"], (self.address("open"), UDP_PORT));
        self.replicas["b"].pod.ns.run(|| connected.connect((self.far(), 0x0700))).expect("connect");
        sockets.push(connected);
        sockets
    }

    /// A connection from the client that this replica has: its two ends.
    fn connected(&self, pod: &str, vip: IpAddr) -> (TcpStream, TcpStream) {
        for _ in 0..500 {
            let to = SocketAddr::from((vip, PORT));
            let ours =
                self.client.run(|| TcpStream::connect_timeout(&to, scaled(PATIENCE))).expect("connect to the VIP");
            let (name, theirs) = until("a replica accepts", PATIENCE, || {
                self.replicas.iter().find_map(|(name, replica)| Some((name, replica.listener.accept().ok()?.0)))
            });
            if name == pod {
                return (ours, theirs);
            }
            // Reset, so that it leaves nothing behind.
            setsockopt(&theirs, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).expect("SO_LINGER");
        }
        panic!("500 connections, and {pod} has none of them");
    }

    /// A SYN from that port that `pod` has answered; the answer is never read.
    fn half_open(&mut self, pod: &str, port: u16) {
        let replica = &self.replicas[pod];
        Wire::to(&self.node.ns, replica.ifindex).send(&self.syn(replica, self.address("open"), port));
        replica.await_socket(HALF_OPEN, port);
    }

    /// The same with a SYN cookie as the answer, which is overheard.
    fn take_cookie(&mut self, pod: &str, vip: IpAddr) {
        // A machine has one secret for all namespaces' cookies. A listener that never sent one knows that this isn't its own
        // only because it had no overflow lately, and for two minutes after jiffies wrap (five minutes after a boot) it
        // takes 0, "never", for lately (tcp_synq_no_recent_overflow).
        for (name, other) in &self.replicas {
            other.pod.ns.set_sysctl("net/ipv4/tcp_syncookies", if name == pod { "2" } else { "0" });
        }
        let (replica, tcp) = (&self.replicas[pod], self.family.headers());
        let wire = Wire::to(&self.node.ns, replica.ifindex);
        wire.send(&self.syn(replica, vip, COOKIE_PORT));
        let answer = until("a SYN-ACK with a cookie", PATIENCE, || {
            let is_it = |frame: &[u8]| frame[tcp + 2..tcp + 4] == COOKIE_PORT.to_be_bytes();
            wire.receive().find(|frame| frame.len() >= tcp + 20 && is_it(frame))
        });
        assert_eq!(answer[tcp + 13] & 0x3f, 0x12, "a SYN-ACK: {answer:02x?}");
        let cookie = u32::from_be_bytes(answer[tcp + 4..tcp + 8].try_into().expect("four octets"));
        self.names.insert(format!("cookie.{pod}"), cookie.wrapping_add(1).to_be_bytes().to_vec());
    }

    fn syn(&self, replica: &Replica, vip: IpAddr, port: u16) -> Vec<u8> {
        let mut names = self.names.clone();
        names.extend([
            ("mac".into(), replica.mac.to_vec()),
            ("host".into(), replica.host_mac.to_vec()),
            ("vip".into(), octets(vip)),
            ("port".into(), port.to_be_bytes().to_vec()),
            ("seq".into(), SEQUENCE.to_vec()),
        ]);
        let text = "== a SYN\nby a: pass\neth {mac} {host} 0800\nip 45 00 {length} 0001 4000 40 06 {sum} {far} {vip}\n\
                    tcp {port} {http} {seq} 00000000 60 02 ffff {sum} 0000 020405b4\n";
        super::text::read("stage", text, (self.family, &names)).remove(0).packet
    }

    /// A connection that `pod` opens from there to that port of a machine that never answers.
    fn begin(&mut self, pod: &str, (vip, port): (IpAddr, u16), to: u16) {
        let opening = open_socket(self.family, &self.replicas[pod].pod.ns);
        bind(opening.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(vip, port))).expect("bind the VIP");
        let answer = connect(opening.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(self.far(), to)));
        assert_eq!(answer, Err(Errno::EINPROGRESS));
        let ours: SockaddrStorage = getsockname(opening.as_raw_fd()).expect("its address");
        let of_ipv4 = ours.as_sockaddr_in().map(SockaddrIn::port);
        let number = of_ipv4.or_else(|| ours.as_sockaddr_in6().map(SockaddrIn6::port)).expect("its port");
        self.name_number(if port == 0 { "out.b" } else { "other" }, number);
        self.opening.push(opening);
    }

    /// Whether the VIPs' buckets may move.
    pub fn set_moving(&mut self, moving: bool) {
        for vip in self.maps.vips().expect("the VIPs") {
            let known = self.maps.known(vip).expect("its replicas").expect("the VIP");
            self.maps.set(vip, &known, if moving { u64::MAX } else { 0 }).expect("write them");
        }
    }

    /// What the programs of a pod's host veth have dropped.
    fn drops(&self, pod: &str) -> u64 {
        let mut tc = self.node.ns.cmd("tc");
        let shown =
            tc.args(["-s", "-j", "qdisc", "show", "dev", &self.replicas[pod].host_veth, "clsact"]).finish("").ok();
        let qdiscs: serde_json::Value = serde_json::from_str(&shown).expect("tc's JSON");
        qdiscs[0]["drops"].as_u64().unwrap_or_else(|| panic!("no drops in {shown}"))
    }

    /// Whether a packet that is really sent `by` a pod's host veth comes out of the pod's end.
    pub fn comes_through(&self, pod: &str, by: &Wire, packet: &[u8]) -> bool {
        by.send(packet);
        soon(|| self.replicas[pod].wire.receive().any(|frame| frame == packet))
    }

    /// Whether a packet that a pod really sends `by` its end is dropped at the host veth.
    pub fn is_dropped(&self, pod: &str, by: &Wire, packet: &[u8]) -> bool {
        let before = self.drops(pod);
        by.send(packet);
        soon(|| self.drops(pod) > before)
    }

    /// All that is counted, by name.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        let vips = self.maps.vips().expect("the VIPs");
        let counts: Vec<Counts> = vips.iter().map(|vip| self.maps.counts(*vip).expect("its counts")).collect();
        let drops = self.replicas.values().map(|replica| self.maps.link_drops(replica.ifindex).expect("counts"));
        let drops = drops.fold(LinkDrops::default(), LinkDrops::and);
        let total = |of: fn(&Counts) -> u64| counts.iter().map(of).sum();
        BTreeMap::from([
            ("local_hit", total(|counts| counts.local_hit)),
            ("steered", total(|counts| counts.steered)),
            ("no_owner", total(|counts| counts.no_owner)),
            ("search_throttled", total(|counts| counts.search_throttled)),
            ("port_denied", total(|counts| counts.port_denied)),
            ("egress_denied", total(|counts| counts.egress_denied)),
            ("reset_withheld", total(|counts| counts.reset_withheld)),
            ("own_source", total(|counts| counts.own_source)),
            ("source_denied", total(|counts| counts.source_denied)),
            ("spoofed", drops.spoofed),
            ("misrouted", drops.misrouted),
        ])
    }

    /// Runs `work` where packets can be put through the programs: inside the node's namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce(&Bench) -> T + Send) -> T {
        let dir = self.node.bpf_dir();
        let (owner, guard) = if self.family == Family::V4 { ("owner_", "guard_") } else { ("owner6_", "guard6_") };
        self.node.ns.run(|| work(&Bench { owner: pinned(&dir, owner), guard: pinned(&dir, guard) }))
    }
}

/// The pinned program whose name, but for its build's version, this is.
fn pinned(dir: &str, name: &str) -> SchedClassifier {
    let pins = std::fs::read_dir(dir).expect("the pins' directory").map(|entry| entry.expect("a pin").path());
    let is_it = |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
    let pin = pins.into_iter().find(is_it).unwrap_or_else(|| panic!("{name}… isn't pinned"));
    SchedClassifier::from_pin(pin).expect("open a pinned program")
}

/// Whether it becomes true within a few seconds.
fn soon(is_true: impl Fn() -> bool) -> bool {
    (0..100).inspect(|_| thread::sleep(Duration::from_millis(50))).any(|_| is_true())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn open_socket(family: Family, ns: &Netns) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let family = if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    ns.run(|| socket(family, SockType::Stream, flags, None).expect("a socket"))
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().concat()
}

fn index_of(link: &serde_json::Value) -> u32 {
    link["ifindex"].as_u64().and_then(|index| u32::try_from(index).ok()).expect("a device's index")
}

fn mac_of(link: &serde_json::Value) -> [u8; 6] {
    let text = link["address"].as_str().expect("an Ethernet address");
    let octets: Vec<u8> = text.split(':').map(|hex| u8::from_str_radix(hex, 16).expect("an octet")).collect();
    octets.try_into().expect("six octets")
}

impl Replica {
    fn of(node: &Node, (maps, family): (&Maps, Family), pod: Pod) -> Self {
        let container_veth = pod.ns.ip_json("link show dev vip0").remove(0);
        let mac = mac_of(&container_veth);
        let (vips, own): (Vec<IpAddr>, IpAddr) = match family {
            Family::V4 => (pod.vips().into_iter().map(IpAddr::V4).collect(), pod.address().into()),
            Family::V6 => (pod.vips6().into_iter().map(IpAddr::V6).collect(), pod.address6().into()),
        };
        let key = maps.key(vips[0]).expect("the maps").expect("a VIP's address");
        let members = maps.known(key).expect("its replicas").expect("the VIP").members;
        let ifindex = members.iter().find(|member| member.mac == mac).expect("the replica is known").ifindex;
        let links = node.ns.ip_json("link");
        let host_veth = links.iter().find(|link| link["ifindex"] == json!(ifindex)).expect("its host veth");
        let listener = pod.ns.run(|| TcpListener::bind((unspecified(own), PORT))).expect("a listener");
        listener.set_nonblocking(true).expect("a listener that doesn't wait");
        let wire = Wire::to(&pod.ns, index_of(&container_veth));
        let (name, host_mac) = (host_veth["ifname"].as_str().expect("a name").to_owned(), mac_of(host_veth));
        Self { ifindex, mac, host_mac, host_veth: name, vips, own, wire, listener, pod }
    }

    fn await_socket(&self, state: &str, port: u16) {
        let port = format!(":{port:04X}");
        until(&format!("a socket of {} in state {state}", self.pod.name), PATIENCE, || {
            let of = |file: &str| self.pod.ns.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")));
            let sockets = if self.own.is_ipv4() { of("tcp") } else { of("tcp6") }.expect("/proc");
            let mut fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            fields.find(|fields| fields[2].ends_with(&port) && fields[3] == state).map(drop)
        });
    }
}

/// A packet socket on one device: sends whole frames by it, and receives what comes in by it.
pub struct Wire(OwnedFd);

impl Wire {
    pub fn to(ns: &Netns, ifindex: u32) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd: OwnedFd =
            ns.run(|| socket(AddressFamily::Packet, SockType::Raw, flags, None).expect("a packet socket"));
        let ignore_outgoing: libc::c_int = 1;
        // SAFETY: system calls with pointers to locals of the sizes given; all-zero is a valid address.
        unsafe {
            let value = (&raw const ignore_outgoing).cast();
            let set = libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, value, 4);
            assert_eq!(set, 0, "PACKET_IGNORE_OUTGOING: {}", std::io::Error::last_os_error());
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
            address.sll_protocol = u16::try_from(libc::ETH_P_ALL).expect("a small number").to_be();
            address.sll_ifindex = ifindex.cast_signed();
            let size = libc::socklen_t::try_from(size_of_val(&address)).expect("a small struct");
            let bound = libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size);
            assert_eq!(bound, 0, "bind a packet socket: {}", std::io::Error::last_os_error());
        }
        Self(fd)
    }

    pub fn send(&self, frame: &[u8]) {
        match nix::unistd::write(&self.0, frame) {
            Ok(length) => assert_eq!(length, frame.len()),
            Err(Errno::ENOBUFS) => {} // a program has dropped it
            Err(error) => panic!("send a frame: {error}"),
        }
    }

    /// What has come so far, of either family.
    pub fn receive(&self) -> impl Iterator<Item = Vec<u8>> {
        let all = std::iter::from_fn(|| {
            let mut frame = vec![0; 65536];
            let length = nix::unistd::read(&self.0, &mut frame).ok()?;
            frame.truncate(length);
            Some(frame)
        });
        all.filter(|frame| Family::ALL.iter().any(|family| frame.get(12..14) == Some(&family.ethertype()[..])))
    }
}

/// Octets that a packet of this kind needs for `BPF_PROG_TEST_RUN`: those of the IP header, since Linux 6.17.
pub fn shortest(packet: &[u8]) -> usize {
    match packet.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 15,
    }
}

/// The programs, in the node's namespace.
pub struct Bench {
    owner: SchedClassifier,
    guard: SchedClassifier,
}

/// A packet as it meets a program.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub program: Program,
    pub ifindex: u32,
    pub mark: u32,
    /// The segments' size of a GSO packet; 0: it is none.
    pub segment: u32,
    pub packet: &'a [u8],
}

/// What the program made of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: u32,
    pub mark: u32,
    pub packet: Vec<u8>,
}

impl Bench {
    pub fn put(&self, input: &Input) -> Outcome {
        self.put_often(input, 1)
    }

    /// The same packet so many times in one system call; what comes of the last.
    pub fn put_often(&self, input: &Input, times: u32) -> Outcome {
        /// `struct __sk_buff` of linux/bpf.h, and where in it these are.
        const CONTEXT: usize = 192;
        const MARK: usize = 8;
        const IFINDEX: usize = 40;
        const GSO_SEGS: usize = 164;
        const GSO_SIZE: usize = 176;
        let mut context = [0; CONTEXT];
        let mut set = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        set(MARK, input.mark);
        set(IFINDEX, input.ifindex);
        if input.segment > 0 {
            set(GSO_SIZE, input.segment);
            set(GSO_SEGS, 2);
        }
        let (mut packet, mut after) = (vec![0; 8192], [0; 256]);
        let options = TestRunOptions {
            data_in: Some(input.packet),
            data_out: Some(&mut packet),
            ctx_in: Some(&context),
            ctx_out: Some(&mut after),
            repeat: times,
            ..TestRunOptions::default()
        };
        let program = match input.program {
            Program::Owner => &self.owner,
            Program::Guard => &self.guard,
        };
        let done = program.test_run(options).unwrap_or_else(|error| panic!("{}: {input:02x?}", with_cause(&error)));
        packet.truncate(done.data_size_out as usize);
        let mark = u32::from_ne_bytes(after[MARK..MARK + 4].try_into().expect("four octets"));
        Outcome { verdict: done.return_value, mark, packet }
    }
}

fn with_cause(error: &ProgramError) -> String {
    format!("{error}: {:?}", std::error::Error::source(error).map(ToString::to_string))
}
