//! Puts the parts together and keeps them going.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::announce::Announcer;
use super::arp::{self, Arp};
use super::config::{Announce, Config};
use super::daemon::{Daemon, Outcome};
use super::lease::Report;
use super::search::{self, Search};
use super::server::{self, Call, Server};
use super::source::{self, Notices, Sources};
use super::state::{Rules, State};
use super::store::{self, Store};
use super::watch::{self, Batch};
use super::{dataplane, saver};
use crate::net::link::{self, Link};
use crate::net::route::{self, Filter, Kind};
use crate::net::{self, NodeNet};
use crate::registry::{Registry, VipKey};
use crate::vip;

/// Why viprouted doesn't start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// The lease directory.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// DHCP.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The search for conflicts.
    #[error(transparent)]
    Search(#[from] search::Error),
    /// The link.
    #[error(transparent)]
    Arp(#[from] arp::Error),
    /// The kernel's tables.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// `dhcp.interface` names nothing.
    #[error("no interface {name:?} (dhcp.interface)")]
    NoInterface {
        /// As configured.
        name: String,
    },
    /// `announce = "arp"`, and nowhere to.
    #[error("announce = \"arp\" needs an Ethernet interface: dhcp.interface, or else the default route's")]
    NoLink,
    /// All that is bound to the old device has to be opened anew.
    #[error("interface {name} was made anew")]
    LinkReplaced {
        /// Its name.
        name: String,
    },
    /// A thread, signal or descriptor that can't be had.
    #[error("can't start the {part}")]
    System {
        /// What it is for.
        part: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A part that runs as long as viprouted has ended.
    #[error("the {part} has ended")]
    Ended {
        /// Which.
        part: &'static str,
    },
}

/// What the main loop listens to, besides signals.
struct Inbox {
    calls: UnboundedReceiver<Call>,
    reports: UnboundedReceiver<Report>,
    notices: Notices,
    outcomes: UnboundedReceiver<Outcome>,
    failures: UnboundedReceiver<(VipKey, vip::Error)>,
    batches: UnboundedReceiver<Batch>,
}

/// Runs until SIGTERM or SIGINT. Leases, routes and ARP entries stay when it ends: traffic goes on while viprouted is
/// replaced.
pub async fn run(config: Config) -> Result<(), Error> {
    let system = |part| move |source| Error::System { part, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("signal handler"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("signal handler"))?;
    let (calls, receiver) = mpsc::unbounded_channel();
    let (mut daemon, mut inbox) = build(&config, receiver)?;
    daemon.load()?;
    // What is in service is known before anybody is answered.
    let first = inbox.batches.recv().await.ok_or(Error::Ended { part: "registry watcher" })?;
    daemon.registry(first)?;
    let server = Server::bind(&config.socket)?;
    tracing::info!(socket = %config.socket.display(), "ready");
    tell_systemd();
    tokio::select! {
        result = serve(&mut daemon, &mut inbox) => result,
        () = server.run(calls) => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Opens everything but the socket.
fn build(config: &Config, calls: UnboundedReceiver<Call>) -> Result<(Daemon, Inbox), Error> {
    let system = |part| move |source| Error::System { part, source };
    let store = Arc::new(Store::open(&config.state_dir)?);
    let link = find_link(config)?;
    // A tunnel has no Ethernet address, and nobody on it to be asked.
    let ethernet = link.as_ref().filter(|link| link.mac.is_some());
    if config.announce == Announce::Arp && ethernet.is_none() {
        return Err(Error::NoLink);
    }
    let arp = ethernet.map(Arp::open).transpose()?;
    let on_link = ethernet.zip(arp);
    let (told, reports) = mpsc::unbounded_channel();
    let (sources, notices) = Sources::start(config, link.as_ref().map(|link| link.name.as_str()), told)?;
    let (failed, failures) = mpsc::unbounded_channel();
    let orders = dataplane::start(dataplane::Node::open(&config.data_dir)?, failed).map_err(system("dataplane"))?;
    let (done, outcomes) = mpsc::unbounded_channel();
    let saver = saver::start(store.clone(), done.clone()).map_err(system("lease writer"))?;
    let batches = watch::start(Registry::new(&config.data_dir)).map_err(system("registry watcher"))?;
    let daemon = Daemon {
        announce: config.announce,
        state: State::new(Rules::of(config)),
        backend: config.backend.name(),
        store,
        sources,
        search: Search::new(config, on_link.clone())?,
        announcer: on_link.map(|(link, arp)| Announcer::new(link, arp)).transpose()?,
        link,
        node: NodeNet::open()?,
        orders,
        saver,
        outcomes: done,
        callers: BTreeMap::new(),
        next_caller: 0,
        strangers: Vec::new(),
        trouble: None,
    };
    Ok((daemon, Inbox { calls, reports, notices, outcomes, failures, batches }))
}

/// Takes one thing after the other; nothing in it waits for long.
async fn serve(daemon: &mut Daemon, inbox: &mut Inbox) -> Result<(), Error> {
    loop {
        daemon.announce().await;
        let wake = until(daemon.next_tick(), daemon.next_announcement());
        tokio::select! {
            call = inbox.calls.recv() => daemon.call(alive(call, "server")?),
            report = inbox.reports.recv() => daemon.report(alive(report, "source of addresses")?),
            notice = next_notice(&mut inbox.notices) => {
                if let Some(report) = source::report(alive(notice, "DHCP engine")?) {
                    daemon.report(report);
                }
            }
            outcome = inbox.outcomes.recv() => daemon.outcome(alive(outcome, "lease writer")?),
            failure = inbox.failures.recv() => {
                let (vip, error) = alive(failure, "dataplane")?;
                daemon.stuck(&vip, &error);
            }
            batch = inbox.batches.recv() => daemon.registry(alive(batch, "registry watcher")?)?,
            () = tokio::time::sleep(wake) => daemon.tick(),
        }
    }
}

fn alive<T>(received: Option<T>, part: &'static str) -> Result<T, Error> {
    received.ok_or(Error::Ended { part })
}

async fn next_notice(notices: &mut Notices) -> Option<crate::dhcp::Notice> {
    match notices {
        Some(notices) => notices.recv().await,
        None => std::future::pending().await,
    }
}

/// The configured link, or the default route's; none if there is neither.
fn find_link(config: &Config) -> Result<Option<Link>, Error> {
    let node = NodeNet::open()?;
    if let Some(name) = &config.interface {
        let link = link::by_name(&node, name)?;
        return link.map(Some).ok_or_else(|| Error::NoInterface { name: name.clone() });
    }
    let main = Filter { table: Some(route::MAIN), ..Filter::default() };
    let routes = route::list(&node, main)?;
    let best = routes.iter().filter(|route| route.prefix.prefix() == 0).min_by_key(|route| route.metric);
    let index = best.and_then(|route| match &route.kind {
        Kind::Via(hops) => hops.first()?.index,
        _ => None,
    });
    Ok(match index {
        Some(index) => link::by_index(&node, index)?,
        None => None,
    })
}

/// `sd_notify(3)`: READY=1. Without systemd there is no such variable.
fn tell_systemd() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from) else { return };
    let send = || std::os::unix::net::UnixDatagram::unbound()?.send_to(b"READY=1", &path);
    if let Err(error) = send() {
        tracing::debug!(%error, socket = %path.display(), "systemd not told");
    }
}

/// The time from now to the earlier of the two; far away if there is neither.
fn until(wall: Option<SystemTime>, steady: Option<Instant>) -> Duration {
    let wall = wall.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
    let steady = steady.map(|at| at.saturating_duration_since(Instant::now()));
    wall.into_iter().chain(steady).min().unwrap_or(Duration::from_secs(3600))
}
