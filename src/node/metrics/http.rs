//! HTTP on a unix socket and a TCP address. One request a connection, few connections at a time, on each of the two.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::allocator::{self, AllocatorStatus, StatusRequests};
use super::collector::Collector;

/// Connections at a time on each socket. One more takes the place of the oldest if that has had [`GRACE`], else it is
/// closed: a flood of connections can't cut off a scrape that has just begun.
const MAX_CONNECTIONS: usize = 32;
/// A connection younger than this is never closed for another one.
const GRACE: Duration = Duration::from_secs(1);
/// From a connection's beginning to its end.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest request line and headers, bytes.
const MAX_HEAD: usize = 16 * 1024;

/// What answers are made of.
#[derive(Clone, Debug)]
pub struct Service {
    /// Reads; one answer is made at a time.
    pub collector: Arc<Mutex<Collector>>,
    /// The allocator.
    pub status_requests: StatusRequests,
}

impl Service {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let make = match request.uri().path() {
            "/metrics" => metrics,
            "/healthz" => healthz,
            "/readyz" => readyz,
            _ => return Ok(plain(StatusCode::NOT_FOUND, "not found: there are /metrics, /healthz and /readyz\n")),
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Ok(response);
        }
        let status = allocator::ask(&self.status_requests).await;
        let mut collector = self.collector.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(make(&mut collector, status.as_ref()))
    }
}

fn metrics(collector: &mut Collector, status: Option<&AllocatorStatus>) -> Response<Full<Bytes>> {
    match collector.metrics(status) {
        Ok(text) => {
            let mut response = plain(StatusCode::OK, text);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT));
            response
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn healthz(collector: &mut Collector, status: Option<&AllocatorStatus>) -> Response<Full<Bytes>> {
    page(&collector.liveness_errors(status))
}

fn readyz(collector: &mut Collector, status: Option<&AllocatorStatus>) -> Response<Full<Bytes>> {
    page(&collector.readiness_errors(status))
}

fn page(troubles: &[String]) -> Response<Full<Bytes>> {
    if troubles.is_empty() {
        return plain(StatusCode::OK, "ok\n");
    }
    plain(StatusCode::SERVICE_UNAVAILABLE, troubles.join("\n") + "\n")
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Serves a unix socket for ever.
pub async fn serve_unix(listener: UnixListener, service: Service) {
    let mut places = Places::default();
    loop {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        places.take(accepted, &service).await;
    }
}

/// Serves a TCP address for ever.
pub async fn serve_tcp(listener: TcpListener, service: Service) {
    let mut places = Places::default();
    loop {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        places.take(accepted, &service).await;
    }
}

/// The connections of a socket, the oldest first.
#[derive(Debug, Default)]
struct Places(VecDeque<(Instant, JoinHandle<()>)>);

impl Places {
    async fn take<S>(&mut self, accepted: io::Result<S>, service: &Service)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, most likely; some come back.
                tracing::warn!(%error, "connection for metrics not accepted");
                return sleep(Duration::from_millis(100)).await;
            }
        };
        if !self.make_room() {
            return; // the stream is dropped, which closes it
        }
        let service = service.clone();
        let connection = tokio::spawn(async move {
            let answer = service_fn(move |request| service.clone().answer(request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), answer);
            // How a connection ends is its client's business.
            let _ = timeout(CONNECTION_TIMEOUT, connection).await;
        });
        self.0.push_back((Instant::now(), connection));
    }

    /// Whether one more may come.
    fn make_room(&mut self) -> bool {
        self.0.retain(|(_, connection)| !connection.is_finished());
        if self.0.len() < MAX_CONNECTIONS {
            return true;
        }
        match self.0.front() {
            Some((begun, oldest)) if begun.elapsed() >= GRACE => oldest.abort(),
            _ => return false,
        }
        self.0.pop_front();
        true
    }
}
