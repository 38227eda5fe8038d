//! ARP on one link (RFC 826, RFC 5227): probes and their answers, announcements.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::model::Mac;
use crate::net::link::Link;

/// Probes for an address, and the time between them; after the last one the same time is waited. RFC 5227 has 1–2 s,
/// made for people at boot; a pod waits here.
const PROBES: u32 = 3;
const PROBE_INTERVAL: Duration = Duration::from_millis(200);

const ETHERTYPE: u16 = 0x0806;
/// Ethernet header and ARP for IPv4.
const FRAME: usize = 14 + 28;
/// Ethernet, IPv4, their address lengths.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const BROADCAST: Mac = Mac([0xff; 6]);

/// A call on the packet socket failed.
#[derive(Debug, thiserror::Error)]
#[error("{op} for ARP on {interface}")]
pub struct Error {
    /// The call.
    pub op: &'static str,
    /// The interface.
    pub interface: String,
    /// What the kernel said.
    #[source]
    pub errno: Errno,
}

/// An ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    op: u16,
    sender_mac: Mac,
    sender: Ipv4Addr,
    target: Ipv4Addr,
}

/// Another host says that an address served here is its own (RFC 5227 section 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub address: Ipv4Addr,
    /// The host.
    pub mac: Mac,
}

/// At most so many claims wait to be handled; of a flood the rest is dropped.
const CLAIMS: usize = 64;

/// Addresses whose owners are searched for, the number of searches, and the owners seen.
type Watched = BTreeMap<Ipv4Addr, (usize, BTreeSet<Mac>)>;

/// ARP on one link.
#[derive(Debug)]
pub struct Arp {
    socket: AsyncFd<OwnedFd>,
    interface: String,
    mac: Mac,
    watched: Mutex<Watched>,
    /// The addresses this node answers for.
    served: Mutex<BTreeSet<Ipv4Addr>>,
    claims: mpsc::Sender<Claim>,
}

impl Arp {
    /// Opens a packet socket on `link` and starts listening, in the current runtime. Claims to addresses served come by the
    /// receiver.
    pub fn open(link: &Link) -> Result<(Arc<Self>, mpsc::Receiver<Claim>), Error> {
        let failed = |op| {
            let interface = link.name.clone();
            move |errno| Error { op, interface, errno }
        };
        let mac = link.mac.ok_or(Errno::EPROTOTYPE).map_err(failed("finding the Ethernet address"))?;
        let fd = bound_socket(link.index).map_err(failed("opening a packet socket"))?;
        // SAFETY: an OwnedFd is open until it is dropped and always gives the same descriptor; the AsyncFd owns it.
        let registered = unsafe { AsyncFd::register(fd) };
        let registered = registered.map_err(|e| Errno::from_raw(e.into_parts().1.raw_os_error().unwrap_or(0)));
        let socket = registered.map_err(failed("registering the packet socket"))?;
        let (claims, claimed) = mpsc::channel(CLAIMS);
        let (interface, watched, served) = (link.name.clone(), Mutex::default(), Mutex::default());
        let arp = Arc::new(Self { socket, interface, mac, watched, served, claims });
        tokio::spawn(listen(Arc::downgrade(&arp)));
        Ok((arp, claimed))
    }

    /// From now on answers probes for these addresses, and reports other hosts' claims to them. (A proxy neighbour entry makes
    /// the kernel answer requests, but never probes: `arp_process` takes those for local addresses only.)
    pub fn serve(&self, addresses: &BTreeSet<Ipv4Addr>) {
        self.served().clone_from(addresses);
    }

