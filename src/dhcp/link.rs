//! Broadcast on one link, through a packet socket: it needs no address on the interface and works beside another
//! client that has port 68. `DHCPv6` by multicast from the link-local address, beside one that has port 546.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{self, MsgFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::model::Family;
use crate::net::link_local::{LinkLocal, Watch};
use crate::net::packet::{self, Frames, code};

use super::message::{Message, Reply, WireError};
use super::socket::{BUFFER, SendError, enlarge};
use super::{Error, Identity, frame, frame6, wire, wire6};

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

const FRAMES: Frames = Frames { ethertype: packet::IPV4, filter: &FILTER };

/// Which frames are a family's.
const fn frames(family: Family) -> Frames {
    match family {
        Family::V4 => FRAMES,
        Family::V6 => frame6::FRAMES,
    }
}

/// The link-local address that `DHCPv6` leaves from.
#[derive(Debug)]
struct From {
    watch: Watch,
    address: LinkLocal,
}

/// The socket and the interface it is bound to.
#[derive(Debug)]
pub struct Link {
    socket: AsyncFd<OwnedFd>,
    family: Family,
    interface: String,
    index: u32,
    mac: [u8; 6],
    /// Of `DHCPv6`: the address that messages leave from, and answers come to.
    from: Option<From>,
    /// The last frame couldn't be sent: the interface may have gone, and come back as another.
    stale: bool,
}

impl Link {
    /// Opens a packet socket on `interface`, which may be down.
    pub fn open(family: Family, interface: String) -> Result<Self, Error> {
        let (index, mac) = ethernet(&interface)?;
        let from = (family == Family::V6).then(Watch::open).transpose();
        let from = from.map_err(|error| Error::Addresses { on: interface.clone(), source: error })?;
        let from = from.map(|watch| From { watch, address: LinkLocal::Nothing });
        match open_socket(index, frames(family)) {
            Ok(socket) => {
                let mut link = Self { socket, family, interface, index, mac, from, stale: false };
                link.read_address();
                Ok(link)
            }
            Err((op, errno)) => Err(Error::Socket { op, on: interface, errno }),
        }
    }

    /// See [`super::transport::Transport::is_ready`].
    pub fn is_ready(&self) -> bool {
        self.from.as_ref().is_none_or(|from| from.address != LinkLocal::Tentative)
    }

    /// See [`super::transport::Transport::changed`].
    pub async fn changed(&self) {
        match &self.from {
            Some(from) => from.watch.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Reads the address that messages leave from; one that can't be read is one that isn't there.
    pub fn read_address(&mut self) {
        let Some(from) = &mut self.from else { return };
        from.address = Watch::read(self.index).unwrap_or_else(|error| {
            tracing::debug!(error = &error as &dyn std::error::Error, "no link-local address");
            LinkLocal::Nothing
        });
    }

    /// See [`super::transport::Transport::send`].
    pub fn send(&mut self, message: &Message, identity: &Identity) -> Result<(), SendError> {
        if self.stale {
            self.rebind();
        }
        let frame = self.frame(message, identity)?;
        let sent = socket::send(self.socket.as_raw_fd(), &frame, MsgFlags::empty());
        self.stale = sent.is_err();
        sent.map_err(io::Error::from)?;
        Ok(())
    }

    fn frame(&self, message: &Message, identity: &Identity) -> Result<Vec<u8>, SendError> {
        match self.family {
            Family::V4 => Ok(frame::broadcast(self.mac, &wire::encode(message, identity, None)?)?),
            Family::V6 => {
                let Some(From { address: LinkLocal::Usable(from), .. }) = &self.from else {
                    return Err(SendError::NoLinkLocal);
                };
                Ok(frame6::multicast(self.mac, *from, &wire6::encode(message, identity, None)?)?)
            }
        }
    }

    /// See [`super::transport::Transport::receive`].
    pub async fn receive(&self) -> io::Result<Result<Reply, WireError>> {
        let mut buffer = [0; BUFFER];
        let read = |socket: &OwnedFd| {
            socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(io::Error::from)
        };
        let length = self.socket.async_io(Interest::READABLE, read).await?;
        Ok(match self.family {
            Family::V4 => frame::parse_frame(&buffer[..length]),
            Family::V6 => frame6::parse_frame(&buffer[..length]),
        })
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
        if packet::bind(self.socket.get_ref(), index, frames(self.family).ethertype).is_ok() {
            (self.index, self.mac) = (index, mac);
            self.read_address();
        }
    }
}

/// A packet socket for an interface; or the call that failed, and how.
fn open_socket(index: u32, frames: Frames) -> Result<AsyncFd<OwnedFd>, packet::Failed> {
    let socket = packet::open(index, frames)?;
    enlarge(&socket);
    packet::register(socket)
}

/// The index and hardware address of an Ethernet interface.
fn ethernet(interface: &str) -> Result<(u32, [u8; 6]), Error> {
    let failed = |errno| Error::Socket { op: "getifaddrs", on: interface.to_owned(), errno };
    let mut found = getifaddrs().map_err(failed)?.filter(|entry| entry.interface_name == interface).peekable();
    if found.peek().is_none() {
        return Err(Error::NoInterface(interface.to_owned()));
    }
    let link = found.find_map(|entry| entry.address?.as_link_addr().copied());
    link.filter(|link| link.hatype() == libc::ARPHRD_ETHER && link.halen() == 6)
        .and_then(|link| Some((u32::try_from(link.ifindex()).ok()?, link.addr()?)))
        .ok_or_else(|| Error::NotEthernet(interface.to_owned()))
}
