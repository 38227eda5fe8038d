//! The way to the servers: a link's broadcast or a relay agent's unicast.

use std::io;

use super::link::Link;
use super::message::{Message, Reply, WireError};
use super::relay::Relay;
use super::socket::SendError;
use super::{Error, Identity, TransportConfig};

/// An open socket.
#[derive(Debug)]
pub enum Transport {
    /// See [`TransportConfig::Link`].
    Link(Link),
    /// See [`TransportConfig::Relay`].
    Relay(Relay),
}

impl Transport {
    /// Opens the socket, in a tokio runtime.
    pub fn open(config: TransportConfig) -> Result<Self, Error> {
        match config {
            TransportConfig::Link { family, interface } => Ok(Self::Link(Link::open(family, interface)?)),
            TransportConfig::Relay { server, subnet } => Ok(Self::Relay(Relay::open(server, subnet)?)),
        }
    }

    /// See [`super::Handle::rebind`].
    pub fn rebind(&mut self, interface: String) {
        if let Self::Link(link) = self {
            link.rebind_to(interface);
        }
    }

    /// Whether an answer would arrive. While the link looks for another node that has this one's address none does, and what is sent is sent in
    /// vain.
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Link(link) => link.is_ready(),
            Self::Relay(_) => true,
        }
    }

    /// Waits until that may have changed; [`Self::read_address`] finds out.
    pub async fn changed(&self) {
        match self {
            Self::Link(link) => link.changed().await,
            Self::Relay(_) => std::future::pending().await,
        }
    }

    /// Reads the address that messages leave from, where they leave by a link.
    pub fn read_address(&mut self) {
        if let Self::Link(link) = self {
            link.read_address();
        }
    }

    /// Sends one message, or not: it never waits.
    pub fn send(&mut self, message: &Message, identity: &Identity) -> Result<(), SendError> {
        match self {
            Self::Link(link) => link.send(message, identity),
            Self::Relay(relay) => relay.send(message, identity),
        }
    }

    /// Waits for a packet. The outer error is the socket's and passes, the inner one the packet's. Loses no packet
    /// when dropped while waiting.
    pub async fn receive(&self) -> io::Result<Result<Reply, WireError>> {
        match self {
            Self::Link(link) => link.receive().await,
            Self::Relay(relay) => relay.receive().await,
        }
    }
}
