//! UDP packets: as many as one sender can send, counted where they arrive.

use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::client::{Load, Tally};
use super::poll::alone;
use super::server::Server;
use crate::results::Cpu;

/// Packets in one system call.
const BATCH: usize = 32;

/// Packets with `size` bytes of payload that arrive at `server`, over `load.concurrency` flows.
pub fn flood(load: &Load<'_>, size: usize, server: &Server) -> Result<Tally> {
    load.from.run(|| {
        alone()?;
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
        let (before, start, cpu) = (server.datagrams(), Instant::now(), Cpu::now()?);
        send(&sockets, &mut payload, start + load.time)?;
        let (seconds, busy) = (start.elapsed().as_secs_f64(), cpu.since()?);
        // What is on its way arrives in a moment.
        std::thread::sleep(Duration::from_millis(20));
        let arrived = server.datagrams() - before;
        anyhow::ensure!(arrived > 0, "no packet arrived");
        Ok(Tally { done: usize::try_from(arrived)?, seconds, busy, ..Tally::default() })
    })
}

fn send(sockets: &[UdpSocket], payload: &mut [u8], until: Instant) -> Result<()> {
    let mut part = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: all zeroes is a valid mmsghdr: no address, no parts, no control data.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = &raw mut part;
    message.msg_hdr.msg_iovlen = 1;
    let mut messages = [message; BATCH];
    while Instant::now() < until {
        for socket in sockets {
            // SAFETY: BATCH headers, each with the one part above; all outlive the call, which only reads them but for msg_len.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, 0) };
            if sent < 0 {
                let error = std::io::Error::last_os_error();
                // A full queue, or a port unreachable of a moment ago.
                anyhow::ensure!(
                    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)),
                    "sendmmsg: {error}"
                );
            }
        }
    }
    Ok(())
}
