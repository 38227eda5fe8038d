//! Address conflict detection on one link: probes and their answers, announcements, other hosts' claims. Of IPv4 by ARP (RFC 5227), of IPv6
//! by neighbour discovery (RFC 4862 section 5.4).

mod arp;
mod ndp;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::model::{Family, Mac};
use crate::net::link::Link;
use crate::net::packet::{self, Frames};

/// Probes for an address, and the time between them; after the last one the same time is waited. RFC 5227 has 1–2 s, and RFC 4862 one
/// probe and 1 s, made for people at boot; a pod waits here.
const PROBES: u32 = 3;
const PROBE_INTERVAL: Duration = Duration::from_millis(200);

/// A call on a packet socket failed.
#[derive(Debug, thiserror::Error)]
#[error("{op} for address conflict detection on {interface}")]
pub struct Error {
    /// The call.
    pub op: &'static str,
    /// The interface.
    pub interface: String,
    /// What the kernel said.
    #[source]
    pub errno: Errno,
}

/// What is read out of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    /// The host's, as it says itself.
    mac: Mac,
    says: Says,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// It would like to have the address.
    Probes(IpAddr),
    /// It has it.
    Has(IpAddr),
}

/// Reads bytes as either protocol's frame; whether one of them makes sense. For property tests and fuzzing: must never panic.
pub fn read_anything(bytes: &[u8]) -> bool {
    arp::parse(bytes).is_some() | ndp::parse(bytes).is_some()
}

/// Another host says that an address served here is its own (RFC 5227 section 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// The host.
    pub mac: Mac,
}

/// At most so many claims wait to be handled; of a flood the rest is dropped.
const CLAIMS: usize = 64;

/// Addresses whose owners are searched for, the number of searches, and the owners seen.
type Watched = BTreeMap<IpAddr, (usize, BTreeSet<Mac>)>;

/// Frames of which kind are a family's.
const fn frames(family: Family) -> Frames {
    match family {
        Family::V4 => arp::FRAMES,
        Family::V6 => ndp::FRAMES,
    }
}

fn parse(family: Family, frame: &[u8]) -> Option<Packet> {
    match family {
        Family::V4 => arp::parse(frame),
        Family::V6 => ndp::parse(frame),
    }
}

/// The link that packets are sent by.
#[derive(Clone, Debug)]
struct Port {
    index: u32,
    interface: String,
    mac: Mac,
}

impl Port {
    fn of(link: &Link) -> Result<Self, Error> {
        let interface = link.name.clone();
        match link.mac {
            Some(mac) => Ok(Self { index: link.index, interface, mac }),
            None => Err(Error { op: "finding the Ethernet address", interface, errno: Errno::EPROTOTYPE }),
        }
    }

    fn failed(&self, (op, errno): packet::Failed) -> Error {
        Error { op, interface: self.interface.clone(), errno }
    }

    fn open(&self, family: Family) -> Result<OwnedFd, Error> {
        packet::open(self.index, frames(family)).map_err(|failed| self.failed(failed))
    }

    fn probe(&self, address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(address) => arp::probe(self.mac, address),
            IpAddr::V6(address) => ndp::probe(self.mac, address),
        }
    }

    fn announcements(&self, addresses: &[IpAddr]) -> Vec<(Family, Vec<u8>)> {
        let from = addresses.iter().any(IpAddr::is_ipv6).then(|| packet::link_local(&self.interface)).flatten();
        let frame = |address: &IpAddr| match *address {
            IpAddr::V4(address) => (Family::V4, arp::announcement(self.mac, address)),
            IpAddr::V6(address) => (Family::V6, ndp::announcement(self.mac, address, from)),
        };
        addresses.iter().map(frame).collect()
    }
}

/// Both protocols on one link.
#[derive(Debug)]
pub struct Acd {
    port: Port,
    sockets: [AsyncFd<OwnedFd>; Family::ALL.len()],
    watched: Mutex<Watched>,
    /// The addresses this node answers for.
    served: Mutex<BTreeSet<IpAddr>>,
    claims: mpsc::Sender<Claim>,
}

impl Acd {
    /// Opens packet sockets on `link` and starts listening, in the current runtime. Claims to addresses served come by the receiver.
    pub fn open(link: &Link) -> Result<(Arc<Self>, mpsc::Receiver<Claim>), Error> {
        let port = Port::of(link)?;
        let open = |family| packet::register(port.open(family)?).map_err(|failed| port.failed(failed));
        let sockets = [open(Family::V4)?, open(Family::V6)?];
        let (claims, claimed) = mpsc::channel(CLAIMS);
        let acd = Arc::new(Self { port, sockets, watched: Mutex::default(), served: Mutex::default(), claims });
        for family in Family::ALL {
            tokio::spawn(listen(Arc::downgrade(&acd), family));
        }
        Ok((acd, claimed))
    }

    /// The index of the link.
    pub fn index(&self) -> u32 {
        self.port.index
    }