    /// Probes for `addresses` and returns who answered for which: other hosts only.
    pub async fn probe(&self, addresses: &[Ipv4Addr]) -> Result<BTreeMap<Ipv4Addr, BTreeSet<Mac>>, Error> {
        let _watch = Watch::new(self, addresses);
        for _ in 0..PROBES {
            for address in addresses {
                self.send(Ipv4Addr::UNSPECIFIED, *address).await?;
            }
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
        let watched = self.watched();
        let seen = |address| watched.get(address).map(|(_, macs)| macs.clone()).unwrap_or_default();
        Ok(addresses.iter().map(|address| (*address, seen(address))).collect())
    }

    /// Tells the link that `address` is here (RFC 5227 section 2.3).
    pub async fn announce(&self, address: Ipv4Addr) -> Result<(), Error> {
        self.send(address, address).await
    }

    async fn send(&self, sender: Ipv4Addr, target: Ipv4Addr) -> Result<(), Error> {
        self.write(request(self.mac, sender, target)).await
    }

    async fn write(&self, frame: [u8; FRAME]) -> Result<(), Error> {
        let write = |fd: &OwnedFd| nix::unistd::write(fd, &frame).map_err(std::io::Error::from);
        let sent = self.socket.async_io(tokio::io::Interest::WRITABLE, write).await;
        sent.map(drop).map_err(|e| Error {
            op: "sending",
            interface: self.interface.clone(),
            errno: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
        })
    }

    /// Returns what to answer, if that is this socket's business.
    fn heard(&self, packet: &Packet) -> Option<[u8; FRAME]> {
        if packet.sender_mac == self.mac {
            return None;
        }
        let about = if packet.sender.is_unspecified() {
            // Another host probes for the same address at the same time (RFC 5227 section 2.1.1).
            Some(packet.target).filter(|_| packet.op == REQUEST)
        } else {
            Some(packet.sender)
        };
        if let Some(address) = about
            && let Some((_, macs)) = self.watched().get_mut(&address)
        {
            macs.insert(packet.sender_mac);
        }
        let served = self.served();
        if packet.sender.is_unspecified() {
            let probed = packet.op == REQUEST && served.contains(&packet.target);
            return probed.then(|| reply(self.mac, packet.target, packet.sender_mac));
        }
        if served.contains(&packet.sender) {
            // Full: the queue's reader is behind, and this claim comes again.
            let _ = self.claims.try_send(Claim { address: packet.sender, mac: packet.sender_mac });
        }
        None
    }

    fn served(&self) -> std::sync::MutexGuard<'_, BTreeSet<Ipv4Addr>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, Watched> {
        // Every change to it is a single call: a panic elsewhere can't have left it half done.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends gratuitous ARPs on one link, without waiting.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
    interface: String,
    mac: Mac,
}

impl Sender {
    /// Opens a packet socket on `link`.
    pub fn open(link: &Link) -> Result<Self, Error> {
        let failed = |op| {
            let interface = link.name.clone();
            move |errno| Error { op, interface, errno }
        };
        let mac = link.mac.ok_or(Errno::EPROTOTYPE).map_err(failed("finding the Ethernet address"))?;
        let socket = bound_socket(link.index).map_err(failed("opening a packet socket"))?;
        Ok(Self { socket, interface: link.name.clone(), mac })
    }

    /// Tells the link that `address` is here (RFC 5227 section 2.3).
    pub fn announce(&self, address: Ipv4Addr) -> Result<(), Error> {
        let frame = request(self.mac, address, address);
        let failed = |errno| Error { op: "sending", interface: self.interface.clone(), errno };
        nix::unistd::write(&self.socket, &frame).map(drop).map_err(failed)
    }
}

/// Interest in some addresses, given up when dropped, as a probe may be at any await.
struct Watch<'a> {
    arp: &'a Arp,
    addresses: &'a [Ipv4Addr],
}

impl<'a> Watch<'a> {
    fn new(arp: &'a Arp, addresses: &'a [Ipv4Addr]) -> Self {
        for address in addresses {
            arp.watched().entry(*address).or_default().0 += 1;
        }
        Self { arp, addresses }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut watched = self.arp.watched();
        for address in self.addresses {
            if let Some((count, _)) = watched.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    watched.remove(address);
                }
            }
        }
    }
}

