//! ICMP echo (RFC 792): whether the kernel of another host answers, whatever runs there.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, recvfrom, sendto, socket,
};
use tokio::io::unix::AsyncFd;

use super::checksum::{fold, sum};

const REQUEST: u8 = 8;
const REPLY: u8 = 0;
const HEADER: usize = 8;
/// What tells an answer to this process from a forged one.
const SECRET: usize = 16;
/// `linux/icmp.h`
const ICMP_FILTER: libc::c_int = 1;

/// A call on the socket failed.
#[derive(Debug, thiserror::Error)]
#[error("{op} for echoes from {address}")]
pub struct Error {
    /// The call.
    pub op: &'static str,
    /// The source.
    pub address: Ipv4Addr,
    /// What the kernel said.
    #[source]
    pub errno: Errno,
}

/// Asks from one address.
#[derive(Debug)]
pub struct Echo {
    socket: AsyncFd<OwnedFd>,
    secret: [u8; SECRET],
    sequence: u16,
}

impl Echo {
    /// Opens a socket in the current runtime.
    pub fn open(from: Ipv4Addr) -> Result<Self, Error> {
        let failed = |op| move |errno| Error { op, address: from, errno };
        let fd = raw_socket(from).map_err(failed("opening a socket"))?;
        // SAFETY: an OwnedFd is open until it is dropped and always gives the same descriptor; the AsyncFd owns it.
        let registered = unsafe { AsyncFd::register(fd) };
        let registered = registered.map_err(|e| Errno::from_raw(e.into_parts().1.raw_os_error().unwrap_or(0)));
        let socket = registered.map_err(failed("registering the socket"))?;
        Ok(Self { socket, secret: rand::random(), sequence: 0 })
    }

    /// Asks; what the kernel can't send now is lost like any packet.
    pub fn ask(&mut self, to: Ipv4Addr) {
        self.sequence = self.sequence.wrapping_add(1);
        let packet = request(self.sequence, &self.secret);
        let [a, b, c, d] = to.octets();
        let _ = sendto(self.socket.as_raw_fd(), &packet, &SockaddrIn::new(a, b, c, d, 0), MsgFlags::MSG_DONTWAIT);
    }

    /// Who has answered next. Nothing is lost where the future is dropped.
    pub async fn answer(&self) -> Ipv4Addr {
        let mut buffer = [0; 128];
        loop {
            let Ok(mut ready) = self.socket.readable().await else { return std::future::pending().await };
            let received = ready.try_io(|fd| Ok(recvfrom::<SockaddrIn>(fd.as_raw_fd(), &mut buffer)?));
            if let Ok(Ok((length, Some(from)))) = received
                && answers(&buffer[..length], &self.secret)
            {
                return from.ip();
            }
        }
    }
}

fn raw_socket(from: Ipv4Addr) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?;
    // Each raw socket gets a copy of all that comes: of other types than answers none is made.
    let filter: u32 = !(1 << REPLY);
    let length = libc::socklen_t::try_from(size_of::<u32>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: a system call with a descriptor that is open, and a pointer to `length` octets.
    let set =
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_RAW, ICMP_FILTER, (&raw const filter).cast(), length) };
    Errno::result(set)?;
    let [a, b, c, d] = from.octets();
    bind(fd.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0))?;
    Ok(fd)
}

fn request(sequence: u16, secret: &[u8; SECRET]) -> Vec<u8> {
    let mut packet = vec![REQUEST, 0, 0, 0, secret[0], secret[1]];
    packet.extend(sequence.to_be_bytes());
    packet.extend(secret);
    let checksum = fold(sum(&packet)).to_be_bytes();
    packet[2..4].copy_from_slice(&checksum);
    packet
}

/// The packet begins with its IP header, as raw sockets have it.
fn answers(packet: &[u8], secret: &[u8; SECRET]) -> bool {
    let header = packet.first().map_or(0, |first| usize::from(first & 15) * 4);
    let Some(message) = packet.get(header..) else { return false };
    message.first() == Some(&REPLY) && message.get(1) == Some(&0) && message.get(HEADER..) == Some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_from_everything_else() {
        let secret = [7; SECRET];
        let mut message = request(3, &secret);
        // A packet with its checksum in it sums up to nothing.
        assert_eq!(fold(sum(&message)), 0);
        message[0] = REPLY;
        let with_header = |message: &[u8]| [&[0x45; 20], message].concat();
        assert!(answers(&with_header(&message), &secret));
        assert!(!answers(&with_header(&message), &[8; SECRET]));
        assert!(!answers(&with_header(&message[..20]), &secret));
        message[0] = 3;
        assert!(!answers(&with_header(&message), &secret));
        for length in 0..30 {
            assert!(!answers(&vec![0x4f; length], &secret));
        }
    }
}
