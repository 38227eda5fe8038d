//! The unix socket: connections, lines, limits. What a line asks for is answered elsewhere ([`Call`]).

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::protocol::{self, MAX_REQUEST, Refusal, Request, code};

/// Connections served at a time. The plugin holds one for a call; a node starts a hundred pods at once, perhaps.
const MAX_CONNECTIONS: usize = 256;
/// A connection that doesn't finish a line in this time, or doesn't take its reply, is closed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody answers there.
    #[error("{} is served by another process", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A file that is no socket; it isn't ours to remove.
    #[error("{} exists and is no socket", path.display())]
    NoSocket {
        /// The file.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("can't {op} {}", path.display())]
    Io {
        /// `create`, `bind`, …
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A request, and where its reply line goes.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Takes the reply line; dropped without one, the connection is closed.
    pub reply: oneshot::Sender<Vec<u8>>,
}

/// The bound socket. Its file goes when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    patience: Duration,
}

impl Server {
    /// Binds the socket, mode 0600, in place of one whose process has died.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |op| move |source| Error::Io { op, path: path.into(), source };
        if let Some(directory) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(failed("create the directory of"))?;
        }
        clear(path)?;
        let listener = listen(path).and_then(UnixListener::from_std).map_err(failed("bind"))?;
        Ok(Self { listener, path: path.into(), patience: PATIENCE })
    }

    /// Serves until dropped.
    pub async fn run(&self, calls: mpsc::UnboundedSender<Call>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely; some come back.
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                let _ = stream.try_write(&refusal(code::TRY_AGAIN, "too many connections"));
                continue;
            };
            let (calls, patience) = (calls.clone(), self.patience);
            tokio::spawn(async move {
                // How a connection ends is its client's business.
                let _ = converse(stream, calls, patience).await;
                drop(place);
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A listening socket whose file has mode 0600 from the start: the kernel takes the mode of the unbound socket
/// (`unix_bind`); a chmod afterwards would leave a moment in which anybody may connect.
fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&fd, Mode::from_bits_truncate(0o600))?;
    socket::bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&fd, Backlog::MAXCONN)?;
    Ok(fd.into())
}

/// Makes way for a new socket: removes one that nobody listens on.
fn clear(path: &Path) -> Result<(), Error> {
    let failed = |op| move |source| Error::Io { op, path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("look at")(e)),
        Ok(found) if !found.file_type().is_socket() => return Err(Error::NoSocket { path: path.into() }),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed("remove")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(Error::InUse { path: path.into() }),
    }
}

/// One line after the other, until the client has had enough or says something that is no request.
async fn converse(stream: UnixStream, calls: mpsc::UnboundedSender<Call>, patience: Duration) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let line = timeout(patience, read_line(&mut stream)).await??;
        let request = match line {
            Line::End => return Ok(()),
            Line::TooLong => {
                let why = format!("a request has at most {MAX_REQUEST} bytes");
                return write(&mut stream, &refusal(code::UNDECODABLE, why), patience).await;
            }
            Line::Text(line) => match protocol::decode_request(&line) {
                Ok(request) => request,
                Err(Refusal { code, msg }) => return write(&mut stream, &refusal(code, msg), patience).await,
            },
        };
        let (reply, answer) = oneshot::channel();
        if calls.send(Call { request, reply }).is_err() {
            return Ok(());
        }
        let Ok(answer) = answer.await else { return Ok(()) };
        write(&mut stream, &answer, patience).await?;
    }
}

enum Line {
    Text(Vec<u8>),
    TooLong,
    End,
}

/// Half a line at the end of the stream is nobody's request.
async fn read_line(stream: &mut BufReader<UnixStream>) -> io::Result<Line> {
    let mut line = Vec::new();
    let limit = u64::try_from(MAX_REQUEST + 1).unwrap_or(u64::MAX);
    stream.take(limit).read_until(b'\n', &mut line).await?;
    Ok(match line.pop() {
        Some(b'\n') => Line::Text(line),
        Some(_) if line.len() >= MAX_REQUEST => Line::TooLong,
        _ => Line::End,
    })
}

async fn write(stream: &mut BufReader<UnixStream>, line: &[u8], patience: Duration) -> io::Result<()> {
    timeout(patience, stream.write_all(line)).await?
}

/// The reply line for an answer.
pub fn line<T: Serialize>(answer: &Result<T, Refusal>) -> Vec<u8> {
    let encoded = match answer {
        Ok(answer) => protocol::encode(answer),
        Err(refusal) => protocol::encode_refusal(refusal),
    };
    // These types always encode; an empty reply would be reported as a broken one.
    encoded.unwrap_or_default()
}

fn refusal(code: u32, msg: impl Into<String>) -> Vec<u8> {
    line::<()>(&Err(Refusal { code, msg: msg.into() }))
}

#[cfg(test)]
mod tests;
