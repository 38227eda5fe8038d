//! What the gateways announce, asked of the routing daemon that hears them: also what its import filters refuse, and what
//! for that reason no table of the kernel's has.

mod bird;
mod frr;

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::net::UnixStream;

use crate::model::Family;

use super::settings::{Gateway, RoutingDaemon};

/// A daemon answers from memory, but one thing at a time.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A route that a gateway announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its destination.
    pub prefix: IpNetwork,
    /// The next hop that the gateway names; none: the daemon's own route, or another protocol's.
    pub next_hop: Option<IpAddr>,
    /// By which session or protocol of which daemon: `BIRD's router1`.
    pub by: String,
}

/// What a daemon has of a VIP in its own tables, from which it announces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// viproute's route.
    pub learned: bool,
    /// From whom it has taken a route to the address alone: another node's, let in by a filter.
    pub taken: Vec<String>,
}

/// Why nothing is known of what a gateway announces.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or it broke.
    #[error("the routing daemon of [[gateway]] at {} can't be asked", socket.display())]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its socket is for others.
    #[error(
        "the routing daemon of [[gateway]] at {} can't be asked: permission denied (viprouted's unit needs the socket's group \
         as one of its SupplementaryGroups)",
        .0.display()
    )]
    Forbidden(PathBuf),
    /// It hangs.
    #[error("the routing daemon of [[gateway]] at {} has not answered within {} s", .0.display(), TIMEOUT.as_secs())]
    Slow(PathBuf),
    /// It doesn't understand, or says something else.
    #[error("the routing daemon of [[gateway]] at {} answers `{question}` by: {answer}", socket.display())]
    Answer {
        /// Its socket.
        socket: PathBuf,
        /// What it was asked.
        question: String,
        /// What it said.
        answer: String,
    },
    /// What it hears now is nothing.
    #[error("none of the BGP sessions of [[gateway]] at {} is established", .0.display())]
    NoSession(PathBuf),
    /// It forgets what its filters refuse.
    #[error("{session} of [[gateway]] at {} does not keep what its filter refuses: expected `{setting}` (as `viproutectl announce` writes it)", socket.display())]
    NotKept {
        /// Its socket.
        socket: PathBuf,
        /// The BGP session.
        session: String,
        /// The line that is missing from its configuration.
        setting: String,
    },
}

/// The routes by which the gateway would reach `candidate`.
pub async fn ask(gateway: &Gateway, candidate: IpAddr) -> Result<Vec<Heard>, Error> {
    let Gateway { daemon, socket } = gateway;
    in_time(socket, async {
        match daemon {
            RoutingDaemon::Bird => bird::ask(socket, candidate).await,
            RoutingDaemon::Frr => frr::ask(socket, candidate).await,
        }
    })
    .await
}

/// What the daemon itself has of `vip`.
pub async fn known(gateway: &Gateway, vip: IpAddr) -> Result<Known, Error> {
    let Gateway { daemon, socket } = gateway;
    in_time(socket, async {
        match daemon {
            RoutingDaemon::Bird => bird::known(socket, vip).await,
            RoutingDaemon::Frr => frr::known(socket, vip).await,
        }
    })
    .await
}

/// Whether the daemon has a BGP session, established or not, that is to exchange routes of that family.
pub async fn exchanges(gateway: &Gateway, family: Family) -> Result<bool, Error> {
    let Gateway { daemon, socket } = gateway;
    in_time(socket, async {
        match daemon {
            RoutingDaemon::Bird => bird::exchanges(socket, family).await,
            RoutingDaemon::Frr => frr::exchanges(socket, family).await,
        }
    })
    .await
}

async fn in_time<T>(socket: &Path, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(TIMEOUT, asked).await.unwrap_or_else(|_| Err(Error::Slow(socket.to_owned())))
}

/// Whether the daemon is this network namespace's own, and not that of a gateway whose socket is shared.
pub async fn is_here(gateway: &Gateway) -> Result<bool, Error> {
    let connection = Connection::open(&gateway.socket).await?;
    let peer = connection.stream.peer_cred().map_err(|error| connection.broken(error))?;
    let namespace =
        |process: &str| std::fs::metadata(format!("/proc/{process}/ns/net")).ok().map(|at| (at.dev(), at.ino()));
    let theirs = peer.pid().and_then(|pid| namespace(&pid.to_string()));
    Ok(theirs.is_some() && theirs == namespace("self"))
}

/// A connection, and what errors on it are called.
struct Connection<'a> {
    socket: &'a PathBuf,
    stream: UnixStream,
}

impl<'a> Connection<'a> {
    async fn open(socket: &'a PathBuf) -> Result<Self, Error> {
        let stream = UnixStream::connect(socket).await;
        let stream = stream.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => Error::Forbidden(socket.clone()),
            _ => Error::Unreachable { socket: socket.clone(), source },
        })?;
        Ok(Self { socket, stream })
    }

    fn broken(&self, source: io::Error) -> Error {
        Error::Unreachable { socket: self.socket.clone(), source }
    }

    fn strange(&self, question: &str, answer: &str) -> Error {
        let answer = answer.trim().chars().take(200).collect();
        Error::Answer { socket: self.socket.clone(), question: question.to_owned(), answer }
    }

    fn not_kept(&self, session: String, setting: &str) -> Error {
        Error::NotKept { socket: self.socket.clone(), session, setting: setting.to_owned() }
    }
}
