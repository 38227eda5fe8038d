//! The unix socket: connections, lines, limits. What a line asks for is answered elsewhere ([`Call`]).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::net::unix::{self, SocketFile};

use super::protocol::{self, MAX_REQUEST, Refusal, Request, code};

/// Connections served at a time. The plugin holds one for a call; a node starts a hundred pods at once, perhaps.
const MAX_CONNECTIONS: usize = 256;
/// A connection that doesn't finish a line in this time, or doesn't take its reply, is closed.
const IO_TIMEOUT: Duration = Duration::from_secs(30);

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
    // Before the listener closes: another server replaces a socket file that no process listens on.
    _file: SocketFile,
    listener: UnixListener,
    read_timeout: Duration,
}

impl Server {
    /// Binds the socket, mode 0600, in place of one whose process has died.
    pub fn bind(path: &Path) -> Result<Self, unix::Error> {
        let (listener, file) = unix::listen(path)?;
        let failed = |source| unix::Error::Io { op: "listen on", path: path.into(), source };
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        Ok(Self { _file: file, listener, read_timeout: IO_TIMEOUT })
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
            let (calls, read_timeout) = (calls.clone(), self.read_timeout);
            tokio::spawn(async move {
                // The client sees how its connection ends.
                let _ = converse(stream, calls, read_timeout).await;
                drop(place);
            });
        }
    }
}

/// Answers one line after the other, until the client closes or sends a line that is no request.
async fn converse(stream: UnixStream, calls: mpsc::UnboundedSender<Call>, read_timeout: Duration) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let line = timeout(read_timeout, read_line(&mut stream)).await??;
        let request = match line {
            Line::End => return Ok(()),
            Line::TooLong => {
                let why = format!("a request has at most {MAX_REQUEST} bytes");
                return write(&mut stream, &refusal(code::UNDECODABLE, why), read_timeout).await;
            }
            Line::Text(line) => match protocol::decode_request(&line) {
                Ok(request) => request,
                Err(Refusal { code, msg }) => return write(&mut stream, &refusal(code, msg), read_timeout).await,
            },
        };
        let (reply, answer) = oneshot::channel();
        if calls.send(Call { request, reply }).is_err() {
            return Ok(());
        }
        let Ok(answer) = answer.await else { return Ok(()) };
        write(&mut stream, &answer, read_timeout).await?;
    }
}

enum Line {
    Text(Vec<u8>),
    TooLong,
    End,
}

/// Half a line at the end of the stream is no request.
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

async fn write(stream: &mut BufReader<UnixStream>, line: &[u8], read_timeout: Duration) -> io::Result<()> {
    timeout(read_timeout, stream.write_all(line)).await?
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
