//! Links that have gone, with what they had counted in the end.

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};

use super::link::{self, Link};
use super::{Error, Result};

/// Bytes that may wait to be read: some hundred messages, a few for each pod that comes or goes.
const BUFFER: usize = 1024 * 1024;
/// `RTMGRP_LINK` of linux/rtnetlink.h.
const LINKS: u32 = 1;
const RTM_DELLINK: u16 = 17;

/// Receives the events of links of one network namespace.
#[derive(Debug)]
pub struct RemovedLinks(netlink_sys::Socket);

impl RemovedLinks {
    /// Listens from now on, in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let failed = |e: std::io::Error| Error::io("listen for", "links", &e);
        let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE).map_err(failed)?;
        // A buffer beyond the limit takes a capability, which the process may lack.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
        socket.bind(&SocketAddr::new(0, LINKS)).map_err(failed)?;
        socket.set_non_blocking(true).map_err(failed)?;
        Ok(Self(socket))
    }

    /// Those that went since the last call. Where too many came and went meanwhile the last ones are missing.
    pub fn take(&self) -> Vec<Link> {
        let mut gone = Vec::new();
        loop {
            match self.0.recv_from_full() {
                Ok((datagram, _)) => read(&datagram, &mut gone),
                // Once for all that found no room (ENOBUFS): what is there can be read all the same.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return gone,
            }
        }
    }
}

fn read(datagram: &[u8], gone: &mut Vec<Link>) {
    let Ok(message) = NetlinkBuffer::new_checked(datagram) else { return };
    if message.message_type() == RTM_DELLINK {
        gone.extend(link::decode(message.payload()));
    }
}
