//! The checks `tcp` and `http`: a connection from inside the pod's namespace from the VIP to the VIP. By the pod's table for what
//! comes from its VIPs the VIP is its own, so this asks the very server that answers for the VIP, wherever the node's group would send it, and no packet leaves
//! the pod. Only the socket is made inside, by one thread for all; all of them are worked on by one thread outside.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::model::Transport;
use crate::model::check::Probe;
use crate::net::{Netns, Visitor};
use crate::node::subsystems::SubsystemGuard;
use crate::with_causes;

use super::discovery::ProbeTarget;
use super::hysteresis::Outcome;

/// So many at a time; each ends with its time-out, and of one replica there is one at most.
const AT_A_TIME: usize = 1000;
/// The status must be in so many first bytes of an answer.
const MAX_HEAD: usize = 16 * 1024;
/// So many headers are parsed: more do no harm, the status comes before them.
const HEADERS: usize = 64;

/// The target to be probed, and the scheduler's number for it, which comes back with the outcome.
pub type Order = (u64, Arc<ProbeTarget>);

/// Carries out orders until all senders are dropped.
pub fn run(
    runtime: &Runtime,
    guard: &SubsystemGuard,
    visitor: Visitor,
    mut orders: mpsc::UnboundedReceiver<Order>,
    tell: impl Fn(u64, Outcome) + Clone + Send + 'static,
) {
    let visitor = Arc::new(visitor);
    runtime.block_on(async {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        loop {
            guard.turn();
            let Ok(order) = timeout(guard.period(), orders.recv()).await else { continue };
            let Some((number, target)) = order else { return };
            // Never closed.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (tell, visitor) = (tell.clone(), visitor.clone());
            tokio::spawn(async move {
                let outcome = probe(&visitor, &target).await;
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

async fn probe(visitor: &Visitor, target: &ProbeTarget) -> Outcome {
    let limit = target.check.timeout;
    match timeout(limit, ask(visitor, target)).await {
        Ok(Ok(())) => Outcome::Up,
        Ok(Err(Failure::Its(why))) => Outcome::Down(why),
        Ok(Err(Failure::Ours(why))) => Outcome::Unknown(why),
        Err(_) => Outcome::Down(format!("no answer to {} within {limit:?}", target.check.probe)),
    }
}

async fn ask(visitor: &Visitor, target: &ProbeTarget) -> Result<(), Failure> {
    match &target.check.probe {
        Probe::Http { port, path } => {
            let to = SocketAddr::new(target.address, *port);
            get(connect(visitor, target, to, Close::Fin).await?, to, path).await
        }
        // `listen` is looked up, not probed.
        Probe::Tcp | Probe::Listen => {
            let ports = target.ports.iter().map(|listed| listed.at_pod());
            for port in ports.filter(|port| port.transport == Transport::Tcp) {
                connect(visitor, target, SocketAddr::new(target.address, port.number), Close::Reset).await?;
            }
            Ok(())
        }
    }
}

/// How a connection is closed.
enum Close {
    Fin,
    /// A check each second leaves no `TIME_WAIT` in the pod.
    Reset,
}

async fn connect(visitor: &Visitor, target: &ProbeTarget, to: SocketAddr, close: Close) -> Result<TcpStream, Failure> {
    let ours = |error: &dyn std::error::Error| Failure::Ours(with_causes(error));
    let netns = Netns::open(&target.netns.path).map_err(|e| ours(&e))?;
    let new = if to.is_ipv4() { TcpSocket::new_v4 } else { TcpSocket::new_v6 };
    let socket = visitor.run(netns, new).map_err(|e| ours(&e))?.map_err(|e| ours(&e))?;
    if matches!(close, Close::Reset) {
        socket.set_zero_linger().map_err(|e| ours(&e))?;
    }
    // From the VIP to itself: other calls of the pod's to its VIP leave it.
    socket.bind(SocketAddr::new(to.ip(), 0)).map_err(|e| ours(&e))?;
    socket.connect(to).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Its(format!("{to} refuses connections")),
        _ => Failure::Its(format!("{to}: {error}")),
    })
}

async fn get(mut stream: TcpStream, to: SocketAddr, path: &str) -> Result<(), Failure> {
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
