//! A server that says who it is and whom it sees.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// A running server; it stops taking connections when dropped. Open connections live until their client ends them.
pub struct Server {
    socket: Socket,
    thread: Option<JoinHandle<()>>,
}

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Server {
    /// Listens on `address` in the network namespace of the calling thread. `seen` is called with each client.
    pub fn start(
        name: &str,
        address: SocketAddr,
        udp: bool,
        seen: impl Fn(SocketAddr) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let name: Arc<str> = name.into();
        let (socket, thread) = if udp {
            let socket = UdpSocket::bind(address)?;
            let answering = socket.try_clone()?;
            (Socket::Udp(socket), thread::spawn(move || answer_datagrams(&answering, &name, &seen)))
        } else {
            let listener = TcpListener::bind(address)?;
            let accepting = listener.try_clone()?;
            (Socket::Tcp(listener), thread::spawn(move || accept(&accepting, &name, &Arc::new(seen))))
        };
        Ok(Self { socket, thread: Some(thread) })
    }

    /// Serves for ever.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

unsafe extern "C" {
    safe fn shutdown(fd: i32, how: i32) -> i32;
}

/// `SHUT_RDWR`.
const BOTH: i32 = 2;

impl Drop for Server {
    fn drop(&mut self) {
        let fd = match &self.socket {
            Socket::Tcp(listener) => listener.as_raw_fd(),
            Socket::Udp(socket) => socket.as_raw_fd(),
        };
        // A thread that waits in accept or recvfrom wakes up by nothing else; closing the descriptor doesn't do it.
        shutdown(fd, BOTH);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, name: &Arc<str>, seen: &Arc<impl Fn(SocketAddr) + Send + Sync + 'static>) {
    // A small stack: thousands of connections may be open, each with a thread.
    const STACK: usize = 64 << 10;
    while let Ok((stream, client)) = listener.accept() {
        let (name, seen) = (name.clone(), seen.clone());
        let started = thread::Builder::new().stack_size(STACK).spawn(move || {
            seen(client);
            answer_lines(stream, &name, client)
        });
        if started.is_err() {
            return;
        }
    }
}

fn answer_lines(stream: TcpStream, name: &str, client: SocketAddr) -> io::Result<()> {
    let mut answers = stream.try_clone()?;
    let answer = format!("{name} {client}\n");
    for line in BufReader::new(stream).lines() {
        line?;
        answers.write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket, name: &str, seen: &impl Fn(SocketAddr)) {
    let mut buffer = [0; 2048];
    // After shutdown recv_from returns at once without a datagram, or with an error.
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        if length == 0 {
            return;
        }
        seen(client);
        let _ = socket.send_to(format!("{name} {client}\n").as_bytes(), client);
    }
}
