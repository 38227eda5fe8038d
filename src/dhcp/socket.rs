//! What the two kinds of sockets have in common.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::socket::{self, sockopt};

use super::message::WireError;

/// More than any DHCP message that isn't fragmented; what is longer is no reply to us.
pub const BUFFER: usize = 2048;

/// Room for the answers of a server to many identities at once, in bytes.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Why a message didn't leave.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It has no bytes.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It has no source address.
    #[error("the link has no link-local address yet: IPv6 is off there (disable_ipv6), or address generation is")]
    NoLinkLocal,
    /// The kernel won't send it: an interface that is down, a full queue, no route.
    #[error("the kernel doesn't send it")]
    Io(#[from] io::Error),
}

/// Asks for a large receive buffer. The privileged call isn't bound by the system's limit; without the privilege the
/// limit will do.
pub fn enlarge(fd: &OwnedFd) {
    let forced = socket::setsockopt(fd, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    if let Err(errno) = forced.or_else(|_| socket::setsockopt(fd, sockopt::RcvBuf, &RECEIVE_BUFFER)) {
        tracing::debug!(%errno, "the DHCP socket keeps its receive buffer");
    }
}

/// The errno of an error of the standard library's.
pub fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
