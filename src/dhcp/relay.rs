//! The relay form: a UDP socket on port 67 of an address of this machine, unicast to one server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};
use tokio::net::UdpSocket;

use super::frame::SERVER_PORT;
use super::socket::{BUFFER, SendError, enlarge, errno};
use super::wire::{self, Message, RelayAgent, Reply, WireError};
use super::{Error, Identity};

/// The socket and what every message carries.
#[derive(Debug)]
pub struct Relay {
    socket: UdpSocket,
    server: SocketAddrV4,
    agent: RelayAgent,
}

impl Relay {
    /// Opens it on this machine's address on the way to `server`.
    pub fn open(server: Ipv4Addr, subnet: Ipv4Addr) -> Result<Self, Error> {
        let giaddr = source_towards(server).map_err(|source| Error::NoRoute { server, source })?;
        Self::on(giaddr, server, subnet)
    }

    /// Binds to `giaddr`, also beside a DHCP server that has port 67 of all addresses (and set `SO_REUSEADDR`): the
    /// kernel delivers to the socket with the address.
    fn on(giaddr: Ipv4Addr, server: Ipv4Addr, subnet: Ipv4Addr) -> Result<Self, Error> {
        let local = SocketAddrV4::new(giaddr, SERVER_PORT);
        let failed = |op| move |errno| Error::Socket { op, on: local.to_string(), errno };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket::socket(AddressFamily::Inet, SockType::Datagram, flags, None).map_err(failed("socket"))?;
        socket::setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(failed("SO_REUSEADDR"))?;
        enlarge(&fd);
        socket::bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(local)).map_err(failed("bind"))?;
        let socket = UdpSocket::from_std(fd.into()).map_err(|error| failed("register")(errno(&error)))?;
        let server = SocketAddrV4::new(server, SERVER_PORT);
        Ok(Self { socket, server, agent: RelayAgent { giaddr, subnet } })
    }

    /// See [`super::transport::Transport::send`].
    pub fn send(&mut self, message: &Message, identity: &Identity) -> Result<(), SendError> {
        self.follow()?;
        let bytes = wire::encode(message, identity, Some(&self.agent))?;
        // Not through tokio's try_send_to: on a full queue that would wait for a readiness that is never polled.
        let to = SockaddrIn::from(self.server);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.socket.as_fd());
        socket::sendto(fd, &bytes, &to, socket::MsgFlags::empty()).map_err(io::Error::from)?;
        Ok(())
    }

    /// Moves to the machine's address as it is now: answers to another one would reach nobody.
    fn follow(&mut self) -> io::Result<()> {
        let giaddr = source_towards(*self.server.ip())?;
        if giaddr != self.agent.giaddr {
            tracing::info!(from = %self.agent.giaddr, to = %giaddr, "DHCP relays by the node's other address");
            let moved = Self::on(giaddr, *self.server.ip(), self.agent.subnet);
            *self = moved.map_err(|error| match error {
                Error::Socket { errno, .. } => io::Error::from(errno),
                other => io::Error::other(other),
            })?;
        }
        Ok(())
    }

    /// See [`super::transport::Transport::receive`].
    pub async fn receive(&self) -> io::Result<Result<Reply, WireError>> {
        let mut buffer = [0; BUFFER];
        let (length, _) = self.socket.recv_from(&mut buffer).await?;
        Ok(wire::parse(&buffer[..length]))
    }
}

/// This machine's address on the way to `server`. Connecting a UDP socket sends nothing.
fn source_towards(server: Ipv4Addr) -> io::Result<Ipv4Addr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((server, SERVER_PORT))?;
    match socket.local_addr()? {
        SocketAddr::V4(address) => Ok(*address.ip()),
        SocketAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}
