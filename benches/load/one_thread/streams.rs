//! TCP: requests over connections that stay, connections that don't, downloads.
//!
//! Where the kernel carries the packets everything is there as soon as it is sent: sockets are read in the order of what
//! must have happened, without asking which are ready. Through a proxy they are awaited by epoll.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt, socket, sockopt,
};

use super::{Ends, FLOWS, TIMEOUT, Transaction, any, enter, spin};
use crate::load::poll::{Poll, Ready};
use crate::load::{ENDLESS, REQUEST, body, head};

/// Connections made at the same time where they don't stay.
const AT_ONCE: usize = 16;
/// Downloads at the same time.
const DOWNLOADS: usize = 6;
/// What a download is written and read by.
const CHUNK: usize = 1 << 16;
/// Written in a lap, so that both sides have their turn.
const CHUNKS: usize = 40;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes";
const ANSWER_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";

/// Where a socket's number begins as epoll's token.
const SERVED: usize = 1 << 20;
const LISTENERS: usize = 1 << 30;

pub struct Streams {
    kind: Transaction,
    to: Vec<SocketAddr>,
    listeners: Vec<TcpListener>,
    clients: Vec<Option<Client>>,
    /// The servers' ends, by the order they were accepted in.
    served: Vec<Option<TcpStream>>,
    /// Numbers of `served` that are free.
    free: Vec<usize>,
    /// The server's end of each client's connection, where that is known.
    partner: Vec<usize>,
    begun: usize,
    answered: usize,
    heard: usize,
    /// Through a proxy.
    poll: Option<Poll>,
    room: Vec<u8>,
}

/// It takes connections of the address' family alone: the same servers are asked by both.
fn listener_of(at: SocketAddr) -> Result<TcpListener> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if at.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    listen(&socket, Backlog::new(4096)?)?;
    Ok(TcpListener::from(socket))
}

struct Client {
    stream: TcpStream,
    connecting: bool,
}

impl Streams {
    pub fn open(ends: &Ends, kind: Transaction) -> Result<Self> {
        let listener = |(namespace, _): &(std::fs::File, IpAddr)| -> Result<TcpListener> {
            enter(namespace)?;
            let to = ends.path.to[0];
            listener_of(SocketAddr::new(any(to.ip()), to.port()))
        };
        let listeners = ends.pods.iter().map(listener).collect::<Result<Vec<_>>>()?;
        enter(&ends.client)?;
        let poll = if ends.path.processes.is_empty() { None } else { Some(Poll::new()?) };
        if let Some(poll) = &poll {
            listeners.iter().enumerate().try_for_each(|(at, listener)| poll.add(listener, LISTENERS + at))?;
        }
        let mut streams = Self {
            kind,
            to: ends.path.to.clone(),
            listeners,
            clients: Vec::new(),
            served: Vec::new(),
            free: Vec::new(),
            partner: Vec::new(),
            begun: 0,
            answered: 0,
            heard: 0,
            poll,
            room: vec![0; 2 * CHUNK],
        };
        match kind {
            Transaction::Requests | Transaction::InTurn => streams.connect(FLOWS)?,
            Transaction::Bulk => streams.connect(DOWNLOADS)?,
            _ => streams.clients.resize_with(AT_ONCE, || None),
        }
        Ok(streams)
    }

    /// Connections that stay. Each is asked once, which tells its server's end; of downloads nothing else is asked.
    fn connect(&mut self, count: usize) -> Result<()> {
        self.clients.resize_with(count, || None);
        for at in 0..count {
            self.begin(at)?;
            if self.poll.is_some() {
                self.answered = 0;
                self.events_until("a connection's first request", |this| this.answered == 1)?;
                self.partner.push(0);
                // A download's answer has no end; another one is heard before the next connection is made.
                if self.kind != Transaction::Bulk {
                    self.events_until("a connection's first answer", |this| this.heard > at)?;
                }
                continue;
            }
            spin("a connection", || Ok(self.accept()? > 0))?;
            self.ask(at)?;
            let partner = self.served.len() - 1;
            spin("a connection's first request", || self.answer(partner))?;
            self.partner.push(partner);
            if self.kind != Transaction::Bulk {
                spin("a connection's first answer", || self.hear(at))?;
            }
        }
        Ok(())
    }

    /// Transactions done; of downloads, bytes.
    pub fn lap(&mut self) -> Result<usize> {
        (self.heard, self.answered) = (0, 0);
        match self.kind {
            Transaction::Requests => self.requests()?,
            Transaction::InTurn => self.in_turn()?,
            Transaction::Bulk => return self.bulk(),
            _ => self.connections()?,
        }
        Ok(self.heard)
    }

    fn requests(&mut self) -> Result<()> {
        let count = self.clients.len();
        (0..count).try_for_each(|at| self.ask(at))?;
        if self.poll.is_some() {
            return self.events_until("answers", |this| this.heard == count);
        }
        self.each("requests", |this, at| this.answer(this.partner[at]))?;
        self.each("answers", Self::hear)
    }

    fn in_turn(&mut self) -> Result<()> {
        for at in 0..self.clients.len() {
            self.ask(at)?;
            if self.poll.is_some() {
                self.events_until("an answer", |this| this.heard == at + 1)?;
            } else {
                spin("a request", || self.answer(self.partner[at]))?;
                spin("an answer", || self.hear(at))?;
            }
        }
        Ok(())
    }

