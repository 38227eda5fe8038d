//! The DHCP engine, asked in this module's words.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use tokio::sync::mpsc::UnboundedReceiver;

use super::identity;
use crate::allocator::config;
use crate::allocator::lease::{Lease, News, Report};
use crate::dhcp::{self, Change, Engine, Handle, Notice, Reason, TransportConfig};
use crate::registry::VipKey;

/// Why DHCP can't be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither configured nor found.
    #[error("no interface for DHCP: dhcp.interface isn't set, and there is no default route to take it from")]
    NoInterface,
    /// The kernel knows no way there.
    #[error("no route to the DHCP server {server} (dhcp.relay.server)")]
    NoRoute {
        /// The server.
        server: Ipv4Addr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The engine's own.
    #[error(transparent)]
    Engine(#[from] dhcp::Error),
}

/// One DHCP client for each VIP of the cluster.
#[derive(Debug)]
pub(super) struct Client {
    cluster: String,
    handle: Handle,
}

impl Client {
    pub(super) fn start(
        cluster: &str,
        config: &config::Dhcp,
        interface: Option<&str>,
    ) -> Result<(Self, UnboundedReceiver<Notice>), Error> {
        let transport = match config.relay {
            Some(config::Relay { server, subnet }) => {
                TransportConfig::Relay { server, giaddr: source_towards(server)?, subnet }
            }
            None => TransportConfig::Link { interface: interface.ok_or(Error::NoInterface)?.into() },
        };
        let (handle, notices) = Engine::start(transport)?;
        Ok((Self { cluster: cluster.into(), handle }, notices))
    }

    pub(super) fn counters(&self) -> dhcp::Counters {
        self.handle.counters()
    }

    pub(super) fn ask(&self, vip: &VipKey, remembered: Option<&Lease>) {
        let identity = identity::of(&self.cluster, vip);
        self.handle.acquire(vip.to_string(), identity, remembered.map(to_engine));
    }

    pub(super) fn decline(&self, vip: &VipKey) {
        self.handle.decline(&vip.to_string());
    }

    pub(super) fn restart(&self, vip: &VipKey) {
        self.handle.restart(&vip.to_string());
    }

    pub(super) fn stop(&self, vip: &VipKey) {
        self.handle.forget(&vip.to_string());
    }
}

/// The engine's notice in this module's words; none for a key that isn't ours.
pub fn report(notice: Notice) -> Option<Report> {
    let vip = notice.key.parse().ok()?;
    let news = match notice.change {
        Change::Bound(lease) => News::Bound(from_engine(&lease)),
        Change::Renewed(lease) => News::Renewed(from_engine(&lease)),
        Change::Lost { lease, reason } => {
            let how = match reason {
                Reason::Nak => "the server refuses it (NAK)",
                Reason::Expired => "it ran out and nobody renewed it",
                Reason::Moved => "the server gave another address",
            };
            News::Lost { reason: format!("{}: {how}", lease.address) }
        }
        Change::Failed { tries, why } => News::Trouble { why: format!("{why} ({tries} tries)") },
    };
    Some(Report { vip, news })
}

/// This node's address on the way to `server`: answers have to come back to it. Connecting a UDP socket sends nothing.
fn source_towards(server: Ipv4Addr) -> Result<Ipv4Addr, Error> {
    let find = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((server, 67))?;
        socket.local_addr()
    };
    match find() {
        Ok(SocketAddr::V4(address)) => Ok(*address.ip()),
        Ok(SocketAddr::V6(_)) => Err(Error::NoRoute { server, source: std::io::ErrorKind::AddrNotAvailable.into() }),
        Err(source) => Err(Error::NoRoute { server, source }),
    }
}

fn from_engine(lease: &dhcp::Lease) -> Lease {
    Lease {
        address: lease.address,
        server: Some(lease.server),
        granted: lease.granted,
        renew: lease.renew,
        rebind: lease.rebind,
        expires: lease.expires,
    }
}

fn to_engine(lease: &Lease) -> dhcp::Lease {
    dhcp::Lease {
        address: lease.address,
        // Not needed to ask for it again: that goes to all servers.
        server: lease.server.unwrap_or(Ipv4Addr::UNSPECIFIED),
        granted: lease.granted,
        renew: lease.renew,
        rebind: lease.rebind,
        expires: lease.expires,
    }
}
