//! Packets of connections that nobody has, as many as a thread can send, to a VIP with 100 replicas: each has to be looked
//! for at all of them, within limits, and good connections go on.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn, sendmmsg, socket,
};

use crate::harness::{Connection, Flows, Netns, PORT, Service, Storm};

const REPLICAS: usize = 100;

/// Packets a second that are tried.
const RATE: u32 = 200_000;

/// An IP and a TCP header.
const LENGTH: usize = 40;

/// Stray ACKs from many addresses and ports, until it is dropped.
struct Flood {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    fn start(from: &Netns, vip: Ipv4Addr) -> Self {
        // IPPROTO_RAW: the IP header is ours, the source included.
        let fd = from.run(|| {
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).expect("a raw socket")
        });
        let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stop, count) = (over.clone(), sent.clone());
        Self { over, sent, thread: Some(thread::spawn(move || send(&fd, vip, &stop, &count))) }
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn send(fd: &OwnedFd, vip: Ipv4Addr, over: &AtomicBool, sent: &AtomicUsize) {
    const BATCH: usize = 64;
    // Made before: making them takes longer than sending them. None is ever found, so none is known the next time.
    let packets: Vec<_> = (0..64 * BATCH).map(|_| stray(vip)).collect();
    let slices: Vec<_> = packets.iter().map(|packet| [IoSlice::new(packet)]).collect();
    let addresses = [Some(SockaddrIn::from(SocketAddrV4::new(vip, 0))); BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let start = Instant::now();
    for batch in slices.chunks(BATCH).cycle() {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let gone = sendmmsg(fd.as_raw_fd(), &mut headers, batch, addresses, [], MsgFlags::empty());
        let total = sent.fetch_add(gone.map_or(0, Iterator::count), Ordering::Relaxed);
        let due = Duration::from_secs(1) * u32::try_from(total).expect("a short flood") / RATE;
        thread::sleep(due.saturating_sub(start.elapsed()));
    }
}

/// An ACK to the VIP from an address in 198.18.0.0/15 (RFC 2544). The kernel adds the IP header's checksum; TCP's is right,
/// so that a replica answers it.
fn stray(vip: Ipv4Addr) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    packet[0] = 0x45;
    packet[3] = 40;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&[198, 0x12 | rand::random::<u8>() & 1, rand::random(), rand::random()]);
    packet[16..20].copy_from_slice(&vip.octets());
    packet[20..22].copy_from_slice(&rand::random::<u16>().to_be_bytes());
    packet[22..24].copy_from_slice(&PORT.to_be_bytes());
    packet[24..32].copy_from_slice(&rand::random::<u64>().to_be_bytes());
    packet[32] = 5 << 4;
    packet[33] = 0x10;
    // The pseudo-header: both addresses, the protocol, the length of 20.
    let words = packet[12..].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = words.sum::<u32>() + 6 + 20;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("a folded sum");
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// 100 replicas whose buckets have found their places.
fn service() -> Service {
    let service = Service::of_many(REPLICAS);
    thread::sleep(Duration::from_secs(3));
    service
}

#[test]
fn good_connections_go_on_in_a_flood() {
    let service = service();
    let mut flows = service.flows(100);
    let storm = Storm::start(&service.client, service.vip, 200);
    let before = service.counter("missed");
    let flood = Flood::start(&service.client, service.vip);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) {
        flows.iter_mut().for_each(Flows::ask);
        flows.iter_mut().for_each(Flows::hear);
    }
    // How many are too many for a second is a matter of the machine: the corpus has that.
    let (missed, limited) = (service.counter("missed") - before, service.counter("limited"));
    eprintln!("{} strays in {:?}, {missed} nobody's, {limited} not looked for", flood.sent(), start.elapsed());
    assert!(missed > 0, "strays are looked for");
    drop(flood);
    let complaints: Vec<_> = flows.iter().filter_map(|flows| flows.complaint(&[])).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    let seen = storm.seen();
    assert_eq!(seen.failed, [""; 0]);
    assert!(seen.answers() > 0, "new connections are answered");
}

/// How much of their throughput good connections keep. For a quiet machine:
/// `cargo test --release --test e2e -- --ignored --nocapture the_throughput_in_a_flood`
#[test]
#[ignore = "a measurement"]
fn the_throughput_in_a_flood() {
    let service = service();
    let mut ratios = Vec::new();
    for round in 1..=5 {
        let quiet = requests(&service);
        let flood = Flood::start(&service.client, service.vip);
        let (start, flooded) = (Instant::now(), requests(&service));
        let rate = f64::from(u32::try_from(flood.sent()).unwrap()) / start.elapsed().as_secs_f64();
        let ratio = f64::from(flooded) / f64::from(quiet);
        eprintln!("round {round}: {quiet} requests, {flooded} beside {rate:.0} strays a second: {ratio:.2}");
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    eprintln!("median {:.2}", ratios[2]);
}

/// Requests answered in 5 seconds on four connections.
fn requests(service: &Service) -> u32 {
    let ask = || {
        let mut connection = Connection::open((service.vip, PORT).into()).expect("a connection");
        let end = Instant::now() + Duration::from_secs(5);
        let mut count = 0;
        while Instant::now() < end {
            connection.ask().expect("an answer");
            count += 1;
        }
        count
    };
    service.client.run(|| {
        thread::scope(|scope| {
            let askers: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            askers.into_iter().map(|asker| asker.join().expect("a connection that goes on")).sum()
        })
    })
}
