//! Metrics in Prometheus' text format, and whether the agent is well: `/metrics`, `/healthz`, `/readyz`.

mod allocator;
mod collector;
mod counters;
mod http;
mod page;
mod peers;
mod traffic;
mod vips;

use std::io;
use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use allocator::{AllocatorStatus, StatusRequests};
pub use counters::{Counters, Syncer};

use crate::net::unix::{self, SocketFile};
use crate::node::config::Metrics;

use super::Context;
use super::subsystems::{METRICS, SubsystemGuard};
use collector::Collector;
use http::Service;

/// Between two samples of the VIPs' traffic. The kernel's event of a removed device has its last counters; the sample
/// before says which VIPs' they are.
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
pub fn start(
    context: &Context,
    places: &Metrics,
    status_requests: StatusRequests,
) -> Result<Option<SocketFile>, Error> {
    if places.socket.is_none() && places.listen.is_none() {
        return Ok(None);
    }
    let failed = |op| move |source| Error::Io { op, source };
    let (socket, file) = places.socket.as_deref().map(unix::listen).transpose()?.unzip();
    let tcp = places.listen.map(listen).transpose()?;
    let collector = Arc::new(Mutex::new(Collector::open(context)?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("start a runtime"))?;
    let service = Service { collector: collector.clone(), status_requests };
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
    let work = move |guard| runtime.block_on(sample(&collector, &guard));
    context.subsystems.spawn(&METRICS, work).map_err(failed("start a thread"))?;
    Ok(file)
}

/// Samples the traffic every [`SAMPLE`].
async fn sample(collector: &Mutex<Collector>, guard: &SubsystemGuard) {
    let mut ticks = tokio::time::interval(SAMPLE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        guard.turn();
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