/// Reads until the last user of the link is gone.
async fn listen(arp: std::sync::Weak<Arp>) {
    loop {
        let Some(arp) = arp.upgrade() else { return };
        let mut buffer = [0; 256];
        let read = |fd: &OwnedFd| nix::unistd::read(fd, &mut buffer).map_err(std::io::Error::from);
        // Wakes up now and then, so that it doesn't hold the link open for ever.
        let wait = arp.socket.async_io(tokio::io::Interest::READABLE, read);
        match tokio::time::timeout(Duration::from_secs(5), wait).await {
            Ok(Ok(n)) => {
                if let Some(answer) = parse(&buffer[..n]).and_then(|packet| arp.heard(&packet))
                    && let Err(error) = arp.write(answer).await
                {
                    tracing::debug!(error = &error as &dyn std::error::Error, "probe not answered");
                }
            }
            // The link went down or away; it may come back.
            Ok(Err(_)) => tokio::time::sleep(PROBE_INTERVAL).await,
            Err(_) => {}
        }
    }
}

/// A non-blocking packet socket that sees the ARP of one link.
fn bound_socket(index: u32) -> Result<OwnedFd, Errno> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes no pointers.
    let fd = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor was just made and has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_ll is plain numbers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET.try_into().map_err(|_| Errno::EINVAL)?;
    address.sll_protocol = ETHERTYPE.to_be();
    address.sll_ifindex = index.try_into().map_err(|_| Errno::ENODEV)?;
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the pointer is to a live sockaddr_ll, and size is its size.
    let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) };
    Errno::result(result).map(|_| fd)
}

/// "Who has `target`? Tell `sender`", by broadcast.
fn request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> [u8; FRAME] {
    let mut frame = frame(BROADCAST, mac, REQUEST, sender);
    frame[38..42].copy_from_slice(&target.octets());
    frame
}

/// "`address` is at `mac`", to who probed for it.
fn reply(mac: Mac, address: Ipv4Addr, to: Mac) -> [u8; FRAME] {
    let mut frame = frame(to, mac, REPLY, address);
    frame[32..38].copy_from_slice(&to.0);
    frame
}

fn frame(to: Mac, mac: Mac, op: u16, sender: Ipv4Addr) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&mac.0);
    frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    frame[14..20].copy_from_slice(&KIND);
    frame[20..22].copy_from_slice(&op.to_be_bytes());
    frame[22..28].copy_from_slice(&mac.0);
    frame[28..32].copy_from_slice(&sender.octets());
    frame
}

fn parse(frame: &[u8]) -> Option<Packet> {
    let arp: &[u8; FRAME] = frame.first_chunk()?;
    if arp[12..14] != ETHERTYPE.to_be_bytes() || arp[14..20] != KIND {
        return None;
    }
    let address = |at: usize| Ipv4Addr::new(arp[at], arp[at + 1], arp[at + 2], arp[at + 3]);
    Some(Packet {
        op: u16::from_be_bytes([arp[20], arp[21]]),
        sender_mac: Mac(arp[22..28].try_into().ok()?),
        sender: address(28),
        target: address(38),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_probe_is_as_tcpdump_shows_it() {
        // "Request who-has 10.77.0.99 tell 0.0.0.0", from 02:00:00:00:00:01 to Broadcast.
        let frame = request(Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::UNSPECIFIED, [10, 77, 0, 99].into());
        let hex = frame.map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(
            hex,
            "ffffffffffff02000000000108060001080006040001020000000001\
             000000000000000000000a4d0063"
        );
        let packet = parse(&frame).unwrap();
        assert_eq!((packet.op, packet.target), (REQUEST, [10, 77, 0, 99].into()));
    }

    #[test]
    fn a_probe_is_answered_to_who_sent_it() {
        let (ours, theirs) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 9]));
        let packet = parse(&reply(ours, [10, 77, 0, 99].into(), theirs)).unwrap();
        let want = Packet {
            op: REPLY,
            sender_mac: ours,
            sender: [10, 77, 0, 99].into(),
            target: Ipv4Addr::UNSPECIFIED, // as the probe had no sender
        };
        assert_eq!(packet, want);
        assert_eq!(reply(ours, [10, 77, 0, 99].into(), theirs)[..6], theirs.0);
    }

    proptest! {
        #[test]
        fn no_frame_makes_the_parser_panic(frame in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&frame);
        }
    }
}
