//! A link on the client's side carries less than the pods send: "fragmentation needed" must reach the replica it is for.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use serde_json::json;

use crate::harness::{Families, Join, Netns, PORT, Pod, SOON, Service, Stub, scaled};

const DOWNLOADS: usize = 30;
const SIZE: usize = 10_000_000;

/// The far client, behind two routers with the small link between them.
const CLIENT: &str = "198.51.100.2";

/// By IPv6.
const CLIENT6: &str = "2001:db8:198::2";

/// A pod's server that sends [`SIZE`] bytes to each client.
struct Source {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    /// On another port than the harness's own server.
    const PORT: u16 = PORT + 1;

    fn start(pod: &Pod) -> Self {
        Self::on(pod, Self::PORT)
    }

    fn on(pod: &Pod, port: u16) -> Self {
        Self::at(pod, Ipv4Addr::UNSPECIFIED, port)
    }

    fn at(pod: &Pod, address: impl Into<IpAddr>, port: u16) -> Self {
        let address = address.into();
        let listener = pod.ns.run(|| TcpListener::bind((address, port))).expect("a server in a pod");
        let accepting = listener.try_clone().expect("a second descriptor");
        let thread = thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                // A client that gives up is no failure of the server's.
                thread::spawn(move || stream.write_all(&vec![b'x'; SIZE]));
            }
        });
        Self { listener, thread: Some(thread) }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// LAN ── 1,400 bytes ── router ── far client; the LAN's gateway is the first router.
struct Far {
    client: Netns,
    _router: Netns,
}

impl Far {
    fn new(service: &Service) -> Self {
        let (near, router, client) = (&service.lan.ns, Netns::new(), Netns::new());
        near.ip(&format!("link add small mtu 1400 type veth peer name small mtu 1400 netns {}", router.path()));
        router.ip(&format!("link add far type veth peer name eth0 netns {}", client.path()));
        for (ns, device, address) in [
            (near, "small", "203.0.113.1/24"),
            (&router, "small", "203.0.113.2/24"),
            (&router, "far", "198.51.100.1/24"),
            (&client, "eth0", "198.51.100.2/24"),
        ] {
            ns.ip(&format!("addr add {address} dev {device}"));
            ns.ip(&format!("link set {device} up"));
        }
        for ns in [near, &router] {
            ns.set_sysctl("net/ipv4/ip_forward", "1");
            // Each of the pods' senders gets its ICMP error at once, not one of them a second.
            ns.set_sysctl("net/ipv4/icmp_ratelimit", "0");
        }
        near.ip("route add 198.51.100.0/24 via 203.0.113.2");
        near.ip("route add 10.118.0.0/16 via 192.0.2.1");
        router.ip("route add default via 203.0.113.1");
        client.ip("route add default via 198.51.100.1");
        if service.vip6.is_some() {
            Self::add_ipv6([near, &router, &client]);
        }
        Self { client, _router: router }
    }

    fn add_ipv6([near, router, client]: [&Netns; 3]) {
        for (ns, device, address) in [
            (near, "small", "2001:db8:113::1/64"),
            (router, "small", "2001:db8:113::2/64"),
            (router, "far", "2001:db8:198::1/64"),
            (client, "eth0", "2001:db8:198::2/64"),
        ] {
            ns.ip(&format!("addr add {address} dev {device} nodad"));
        }
        for ns in [near, router] {
            ns.set_sysctl("net/ipv6/conf/all/forwarding", "1");
            ns.set_sysctl("net/ipv6/icmp/ratelimit", "0");
        }
        near.ip("route add 2001:db8:198::/64 via 2001:db8:113::2");
        near.ip(&format!("route add {} via 2001:db8::1", Stub::NETWORK6));
        router.ip("-6 route add default via 2001:db8:113::1");
        client.ip("-6 route add default via 2001:db8:198::1");
    }

    /// Downloads at once; the bytes that came of each before nothing came for so long.
    fn download(&self, vip: impl Into<IpAddr>, patience: Duration) -> Vec<usize> {
        let vip = vip.into();
        let one = || -> io::Result<usize> {
            let mut stream = TcpStream::connect_timeout(&(vip, Source::PORT).into(), scaled(SOON))?;
            assert!([CLIENT, CLIENT6].contains(&stream.local_addr()?.ip().to_string().as_str()));
            stream.set_read_timeout(Some(patience))?;
            let (mut buffer, mut total) = (vec![0; 1 << 16], 0);
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                total += length;
            }
            Ok(total)
        };
        self.client.run(|| {
            thread::scope(|scope| {
                let downloads: Vec<_> = (0..DOWNLOADS).map(|_| scope.spawn(one)).collect();
                downloads.into_iter().map(|d| d.join().expect("a download").expect("a connection")).collect()
            })
        })
    }
}

#[test]
fn downloads_finish_over_a_smaller_link() {
    let service = Service::new(3, 0);
    let _sources: Vec<_> = service.pods.iter().map(Source::start).collect();
    let sizes = Far::new(&service).download(service.vip, Duration::from_secs(30));
    assert_eq!(sizes, [SIZE; DOWNLOADS]);
}

#[test]
fn downloads_of_both_families_finish_over_a_smaller_link() {
    let service = Service::dual(&Join::annotated("web"), 3, 0, Families::Both);
    let sources = service.pods.iter().map(|pod| Source::at(pod, Ipv6Addr::UNSPECIFIED, Source::PORT));
    let _sources: Vec<_> = sources.collect();
    let far = Far::new(&service);
    for vip in service.addresses() {
        assert_eq!(far.download(vip, Duration::from_secs(30)), [SIZE; DOWNLOADS], "{vip}");
    }
}

/// The router quotes the VIP's port, and the pod's sender has another number.
#[test]
fn downloads_of_translated_ports_finish_over_a_smaller_link() {
    const TARGET: u16 = 9500;
    let ports = format!("{PORT}/tcp,{}:{TARGET}/tcp", Source::PORT);
    let service = Service::with(&Join::annotated("web").annotation("viproute.io/ports", &ports), 3, 0);
    let _sources: Vec<_> = service.pods.iter().map(|pod| Source::on(pod, TARGET)).collect();
    let sizes = Far::new(&service).download(service.vip, Duration::from_secs(30));
    assert_eq!(sizes, [SIZE; DOWNLOADS]);
}

/// What the tests above are about: left to the hash, the router's message reaches one of the replicas and the others never
/// learn.
#[test]
fn downloads_stall_over_a_smaller_link_without_the_flow_owner() {
    let service = Service::with(&Join::annotated("web").key("flowOwner", json!("off")), 3, 0);
    let _sources: Vec<_> = service.pods.iter().map(Source::start).collect();
    let sizes = Far::new(&service).download(service.vip, Duration::from_secs(5));
    let stalled = sizes.iter().filter(|size| **size < SIZE).count();
    assert!(stalled > 0, "the link is not smaller, or the messages find their way by themselves: {sizes:?}");
}
