//! The pods' servers: one thread for any number of pods.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{Backlog, listen, setsockopt, sockopt};

use super::poll::{Poll, Ready, unshare_descriptors};
use super::{ENDLESS, PORT, head};
use crate::stage::Pod;

/// Datagrams in one system call.
const BATCH: usize = 64;
/// How much of an endless answer is written at once.
const CHUNK: usize = 1 << 16;
/// Room for what arrives while the thread does something else.
const DATAGRAM_BUFFER: usize = 8 << 20;

/// Servers on TCP and UDP port [`PORT`] in each of some pods. Dropped, they and all their connections are closed.
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    datagrams: AtomicU64,
}

impl Server {
    pub fn start<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Result<Self> {
        Self::at(pods.into_iter().map(|pod| (pod.ns.path(), pod.name())).collect())
    }

    /// The same in these namespaces: the path of each, and what the server there is called.
    pub fn at(places: Vec<(String, String)>) -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let (started, result) = mpsc::channel();
        let of_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || match EventLoop::open(&places, of_thread) {
            Ok(mut event_loop) => {
                let _ = started.send(Ok(()));
                event_loop.run();
            }
            Err(error) => drop(started.send(Err(error))),
        });
        let server = Self { shared, thread: Some(thread) };
        result.recv().context("a server's thread")??;
        Ok(server)
    }

    /// Datagrams received so far.
    pub fn datagrams(&self) -> u64 {
        self.shared.datagrams.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

enum Socket {
    Listener(TcpListener, Arc<[u8]>),
    Datagrams(UdpSocket),
    Connection(Connection),
}

struct Connection {
    stream: TcpStream,
    answer: Arc<[u8]>,
    asked: Vec<u8>,
    endless: bool,
}

struct EventLoop {
    poll: Poll,
    /// By descriptor.
    sockets: Vec<Option<Socket>>,
    shared: Arc<Shared>,
    datagrams: Received,
}

impl EventLoop {
    fn open(places: &[(String, String)], shared: Arc<Shared>) -> Result<Self> {
        unshare_descriptors()?;
        let mut event_loop = Self { poll: Poll::new()?, sockets: Vec::new(), shared, datagrams: Received::default() };
        for (path, name) in places {
            enter(path)?;
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
            listener.set_nonblocking(true)?;
            listen(&listener, Backlog::new(4096)?)?;
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            event_loop.keep(listener.as_raw_fd(), Socket::Listener(listener, answer.into_bytes().into()))?;
            let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
            datagrams.set_nonblocking(true)?;
            setsockopt(&datagrams, sockopt::RcvBufForce, &DATAGRAM_BUFFER)?;
            event_loop.keep(datagrams.as_raw_fd(), Socket::Datagrams(datagrams))?;
        }
        Ok(event_loop)
    }

    fn keep(&mut self, fd: RawFd, socket: Socket) -> Result<()> {
        let at = usize::try_from(fd)?;
        if self.sockets.len() <= at {
            self.sockets.resize_with(at + 1, || None);
        }
        match &socket {
            Socket::Listener(listener, _) => self.poll.add(listener, at)?,
            Socket::Datagrams(datagrams) => self.poll.add(datagrams, at)?,
            Socket::Connection(connection) => self.poll.add(&connection.stream, at)?,
        }
        self.sockets[at] = Some(socket);
        Ok(())
    }

    fn run(&mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let Ok(ready) = self.poll.wait(Duration::from_millis(50)) else { return };
            for ready in ready {
                self.serve(ready);
            }
        }
    }

    fn serve(&mut self, ready: Ready) {
        // Taken out, so that what it does may add others.
        let Some(mut socket) = self.sockets.get_mut(ready.token).and_then(Option::take) else { return };
        let open = match &mut socket {
            Socket::Listener(listener, answer) => {
                while let Ok((stream, _)) = listener.accept() {
                    let _ = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
                    let answer = Arc::clone(answer);
                    let connection = Connection { stream, answer, asked: Vec::new(), endless: false };
                    let _ = self.keep(connection.stream.as_raw_fd(), Socket::Connection(connection));
                }
                true
            }
            Socket::Datagrams(socket) => {
                let count = self.datagrams.receive(socket);
                self.shared.datagrams.fetch_add(count, Ordering::Relaxed);
                true
            }
            Socket::Connection(connection) => connection.serve(ready).unwrap_or(false),
        };
        if open {
            self.sockets[ready.token] = Some(socket);
        }
    }
}

impl Connection {
    /// Whether it stays open.
    fn serve(&mut self, ready: Ready) -> io::Result<bool> {
        if ready.readable && !self.read()? {
            return Ok(false);
        }
        while let Some(end) = head(&self.asked) {
            if self.asked.starts_with(&ENDLESS[..b"GET /endless".len()]) {
                self.endless = true;
                self.stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            } else {
                self.stream.write_all(&self.answer)?;
            }
            self.asked.drain(..end);
        }
        if self.endless { self.pour() } else { Ok(true) }
    }

    fn read(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => self.asked.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
            // A short read has emptied the socket: what comes later is another event.
            if self.asked.len() < buffer.len() {
                return Ok(true);
            }
        }
    }

    fn pour(&mut self) -> io::Result<bool> {
        static ZEROES: [u8; CHUNK] = [0; CHUNK];
        loop {
            match self.stream.write(&ZEROES) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Room for a batch of datagrams, whose contents are not read.
#[derive(Default)]
pub struct Received {
    rooms: Vec<[u8; 2048]>,
}

impl Received {
    /// How many were there.
    pub fn receive(&mut self, socket: &UdpSocket) -> u64 {
        self.rooms.resize(BATCH, [0; 2048]);
        let part = |room: &mut [u8; 2048]| libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        let mut parts: Vec<libc::iovec> = self.rooms.iter_mut().map(part).collect();
        // SAFETY: all zeroes is a valid mmsghdr.
        let empty = || unsafe { std::mem::zeroed::<libc::mmsghdr>() };
        let mut messages: Vec<libc::mmsghdr> = (0..BATCH).map(|_| empty()).collect();
        for (message, part) in messages.iter_mut().zip(&mut parts) {
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        let mut count = 0;
        loop {
            let (first, none) = (messages.as_mut_ptr(), std::ptr::null_mut());
            // SAFETY: BATCH headers with a part each, which point to rooms of the length they say; all outlive the call.
            let got = unsafe { libc::recvmmsg(socket.as_raw_fd(), first, BATCH as u32, libc::MSG_DONTWAIT, none) };
            match u64::try_from(got) {
                Ok(got) if got > 0 => count += got,
                _ => return count,
            }
        }
    }
}

fn enter(namespace: &str) -> Result<()> {
    let file = std::fs::File::open(namespace).with_context(|| format!("open {namespace}"))?;
    // SAFETY: a system call on a descriptor that is open. The thread is the server's own.
    match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("enter a pod"),
    }
}