    fn connections(&mut self) -> Result<()> {
        (0..AT_ONCE).try_for_each(|at| self.begin(at))?;
        if self.poll.is_some() {
            return self.events_until("connections", |this| this.heard == AT_ONCE);
        }
        let mut accepted = 0;
        spin("connections", || {
            accepted += self.accept()?;
            Ok(accepted == AT_ONCE)
        })?;
        (0..AT_ONCE).try_for_each(|at| self.ask(at))?;
        (0..AT_ONCE).try_for_each(|at| spin("a request", || self.answer(at)))?;
        self.each("answers", Self::hear)?;
        // The clients have closed.
        (0..AT_ONCE).try_for_each(|at| spin("an end", || self.answer(at)))?;
        self.served.clear();
        self.free.clear();
        Ok(())
    }

    fn bulk(&mut self) -> Result<usize> {
        static ZEROES: [u8; CHUNK] = [0; CHUNK];
        let (mut written, mut bytes) = (0, 0);
        for served in self.served.iter_mut().flatten() {
            while written < CHUNKS && matches!(served.write(&ZEROES), Ok(CHUNK)) {
                written += 1;
            }
        }
        for client in self.clients.iter_mut().flatten() {
            loop {
                match client.stream.read(&mut self.room) {
                    Ok(0) => bail!("a download was closed by the other side"),
                    Ok(count) => bytes += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("a download"),
                }
            }
        }
        // What is due comes from a timer or from a proxy.
        if bytes < CHUNK {
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(bytes)
    }

    /// `step` for each client until it says that it is done.
    fn each(&mut self, what: &str, step: impl Fn(&mut Self, usize) -> Result<bool>) -> Result<()> {
        (0..self.clients.len()).try_for_each(|at| spin(what, || step(self, at)))
    }

    fn begin(&mut self, at: usize) -> Result<()> {
        let to = self.to[self.begun % self.to.len()];
        self.begun += 1;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, flags, None)?;
        let stream = match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => TcpStream::from(socket),
            Err(errno) => return Err(errno).context(format!("connect to {to}")),
        };
        stream.set_nodelay(true)?;
        if let Some(poll) = &self.poll {
            poll.add(&stream, at)?;
        }
        self.clients[at] = Some(Client { stream, connecting: true });
        Ok(())
    }

    /// How many were accepted.
    fn accept(&mut self) -> Result<usize> {
        let mut accepted = 0;
        for listener in &self.listeners {
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                accepted += 1;
                let at = self.free.pop().unwrap_or(self.served.len());
                if let Some(poll) = &self.poll {
                    poll.add(&stream, SERVED + at)?;
                }
                if at == self.served.len() {
                    self.served.push(Some(stream));
                } else {
                    self.served[at] = Some(stream);
                }
            }
        }
        Ok(accepted)
    }

    fn ask(&mut self, at: usize) -> Result<()> {
        let Some(client) = &mut self.clients[at] else { return Ok(()) };
        client.connecting = false;
        client.stream.write_all(if self.kind == Transaction::Bulk { ENDLESS } else { REQUEST }).context("a request")
    }

    /// Answers what was asked there, or closes what the other side has closed. Whether there was anything.
    fn answer(&mut self, at: usize) -> Result<bool> {
        let Some(stream) = self.served.get_mut(at).and_then(Option::as_mut) else { return Ok(true) };
        match stream.read(&mut self.room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            // A proxy may reset what it needs no more.
            Ok(0) | Err(_) => {
                self.served[at] = None;
                self.free.push(at);
            }
            Ok(count) => {
                ensure!(head(&self.room[..count]).is_some(), "a request came in parts");
                stream.write_all(if self.kind == Transaction::Bulk { ANSWER_HEAD } else { ANSWER })?;
                self.answered += 1;
            }
        }
        Ok(true)
    }

    /// Whether the answer is there. A connection that isn't to stay is closed.
    fn hear(&mut self, at: usize) -> Result<bool> {
        let Some(client) = &mut self.clients[at] else { return Ok(true) };
        match client.stream.read(&mut self.room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("an answer"),
            Ok(0) => bail!("closed by the other side before an answer"),
            Ok(count) => ensure!(body(&self.room[..count]).is_some(), "an answer came in parts"),
        }
        self.heard += 1;
        if self.kind == Transaction::Connections {
            self.clients[at] = None;
        }
        Ok(true)
    }

    /// Does what epoll says can be done until `done`.
    fn events_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        while !done(self) {
            ensure!(start.elapsed() < TIMEOUT, "{what}: not within {TIMEOUT:?}");
            let Some(poll) = &mut self.poll else { bail!("no proxy") };
            for ready in poll.wait(Duration::from_millis(100))? {
                self.event(ready)?;
            }
        }
        Ok(())
    }

    fn event(&mut self, ready: Ready) -> Result<()> {
        match ready.token {
            LISTENERS.. => self.accept().map(drop),
            SERVED..LISTENERS if ready.readable => {
                let at = ready.token - SERVED;
                // An end behind a request has no event of its own.
                while self.served[at].is_some() && self.answer(at)? {}
                Ok(())
            }
            SERVED..LISTENERS => Ok(()),
            at => {
                let Some(client) = self.clients[at].as_ref() else { return Ok(()) };
                if client.connecting && ready.writable {
                    self.ask(at)?;
                }
                // Of a download only the bytes count, and a lap reads them.
                if ready.readable && self.kind != Transaction::Bulk {
                    self.hear(at)?;
                }
                Ok(())
            }
        }
    }
}
