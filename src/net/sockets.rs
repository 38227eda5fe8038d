//! Sockets of a network namespace (`ss`), by socket diagnostics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{NlasIterator, Parseable};
use netlink_packet_sock_diag::SockDiagMessage as Message;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, INET_DIAG_SKV6ONLY, IPPROTO_TCP, IPPROTO_UDP, TCP_CLOSE, TCP_LISTEN, TCP_TIME_WAIT,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::{Module, Netns, Result, Socket};

/// The table of sockets of one network namespace.
#[derive(Debug)]
pub struct Sockets(Socket);

/// A connection, as the server's side sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// The local port.
    pub port: u16,
    /// The address and port at the other end.
    pub remote: SocketAddr,
}

/// A socket as the kernel shows it.
struct Shown {
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
}

/// The states of a TCP socket that has a connection. One in `TIME_WAIT` has had it; `SYN_SENT` is a client's.
fn connected() -> StateFlags {
    StateFlags::ESTABLISHED
        | StateFlags::SYN_RECV
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2
        | StateFlags::CLOSE_WAIT
        | StateFlags::LAST_ACK
        | StateFlags::CLOSING
}

impl Sockets {
    /// Opens the table of a namespace.
    pub fn open(netns: &Netns) -> Result<Self> {
        let sockets = Self(netns.run(|| Socket::of_protocol(NETLINK_SOCK_DIAG))??);
        // To a question for one socket the kernel says "no such entry" also where it lacks the module that knows
        // (inet_diag, tcp_diag); a listing of nothing tells the two apart.
        sockets.list(AF_INET, IPPROTO_TCP, StateFlags::empty())?;
        Ok(sockets)
    }

    /// Whether there is a TCP connection between exactly these two, or one being made. Neither a listener is one nor what
    /// lingers in `TIME_WAIT`.
    pub fn has_connection(&self, local: SocketAddr, remote: SocketAddr) -> Result<bool> {
        let mut request = request(family(local), IPPROTO_TCP, StateFlags::all());
        request.socket_id = SocketId {
            source_port: local.port(),
            source_address: local.ip(),
            destination_port: remote.port(),
            destination_address: remote.ip(),
            cookie: [0xff; 8], // whichever socket it is
            ..socket_id(family(local))
        };
        let object = format_args!("{local} from {remote}");
        // Where there is no connection the kernel looks for a listener and shows that one.
        let state = self.0.get(("get socket", object), &Message::InetRequest(request), |_, payload| {
            Some(InetResponseHeader::parse(payload).ok()?.state)
        })?;
        Ok(state.is_some_and(|state| ![TCP_LISTEN, TCP_TIME_WAIT, TCP_CLOSE].contains(&state)))
    }

    /// Whether a SYN to this address and port would find a socket that takes it: the kernel's own lookup, in which sockets
    /// bound to any address count, IPv6 ones that take IPv4 too. One that is tied to a device is not seen.
    pub fn takes_connections(&self, local: SocketAddr) -> Result<bool> {
        let mut request = request(family(local), IPPROTO_TCP, StateFlags::all());
        request.socket_id = from_any(local);
        Ok(self.state_of(request, local)? == Some(TCP_LISTEN))
    }

    /// The same for a datagram from any sender.
    pub fn takes_datagrams(&self, local: SocketAddr) -> Result<bool> {
        let mut request = request(family(local), IPPROTO_UDP, StateFlags::all());
        let id = from_any(local);
        // Source and destination change places for UDP ("for historical reasons", udp_dump_one).
        request.socket_id = SocketId {
            source_port: id.destination_port,
            source_address: id.destination_address,
            destination_port: id.source_port,
            destination_address: id.source_address,
            ..id
        };
        Ok(self.state_of(request, local)?.is_some())
    }

    /// Fails where the kernel has no diagnostics of UDP sockets: it would say of each that it isn't there.
    pub fn check_udp(&self) -> Result<()> {
        self.list(AF_INET, IPPROTO_UDP, StateFlags::empty()).map(drop)
    }

