//! The plugin's way to `viprouted`: connect, one line there, one line back, close. Blocking, no runtime.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use serde::de::DeserializeOwned;

use super::protocol::{
    self, AcquireRequest, Called, Events, EventsRequest, Grant, Identity, IdentityRequest, Leases, Refusal,
    ReleaseRequest, Released, Request, Status,
};

/// No reply is longer, in bytes: room for the leases of some hundred thousand VIPs.
const MAX_REPLY: usize = 32 * 1024 * 1024;

/// Why there is no reply to work with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No process listens on the socket, or the connection broke.
    #[error("viprouted can't be reached at {}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Connected, perhaps, but no whole line in time.
    #[error("viprouted at {} gave no answer within {:.1} s", socket.display(), timeout.as_secs_f64())]
    TimedOut {
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        timeout: Duration,
    },
    /// It answered, and the answer is no.
    #[error(transparent)]
    Refused(Refusal),
    /// It answered something that is no reply.
    #[error("viprouted at {} gave a garbled answer", socket.display())]
    Garbled {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Asks for the addresses of several VIPs side by side, which takes as long as the slowest of them; `timeout` at most. The
/// answers are in the order of the requests.
pub fn acquire_all(socket: &Path, requests: &[AcquireRequest], timeout: Duration) -> Vec<Result<Grant, Error>> {
    let deadline = Instant::now() + timeout;
    // A connection each: of one connection, viprouted answers a request when it has answered the one before.
    let asked: Vec<_> = requests
        .iter()
        .map(|request| {
            let line = encoded(socket, &Request::Acquire(request.clone()))?;
            send(socket, &line, deadline).map_err(|source| failed(socket, timeout, source))
        })
        .collect();
    let answer = |stream: Result<UnixStream, Error>| {
        let reply = receive(&mut stream?, deadline).map_err(|source| failed(socket, timeout, source))?;
        decoded(socket, &reply)
    };
    asked.into_iter().map(answer).collect()
}

/// Who the VIP is to the DHCP server.
pub fn identity(socket: &Path, vip: &str, timeout: Duration) -> Result<Identity, Error> {
    call(socket, &Request::Identity(IdentityRequest { vip: vip.into() }), timeout)
}

/// Says that the VIP's last replica on this node has left. Worth a short timeout only: viprouted finds out from the
/// registry anyway.
pub fn release(socket: &Path, vip: &str, timeout: Duration) -> Result<(), Error> {
    let request = Request::Release(ReleaseRequest { vip: vip.into() });
    call::<Released>(socket, &request, timeout).map(drop)
}

/// All leases.
pub fn leases(socket: &Path, timeout: Duration) -> Result<Leases, Error> {
    call(socket, &Request::Leases {}, timeout)
}

/// What has happened since the event of that number.
pub fn events(socket: &Path, after: u64, timeout: Duration) -> Result<Events, Error> {
    call(socket, &Request::Events(EventsRequest { after }), timeout)
}

/// This node and the others.
#[cfg(feature = "node")]
pub fn nodes(socket: &Path, timeout: Duration) -> Result<protocol::Nodes, Error> {
    call(socket, &Request::Nodes {}, timeout)
}

/// What `viprouted` knows of Kubernetes Services. `examine`: also what only the API can say.
#[cfg(feature = "node")]
pub fn kubernetes(socket: &Path, examine: bool, timeout: Duration) -> Result<protocol::Kubernetes, Error> {
    call(socket, &Request::Kubernetes(protocol::KubernetesRequest { examine }), timeout)
}

/// Has the others told that this node leaves. False: it stands alone.
#[cfg(feature = "node")]
pub fn depart(socket: &Path, timeout: Duration) -> Result<bool, Error> {
    call(socket, &Request::Depart {}, timeout).map(|protocol::Departed { departed }| departed)
}

/// The state of every VIP.
pub fn status(socket: &Path, timeout: Duration) -> Result<Status, Error> {
    call(socket, &Request::Status {}, timeout)
}

/// Reports a call of the plugin to viprouted, without waiting: what can't be sent at once is dropped.
pub fn tell(socket: &Path, called: Called) {
    let Ok(line) = protocol::encode(&Request::Called(called)) else { return };
    // A full backlog is EAGAIN to a connect that doesn't block. What is sent stays to be read when we have closed.
    let _ = connect_now(socket).and_then(|fd| {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        Ok(socket::send(fd.as_raw_fd(), &line, flags)?)
    });
}

fn connect_now(socket: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(fd.as_raw_fd(), &UnixAddr::new(socket)?)?;
    Ok(fd)
}

/// One request, one reply.
fn call<T: DeserializeOwned>(socket: &Path, request: &Request, timeout: Duration) -> Result<T, Error> {
    let line = encoded(socket, request)?;
    let deadline = Instant::now() + timeout;
    let reply = send(socket, &line, deadline).and_then(|mut stream| receive(&mut stream, deadline));
    decoded(socket, &reply.map_err(|source| failed(socket, timeout, source))?)
}

fn encoded(socket: &Path, request: &Request) -> Result<Vec<u8>, Error> {
    protocol::encode(request).map_err(|source| Error::Garbled { socket: socket.into(), source })
}

fn decoded<T: DeserializeOwned>(socket: &Path, reply: &[u8]) -> Result<T, Error> {
    let garbled = |source| Error::Garbled { socket: socket.into(), source };
    protocol::decode_reply(reply).map_err(garbled)?.map_err(Error::Refused)
}

fn failed(socket: &Path, timeout: Duration, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::TimedOut { socket: socket.into(), timeout },
        _ => Error::Unreachable { socket: socket.into(), source },
    }
}

