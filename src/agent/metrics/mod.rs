//! Metrics in Prometheus' text format, and whether the agent is well: `/metrics`, `/healthz`, `/readyz`.

mod allocator;
mod collector;
mod counters;
mod http;
mod page;
mod traffic;
mod vips;

use std::io;
use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

pub use allocator::{Inquiries, Standing};
pub use counters::{Counters, Syncer};

use super::Context;
use crate::allocator::config::Metrics;
use crate::net::unix::{self, SocketFile};
use collector::Collector;
use http::Service;

/// Between two looks at the traffic of the VIPs. What a device counted in the end is heard of when it goes; a look tells
/// whose it was.
const SAMPLE: Duration = Duration::from_secs(15);

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The unix socket.
    #[error("no socket for metrics")]
    Unix(#[from] unix::Error),
    /// The TCP address.
    #[error("can't listen on {address} (metrics_listen)")]
    Tcp {
        /// The address.
        address: SocketAddrV4,
        /// Why.
        source: io::Error,
    },
    /// No runtime or thread.
    #[error("{op} for metrics")]
    Io {
        /// What was tried.
        op: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Nothing to read the kernel with.
    #[error("no metrics")]
    Net(#[from] crate::net::Error),
}

/// Starts serving where `places` says, on a thread of its own. The socket's file goes with what is returned.
pub fn start(context: &Context, places: &Metrics, inquiries: Inquiries) -> Result<Option<SocketFile>, Error> {
    if places.socket.is_none() && places.listen.is_none() {
        return Ok(None);
    }
    let failed = |op| move |source| Error::Io { op, source };
    let (socket, file) = places.socket.as_deref().map(unix::listen).transpose()?.unzip();
    let tcp = places.listen.map(listen).transpose()?;
    let collector = Arc::new(Mutex::new(Collector::open(context)?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("start a runtime"))?;
    let service = Service { collector: collector.clone(), inquiries };
    {
        let _inside = runtime.enter();
        if let Some(socket) = socket {
            let socket = tokio::net::UnixListener::from_std(socket).map_err(failed("listen"))?;
            runtime.spawn(http::serve_unix(socket, service.clone()));
        }
        if let Some(tcp) = tcp {
            let tcp = tokio::net::TcpListener::from_std(tcp).map_err(failed("listen"))?;
            runtime.spawn(http::serve_tcp(tcp, service));
        }
    }
    let at_work = context.parts.begin("metrics");
    let work = move || {
        let _at_work = at_work;
        runtime.block_on(sample(&collector));
    };
    thread::Builder::new().name("metrics".into()).spawn(work).map_err(failed("start a thread"))?;
    Ok(file)
}

/// Looks at the traffic again and again.
async fn sample(collector: &Mutex<Collector>) {
    let mut ticks = tokio::time::interval(SAMPLE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        collector.lock().unwrap_or_else(PoisonError::into_inner).sample();
    }
}

fn listen(address: SocketAddrV4) -> Result<std::net::TcpListener, Error> {
    let listener = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| Error::Tcp { address, source })
}
