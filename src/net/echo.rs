//! ICMP echo (RFC 792), and that of IPv6 (RFC 4443): whether the kernel of another host answers, whatever runs there.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, recvfrom, sendto, socket,
};
use tokio::io::unix::AsyncFd;

use crate::model::Family;

use super::checksum::{fold, sum};

const HEADER: usize = 8;
/// What tells an answer to this process from a forged one.
const SECRET: usize = 16;

/// What differs between the families.
#[derive(Clone, Copy, Debug)]
struct Icmp {
    request: u8,
    reply: u8,
    domain: AddressFamily,
    protocol: SockProtocol,
}

impl Icmp {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self { request: 8, reply: 0, domain: AddressFamily::Inet, protocol: SockProtocol::Icmp },
            Family::V6 => {
                Self { request: 128, reply: 129, domain: AddressFamily::Inet6, protocol: SockProtocol::IcmpV6 }
            }
        }
    }

    /// Each raw socket gets a copy of all that comes: of other types than answers none is made.
    fn filter(self, fd: &OwnedFd) -> nix::Result<()> {
        // linux/icmp.h and linux/icmpv6.h: a bit a type, set for what is to be dropped.
        const ICMP_FILTER: libc::c_int = 1;
        let mut bits = [u32::MAX; 8];
        bits[usize::from(self.reply / 32)] &= !(1 << (self.reply % 32));
        let (level, octets) = match self.domain {
            AddressFamily::Inet6 => (libc::IPPROTO_ICMPV6, size_of_val(&bits)),
            _ => (libc::SOL_RAW, size_of::<u32>()),
        };
        let length = libc::socklen_t::try_from(octets).map_err(|_| Errno::EINVAL)?;
        // SAFETY: a system call with a descriptor that is open, and a pointer to `length` octets at least.
        let set = unsafe { libc::setsockopt(fd.as_raw_fd(), level, ICMP_FILTER, bits.as_ptr().cast(), length) };
        Errno::result(set).map(drop)
    }
}

/// A call on the socket failed.
#[derive(Debug, thiserror::Error)]
#[error("{op} for echoes from {address}")]
pub struct Error {
    /// The call.
    pub op: &'static str,
    /// The source.
    pub address: IpAddr,
    /// What the kernel said.
    #[source]
    pub errno: Errno,
}

/// Asks from one address hosts of its family.
#[derive(Debug)]
pub struct Echo {
    socket: AsyncFd<OwnedFd>,
    icmp: Icmp,
    secret: [u8; SECRET],
    sequence: u16,
}

impl Echo {
    /// Opens a socket in the current runtime.
    pub fn open(from: IpAddr) -> Result<Self, Error> {
        let failed = |op| move |errno| Error { op, address: from, errno };
        let icmp = Icmp::of(Family::of(from));
        let fd = raw_socket(icmp, from).map_err(failed("opening a socket"))?;
        // SAFETY: an OwnedFd is open until it is dropped and always gives the same descriptor; the AsyncFd owns it.
        let registered = unsafe { AsyncFd::register(fd) };
        let registered = registered.map_err(|e| Errno::from_raw(e.into_parts().1.raw_os_error().unwrap_or(0)));
        let socket = registered.map_err(failed("registering the socket"))?;
        Ok(Self { socket, icmp, secret: rand::random(), sequence: 0 })
    }

    /// Asks; what the kernel can't send now is lost like any packet.
    pub fn ask(&mut self, to: IpAddr) {
        self.sequence = self.sequence.wrapping_add(1);
        let packet = request(self.icmp, self.sequence, &self.secret);
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        let _ = sendto(self.socket.as_raw_fd(), &packet, &to, MsgFlags::MSG_DONTWAIT);
    }

    /// Who has answered next. Nothing is lost where the future is dropped.
    pub async fn answer(&self) -> IpAddr {
        let mut buffer = [0; 128];
        loop {
            let Ok(mut ready) = self.socket.readable().await else { return std::future::pending().await };
            let received = ready.try_io(|fd| Ok(recvfrom::<SockaddrStorage>(fd.as_raw_fd(), &mut buffer)?));
            if let Ok(Ok((length, Some(from)))) = received
                && answers(self.icmp, &buffer[..length], &self.secret)
                && let Some(from) = ip_of(&from)
            {
                return from;
            }
        }
    }
}

fn ip_of(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|from| IpAddr::V4(from.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|from| IpAddr::V6(from.ip())))
}

fn raw_socket(icmp: Icmp, from: IpAddr) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(icmp.domain, SockType::Raw, flags, icmp.protocol)?;
    icmp.filter(&fd)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    Ok(fd)
}

/// Of IPv6 the kernel writes the checksum, which is over addresses too (RFC 3542, 3.1).
fn request(icmp: Icmp, sequence: u16, secret: &[u8; SECRET]) -> Vec<u8> {
    let mut packet = vec![icmp.request, 0, 0, 0, secret[0], secret[1]];
    packet.extend(sequence.to_be_bytes());
    packet.extend(secret);
    let checksum = fold(sum(&packet)).to_be_bytes();
    packet[2..4].copy_from_slice(&checksum);
    packet
}

/// The packet begins with its IP header, as raw sockets have it; those of IPv6 have none.
fn answers(icmp: Icmp, packet: &[u8], secret: &[u8; SECRET]) -> bool {
    let header = match icmp.domain {
        AddressFamily::Inet6 => 0,
        _ => packet.first().map_or(0, |first| usize::from(first & 15) * 4),
    };
    let Some(message) = packet.get(header..) else { return false };
    message.first() == Some(&icmp.reply) && message.get(1) == Some(&0) && message.get(HEADER..) == Some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_from_everything_else() {
        for (family, header) in [(Family::V4, &[0x45; 20][..]), (Family::V6, &[])] {
            let (icmp, secret) = (Icmp::of(family), [7; SECRET]);
            let mut message = request(icmp, 3, &secret);
            // A packet with its checksum in it sums up to nothing.
            assert_eq!(fold(sum(&message)), 0);
            message[0] = icmp.reply;
            let with_header = |message: &[u8]| [header, message].concat();
            assert!(answers(icmp, &with_header(&message), &secret));
            assert!(!answers(icmp, &with_header(&message), &[8; SECRET]));
            assert!(!answers(icmp, &with_header(&message[..20]), &secret));
            message[0] = 3;
            assert!(!answers(icmp, &with_header(&message), &secret));
            for length in 0..30 {
                assert!(!answers(icmp, &vec![0x4f; length], &secret));
            }
        }
    }
}
