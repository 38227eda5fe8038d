//! A pod's HTTP server with a given answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::socket::{Shutdown, shutdown};

use super::pod::Pod;

/// Answers every request with one status, or with silence.
pub struct HttpServer {
    listener: TcpListener,
    status: Arc<AtomicU16>,
    thread: Option<JoinHandle<()>>,
}

/// Instead of a status: the request is read and nothing is said.
pub const SILENCE: u16 = 0;

impl HttpServer {
    pub fn start(pod: &Pod, port: u16, status: u16) -> Self {
        let listener = pod.ns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).expect("a server in a pod");
        let status = Arc::new(AtomicU16::new(status));
        let (accepting, answer) = (listener.try_clone().expect("a second descriptor"), status.clone());
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let status = answer.load(Ordering::Relaxed);
                thread::spawn(move || respond(stream, status));
            }
        });
        Self { listener, status, thread: Some(thread) }
    }

    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Who asks may go away at any time.
fn respond(mut stream: TcpStream, status: u16) -> Option<()> {
    let mut request = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        request.read_line(&mut line).ok().filter(|length| *length > 0)?;
    }
    if status == SILENCE {
        let _ = request.read(&mut [0]); // until the client has had enough
        return None;
    }
    stream.write_all(format!("HTTP/1.1 {status} Told So\r\nContent-Length: 3\r\n\r\nso\n").as_bytes()).ok()
}
