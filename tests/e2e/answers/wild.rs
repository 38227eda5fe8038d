//! A UDP server on a socket that is bound to no address, as most are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::socket::{Shutdown, shutdown};

use crate::harness::Netns;

/// It sends back what it gets, until it is dropped.
pub struct Wild {
    socket: UdpSocket,
    served: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Wild {
    pub fn start(ns: &Netns, port: u16) -> Self {
        Self::on(ns, Ipv4Addr::UNSPECIFIED.into(), port)
    }

    /// On a socket of IPv6 that takes IPv4 too.
    pub fn of_both_families(ns: &Netns, port: u16) -> Self {
        Self::on(ns, Ipv6Addr::UNSPECIFIED.into(), port)
    }

    fn on(ns: &Netns, any: IpAddr, port: u16) -> Self {
        let socket = ns.run(|| UdpSocket::bind((any, port))).expect("a server in a pod");
        let (answering, served) = (socket.try_clone().expect("a second descriptor"), Arc::<AtomicUsize>::default());
        let count = Arc::clone(&served);
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            // After shutdown there is no datagram and no sender, which is an error.
            while let Ok((length, client)) = answering.recv_from(&mut buffer) {
                // The kernel says so where an answer is too long for the way, and it is sent again.
                let _ = answering.send_to(&buffer[..length], client);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { socket, served, thread: Some(thread) }
    }

    /// How many it has answered.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Wild {
    fn drop(&mut self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
