//! One client connection: connect, ask, hear.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};

use super::body;
use super::poll::Poll;

/// An answer is no longer than this.
const ROOM: usize = 1024;

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Connecting,
    /// Nothing is being asked.
    Idle,
    Waiting,
}

pub struct Connection {
    stream: TcpStream,
    pub phase: Phase,
    heard: [u8; ROOM],
    length: usize,
}

impl Connection {
    /// Begins to connect.
    pub fn open(to: SocketAddrV4, poll: &Poll, token: usize) -> Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        match connect(socket.as_raw_fd(), &SockaddrIn::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(anyhow::Error::new(errno).context(format!("connect to {to}"))),
        }
        let stream = TcpStream::from(socket);
        poll.add(&stream, token)?;
        Ok(Self { stream, phase: Phase::Connecting, heard: [0; ROOM], length: 0 })
    }

    /// It has become writable. Says whether that means it is connected now.
    pub fn connected(&mut self) -> io::Result<bool> {
        if self.phase != Phase::Connecting {
            return Ok(false);
        }
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        self.phase = Phase::Idle;
        Ok(true)
    }

    /// Asks. A request is so short that it goes out as a whole.
    pub fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        self.length = 0;
        self.phase = Phase::Waiting;
        self.stream.write_all(request)
    }

    /// It has become readable. The body of the answer, once it is all there.
    pub fn hear(&mut self) -> io::Result<Option<&[u8]>> {
        if self.phase != Phase::Waiting {
            return self.silence().map(|()| None);
        }
        loop {
            match self.stream.read(&mut self.heard[self.length..]) {
                Ok(0) => return Err(io::Error::other("closed by the other side")),
                Ok(count) => self.length += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            if body(&self.heard[..self.length]).is_some() {
                self.phase = Phase::Idle;
                return Ok(body(&self.heard[..self.length]));
            }
        }
    }

    /// Nothing may come now, not even an end.
    fn silence(&mut self) -> io::Result<()> {
        if self.phase == Phase::Connecting {
            return Ok(());
        }
        match self.stream.read(&mut self.heard) {
            Ok(0) => Err(io::Error::other("closed by the other side")),
            Ok(_) => Err(io::Error::other("an answer without a request")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}