    fn socket(&self, family: Family) -> &AsyncFd<OwnedFd> {
        let [v4, v6] = &self.sockets;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// From now on answers ARP probes for these addresses, and reports other hosts' claims to them. (A proxy neighbour entry makes the
    /// kernel answer probes for IPv6 addresses, but never those for IPv4's: `arp_process` takes these for local addresses only.)
    pub fn serve(&self, addresses: &BTreeSet<IpAddr>) {
        self.served().clone_from(addresses);
    }

    /// Probes for `addresses` and returns who answered for which: other hosts only.
    pub async fn probe(&self, addresses: &[IpAddr]) -> Result<BTreeMap<IpAddr, BTreeSet<Mac>>, Error> {
        let _watch = Watch::new(self, addresses);
        for _ in 0..PROBES {
            for address in addresses {
                self.write(Family::of(*address), &self.port.probe(*address)).await?;
            }
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
        let watched = self.watched();
        let seen = |address| watched.get(address).map(|(_, macs)| macs.clone()).unwrap_or_default();
        Ok(addresses.iter().map(|address| (*address, seen(address))).collect())
    }

    /// Tells the link that `address` is here (RFC 5227 section 2.3, RFC 4861 section 7.2.6).
    pub async fn announce(&self, address: IpAddr) -> Result<(), Error> {
        for (family, frame) in self.port.announcements(&[address]) {
            self.write(family, &frame).await?;
        }
        Ok(())
    }

    async fn write(&self, family: Family, frame: &[u8]) -> Result<(), Error> {
        let write = |fd: &OwnedFd| nix::unistd::write(fd, frame).map_err(std::io::Error::from);
        let sent = self.socket(family).async_io(tokio::io::Interest::WRITABLE, write).await;
        let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        sent.map(drop).map_err(|error| self.port.failed(("sending", errno(error))))
    }

    /// Returns what to answer, if that is this socket's business.
    fn heard(&self, packet: &Packet) -> Option<Vec<u8>> {
        if packet.mac == self.port.mac {
            return None;
        }
        // Who probes for the same address at the same time is in conflict too (RFC 5227 section 2.1.1, RFC 4862 section 5.4.3).
        let (Says::Probes(address) | Says::Has(address)) = packet.says;
        if let Some((_, macs)) = self.watched().get_mut(&address) {
            macs.insert(packet.mac);
        }
        if !self.served().contains(&address) {
            return None;
        }
        match packet.says {
            Says::Probes(IpAddr::V4(target)) => Some(arp::reply(self.port.mac, target, packet.mac)),
            // By the kernel.
            Says::Probes(IpAddr::V6(_)) => None,
            Says::Has(address) => {
                // Full: the queue's reader is behind, and this claim comes again.
                let _ = self.claims.try_send(Claim { address, mac: packet.mac });
                None
            }
        }
    }

    /// Has the link hand up probes that others send for the address, or no longer.
    fn follow(&self, address: IpAddr, follows: bool) {
        let IpAddr::V6(address) = address else { return };
        let socket = self.socket(Family::V6).get_ref();
        if let Err(errno) = packet::follow(socket, self.port.index, ndp::probes_of(address), follows) {
            // Answers come to all nodes.
            tracing::debug!(%address, %errno, "probes of others are not heard");
        }
    }

    fn served(&self) -> std::sync::MutexGuard<'_, BTreeSet<IpAddr>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, Watched> {
        // Every change to it is a single call: a panic elsewhere can't have left it half done.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Announces addresses on one link, without waiting.
#[derive(Debug)]
pub struct Sender {
    port: Port,
    /// It sends frames of any type.
    socket: OwnedFd,
}

impl Sender {
    /// Opens a packet socket on `link`.
    pub fn open(link: &Link) -> Result<Self, Error> {
        let port = Port::of(link)?;
        let socket = port.open(Family::V4)?;
        Ok(Self { port, socket })
    }

    /// Tells the link that `addresses` are here (RFC 5227 section 2.3, RFC 4861 section 7.2.6).
    pub fn announce(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        for (_, frame) in self.port.announcements(addresses) {
            let sent = nix::unistd::write(&self.socket, &frame);
            sent.map_err(|errno| self.port.failed(("sending", errno)))?;
        }
        Ok(())
    }
}

/// Interest in some addresses, given up when dropped, as a probe may be at any await.
struct Watch<'a> {
    acd: &'a Acd,
    addresses: &'a [IpAddr],
}

impl<'a> Watch<'a> {
    fn new(acd: &'a Acd, addresses: &'a [IpAddr]) -> Self {
        for address in addresses {
            acd.watched().entry(*address).or_default().0 += 1;
            acd.follow(*address, true);
        }
        Self { acd, addresses }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        for address in self.addresses {
            self.acd.follow(*address, false);
            let mut watched = self.acd.watched();
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
async fn listen(acd: Weak<Acd>, family: Family) {
    loop {
        let Some(acd) = acd.upgrade() else { return };
        let mut buffer = [0; 256];
        let read = |fd: &OwnedFd| nix::unistd::read(fd, &mut buffer).map_err(std::io::Error::from);
        // Wakes up now and then, so that it doesn't hold the link open for ever.
        let wait = acd.socket(family).async_io(tokio::io::Interest::READABLE, read);
        match tokio::time::timeout(Duration::from_secs(5), wait).await {
            Ok(Ok(n)) => {
                if let Some(answer) = parse(family, &buffer[..n]).and_then(|packet| acd.heard(&packet))
                    && let Err(error) = acd.write(family, &answer).await
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_frame_makes_a_parser_panic(mut frame in proptest::collection::vec(any::<u8>(), 0..160), is_ipv6: bool) {
            if is_ipv6 && frame.len() > 60 {
                frame[12..16].copy_from_slice(&[0x86, 0xdd, 0x60, 0]);
                frame[18..22].copy_from_slice(&[0, 40, 58, 255]);
            }
            let _ = read_anything(&frame);
        }
    }
}
