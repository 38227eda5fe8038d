//! The checks `tcp` and `http`: a connection from inside the pod's namespace to the VIP. There the VIP is the pod's own, so
//! this asks the very server that answers for the VIP, wherever the node's group would send it, and no packet leaves
//! the pod. Only the socket is made inside; all of them are worked on by one thread outside.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::health::Probe;
use crate::net::Netns;
use crate::registry::Transport;
use crate::with_causes;

use super::sighting::Subject;
use super::tally::Outcome;

/// So many at a time; each ends with its time-out, and of one replica there is one at most.
const AT_A_TIME: usize = 1000;
/// Bytes of an answer in which its status must stand.
const MAX_HEAD: usize = 16 * 1024;
/// Headers looked at: more of them are no harm, the status comes before.
const HEADERS: usize = 64;

/// Somebody to be probed, and the number to be told with the outcome.
pub type Order = (u64, Arc<Subject>);

/// Carries out orders until nobody can give any more.
pub fn run(
    runtime: &Runtime,
    mut orders: mpsc::UnboundedReceiver<Order>,
    tell: impl Fn(u64, Outcome) + Clone + Send + 'static,
) {
    runtime.block_on(async {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        while let Some((number, subject)) = orders.recv().await {
            // Never closed.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let tell = tell.clone();
            tokio::spawn(async move {
                let outcome = probe(&subject).await;
                drop(place);
                tell(number, outcome);
            });
        }
    });
}

/// Why a replica failed, or why it couldn't be asked.
enum Failure {
    Its(String),
    Ours(String),
}

async fn probe(subject: &Subject) -> Outcome {
    let limit = subject.check.timeout;
    match timeout(limit, ask(subject)).await {
        Ok(Ok(())) => Outcome::Up,
        Ok(Err(Failure::Its(why))) => Outcome::Down(why),
        Ok(Err(Failure::Ours(why))) => Outcome::Unknown(why),
        Err(_) => Outcome::Down(format!("no answer to {} within {limit:?}", subject.check.probe)),
    }
}

async fn ask(subject: &Subject) -> Result<(), Failure> {
    match &subject.check.probe {
        Probe::Http { port, path } => {
            let to = SocketAddrV4::new(subject.address, *port);
            get(connect(subject, to, false).await?, to, path).await
        }
        // `listen` is looked up, not probed.
        Probe::Tcp | Probe::Listen => {
            for port in subject.ports.iter().filter(|port| port.transport == Transport::Tcp) {
                connect(subject, SocketAddrV4::new(subject.address, port.number), true).await?;
            }
            Ok(())
        }
    }
}

/// `abort`: closing it is a reset, so that a check each second leaves no `TIME_WAIT` in the pod.
async fn connect(subject: &Subject, to: SocketAddrV4, abort: bool) -> Result<TcpStream, Failure> {
    let ours = |error: &dyn std::error::Error| Failure::Ours(with_causes(error));
    let netns = Netns::open(&subject.netns.path).map_err(|e| ours(&e))?;
    let socket = netns.run(TcpSocket::new_v4).map_err(|e| ours(&e))?.map_err(|e| ours(&e))?;
    if abort {
        socket.set_zero_linger().map_err(|e| ours(&e))?;
    }
    socket.connect(SocketAddr::V4(to)).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Its(format!("{to} refuses connections")),
        _ => Failure::Its(format!("{to}: {error}")),
    })
}

async fn get(mut stream: TcpStream, to: SocketAddrV4, path: &str) -> Result<(), Failure> {
    let its = |error: io::Error| Failure::Its(format!("GET {path} from {to}: {error}"));
    let version = env!("CARGO_PKG_VERSION");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: viproute/{version}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(its)?;
    let mut head = Vec::new();
    let status = loop {
        if let Some(status) =
            status(&head).map_err(|error| Failure::Its(format!("GET {path} from {to}: not HTTP: {error}")))?
        {
            break status;
        }
        if head.len() >= MAX_HEAD || stream.read_buf(&mut head).await.map_err(its)? == 0 {
            return Err(Failure::Its(format!("GET {path} from {to}: no whole answer")));
        }
    };
    if (200..400).contains(&status) {
        return Ok(());
    }
    Err(Failure::Its(format!("GET {path} from {to} is answered by {status}")))
}

/// The status of an answer, as soon as the line that has it is there.
fn status(head: &[u8]) -> Result<Option<u16>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(head) {
        // The line comes before the headers: what is wrong with those doesn't matter.
        Err(error) if response.code.is_none() => Err(error),
        _ => Ok(response.code.filter(|_| head.contains(&b'\n'))),
    }
}

/// A runtime for [`run`].
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_status_line_is_enough() {
        assert_eq!(status(b""), Ok(None));
        assert_eq!(status(b"HTTP/1.1 2"), Ok(None));
        assert_eq!(status(b"HTTP/1.1 200 OK"), Ok(None));
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n"), Ok(Some(200)));
        assert_eq!(status(b"HTTP/1.0 503 Service Unavailable\r\nServer: x\r\n\r\nbusy"), Ok(Some(503)));
        assert_eq!(status(b"HTTP/1.1 204 \r\n\r\n"), Ok(Some(204)));
        assert_eq!(status(b"HTTP/1.1 301 Moved\r\nbad header\r\n\r\n"), Ok(Some(301)));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(HEADERS + 1));
        assert_eq!(status(many.as_bytes()), Ok(Some(200)));
        assert!(status(b"SSH-2.0-OpenSSH_9.2\r\n").is_err());
        assert!(status(b"p1 10.0.0.1:80\n").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = status(&bytes);
            let _ = status(&[b"HTTP/1.1 200 ".as_slice(), &bytes].concat());
        }
    }
}
