//! Broadcast on one link, through a packet socket: it needs no address on the interface and works beside another
//! client that has port 68.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::socket::{BUFFER, SendError, enlarge, errno};
use super::wire::{self, Message, Reply, WireError};
use super::{Error, Identity, frame};

/// Lets through what [`frame::parse_frame`] would read on: IPv4, UDP, no fragment but a first one, port 68. As
/// `tcpdump -dd "udp dst port 68"` without its IPv6 half.
const FILTER: [libc::sock_filter; 11] = [
    code(0x28, 0, 0, 12),       // ldh [12]         the Ethernet type
    code(0x15, 0, 7, 0x0800),   // jeq IPv4         else drop
    code(0x30, 0, 0, 23),       // ldb [23]         the protocol
    code(0x15, 0, 5, 17),       // jeq UDP          else drop
    code(0x28, 0, 0, 20),       // ldh [20]         the fragment offset
    code(0x45, 3, 0, 0x1fff),   // jset 0x1fff      drop
    code(0xb1, 0, 0, 14),       // ldxb 4*([14]&15) the IP header's length
    code(0x48, 0, 0, 16),       // ldh [x+16]       the destination port
    code(0x15, 1, 0, 68),       // jeq 68           accept
    code(0x06, 0, 0, 0),        // ret 0
    code(0x06, 0, 0, 0x40_000), // ret all of it
];

const fn code(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// The socket and the interface it is bound to.
#[derive(Debug)]
pub struct Link {
    socket: AsyncFd<OwnedFd>,
    interface: String,
    mac: [u8; 6],
    /// The last frame couldn't be sent: the interface may have gone, and come back as another.
    stale: bool,
}

impl Link {
    /// Opens a packet socket on `interface`, which may be down.
    pub fn open(interface: String) -> Result<Self, Error> {
        let (index, mac) = ethernet(&interface)?;
        match open_socket(index) {
            Ok(socket) => Ok(Self { socket, interface, mac, stale: false }),
            Err((op, errno)) => Err(Error::Socket { op, on: interface, errno }),
        }
    }

    /// See [`super::transport::Transport::send`].
    pub fn send(&mut self, message: &Message, identity: &Identity) -> Result<(), SendError> {
        if self.stale {
            self.rebind();
        }
        let frame = frame::broadcast(self.mac, &wire::encode(message, identity, None)?)?;
        let sent = socket::send(self.socket.as_raw_fd(), &frame, MsgFlags::empty());
        self.stale = sent.is_err();
        sent.map_err(io::Error::from)?;
        Ok(())
    }

    /// See [`super::transport::Transport::receive`].
    pub async fn receive(&self) -> io::Result<Result<Reply, WireError>> {
        let mut buffer = [0; BUFFER];
        let read = |socket: &OwnedFd| {
            socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(io::Error::from)
        };
        let length = self.socket.async_io(Interest::READABLE, read).await?;
        Ok(frame::parse_frame(&buffer[..length]))
    }

    /// Goes over another interface, or over the same one, which has another index or address. Until it can be bound to, each
    /// `send` tries it first.
    pub fn rebind_to(&mut self, interface: String) {
        self.interface = interface;
        self.stale = true;
        self.rebind();
    }

    /// Binds to the interface of the name as it is now. An interface made anew has another index (the kernel answers
    /// ENXIO for the old one), and its address may have changed while it was down. If there is none, the next `send`
    /// tries again.
    fn rebind(&mut self) {
        let Ok((index, mac)) = ethernet(&self.interface) else { return };
        if bind(self.socket.get_ref(), index).is_ok() {
            self.mac = mac;
        }
    }
}

/// A packet socket for an interface; or the call that failed, and how.
fn open_socket(index: usize) -> Result<AsyncFd<OwnedFd>, (&'static str, Errno)> {
    let failed = |op| move |errno| (op, errno);
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    // With no protocol yet it receives nothing; bind names one when the filter is in place (packet(7)).
    let socket = socket::socket(AddressFamily::Packet, SockType::Raw, flags, None).map_err(failed("socket"))?;
    attach_filter(&socket).map_err(failed("SO_ATTACH_FILTER"))?;
    enlarge(&socket);
    bind(&socket, index).map_err(failed("bind"))?;
    // SAFETY: an OwnedFd is open until it is dropped and always gives the same descriptor; the AsyncFd owns it.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    registered.map_err(|error| ("register", errno(&error.into())))
}

/// The index and hardware address of an Ethernet interface.
fn ethernet(interface: &str) -> Result<(usize, [u8; 6]), Error> {
    let failed = |errno| Error::Socket { op: "getifaddrs", on: interface.to_owned(), errno };
    let mut found = getifaddrs().map_err(failed)?.filter(|entry| entry.interface_name == interface).peekable();
    if found.peek().is_none() {
        return Err(Error::NoInterface(interface.to_owned()));
    }
    let link = found.find_map(|entry| entry.address?.as_link_addr().copied());
    link.filter(|link| link.hatype() == libc::ARPHRD_ETHER && link.halen() == 6)
        .and_then(|link| Some((link.ifindex(), link.addr()?)))
        .ok_or_else(|| Error::NotEthernet(interface.to_owned()))
}

fn attach_filter(socket: &OwnedFd) -> Result<(), Errno> {
    let mut filter = FILTER;
    let program =
        libc::sock_fprog { len: FILTER.len().try_into().map_err(|_| Errno::EINVAL)?, filter: filter.as_mut_ptr() };
    // SAFETY: the option's value is a sock_fprog of the length given, its pointer and length those of `filter`. The
    // kernel copies both before it returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            ptr::from_ref(&program).cast(),
            socklen::<libc::sock_fprog>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Binds to an interface, for IPv4 packets from then on.
fn bind(socket: &OwnedFd, index: usize) -> Result<(), Errno> {
    // SAFETY: a sockaddr_ll is integers and an array of them, for which all zeros is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(|_| Errno::EINVAL)?;
    address.sll_protocol = u16::try_from(libc::ETH_P_IP).map_err(|_| Errno::EINVAL)?.to_be();
    address.sll_ifindex = index.try_into().map_err(|_| Errno::EINVAL)?;
    // SAFETY: the pointer is to a sockaddr_ll of the length given, which the kernel reads and doesn't keep.
    let result =
        unsafe { libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), socklen::<libc::sockaddr_ll>()) };
    Errno::result(result).map(drop)
}

/// The size of a structure as the socket calls want it.
fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(libc::socklen_t::MAX)
}
