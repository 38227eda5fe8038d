//! The relay form: a UDP socket on port 67, or 547 for `DHCPv6`, of an address of this machine, unicast to one server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use tokio::net::UdpSocket;

use crate::model::Family;

use super::message::{Message, RelayAgent, Reply, WireError};
use super::socket::{BUFFER, SendError, enlarge, errno};
use super::{Error, Identity, frame, frame6, wire, wire6};

/// The socket and what every message carries.
#[derive(Debug)]
pub struct Relay {
    socket: UdpSocket,
    server: SocketAddr,
    agent: RelayAgent,
}

impl Relay {
    /// Opens it on this machine's address on the way to `server`.
    pub fn open(server: IpAddr, subnet: IpAddr) -> Result<Self, Error> {
        let giaddr = source_towards(server).map_err(|source| Error::NoRoute { server, source })?;
        Self::on(giaddr, server, subnet)
    }

    /// Binds to `giaddr`, also beside a DHCP server that has port 67 of all addresses (and set `SO_REUSEADDR`): the
    /// kernel delivers to the socket with the address.
    fn on(giaddr: IpAddr, server: IpAddr, subnet: IpAddr) -> Result<Self, Error> {
        let port = port(Family::of(server));
        let local = SocketAddr::new(giaddr, port);
        let failed = |op| move |errno| Error::Socket { op, on: local.to_string(), errno };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let domain = match Family::of(server) {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let fd = socket::socket(domain, SockType::Datagram, flags, None).map_err(failed("socket"))?;
        socket::setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(failed("SO_REUSEADDR"))?;
        enlarge(&fd);
        socket::bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(local)).map_err(failed("bind"))?;
        let socket = UdpSocket::from_std(fd.into()).map_err(|error| failed("register")(errno(&error)))?;
        let server = SocketAddr::new(server, port);
        Ok(Self { socket, server, agent: RelayAgent { giaddr, subnet } })
    }

    /// See [`super::transport::Transport::send`].
    pub fn send(&mut self, message: &Message, identity: &Identity) -> Result<(), SendError> {
        self.follow()?;
        let bytes = match Family::of(self.server.ip()) {
            Family::V4 => wire::encode(message, identity, Some(&self.agent))?,
            Family::V6 => wire6::encode(message, identity, Some(&self.agent))?,
        };
        // Not through tokio's try_send_to: on a full queue that would wait for a readiness that is never polled.
        let to = SockaddrStorage::from(self.server);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.socket.as_fd());
        socket::sendto(fd, &bytes, &to, socket::MsgFlags::empty()).map_err(io::Error::from)?;
        Ok(())
    }

    /// Moves to the machine's address as it is now: answers to another one would reach nobody.
    fn follow(&mut self) -> io::Result<()> {
        let giaddr = source_towards(self.server.ip())?;
        if giaddr != self.agent.giaddr {
            tracing::info!(from = %self.agent.giaddr, to = %giaddr, "DHCP relays by the node's other address");
            let moved = Self::on(giaddr, self.server.ip(), self.agent.subnet);
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
        let (length, from) = self.socket.recv_from(&mut buffer).await?;
        Ok(match Family::of(self.server.ip()) {
            Family::V4 => wire::parse(&buffer[..length]),
            Family::V6 => wire6::parse_relayed(&buffer[..length], from.ip()),
        })
    }
}

/// Where servers and relay agents listen.
const fn port(family: Family) -> u16 {
    match family {
        Family::V4 => frame::SERVER_PORT,
        Family::V6 => frame6::SERVER_PORT,
    }
}

/// This machine's address on the way to `server`. Connecting a UDP socket sends nothing.
fn source_towards(server: IpAddr) -> io::Result<IpAddr> {
    let family = Family::of(server);
    let socket = std::net::UdpSocket::bind((family.unspecified(), 0))?;
    socket.connect((server, port(family)))?;
    Ok(socket.local_addr()?.ip())
}
