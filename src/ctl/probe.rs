//! `viproutectl probe`: asks viprouted for its liveness or readiness on its own unix socket, for a kubelet's `exec` probe.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longer than viprouted takes for an answer, shorter than a kubelet waits for the probe.
const TIMEOUT: Duration = Duration::from_secs(4);
/// The longest answer read, bytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The metrics' socket is off.
    #[error("{} has metrics = \"\": there is no socket to ask on", .0.display())]
    NoSocket(PathBuf),
    /// No connection, or it broke.
    #[error("viprouted can't be reached at {}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It isn't HTTP.
    #[error("{} gave no HTTP answer", .0.display())]
    Garbled(PathBuf),
}

/// What viprouted says of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// It is well.
    pub ok: bool,
    /// Why, or why not.
    pub text: String,
}

/// Asks for `path`.
pub fn ask(socket: &Path, path: &str) -> Result<Answer, Error> {
    page(socket, path, MAX_ANSWER)
}

/// The same, with the longest answer that is read, bytes.
pub fn page(socket: &Path, path: &str, longest: u64) -> Result<Answer, Error> {
    let unreachable = |source| Error::Unreachable { socket: socket.to_owned(), source };
    let text = exchange(socket, path, longest).map_err(unreachable)?;
    parse(&text).ok_or_else(|| Error::Garbled(socket.to_owned()))
}

fn exchange(socket: &Path, path: &str, longest: u64) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: viprouted\r\nConnection: close\r\n\r\n")?;
    let mut text = Vec::new();
    stream.take(longest).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?;
    Some(Answer { ok: status == "200", text: body.trim_end().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let answer = |ok, text: &str| Some(Answer { ok, text: text.to_owned() });
        assert_eq!(parse("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n"), answer(true, "ok"));
        assert_eq!(parse("HTTP/1.1 503 Service Unavailable\r\n\r\na\nb\n"), answer(false, "a\nb"));
        assert_eq!(parse("hello"), None);
        assert_eq!(parse("SSH-2.0\r\n\r\n"), None);
    }
}