/// Connects and sends `line`.
fn send(socket: &Path, line: &[u8], deadline: Instant) -> io::Result<UnixStream> {
    let mut stream = connect(socket, deadline)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(line)?;
    Ok(stream)
}

/// Reads up to the first newline.
fn receive(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut reply = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        let n = match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if let Some(end) = chunk[..n].iter().position(|byte| *byte == b'\n') {
            reply.extend_from_slice(&chunk[..end]);
            return Ok(reply);
        }
        reply.extend_from_slice(&chunk[..n]);
        if reply.len() > MAX_REPLY {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
}

/// Connects before `deadline`. `UnixStream::connect` would wait for ever at a full backlog; the kernel honours
/// `SO_SNDTIMEO` there.
fn connect(socket: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let wait = left(deadline)?;
    let wait = TimeVal::new(wait.as_secs().try_into().unwrap_or(i64::MAX), wait.subsec_micros().into());
    socket::setsockopt(&fd, sockopt::SendTimeout, &wait)?;
    socket::connect(fd.as_raw_fd(), &UnixAddr::new(socket)?)?;
    Ok(UnixStream::from(fd))
}

/// The time up to `deadline`, never zero: a zero timeout means none to the kernel.
fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        left if left < Duration::from_micros(1) => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_millis(100);

    /// A socket path of its own for each test, removed with it.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let file = format!("viproute-client-{name}-{}.sock", std::process::id());
            Self(std::env::temp_dir().join(file))
        }

        /// Answers one connection with `reply`.
        fn answer(&self, reply: &'static [u8]) -> thread::JoinHandle<String> {
            let listener = UnixListener::bind(&self.0).unwrap();
            thread::spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                (&stream).write_all(reply).unwrap();
                line
            })
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn an_address_comes_back() {
        let place = Place::new("grant");
        let server = place.answer(b"{\"address\":\"10.118.0.7\",\"expires\":1790000000}\n");
        let request = AcquireRequest {
            vip: "shop/web".into(),
            pod: [10, 1, 0, 5].into(),
            node: [192, 0, 2, 1].into(),
            gateway: None,
        };
        let grant = acquire_all(&place.0, std::slice::from_ref(&request), Duration::from_secs(5)).remove(0).unwrap();
        assert_eq!(
            grant,
            Grant {
                address: [10, 118, 0, 7].into(),
                others: Vec::new(),
                expires: Some(1_790_000_000),
                registry: None,
                policy: None,
                no_ipv6: None
            }
        );
        assert_eq!(
            server.join().unwrap(),
            "{\"acquire\":{\"vip\":\"shop/web\",\"pod\":\"10.1.0.5\",\"node\":\"192.0.2.1\"}}\n"
        );
    }

    /// A server that answers each request only when it has received all.
    #[test]
    fn several_are_asked_for_side_by_side() {
        let place = Place::new("several");
        let listener = UnixListener::bind(&place.0).unwrap();
        let server = thread::spawn(move || {
            let heard = |_| {
                let (stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                (stream, line)
            };
            let all: Vec<_> = (0..8).map(heard).collect();
            for (mut stream, line) in all.into_iter().rev() {
                let number = line.chars().find(char::is_ascii_digit).unwrap();
                let reply = match number {
                    '3' => "{\"error\":{\"code\":11,\"msg\":\"none free\"}}\n".to_owned(),
                    _ => format!("{{\"address\":\"10.118.0.{number}\",\"expires\":null}}\n"),
                };
                stream.write_all(reply.as_bytes()).unwrap();
            }
        });
        let request = |number| AcquireRequest {
            vip: format!("shop/web-{number}"),
            pod: [10, 1, 0, 5].into(),
            node: [192, 0, 2, 1].into(),
            gateway: None,
        };
        let requests: Vec<_> = (0..8).map(request).collect();
        let answers = acquire_all(&place.0, &requests, Duration::from_secs(5));
        server.join().unwrap();
        for (number, answer) in (0..8).zip(answers) {
            match answer {
                Err(Error::Refused(Refusal { code: 11, .. })) if number == 3 => {}
                answer => assert_eq!(answer.unwrap().address, std::net::Ipv4Addr::new(10, 118, 0, number)),
            }
        }
    }

    #[test]
    fn a_missing_socket_is_unreachable() {
        let place = Place::new("unreachable");
        let error = status(&place.0, SOON).unwrap_err();
        let Error::Unreachable { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_connection_closed_without_a_word_is_unreachable() {
        let place = Place::new("eof");
        let _server = place.answer(b"{\"addr");
        assert!(matches!(leases(&place.0, SOON * 20), Err(Error::Unreachable { .. })));
    }

    #[test]
    fn silence_times_out_also_before_accept() {
        let place = Place::new("silent");
        let _listener = UnixListener::bind(&place.0).unwrap();
        let before = Instant::now();
        assert!(matches!(release(&place.0, "a/b", SOON), Err(Error::TimedOut { .. })));
        assert!(before.elapsed() < SOON * 10);
    }

    #[test]
    fn garbage_and_refusals_are_told_apart() {
        let place = Place::new("garbage");
        let _server = place.answer(b"hello\n");
        assert!(matches!(leases(&place.0, SOON * 20), Err(Error::Garbled { .. })));
        let place = Place::new("refusal");
        let _server = place.answer(b"{\"error\":{\"code\":11,\"msg\":\"none free\"}}\n");
        let error = leases(&place.0, SOON * 20).unwrap_err();
        assert_eq!(error.to_string(), "none free");
        assert!(matches!(error, Error::Refused(Refusal { code: 11, .. })));
    }
}
