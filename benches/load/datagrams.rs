//! UDP packets: as many as one sender can send, counted where they arrive.

use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::client::{Load, Work};
use super::poll::unshare_descriptors;
use super::server::Server;

/// Packets in one system call.
const BATCH: usize = 32;

/// Packets with `size` bytes of payload that arrive at `server`, over `load.concurrency` flows.
pub fn flood(load: &Load<'_>, size: usize, server: &Server) -> Result<Work> {
    load.from.try_run(|| {
        unshare_descriptors()?;
        let connect = |to: &SocketAddrV4| -> Result<UdpSocket> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to).context("a datagram's way")?;
            Ok(socket)
        };
        let sockets = load.to.iter().cycle().take(load.concurrency).map(connect);
        let sockets = sockets.collect::<Result<Vec<_>>>()?;
        let mut payload = vec![0_u8; size];
        // A first packet on each flow, so that what is made once a flow is made.
        send(&sockets, &mut payload, Instant::now() + Duration::from_millis(20))?;
        let (before, start) = (server.datagrams(), Instant::now());
        send(&sockets, &mut payload, start + load.time)?;
        let seconds = start.elapsed().as_secs_f64();
        // What is on its way arrives in a moment.
        std::thread::sleep(Duration::from_millis(20));
        let arrived = server.datagrams() - before;
        anyhow::ensure!(arrived > 0, "no packet arrived");
        Ok(Work { done: usize::try_from(arrived)?, seconds, ..Work::default() })
    })
}

/// The same datagram several times, for one system call.
pub struct Batch {
    messages: Vec<libc::mmsghdr>,
    part: Box<libc::iovec>,
}

impl Batch {
    pub fn new(count: usize) -> Self {
        let mut part = Box::new(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 });
        // SAFETY: all zeroes is a valid mmsghdr: no address, no parts, no control data.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = &raw mut *part;
        message.msg_hdr.msg_iovlen = 1;
        Self { messages: vec![message; count], part }
    }

    /// What the kernel has no room for is lost, as on a wire.
    pub fn send(&mut self, socket: &UdpSocket, payload: &mut [u8]) -> Result<()> {
        *self.part = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
        let (first, count) = (self.messages.as_mut_ptr(), self.messages.len() as u32);
        // SAFETY: that many headers, each with the one part above; all outlive the call, which only reads them but for msg_len.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), first, count, 0) };
        if sent < 0 {
            let error = std::io::Error::last_os_error();
            // A full queue, or a port unreachable of a moment ago.
            anyhow::ensure!(matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)), "sendmmsg: {error}");
        }
        Ok(())
    }
}

fn send(sockets: &[UdpSocket], payload: &mut [u8], until: Instant) -> Result<()> {
    let mut batch = Batch::new(BATCH);
    while Instant::now() < until {
        sockets.iter().try_for_each(|socket| batch.send(socket, payload))?;
    }
    Ok(())
}
