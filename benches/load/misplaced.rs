//! Packets of connections that no replica has, as a flood of them would come. The flood's end-to-end test sends them too.

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

/// Packets a second that are tried.
const RATE: u32 = 200_000;
/// Sent by one system call.
const BATCH: usize = 64;
/// An IP and a TCP header.
const LENGTH: usize = 40;

/// Misplaced packets, ACKs from many addresses and ports, until it is dropped.
pub struct Misplaced {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// A socket to send them by, in the calling thread's network namespace.
pub fn raw_socket() -> nix::Result<OwnedFd> {
    // IPPROTO_RAW: the IP header is ours, the source included.
    socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
}

impl Misplaced {
    /// To that address and port, by a socket of [`raw_socket`].
    pub fn start(fd: OwnedFd, to: SocketAddrV4) -> Self {
        let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stop, count) = (over.clone(), sent.clone());
        Self { over, sent, thread: Some(thread::spawn(move || send(&fd, to, &stop, &count))) }
    }

    /// How many were sent so far.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Misplaced {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn send(fd: &OwnedFd, to: SocketAddrV4, over: &AtomicBool, sent: &AtomicUsize) {
    // Made before: making them takes longer than sending them. None is ever found, so none is known the next time.
    let packets: Vec<_> = (0..64 * BATCH).map(|_| ack(*to.ip(), to.port())).collect();
    let slices: Vec<_> = packets.iter().map(|packet| [IoSlice::new(packet)]).collect();
    let addresses = [Some(SockaddrIn::from(to)); BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let start = Instant::now();
    for batch in slices.chunks(BATCH).cycle() {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let taken = sendmmsg(fd.as_raw_fd(), &mut headers, batch, addresses, [], MsgFlags::empty());
        let total = sent.fetch_add(taken.map_or(0, Iterator::count), Ordering::Relaxed);
        let due = Duration::from_secs(1) * u32::try_from(total).unwrap_or(u32::MAX) / RATE;
        thread::sleep(due.saturating_sub(start.elapsed()));
    }
}

/// An ACK from an address in 198.18.0.0/15 (RFC 2544). The kernel adds the IP header's checksum; TCP's is right, so that a
/// replica answers it.
fn ack(to: Ipv4Addr, port: u16) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    packet[0] = 0x45;
    packet[3] = 40;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&[198, 0x12 | rand::random::<u8>() & 1, rand::random(), rand::random()]);
    packet[16..20].copy_from_slice(&to.octets());
    packet[20..22].copy_from_slice(&rand::random::<u16>().to_be_bytes());
    packet[22..24].copy_from_slice(&port.to_be_bytes());
    packet[24..32].copy_from_slice(&rand::random::<u64>().to_be_bytes());
    packet[32] = 5 << 4;
    packet[33] = 0x10;
    // The pseudo-header: both addresses, the protocol, the length of 20.
    let words = packet[12..].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = words.sum::<u32>() + 6 + 20;
    let sum = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (!((sum & 0xffff) + (sum >> 16))).to_be_bytes();
    packet[36..38].copy_from_slice(&[high, low]);
    packet
}
