//! A listening unix socket, and its file.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process listens there.
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

/// The file of a listening socket. It goes when this is dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Binds a socket, mode 0600 and non-blocking, in place of one whose process has died; makes its directory.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
    let failed = |op| move |source| Error::Io { op, path: path.into(), source };
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed("create the directory of"))?;
    }
    clear(path)?;
    let listener = bind(path).map_err(failed("bind"))?;
    Ok((listener, SocketFile(path.into())))
}

/// Its file has mode 0600 from the start: the kernel takes the mode of the unbound socket (`unix_bind`); a chmod
/// afterwards would leave a moment in which any user may connect.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&fd, Mode::from_bits_truncate(0o600))?;
    socket::bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&fd, Backlog::MAXCONN)?;
    Ok(fd.into())
}

/// Removes a socket that no process listens on, in whose place a new one is bound.
fn clear(path: &Path) -> Result<(), Error> {
    let failed = |op| move |source| Error::Io { op, path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("look at")(e)),
        Ok(found) if !found.file_type().is_socket() => return Err(Error::NoSocket { path: path.into() }),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed("remove")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(Error::InUse { path: path.into() }),
    }
}
