//! A pod's TCP server for thousands of connections: one thread, so that a connection costs a descriptor and nothing else.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Backlog, Shutdown, listen, shutdown};

use super::pod::Pod;
use super::traffic::PORT;

/// Answers each line with `<name> <client ip:port>` as the example program does; after the line `bye` it closes first.
/// It stops when dropped, and its connections end with it.
pub struct Crowd {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// On the port every pod serves.
    pub fn start(pod: &Pod) -> Self {
        Self::on(pod, PORT)
    }

    pub fn on(pod: &Pod, port: u16) -> Self {
        Self::at(pod, Ipv4Addr::UNSPECIFIED, port)
    }

    /// By one socket for both families.
    pub fn of_both(pod: &Pod, port: u16) -> Self {
        Self::at(pod, Ipv6Addr::UNSPECIFIED, port)
    }

    fn at(pod: &Pod, address: impl Into<IpAddr>, port: u16) -> Self {
        let address = address.into();
        let listener = pod.ns.run(|| TcpListener::bind((address, port))).expect("a server in a pod");
        // The standard library's backlog of 128 would turn hundreds of handshakes at once into SYN cookies.
        listen(&listener, Backlog::new(4095).unwrap()).expect("listen");
        listener.set_nonblocking(true).expect("a listener that doesn't block");
        let serving = Serving::new(listener.try_clone().expect("a second descriptor"), &pod.name);
        Self { listener, thread: Some(thread::spawn(move || serving.run())) }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Nothing else wakes the thread for good.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Serving {
    epoll: Epoll,
    listener: TcpListener,
    name: String,
    open: HashMap<u64, (TcpStream, SocketAddr)>,
}

impl Serving {
    fn new(listener: TcpListener, name: &str) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
        epoll.add(&listener, readable(&listener)).expect("watch a listener");
        Self { epoll, listener, name: name.into(), open: HashMap::new() }
    }

    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                Err(nix::Error::EINTR) => continue,
                Err(error) => panic!("epoll: {error}"),
            };
            for event in &events[..ready] {
                if event.data() != id(&self.listener) {
                    self.answer(event.data());
                } else if !self.accept() {
                    return;
                }
            }
        }
    }

    /// Takes some of those that wait; epoll tells of the rest again. False: the listener was shut down.
    fn accept(&mut self) -> bool {
        // Clients that never stop coming would have each connection kept open that has ended meanwhile.
        const AT_ONCE: usize = 64;
        for _ in 0..AT_ONCE {
            match self.listener.accept() {
                Ok((stream, client)) => {
                    stream.set_nonblocking(true).expect("a stream that doesn't block");
                    stream.set_nodelay(true).expect("a stream that doesn't wait");
                    self.epoll.add(&stream, readable(&stream)).expect("watch a connection");
                    self.open.insert(id(&stream), (stream, client));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                // The client has closed again.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return false,
                // A client would wait in vain, without a reason given.
                Err(error) => panic!("accept: {error}"),
            }
        }
        true
    }

    fn answer(&mut self, id: u64) {
        let Some((stream, client)) = self.open.get_mut(&id) else { return };
        let mut buffer = [0; 1024];
        let length = match stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            result => result.unwrap_or(0),
        };
        let asked = &buffer[..length];
        let lines = asked.split(|byte| *byte == b'\n').count() - 1;
        let answers = format!("{} {client}\n", self.name).repeat(lines);
        // So little fits into any buffer: what can't be written has no reader.
        let open = length > 0 && stream.write_all(answers.as_bytes()).is_ok() && !asked.ends_with(b"bye\n");
        if !open {
            self.open.remove(&id);
        }
    }
}

fn id(socket: &impl AsRawFd) -> u64 {
    socket.as_raw_fd().try_into().expect("a descriptor")
}

fn readable(socket: &impl AsRawFd) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, id(socket))
}