    fn state_of(&self, request: InetRequest, local: SocketAddr) -> Result<Option<u8>> {
        self.0.get(("get socket", local), &Message::InetRequest(request), |_, payload| {
            Some(InetResponseHeader::parse(payload).ok()?.state)
        })
    }

    /// The TCP connections to an address of the namespace.
    pub fn connections(&self, local: IpAddr) -> Result<Vec<Connection>> {
        let all = self.list_both(IPPROTO_TCP, &connected())?;
        let ours = all.into_iter().filter(|shown| shown.local.0 == local);
        Ok(ours
            .map(|Shown { local, remote, .. }| Connection {
                port: local.1,
                remote: SocketAddr::new(remote.0, remote.1),
            })
            .collect())
    }

    /// Of both families: an IPv6 socket may take IPv4 too.
    fn list_both(&self, protocol: u8, states: &StateFlags) -> Result<Vec<Shown>> {
        let mut all = self.list(AF_INET, protocol, states.clone())?;
        all.extend(self.list(AF_INET6, protocol, states.clone())?);
        Ok(all)
    }

    fn list(&self, family: u8, protocol: u8, states: StateFlags) -> Result<Vec<Shown>> {
        let request = Message::InetRequest(request(family, protocol, states));
        match self.0.dump(("list", "sockets"), &request, |_, payload| read(payload)) {
            // A kernel without IPv6 has no such sockets.
            Err(error) if error.is_absent() && family == AF_INET6 => Ok(Vec::new()),
            other => other.map_err(|error| error.of(module_of(protocol))),
        }
    }
}

/// Lists sockets of each protocol, in the calling thread's namespace.
pub(super) fn try_out() -> Result<[Result<()>; 2]> {
    let sockets = Sockets(Socket::of_protocol(NETLINK_SOCK_DIAG)?);
    Ok([IPPROTO_TCP, IPPROTO_UDP].map(|protocol| sockets.list(AF_INET, protocol, StateFlags::empty()).map(drop)))
}

/// What knows the sockets.
fn module_of(protocol: u8) -> Module {
    if protocol == IPPROTO_UDP { Module::UdpDiag } else { Module::TcpDiag }
}

/// A packet's own lookup, without a sender.
fn from_any(local: SocketAddr) -> SocketId {
    SocketId {
        source_port: local.port(),
        source_address: local.ip(),
        cookie: [0xff; 8], // whichever socket it is
        ..socket_id(family(local))
    }
}

fn family(address: SocketAddr) -> u8 {
    match address {
        SocketAddr::V4(_) => AF_INET,
        SocketAddr::V6(_) => AF_INET6,
    }
}

/// One that the kernel fills in.
fn socket_id(family: u8) -> SocketId {
    if family == AF_INET6 { SocketId::new_v6() } else { SocketId::new_v4() }
}

fn request(family: u8, protocol: u8, states: StateFlags) -> InetRequest {
    InetRequest { family, protocol, extensions: ExtensionFlags::empty(), states, socket_id: socket_id(family) }
}

fn read(payload: &[u8]) -> Option<Shown> {
    let header = InetResponseHeader::parse(payload).ok()?;
    let only_v6 = only_v6(payload);
    let SocketId { source_address, source_port, destination_address, destination_port, .. } = header.socket_id;
    Some(Shown {
        local: (plain(source_address, only_v6), source_port),
        remote: (plain(destination_address, only_v6), destination_port),
    })
}

/// An IPv6 socket that takes IPv4 too is shown with addresses of IPv4 in IPv6's form, or bound to `::`.
fn plain(address: IpAddr, only_v6: bool) -> IpAddr {
    match address {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) if !only_v6 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        other => other.to_canonical(),
    }
}

/// `IPV6_V6ONLY` of an IPv6 socket (`INET_DIAG_SKV6ONLY`).
fn only_v6(payload: &[u8]) -> bool {
    /// Bytes of `struct inet_diag_msg`.
    const HEADER: usize = 72;
    let attributes = NlasIterator::new(payload.get(HEADER..).unwrap_or_default());
    attributes.filter_map(std::result::Result::ok).any(|nla| nla.kind() == INET_DIAG_SKV6ONLY && nla.value() == [1])
}
